"""The parts of the first hour with a card, each run by ``gpu.py`` in a process of its own: checks and figures."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

PROJECT_DIR = Path(__file__).resolve().parents[1]
PROGRAM = "from yolo_launch.cli.main import main; main()"


@dataclass
class Part:
    """What a part is given, and what it found."""

    device: str
    bccd: Path
    coco: Path
    weights: Path
    folder: Path
    rehearse: bool
    checks: list[dict] = field(default_factory=list)
    figures: dict[str, dict] = field(default_factory=dict)

    def check(self, what: str, seen: object, ok: bool, expected: str) -> None:
        """Notes whether something was as expected."""
        self.checks.append({"what": what, "seen": str(seen)[:300], "expected": expected, "ok": bool(ok)})

    def figure(self, what: str, values: list[float], unit: str, note: str = "") -> None:
        """Notes a measured figure with its values, and prints it at once: a part may run out of time."""
        median = statistics.median(values)
        self.figures[what] = {"median": median, "values": values, "unit": unit, "note": note}
        print("\n" + json.dumps({"checks": self.checks, "figures": self.figures}), flush=True)

    def launch(self, *words: str, limit_s: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs ``yolo-launch`` as typed."""
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT_DIR}:{os.environ.get('PYTHONPATH', '')}", **more}
        command = [sys.executable, "-c", PROGRAM, *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )

    @property
    def gpus(self) -> str:
        """What ``--gpus`` is given."""
        return "0" if self.device == "cuda" else "cpu"


def machine(part: Part) -> None:
    """Nothing stands in the way for the doctor, the plan names the card, and the card multiplies as it should."""
    ended = part.launch("doctor", "--gpus", part.gpus, "--data", str(part.bccd))
    part.check("doctor", ended.returncode, ended.returncode == 0, "exit code 0")
    plan = part.launch("train", "--gpus", part.gpus, "--data", str(part.bccd), "--dry-run", "--json")
    facts = json.loads(plan.stdout or "{}")
    kind = "cuda" if part.device == "cuda" else "cpu"
    devices = json.dumps(facts)
    part.check("plan", devices[:200], f'"kind": "{kind}"' in devices, f"a device of kind {kind}")
    size = 512 if part.rehearse else 8192
    dtype = torch.float32 if part.rehearse else torch.bfloat16
    a = torch.randn(size, size, device=part.device, dtype=dtype)
    seconds = []
    for _ in range(4):
        began_at = time.perf_counter()
        for _ in range(10):
            product = a @ a
        float(product[0, 0])
        seconds.append((time.perf_counter() - began_at) / 10)
    part.figure("matmul", [2 * size**3 / one / 1e12 for one in seconds[1:]], "TFLOP/s")


def dead_uuid(part: Part) -> None:
    """A card that is not there is an error with a reason, and no training on the CPU."""
    config = {"data": str(part.bccd), "cfg": "yolov5n", "imgsz": 64, "epochs": 1, "workers": 0}
    (part.folder / "config.yaml").write_text(json.dumps(config))
    dead = "GPU-00000000-0000-0000-0000-000000000000"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": dead}
    environment["PYTHONPATH"] = f"{PROJECT_DIR}:{os.environ.get('PYTHONPATH', '')}"
    began_at = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "trainer", "config.yaml", "--run-dir", "run"],
        cwd=part.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    part.figure("until it is told", [time.perf_counter() - began_at], "s")
    part.check("exit code", ended.returncode, ended.returncode == 3, "3")
    reason = re.search(r"Seen: (.*)", ended.stderr)
    part.check("reason", reason and reason[1], reason is not None and "torch" in reason[1], "torch's own reason")


def _make_run(part: Part, **options):
    from trainer.config.train import make_config
    from trainer.protocol import RunFiles
    from trainer.runtime.distributed import DistEnv
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter
    from trainer.training.build import build_run

    folder = part.folder / f"run{time.monotonic_ns()}"
    RunFiles(folder).make_folders()
    values = {"data": str(part.bccd), "cfg": "yolov5n", "imgsz": 64, "batch_size": 8, "epochs": 3, "workers": 0}
    config = make_config({**values, "plots": False, **options})
    beat = HeartbeatWriter(RunFiles(folder).logs, 0)
    run = build_run(config, DistEnv(), torch.device(part.device), folder, Reporter(enabled=False), beat)[0]
    run.model.train()
    return run


def _steps(run, batches, count):
    """Seconds of each step, the device's work included, and those that the host alone took."""
    from trainer.training.loop import train_step

    whole, host = [], []
    for index in range(count):
        began_at = time.perf_counter()
        train_step(run, batches[index % len(batches)], is_update=True)
        host.append(time.perf_counter() - began_at)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        whole.append(time.perf_counter() - began_at)
        run.state.progress.micro_step += 1
    return whole, host


def waits(part: Part) -> None:
    """No step of training waits for the device."""
    from trainer.training.loop import train_step

    for amp in ("off", "bf16") if part.rehearse else ("off", "bf16", "fp16"):
        for name, extra in (("", {}), (" weighted", {"hyperparameters": {"obj_pw": 1.5, "cls_pw": 1.5}})):
            run = _make_run(part, amp=amp, **extra)
            batches = list(run.epoch_loader.epoch(0, 0, ()))[:3]
            if part.device == "cuda":
                batches = [batch.pin_memory() for batch in batches]
            _steps(run, batches, 6)
            seen = "no wait"
            if part.device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                for batch in batches:
                    train_step(run, batch, is_update=True)
            except RuntimeError as error:
                seen = str(error).partition("\n")[0]
            finally:
                if part.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            part.check(f"{amp}{name}", seen, seen == "no wait", "no wait")
            part.figure(f"host time of a step, {amp}{name}", [1e3 * one for one in _steps(run, batches, 3)[1]], "ms")


def gradients(part: Part) -> None:
    """Gradients of the card are those of the CPU, without TF32."""
    from trainer.loss import DetectionLoss, LossGains
    from trainer.model.graph import build_model, load_definition

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    model = build_model(load_definition("yolov5n"), num_classes=3).train()
    loss = DetectionLoss(model.detect.anchors, 3, LossGains(box=0.05, obj=1.0, cls=0.5))
    images, targets = torch.rand(4, 3, 128, 128), torch.rand(40, 6) * 0.3 + 0.2
    targets[:, 0], targets[:, 1] = torch.randint(0, 4, (40,)), torch.randint(0, 3, (40,))
    found = []
    for device in ("cpu", part.device):
        one = copy.deepcopy(model).to(device)
        matches = loss.match(targets, [(16, 16), (8, 8), (4, 4)]).to(device)
        loss(one(images.to(device)), matches, loss.counts(matches, 4)).total.backward()
        found.append(torch.cat([parameter.grad.flatten().cpu() for parameter in one.parameters()]))
    difference = float((found[1] - found[0]).norm() / found[0].norm())
    part.figure("relative difference", [difference], "")
    part.check("relative difference", difference, difference < 1e-3, "below 0.001")


def accuracy(part: Part) -> None:
    """The official yolov5n.pt measures the same on a card as on the CPU, in float16 nearly so."""
    found = {}
    kinds = {"cpu": ("cpu", ())} | ({"cuda": ("0", ()), "half": ("0", ("--half",))} if part.device == "cuda" else {})
    size = "128" if part.rehearse else "640"
    for name, (gpus, more) in kinds.items():
        words = ("--weights", str(part.weights), "--data", str(part.coco), "--gpus", gpus, "--imgsz", size, "--noplots")
        ended = part.launch("val", *words, "--json", *more)
        summary = json.loads(ended.stdout or "{}")
        found[name] = (summary.get("map50", math.nan), summary.get("map5095", math.nan))
        part.figure(f"mAP50-95, {name}", [found[name][1]], "")
        for stage, value in summary.get("speed_ms", {}).items():
            part.figure(f"val {name}: {stage}", [value], "ms an image")
    for name, limit in (("cpu", 0.0), ("cuda", 0.001), ("half", 0.003)):
        if name in found:
            difference = abs(found[name][1] - found["cpu"][1])
            part.check(f"{name} against CPU", f"{found[name]}", difference <= limit, f"within {limit}")


def resume(part: Part) -> None:
    """A run that is killed goes on, and ends."""
    words = ["--data", str(part.bccd), "--cfg", "yolov5n", "--weights", "", "--imgsz", "96", "--batch", "8"]
    words += ["--epochs", "4", "--noplots", "--gpus", part.gpus, "--checkpoint-interval", "0.2", "--project", "runs"]
    command = [sys.executable, "-c", PROGRAM, "train", *words]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT_DIR}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        command, cwd=part.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    results = part.folder / "runs/exp/results.csv"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (results.exists() and len(results.read_text().splitlines()) > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    began_at = time.perf_counter()
    ended = part.launch("train", "--resume", "runs/exp", "--gpus", part.gpus)
    part.figure("resume to the end", [time.perf_counter() - began_at], "s")
    rows = results.read_text().splitlines() if results.exists() else []
    part.check("resume", ended.returncode, ended.returncode == 0 and len(rows) == 5, "exit code 0 and 4 epochs")


def step(part: Part) -> None:
    """The step alone, by model, batch and precision; the median of what follows ten steps of warming up."""
    if part.rehearse:
        _time_steps(part, "yolov5n", 2, "off")
        return
    for cfg, batch_size, amp in (
        ("yolov5s", 64, "bf16"),
        ("yolov5s", 64, "fp16"),
        ("yolov5n", 64, "bf16"),
        ("yolov5s", 16, "bf16"),
        ("yolov5m", 64, "bf16"),
        ("yolov5s", 64, "off"),
    ):
        _time_steps(part, cfg, batch_size, amp)
    _idle_share(part)


def compiled(part: Part) -> None:
    """The same step with --compile."""
    _time_steps(part, "yolov5n" if part.rehearse else "yolov5s", 2 if part.rehearse else 64, "bf16", compiles=True)


def _time_steps(part: Part, cfg, batch_size, amp, compiles=False):
    size = 64 if part.rehearse else 640
    torch.backends.cudnn.benchmark = part.device == "cuda"
    run = _make_run(part, cfg=cfg, imgsz=size, batch_size=batch_size, amp=amp, compile=compiles)
    batches = _made_up(batch_size, size, part.device)
    name = f"{cfg} batch {batch_size} {amp}{' compiled' if compiles else ''}"
    began_at = time.perf_counter()
    _steps(run, batches, 1)
    part.figure(f"{name}: first step", [time.perf_counter() - began_at], "s")
    _steps(run, batches, 2 if part.rehearse else 10)
    if part.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole, host = _steps(run, batches, 3 if part.rehearse else 15)
    part.figure(f"{name}: step", [1e3 * one for one in whole], "ms", f"host {1e3 * statistics.median(host):.1f} ms")
    part.check(f"{name}: finite", run.finite.bad_step, run.finite.bad_step is None, "None")
    if part.device == "cuda":
        part.figure(f"{name}: memory", [torch.cuda.max_memory_allocated() / 2**30], "GiB")


def _made_up(batch_size, size, device):
    from trainer.data.collate import Batch

    count = batch_size * 7
    targets = torch.rand(count, 6) * 0.3 + 0.3
    targets[:, 0], targets[:, 1] = torch.arange(count) % batch_size, 0
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    batch = Batch(images, targets, torch.arange(batch_size), torch.arange(batch_size))
    return [batch.pin_memory() if device == "cuda" else batch]


def _idle_share(part: Part) -> None:
    """The share of ten steps in which no kernel ran, by torch's profiler, and the number of kernels."""
    from torch.profiler import ProfilerActivity, profile

    run = _make_run(part, cfg="yolov5s", imgsz=640, batch_size=64, amp="bf16")
    batches = _made_up(64, 640, "cuda")
    _steps(run, batches, 10)
    from trainer.training.loop import train_step

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began_at = time.perf_counter()
        for _ in range(10):
            train_step(run, batches[0], is_update=True)
        torch.cuda.synchronize()
        elapsed_s = time.perf_counter() - began_at
    kernels = [event for event in seen.events() if event.device_type.name == "CUDA"]
    busy_s, last_end = 0.0, 0.0
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        busy_s += max(0.0, end - max(start, last_end)) / 1e6
        last_end = max(last_end, end)
    part.figure("yolov5s batch 64 bf16: idle share", [max(0.0, 1 - busy_s / elapsed_s)], "")
    part.figure("yolov5s batch 64 bf16: device operations", [len(kernels) / 10], "a step")
    part.check("the profiler saw kernels", len(kernels), len(kernels) > 100, "more than 100")


def throughput(part: Part) -> None:
    """Real training on many links to real pictures: images a second, and the share of time that waits for data."""
    links = 64 if part.rehearse else 6400
    data = _links(part, links)
    cases = [("off", "96", "8", "0")] if part.rehearse else [("bf16", "640", "64", "15"), ("bf16", "640", "64", "8")]
    for amp, size, batch, workers in cases:
        words = [
            "--data",
            str(data),
            "--cfg",
            "yolov5n" if part.rehearse else "yolov5s",
            "--weights",
            "",
            "--epochs",
            "2",
        ]
        words += ["--imgsz", size, "--batch", batch, "--amp", amp, "--workers", workers, "--noplots", "--noval"]
        words += ["--project", "runs", "--gpus", part.gpus, "--noautoanchor", "--nosave"]
        ended = part.launch("train", *words)
        runs = sorted((part.folder / "runs").glob("exp*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        rows = [json.loads(line) for line in runs[-1].read_text().splitlines()] if runs else []
        part.check(
            f"{workers} loader processes", ended.returncode, ended.returncode == 0 and len(rows) == 2, "2 epochs"
        )
        speeds = [row["images_per_second"] for row in rows] or [math.nan]
        note = f"{links} links; data wait {[round(row['data_wait'], 3) for row in rows]}"
        part.figure(f"{workers} loader processes", speeds, "images/s", note)


def _links(part: Part, count: int) -> Path:
    folder = part.folder / "links"
    sources = sorted((part.coco.parent / "images" / "train").iterdir())
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        source = sources[index % len(sources)]
        label = Path(str(source).replace("/images/", "/labels/")).with_suffix(".txt")
        os.symlink(source, folder / "images" / "train" / f"{index:06}{source.suffix}")
        if label.exists():
            os.symlink(label, folder / "labels" / "train" / f"{index:06}.txt")
    names = re.search(r"names:.*", part.coco.read_text(), re.S)
    text = (
        f"path: {folder}\ntrain: images/train\nval: {part.coco.parent / 'images' / 'val'}\n{names[0] if names else ''}"
    )
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def finetune(part: Part) -> None:
    """The official weights on blood cells: as good as on the CPU, in both kinds of mixed precision."""
    epochs, size = ("1", "96") if part.rehearse else ("20", "320")
    for amp in ("off",) if part.rehearse else ("bf16", "fp16"):
        words = ["--data", str(part.bccd), "--weights", str(part.weights), "--epochs", epochs, "--imgsz", size]
        words += ["--batch", "16", "--amp", amp, "--noplots", "--gpus", part.gpus, "--project", "runs", "--name", amp]
        began_at = time.perf_counter()
        ended = part.launch("train", *words, "--json")
        summary = json.loads(ended.stdout or "{}")
        part.figure(f"{amp}: whole run", [time.perf_counter() - began_at], "s")
        part.figure(f"{amp}: mAP50-95", [float(summary.get("map5095", math.nan))], "", f"mAP50 {summary.get('map50')}")
        good = summary.get("map5095", 0) > (0.54 if not part.rehearse else -1)
        part.check(amp, summary.get("map5095"), ended.returncode == 0 and good, "above 0.54 (CPU: 0.58)")


def export(part: Part) -> None:
    """The files are written and agree with PyTorch."""
    for kind, more in (("torchscript", ()), ("onnx", ())):
        out = part.folder / f"model.{kind}"
        words = ["--weights", str(part.weights), "--format", kind, "--out", str(out), "--gpus", part.gpus]
        began_at = time.perf_counter()
        ended = part.launch("export", *words, "--imgsz", "128" if part.rehearse else "640", *more)
        part.check(kind, ended.stderr[-200:], ended.returncode == 0 and out.exists(), "written, equal to PyTorch")
        part.figure(f"{kind}: export", [time.perf_counter() - began_at], "s")


def batch_auto(part: Part) -> None:
    """--batch auto measures a batch, and a training with it does not run out of memory."""
    words = ["--data", str(part.bccd), "--cfg", "yolov5n", "--weights", "", "--imgsz", "64" if part.rehearse else "640"]
    words += ["--epochs", "1", "--batch", "auto", "--noplots", "--gpus", part.gpus, "--project", "runs"]
    ended = part.launch("train", *words)
    said = re.search(r"--batch auto: (\d+)", ended.stdout + ended.stderr)
    batch = float(said[1]) if said else 16.0
    part.figure("batch", [batch], "images")
    part.check("training", ended.stderr[-300:], ended.returncode == 0, "exit code 0")


PARTS = {
    "machine": (machine, 60),
    "dead_uuid": (dead_uuid, 60),
    "waits": (waits, 90),
    "gradients": (gradients, 60),
    "accuracy": (accuracy, 120),
    "step": (step, 180),
    "throughput": (throughput, 150),
    "resume": (resume, 90),
    "finetune": (finetune, 200),
    "export": (export, 90),
    "batch_auto": (batch_auto, 120),
    "compiled": (compiled, 240),
}
"""Name -> function, and how many seconds it may take, in the order of their worth."""
