"""What the launcher does with old and new torch: makes virtual environments in a folder and runs real workers in them.

    python benchmarks/torch_versions.py --folder /tmp/torch-versions --python python3.10

Torch 1.12.0 is refused for several workers, with the reason, and let through for one; with the others two gloo workers
run under ``yolo-launch run``. Environments that are in the folder already (v1.13.1, ...) are used as they are; a first
run downloads about 3 GB. The last row is the torch of the Python that runs this.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
VERSIONS = ("1.12.0", "1.13.1", "2.4.1")
REFUSED = "1.12.0"
# What the command line imports; torch itself comes with its exact version.
PACKAGES = ("typer>=0.15.4", "rich>=13", "pydantic>=2.5", "pyyaml>=6", "psutil>=5.9", "nvidia-ml-py", "numpy<2")
LIMIT_S = 180
SCRIPT = """
import os, torch, torch.distributed as dist
size = int(os.environ.get("WORLD_SIZE", "1"))
total = torch.ones(1)
if size > 1:
    dist.init_process_group("gloo")
    dist.all_reduce(total)
assert total.item() == size, total
if int(os.environ.get("RANK", "0")) == 0:
    print(f"TORCH {torch.__version__} SUM {int(total.item())}", flush=True)
if size > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def make_environment(folder: Path, version: str, base_python: str) -> Path:
    """The Python of an environment with this torch, made where it is absent."""
    python = folder / f"v{version}" / "bin" / "python"
    if not python.exists():
        subprocess.run([base_python, "-m", "venv", str(python.parent.parent)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"torch=={version}", *PACKAGES], check=True, stdout=sys.stderr)
    return python


def run_workers(python: Path, folder: Path, script: Path, nproc: int) -> tuple[int, str, float]:
    """Exit code, all output and seconds of ``yolo-launch run`` with so many workers on the CPU."""
    entry = "from yolo_launch.cli import main; main()"
    command = [str(python), "-c", entry, "run", str(script), "--gpus", "cpu", "--nproc", str(nproc)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    began_at = time.monotonic()
    done = subprocess.run(
        [*command, "--project", str(folder / "logs")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began_at


def describe(exit_code: int, output: str) -> str:
    """A worker's own line, or the launcher's reason."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("TORCH ")), None)
    if told and exit_code == 0:
        return f"ran, the sum is {told.split()[-1]}"
    reason = next((line for line in lines if "torch" in line.lower()), lines[-1] if lines else "said nothing")
    return f"exit code {exit_code}: {reason}"


def main() -> int:
    """Print a table; exit code 1 where a row is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where environments and logs go")
    parser.add_argument("--python", default="python3.10", help="a Python that the old torch has wheels for")
    parser.add_argument("--versions", nargs="*", default=list(VERSIONS))
    options = parser.parse_args()
    folder = options.folder.absolute()
    if PROJECT_DIR in folder.parents:
        parser.error("the folder has to be outside the project")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "add_up.py"
    script.write_text(SCRIPT, encoding="utf-8")
    pythons = [(version, make_environment(folder, version, options.python)) for version in options.versions]
    pythons.append(("this Python's", Path(sys.executable)))
    print("| torch | workers | what happened | seconds |\n|---|---|---|---|")
    is_right = True
    for version, python in pythons:
        for nproc in (2, 1):
            exit_code, output, seconds = run_workers(python, folder, script, nproc)
            refused = version == REFUSED and nproc > 1
            is_right &= (exit_code == 3 and "fixes the visible" in output) if refused else exit_code == 0
            print(f"| {version} | {nproc} | {describe(exit_code, output)} | {seconds:.1f} |", flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
