"""How long the steps of a real run wait for its checkpoints, as a table.

    python benchmarks/checkpoints.py --data bccd.yaml [--epochs 3] [--imgsz 320] [--batch 16]

One rank on the CPU. The wait is what ``metrics.jsonl`` holds as ``checkpoint_wait``: copying the state and handing it
to the writer. The last checkpoint of a run, after which no step waits, is not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml


def train(options, run_dir):
    """Seconds of training, seconds waited, and MB of a checkpoint."""
    run_dir.mkdir(parents=True)
    config = run_dir / "config.yaml"
    config.write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "trainer", str(config), "--run-dir", str(run_dir)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(row["seconds"] for row in rows)
    waited_s = sum(row["seconds"] * row["checkpoint_wait"] for row in rows)
    return seconds, waited_s, (run_dir / "weights" / "last.pt").stat().st_size / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parsed = parser.parse_args()
    print("| model | interval, s | checkpoint, MB | training, s | waited, s | share |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for cfg, interval_s in (("yolov5n", 60), ("yolov5n", 2), ("yolov5s", 60)):
            options = {"data": parsed.data, "cfg": cfg, "weights": "", "imgsz": parsed.imgsz, "epochs": parsed.epochs}
            options |= {"batch_size": parsed.batch, "workers": 0, "plots": False, "checkpoint_interval_s": interval_s}
            seconds, waited_s, size_mb = train(options, Path(folder) / f"{cfg}-{interval_s}")
            share = f"{waited_s / seconds:.2%}"
            print(f"| {cfg} | {interval_s} | {size_mb:.0f} | {seconds:.0f} | {waited_s:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
