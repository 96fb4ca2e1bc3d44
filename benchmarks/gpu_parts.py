"""The parts of the first hour with a card, each run by ``gpu.py`` in a process of its own: checks and figures."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import torch

from benchmarks.gpu_part import PROGRAM, Part, make_run, time_steps
from benchmarks.gpu_speed import accuracy, compiled, loader, step, throughput
from benchmarks.peers import PROJECT_DIR


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


def waits(part: Part) -> None:
    """No step of training waits for the device."""
    from trainer.training.loop import train_step

    for amp in ("off", "bf16") if part.rehearse else ("off", "bf16", "fp16"):
        for name, extra in (("", {}), (" weighted", {"hyperparameters": {"obj_pw": 1.5, "cls_pw": 1.5}})):
            run = make_run(part, amp=amp, **extra)
            batches = list(run.epoch_loader.epoch(0, 0, ()))[:3]
            if part.device == "cuda":
                batches = [batch.pin_memory() for batch in batches]
            time_steps(run, batches, 6)
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
            host = [1e3 * one for one in time_steps(run, batches, 3)[1]]
            part.figure(f"host time of a step, {amp}{name}", host, "ms")


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
    "loader": (loader, 150),
    "throughput": (throughput, 150),
    "resume": (resume, 90),
    "finetune": (finetune, 200),
    "export": (export, 90),
    "batch_auto": (batch_auto, 120),
    "compiled": (compiled, 240),
}
"""Name -> function, and how many seconds it may take, in the order of their worth."""

WITH_PEERS = ("accuracy", "step", "loader", "throughput")
"""The parts that run the peers too, if there are any."""
