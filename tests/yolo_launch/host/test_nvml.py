"""GPUs through a stand-in for NVML that behaves like the library, failures included."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from yolo_launch.host.nvml import read_gpus, short_name
from yolo_launch.planning.devices import is_idle

GB = 1 << 30


class FakeNvml:
    """The calls that are made, over a list of cards given as dictionaries."""

    NVMLError = pynvml.NVMLError

    def __init__(self, cards, init_error=None):
        self.cards = cards
        self.init_error = init_error
        self.shut_down = False

    def __getattr__(self, name):
        if name.startswith(("NVML_", "nvmlClocks")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self):
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)

    def nvmlShutdown(self):
        self.shut_down = True

    def nvmlSystemGetDriverVersion(self):
        return b"550.54"

    def nvmlSystemGetCudaDriverVersion(self):
        return 12040

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.cards[index].get("lost"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def nvmlDeviceGetMigMode(self, card):
        if "mig" not in card:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return len(card["mig"]) + 2

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, slot):
        if slot >= len(card["mig"]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return card["mig"][slot]

    def nvmlDeviceGetName(self, card):
        return card.get("name", "NVIDIA GeForce RTX 3090")

    def nvmlDeviceGetUUID(self, card):
        return card["uuid"]

    def nvmlDeviceGetMemoryInfo(self, card):
        return SimpleNamespace(total=24 * GB, free=card.get("free", 24) * GB)

    def nvmlDeviceGetCudaComputeCapability(self, card):
        return (8, 6)

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.get("compute", ())]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.get("graphics", ())]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card):
        return card.get("throttle", 0)

    def nvmlDeviceGetP2PStatus(self, one, other, index):
        return pynvml.NVML_P2P_STATUS_OK if one.get("nvlink") and other.get("nvlink") else 3

    def nvmlDeviceGetTopologyCommonAncestor(self, one, other):
        return pynvml.NVML_TOPOLOGY_SYSTEM


def test_cards_processes_links_and_clocks():
    cards = [
        {"uuid": b"GPU-aaaa", "nvlink": True, "compute": [(os.getpid(), 9 * GB)], "free": 15},
        {"uuid": "GPU-bbbb", "nvlink": True, "graphics": [(os.getpid(), 200 << 20)]},
        {"uuid": "GPU-cccc", "throttle": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown},
    ]
    library = FakeNvml(cards)
    report = read_gpus(library)
    first, second, third = report.devices
    assert (report.present, report.driver_version, report.problem) == (True, "550.54", "")
    assert report.driver_cuda_version == "12.4"
    assert (first.index, first.uuid, first.name, first.compute_capability) == (0, "GPU-aaaa", "RTX 3090", (8, 6))
    assert first.memory_free_bytes == 15 * GB
    assert first.processes[0].pid == os.getpid()
    assert first.processes[0].memory_bytes == 9 * GB
    command = first.processes[0].command
    assert len(command) > 20
    assert " ".join(psutil.Process().cmdline()).startswith(command.rstrip(".…"))
    assert second.processes == ()
    assert first.links == {"GPU-bbbb": "NVLink", "GPU-cccc": "PCIe, across CPUs"}
    assert third.throttled == "too hot (hardware)"
    assert library.shut_down


def test_a_process_that_cannot_be_seen_is_still_listed():
    report = read_gpus(FakeNvml([{"uuid": "GPU-aaaa", "compute": [(2**22 + 5, None)]}]))
    assert report.devices[0].processes[0].command == "a process of another container or user"


def test_mig_instances_take_the_place_of_their_card():
    cards = [{"uuid": "GPU-a", "mig": [{"uuid": "MIG-1"}, {"uuid": "MIG-2"}]}, {"uuid": "GPU-b"}]
    report = read_gpus(FakeNvml(cards))
    assert [(device.index, device.uuid, device.is_mig) for device in report.devices] == [
        (0, "MIG-1", True),
        (1, "MIG-2", True),
        (2, "GPU-b", False),
    ]


def test_what_the_driver_reserves_is_not_in_use(monkeypatch):
    def memory(self, card, version=None):
        facts = {"total": 80 * GB, "free": 79 * GB, "used": 1 * GB} if version is None else card["v2"]
        return SimpleNamespace(**facts)

    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetMemoryInfo", memory)
    monkeypatch.setattr(FakeNvml, "nvmlMemory_v2", 2, raising=False)
    card = {"uuid": "GPU-1", "v2": {"total": 80 * GB, "reserved": 2 * GB, "free": int(77.5 * GB), "used": GB // 2}}
    (device,) = read_gpus(FakeNvml([card])).devices
    assert device.memory_total_bytes - device.memory_free_bytes == GB // 2
    assert is_idle(device)


def test_a_driver_that_answers_as_of_old_whatever_was_asked_for_is_read(monkeypatch):
    def memory(self, card, version=None):
        return SimpleNamespace(total=80 * GB, free=79 * GB, used=1 * GB)

    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetMemoryInfo", memory)
    monkeypatch.setattr(FakeNvml, "nvmlMemory_v2", 2, raising=False)
    (device,) = read_gpus(FakeNvml([{"uuid": "GPU-1"}])).devices
    assert (device.memory_total_bytes, device.memory_free_bytes) == (80 * GB, 79 * GB)


def test_a_lost_card_does_not_hide_the_others():
    report = read_gpus(FakeNvml([{"uuid": "GPU-a", "lost": True}, {"uuid": "GPU-b"}]))
    assert [device.uuid for device in report.devices] == ["GPU-b"]
    assert "GPU 0 does not answer" in report.problem


@pytest.mark.parametrize(
    ("error", "is_problem"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, False),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, False),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, True),
        (pynvml.NVML_ERROR_UNKNOWN, True),
    ],
)
def test_a_driver_that_fails_means_no_gpus_and_maybe_a_problem(error, is_problem):
    report = read_gpus(FakeNvml([], init_error=error))
    assert (report.devices, report.present) == ((), False)
    assert bool(report.problem) is is_problem


def test_the_real_library_never_raises():
    report = read_gpus()
    assert isinstance(report.devices, tuple)


@pytest.mark.parametrize(
    ("name", "short"), [("NVIDIA GeForce RTX 3090", "RTX 3090"), ("Tesla T4", "T4"), ("NVIDIA H200", "H200")]
)
def test_names(name, short):
    assert short_name(name) == short
