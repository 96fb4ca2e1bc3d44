"""Final mAP of one rank over several seeds beside that of more ranks, as a table.

    python benchmarks/ranks.py --data bccd.yaml --weights yolov5n.pt [--frozen] [--seeds 4] [--epochs 8] [--imgsz 160]

The ranks are processes on this machine's CPU, with one thread each, so that they differ in nothing but their number.
With ``--frozen`` batch norm keeps the statistics of the weights; without, each rank normalises by its own images, as
any run on a CPU does.
"""

from __future__ import annotations

import argparse
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
from torch import nn
from trainer.config import read_config
from trainer.worker import main
if sys.argv[3] == "frozen":
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
sys.exit(main(read_config(Path(sys.argv[1])), Path(sys.argv[2])))
"""


def train(options, run_dir, world_size, batch_norm):
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
        command = [sys.executable, "-c", WORKER, str(config), str(run_dir), batch_norm]
        processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in processes]
    assert codes == [0] * world_size, codes
    return json.loads((run_dir / "summary.json").read_text()), time.monotonic() - started_at


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--frozen", action="store_true", help="keep batch norm's statistics")
    parser.add_argument("--seeds", type=int, default=4, help="runs of one rank")
    parser.add_argument("--shared-seeds", type=int, default=2, help="runs of two and of three ranks")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parsed = parser.parse_args()
    batch_norm = "frozen" if parsed.frozen else "training"
    print("| ranks | seed | mAP50 | mAP50-95 | s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for world_size, seeds in ((1, parsed.seeds), (2, parsed.shared_seeds), (3, parsed.shared_seeds)):
            for seed in range(seeds):
                options = {"data": parsed.data, "weights": parsed.weights, "imgsz": parsed.imgsz, "seed": seed}
                options |= {"batch_size": parsed.batch, "epochs": parsed.epochs, "workers": 0, "plots": False}
                summary, seconds = train(options, Path(folder) / f"{world_size}-{seed}", world_size, batch_norm)
                metrics = f"{summary['map50']:.3f} | {summary['map5095']:.3f}"
                print(f"| {world_size} | {seed} | {metrics} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
