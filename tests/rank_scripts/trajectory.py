"""One rank: some steps of training, batch norm frozen or not; every step's global loss, the weights, the buffers."""

import sys
from pathlib import Path

import torch

import trainer.training.loop as loop
from trainer.config.fields import read_options
from trainer.config.train import make_config
from trainer.protocol import RunFiles
from trainer.runtime.distributed import DistEnv, process_group
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.training.build import build_run

config_path, run_dir, out, dtype, steps, batch_norm = sys.argv[1:7]
env, device = DistEnv.from_environ(), torch.device("cpu")
for folder in ("logs", "weights"):
    (Path(run_dir) / folder).mkdir(parents=True, exist_ok=True)
torch.set_default_dtype(getattr(torch, dtype))
losses = []
with process_group(env, device):
    heartbeat = HeartbeatWriter(RunFiles(Path(run_dir)).logs, env.rank)
    config = make_config(read_options(Path(config_path)))
    run, _ = build_run(config, env, device, Path(run_dir), Reporter(enabled=False), heartbeat)
    progress = run.state.progress
    run.model.train()
    for module in run.state.model.modules():
        if batch_norm == "frozen" and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    pending = 0
    while progress.micro_step < int(steps):
        for batch in run.epoch_loader.epoch(progress.epoch, progress.batch, []):
            is_last = progress.batch + 1 == run.schedule.batches_per_epoch
            is_update = is_last or pending + 1 >= run.schedule.accumulation_at(progress.micro_step)
            run.state.loss_sums.zero_()
            loop.train_step(run, batch, is_update=is_update)
            losses.append(run.collectives.sum(run.state.loss_sums.clone()))
            pending = 0 if is_update else pending + 1
            progress.batch, progress.micro_step = progress.batch + 1, progress.micro_step + 1
        progress.epoch, progress.batch = progress.epoch + 1, 0
    weights = torch.cat([parameter.detach().flatten() for parameter in run.state.model.parameters()])
    buffers = torch.cat([buffer.flatten().to(weights) for buffer in run.state.model.buffers()])
torch.save({"losses": torch.stack(losses), "weights": weights, "buffers": buffers}, f"{out}.{env.rank}")
