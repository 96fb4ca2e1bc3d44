"""Final mAP of one rank over several seeds beside that of more ranks, as a table.

    python benchmarks/ranks.py --data bccd.yaml --weights yolov5n.pt --batch-norm synchronized [--seeds 4] [--nudges 2]

The ranks are processes on this machine's CPU, with one thread each, so that they differ in nothing but their number.
``--batch-norm``: ``frozen`` keeps the statistics of the weights, ``synchronized`` shares those of the batch over ranks
(``--sync-bn``), ``own`` lets each rank normalize by its own images, as any run without that option does.

``--nudges`` repeats the runs from starting weights that differ by rounding, one part in ten million: what that does to
the final mAP is what rounding explains.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

WORKER = """
import sys
from pathlib import Path
import torch
import trainer.training.build
from torch import nn
from trainer.config.train import read_config
from trainer.training.worker import main
if sys.argv[3] == "frozen":
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
nudge, freeze_layers = int(sys.argv[4]), trainer.training.build.freeze_layers
def nudged(model, *others):
    freeze_layers(model, *others)
    generator = torch.Generator().manual_seed(nudge)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1 + 1e-7 * torch.randn(weights.shape, generator=generator))
if nudge:
    trainer.training.build.freeze_layers = nudged
sys.exit(main(read_config(Path(sys.argv[1])), Path(sys.argv[2])))
"""


def train(options, run_dir, world_size, batch_norm, nudge):
    """The summary of a run, and its seconds."""
    run_dir.mkdir(parents=True)
    config = run_dir / "config.yaml"
    config.write_text(yaml.safe_dump(options))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started_at, processes = time.monotonic(), []
    for rank in range(world_size):
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        if world_size > 1:
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-c", WORKER, str(config), str(run_dir), batch_norm, str(nudge)]
        processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in processes]
    assert codes == [0] * world_size, codes
    return json.loads((run_dir / "summary.json").read_text()), time.monotonic() - started_at


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--batch-norm", choices=("frozen", "synchronized", "own"), default="synchronized")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--nudges", type=int, default=0, help="further runs of each, nudged")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parsed = parser.parse_args()
    print("| ranks | nudge | seed | mAP50 | mAP50-95 | s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for seed, world_size in itertools.product(parsed.seeds, parsed.ranks):
            for nudge in range(1 + parsed.nudges):
                options = {"data": parsed.data, "weights": parsed.weights, "imgsz": parsed.imgsz, "seed": seed}
                options |= {"batch_size": parsed.batch, "epochs": parsed.epochs, "workers": 0, "plots": False}
                options["sync_bn"] = parsed.batch_norm == "synchronized"
                run_dir = Path(folder) / f"{world_size}-{nudge}-{seed}"
                summary, seconds = train(options, run_dir, world_size, parsed.batch_norm, nudge)
                metrics = f"{summary['map50']:.3f} | {summary['map5095']:.3f}"
                print(f"| {world_size} | {nudge} | {seed} | {metrics} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
