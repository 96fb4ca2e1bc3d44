"""Checks hints, the texts of exit codes, and the kernel's count of memory kills."""

from __future__ import annotations

import pytest

from yolo_launch.diagnosis.causes import Facts, describe_exit, hint_for, is_consequence
from yolo_launch.spec import Device, GpuProcess, RankFailure


def hint(message="", exit_code=1, facts=None):
    return hint_for(RankFailure(1, 1, exit_code, message), facts or Facts())


@pytest.mark.parametrize(
    ("message", "exit_code", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", 1, "--batch"),
        ("RuntimeError: DataLoader worker (pid 17) is killed by signal: Bus error.", 1, "--shm-size"),
        ("", -7, "--shm-size"),
        ("RuntimeError: DataLoader worker (pid 17) is killed by signal: Killed.", 1, "--workers"),
        ("LoaderProcessError: loader process loader1 (pid 17) is killed by signal: Killed", 1, "--workers"),
        ("killed by SIGKILL", -9, "out of memory"),
        ("OSError: [Errno 28] No space left on device", 1, "disk is full"),
        ("OSError: [Errno 24] Too many open files", 1, "ulimit -n"),
        ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp", 1, "NCCL_P2P_DISABLE"),
        ("The server socket has failed to bind. EADDRINUSE", 1, "port"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'coco.yaml'", 1, "path"),
        ("ModuleNotFoundError: No module named 'wandb'", 1, "environment"),
        ("FloatingPointError: the loss is not finite: nan", 1, "--amp off"),
        ("RuntimeError: CUDA error: device-side assert triggered", 1, "class id"),
        ("AssertionError: File not found: coco.yaml", 1, "path"),
        ("AssertionError: insufficient CUDA devices for DDP command", 1, "--device"),
        ("urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>", 1, "download"),
        ("train.py: error: unrecognized arguments: --dataa x.yaml", 2, "refused its own arguments"),
        ("train.py: error: unrecognized arguments: --local-rank=0", 2, "predates torchrun"),
        ("aborted", -6, "log"),
        ("gloo: Connection closed by peer [127.0.0.1]", 1, "peer"),
        ("ValueError: something of its own", 1, ""),
    ],
)
def test_known_causes_have_one_hint(message, exit_code, expected):
    found = hint(message, exit_code)
    assert expected in found
    assert bool(found) == bool(expected)


def test_a_memory_kill_is_certain_where_the_kernel_counted_one():
    assert hint("", -9, Facts(oom_kills=1)).startswith("the host ran out of memory")
    assert "nothing here says who" in hint("", -9)


def test_a_full_gpu_names_its_other_users():
    other = GpuProcess(4242, "ann", "python notebook.py", 20 * 2**30)
    facts = Facts(gpu_processes=(other,), device=Device("cuda", name="RTX 3090"))
    assert "RTX 3090 is full; others use it too: PID 4242 (ann: python notebook.py, 20.0 GB)" in hint(
        "CUDA out of memory", facts=facts
    )
    fixed = Facts(device=Device("cuda", name="RTX 3090"), global_batch_size=24, world_size=4)
    assert "RTX 3090 is full: --batch 12 --nbs 24, which learns" in hint("CUDA out of memory", facts=fixed)
    least = Facts(device=Device("cuda", name="RTX 3090"), global_batch_size=4, world_size=4)
    assert "--nbs" not in hint("CUDA out of memory", facts=least)


def test_exit_codes_in_words():
    assert describe_exit(-9) == "killed by SIGKILL"
    assert "/dev/shm" in describe_exit(-7)
    assert "collective" in describe_exit(-6)
    assert "segmentation" in describe_exit(-11)
    assert describe_exit(-10) == "ended by SIGUSR1"
    assert describe_exit(-99) == "ended by signal 99"
    assert describe_exit(3) == "ended with exit code 3"


def test_consequences_are_told_from_causes():
    assert is_consequence("RuntimeError: [..] Connection closed by peer [127.0.0.1]:3")
    assert is_consequence("torch.distributed.DistBackendError: Watchdog caught collective operation timeout: WorkNCCL")
    assert not is_consequence("ValueError: labels are out of range")
    assert not is_consequence("OSError: Connection refused: redis://cache:6379")
    assert not is_consequence("RuntimeError: Connection closed by peer", by_torch=False)
    assert not is_consequence("DistNetworkError: failed to listen, EADDRINUSE; Connection refused", by_torch=True)
