"""The first hour with a card: what must be right on it, and how fast it is.

python benchmarks/gpu.py --out DIR [--parts A,B] [--continue results.json] [--minutes N] [--data-dir DIR]
    [--peer-python PYTHON] [--rehearse] [--plant PART]

Each part runs in a process of its own, as long as it may take. DIR gets results.json and results.md. The exit code is
0, 1 if a part failed, 3 if there is no card. ``--data-dir`` holds bccd, coco_permissive and yolov5n.pt. With
``--peer-python``, the interpreter of an environment with the package ``yolov5`` or ``ultralytics``, the parts that
measure speed run those too, in turn, three times; a peer that fails is named and turns no part red. With --rehearse
every part runs on the CPU at toy size, on the repository's own small set. ``--plant`` turns what one part found around,
to see it fail. Rows for two cards are "not run" on one.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_part import Part
from benchmarks.gpu_parts import PARTS, WITH_PEERS
from benchmarks.peers import PROJECT_DIR, find_programs, shown

PEER_FACTOR = 8
"""How many times as long a part may take beside peers: three programs, three times."""
TWO_CARDS = ("gradients of 2 ranks", "kill -9 of rank 1", "scaling 1 -> 2")


def run_part(name, options):
    """The child: one part, its findings as JSON on the last line."""
    device = "cpu" if options.rehearse else "cuda"
    folder = Path(tempfile.mkdtemp(prefix="yolo-launch-gpu-"))
    programs = find_programs(options.peer_python if name in WITH_PEERS else None)
    part = Part(device, *data_of(options), folder, options.rehearse, programs=programs)
    began_at = time.monotonic()
    error = ""
    try:
        PARTS[name][0](part)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"[:600]
    if options.plant == name:
        for check in part.checks:
            check["ok"] = not check["ok"]
    found = {"checks": part.checks, "figures": part.figures, "peers": part.peers, "error": error}
    found["seconds"] = time.monotonic() - began_at
    print("\n" + json.dumps(found))


def last_of(output):
    """What a part printed last: all that it had found by then."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return json.loads(lines[-1]) if lines else {}


def data_of(options):
    """The two data sets and the weights: the given ones, or the repository's own."""
    if options.data_dir:
        folder = options.data_dir.resolve()
        return folder / "bccd/bccd.yaml", folder / "coco_permissive/coco_permissive.yaml", folder / "yolov5n.pt"
    own = PROJECT_DIR / "tests" / "data"
    return own / "bccd/bccd.yaml", own / "bccd/bccd.yaml", own / "detector.pt"


def verdict_on(found):
    """Whether a part is green: it ran, checked something, measured something finite, and nothing was wrong."""
    figures = found.get("figures", {})
    finite = figures and all(math.isfinite(value) for one in figures.values() for value in one["values"])
    return bool(not found.get("error") and found.get("checks") and finite and all(one["ok"] for one in found["checks"]))


def facts(peer_python):
    """The card, the driver and the versions."""
    known = {"python": platform.python_version(), "torch": torch.__version__}
    known |= {"peer": ", ".join(program.name for program in find_programs(peer_python)[1:])} if peer_python else {}
    if torch.cuda.is_available():
        known |= {"card": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        known["driver"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return known


def peer_row(one):
    """What one program showed beside the others, or why it did not."""
    start = f"| | {one['what']}{', ' + one['figure'] if 'figure' in one else ''}: {one['program']} |"
    if "failed" in one:
        return f"{start} {one['failed'].replace('|', '/')} | |"
    return f"{start} {one['median']:.4g} {one['unit']} | ours is {shown(one['ratio'], '{:.2f}')} times as good |"


def as_markdown(results):
    """The table of all parts."""
    lines = ["| part | what | seen | |", "|---|---|---|---|"]
    for name, found in results["parts"].items():
        state = "green" if verdict_on(found) else "RED"
        lines.append(f"| **{name}** | {state}, {found.get('seconds', 0):.0f} s | {found.get('error', '')} | |")
        for what, one in found.get("figures", {}).items():
            lines.append(f"| | {what} | {one['median']:.4g} {one['unit']} | {one['note']} |")
        lines += [peer_row(one) for one in found.get("peers", ())]
        lines += [
            f"| | {one['what']} | {one['seen']} | expected {one['expected']} |"
            for one in found.get("checks", ())
            if not one["ok"]
        ]
    lines += [f"| {row} | not run: one card | | |" for row in TWO_CARDS]
    facts_line = ", ".join(f"{name} {value}" for name, value in results["facts"].items())
    return f"{facts_line}\n\n" + "\n".join(lines) + "\n"


def run_apart(name, words, limit_s):
    """Runs a part in a process of its own and returns what it found."""
    try:
        command = [sys.executable, str(Path(__file__)), *words, "--child", name]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as late:
        return {**last_of(late.stdout or b""), "error": f"it took more than {limit_s:.0f} s", "seconds": limit_s}
    found = last_of(ended.stdout) or {"error": ended.stderr[-600:]}
    if "seconds" not in found:
        found["error"] = f"it ended with {ended.returncode}: {ended.stderr[-600:]}"
    return found


def main():
    """Runs the parts that were asked for, in order, and writes what they found after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--continue", dest="earlier", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--peer-python", help="interpreter of an environment with the package yolov5 or ultralytics")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--plant", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_part(options.child, options)
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print("no CUDA device that torch can start: nothing was measured", file=sys.stderr)
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    results = (
        json.loads(options.earlier.read_text())
        if options.earlier
        else {"facts": facts(options.peer_python), "parts": {}}
    )
    began_at, own = time.monotonic(), [word for word in sys.argv[1:] if word != "--child"]
    for name in options.parts.split(","):
        if verdict_on(results["parts"].get(name, {})):
            continue
        left_s = 60 * options.minutes - (time.monotonic() - began_at)
        if left_s < 5:
            print(f"{name}: no time left")
            continue
        slower = PEER_FACTOR if options.peer_python and name in WITH_PEERS else 1
        limit_s = min(slower * PARTS[name][1], left_s)
        found = run_apart(name, own, limit_s)
        results["parts"][name] = found
        (options.out / "results.json").write_text(json.dumps(results, indent=1))
        (options.out / "results.md").write_text(as_markdown(results))
        print(f"{name}: {'green' if verdict_on(found) else 'RED'} {found.get('error', '')}", flush=True)
    print(as_markdown(results))
    return 0 if all(verdict_on(found) for found in results["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
