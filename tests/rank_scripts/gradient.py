"""One rank: the gradient of the first global batch, batch norm in eval mode, and the validation numbers."""

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

config_path, run_dir, out, dtype, what = sys.argv[1:6]
env, device = DistEnv.from_environ(), torch.device("cpu")
(Path(run_dir) / "logs").mkdir(parents=True, exist_ok=True)
(Path(run_dir) / "weights").mkdir(parents=True, exist_ok=True)
torch.set_default_dtype(getattr(torch, dtype))
with process_group(env, device):
    heartbeat = HeartbeatWriter(RunFiles(Path(run_dir)).logs, env.rank)
    config = make_config(read_options(Path(config_path)))
    run, _ = build_run(config, env, device, Path(run_dir), Reporter(enabled=False), heartbeat)
    # Statistics that are not the initial ones, so that eval mode is a real function of them.
    generator = torch.Generator().manual_seed(1)
    for name, buffer in run.state.model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape, generator=generator) * 0.1)
    if what == "gradient":
        loop.update_weights = lambda run: None  # keep the gradient as backward left it
        run.model.train()
        for module in run.state.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        step = int(sys.argv[6])
        batch = next(run.epoch_loader.epoch(0, step, []))
        loop.train_step(run, batch, is_update=True)
        gradient = torch.cat([p.grad.flatten() for p in run.state.model.parameters()])
        loss = run.collectives.sum(run.state.loss_sums.clone())
        result = {"gradient": gradient, "loss": loss, "images": len(batch)}
    else:
        run.state.ema.model.load_state_dict(run.state.model.state_dict())
        metrics = run.validator.validate(run.state.ema)
        result = {"row": metrics.row(), "confusion": torch.from_numpy(metrics.confusion), "images": metrics.images}
torch.save(result, f"{out}.{env.rank}")
