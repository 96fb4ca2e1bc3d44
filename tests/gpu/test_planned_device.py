"""A GPU that was announced is used, or the job ends with torch's or the driver's reason and exit code 3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from trainer.errors import DeviceError
from trainer.protocol import DEVICE_VARIABLE
from trainer.runtime.distributed import DistEnv
from yolo_launch.host.cuda_driver import find_problem

PROJECT_DIR = Path(__file__).resolve().parents[2]
PROGRAM = "from yolo_launch.cli.main import main; main()"
DEAD = "GPU-00000000-0000-0000-0000-000000000000"
FAKE_NVML = '''
"""A driver that reports one card, which does not exist."""
class NVMLError(Exception): pass
class _Memory: total, free, used = 80 << 30, 79 << 30, 1 << 30
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "555.42"
def nvmlSystemGetCudaDriverVersion_v2(): return 13020
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return "GPU-00000000-0000-0000-0000-000000000000"
def nvmlDeviceGetName(handle): return "NVIDIA H100"
def nvmlDeviceGetMemoryInfo(handle, *a, **k): return _Memory
def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)
def nvmlDeviceGetMigMode(handle): raise NVMLError()
def nvmlDeviceGetComputeRunningProcesses(handle): return []
def nvmlDeviceGetGraphicsRunningProcesses(handle): return []
def nvmlDeviceGetCurrentClocksThrottleReasons(handle): return 0
def __getattr__(name):
    if name.startswith("NVML_") or "Reason" in name: return 0
    if name.startswith("nvml"):
        def missing(*a, **k): raise NVMLError()
        return missing
    raise AttributeError(name)
'''
no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that works")


@no_card
def test_a_planned_gpu_that_does_not_start_is_an_error_and_no_cpu():
    with pytest.raises(DeviceError) as caught:
        DistEnv(device_kind="cuda", mask="0").device()
    assert "CUDA" in caught.value.seen or "NVIDIA" in caught.value.seen
    assert "CUDA_VISIBLE_DEVICES='0'" in caught.value.seen
    assert caught.value.next_command == "yolo-launch doctor"


@pytest.mark.parametrize("mask", ["0", DEAD, "0,1"])
@no_card
def test_a_worker_by_hand_believes_its_mask(mask):
    with pytest.raises(DeviceError):
        DistEnv(mask=mask).device()


@pytest.mark.parametrize("mask", [None, "", "-1", "NoDevFiles", "void"])
@no_card
def test_without_a_word_of_a_gpu_the_cpu_is_used(mask):
    assert DistEnv(mask=mask).device() == torch.device("cpu")


def test_a_planned_cpu_is_the_cpu_whatever_is_visible():
    assert DistEnv(device_kind="cpu", mask="0").device() == torch.device("cpu")


@pytest.mark.parametrize("variables", [{"CUDA_VISIBLE_DEVICES": DEAD}, {DEVICE_VARIABLE: "cuda"}], ids=["mask", "plan"])
@no_card
def test_a_worker_with_a_dead_gpu_ends_with_code_3(tmp_path, bccd_yaml, variables):
    config = {"data": str(bccd_yaml), "cfg": "yolov5n", "imgsz": 64, "epochs": 1, "workers": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    ended = subprocess.run(
        [sys.executable, "-m", "trainer", "config.yaml", "--run-dir", "run"],
        cwd=tmp_path,
        env={**os.environ, **variables, "PYTHONPATH": str(PROJECT_DIR)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 3, ended.stderr
    assert "the planned GPU does not work with this torch" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "{data}", "--gpus", "0", "--epochs", "1"],
        ["train", "--data", "{data}", "--epochs", "1"],
        ["val", "--data", "{data}", "--weights", "{weights}", "--gpus", "0"],
        ["predict", "--weights", "{weights}", "{picture}", "--gpus", "0"],
        ["export", "--weights", "{weights}", "--format", "torchscript", "--gpus", "0", "--out", "x.torchscript"],
        ["run", "script.py", "--gpus", "0"],
        ["doctor"],
    ],
    ids=lambda words: " ".join(words[:1] + [word for word in words if word in ("--gpus",)]),
)
@no_card
def test_a_card_that_nvml_sees_and_cuda_does_not_start_is_found_before_a_start(tmp_path, bccd_yaml, detector, command):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "pynvml.py").write_text(FAKE_NVML)
    (tmp_path / "script.py").write_text("open('ran', 'w')\n")
    picture = next((bccd_yaml.parent / "images" / "val").iterdir())
    words = [word.format(data=bccd_yaml, weights=detector, picture=picture) for word in command]
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    ended = subprocess.run(
        [sys.executable, *safe, "-c", PROGRAM, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'fake'}:{PROJECT_DIR}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 3, said
    assert "the planned GPUs do not start" in said
    assert "libcuda.so.1" in said or "CUDA error" in said
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("runs/**/*.pt"))


def test_the_driver_is_asked_in_the_planned_environment():
    problem = find_problem({"CUDA_VISIBLE_DEVICES": ""}, 1)
    assert problem, "with an empty mask no GPU starts"


@pytest.mark.gpu
def test_the_driver_starts_the_cards_and_a_dead_uuid_is_told():
    assert find_problem({}, 1) == ""
    assert "no CUDA-capable device" in find_problem({"CUDA_VISIBLE_DEVICES": DEAD}, 1)
    assert DistEnv(device_kind="cuda").device() == torch.device("cuda", 0)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": DEAD, "PYTHONPATH": str(PROJECT_DIR)}
    code = "from trainer.runtime.distributed import DistEnv; DistEnv.from_environ().device()"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "the planned GPU does not work with this torch" in ended.stderr
