"""``--gpus`` inside and outside a mask, by index and by UUID."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.planning.devices import choose_devices
from yolo_launch.planning.masks import describe_device
from yolo_launch.spec import LaunchRequest, TorchFacts

GB = 1 << 30


def chosen(host, gpus, **more):
    return [device.index for device in choose_devices(LaunchRequest(gpus=gpus, **more), host)[0]]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("all", [0, 1, 2, 3]),
        ("1", [1]),
        ("3,1", [3, 1]),
        ("cuda:2", [2]),
        ("GPU-2b12", [2]),
        ("gpu-3B12CD34, 0", [3, 0]),
    ],
)
def test_without_a_mask(make_host, gpus, expected):
    assert chosen(make_host(4), gpus) == expected


def test_indices_count_inside_the_mask_and_uuids_name_what_is_in_it(make_host):
    host = make_host(4, visible_devices="2,3")
    assert chosen(host, "0,1") == [2, 3]
    assert chosen(host, "GPU-3b12") == [3]
    assert chosen(host, None) == [2, 3]


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("2", "there is no such GPU here"),
        ("0,0", "names GPU 2 .* twice"),
        ("0,GPU-2b12", "twice"),
        ("GPU-0b12", "is hidden by CUDA_VISIBLE_DEVICES=2,3"),
        ("x", "there is no such GPU"),
        ("-1", "there is no such GPU"),
    ],
)
def test_absent_hidden_and_repeated_devices_are_refused_by_name(make_host, gpus, message):
    with pytest.raises(LaunchError, match=message):
        chosen(make_host(4, visible_devices="2,3"), gpus)


def test_a_refusal_lists_what_is_there_and_retypes_the_command(make_host):
    request = LaunchRequest(gpus="5", typed=("yolo-launch", "train", "--data", "x.yaml", "--device", "5"))
    with pytest.raises(LaunchError) as caught:
        choose_devices(request, make_host(2))
    assert "0: GPU 0 (RTX 3090, GPU-0b12…, 23.5 GB free)" in caught.value.expected
    assert caught.value.next_command == "yolo-launch train --data x.yaml --gpus 0,1"


def test_idle_takes_what_nobody_uses(make_host, make_gpu, busy_process):
    host = make_host((make_gpu(0, processes=(busy_process,)), make_gpu(1), make_gpu(2, free_gb=4), make_gpu(3)))
    assert chosen(host, "idle") == [1, 3]
    assert chosen(host, "idle", nproc=1) == [1]


def test_idle_without_any_names_the_holders(make_host, make_gpu, busy_process):
    with pytest.raises(LaunchError) as caught:
        chosen(make_host((make_gpu(0, processes=(busy_process,)), make_gpu(1, free_gb=2))), "idle")
    assert "PID 4711 of ada" in caught.value.seen
    assert "22.0 GB taken by an unseen process" in caught.value.seen


@pytest.mark.parametrize("gpus", ["0", "all", "idle", "GPU-0b12"])
def test_a_gpu_where_there_is_none_is_the_environments_fault(make_host, gpus):
    with pytest.raises(LaunchError, match="none to use") as caught:
        chosen(make_host(0), gpus)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_driver_that_fails_is_the_reason_given(make_host):
    host = make_host(0, gpu_problem="NVML cannot start: Driver/library version mismatch")
    with pytest.raises(LaunchError) as caught:
        chosen(host, "0")
    assert "version mismatch" in caught.value.seen
    devices, findings = choose_devices(LaunchRequest(), host)
    assert devices[0].kind == "cpu"
    assert "version mismatch" in findings[0].seen


def test_an_empty_mask_means_the_cpu_and_says_so(make_host):
    devices, findings = choose_devices(LaunchRequest(), make_host(2, visible_devices=""))
    assert devices[0].kind == "cpu"
    assert "hides all 2 GPUs" in findings[0].seen


def test_a_cpu_build_of_torch_leaves_gpus_unused_by_default_and_refuses_them_by_name(make_host):
    host = make_host(2, torch=TorchFacts("2.4.1+cpu", "0.19.1+cpu"))
    devices, findings = choose_devices(LaunchRequest(), host)
    assert devices[0].kind == "cpu"
    assert "CPU build" in findings[0].seen
    with pytest.raises(LaunchError, match="CPU build"):
        chosen(host, "0")
    assert choose_devices(LaunchRequest(gpus="cpu"), host)[1] == []


def test_nproc_takes_the_first_gpus_but_never_contradicts_a_list(make_host):
    assert chosen(make_host(4), "all", nproc=2) == [0, 1]
    assert chosen(make_host(4), None, nproc=3) == [0, 1, 2]
    for gpus, nproc in (("0,1", 3), ("0,1", 1), ("all", 5)):
        with pytest.raises(LaunchError, match="does not fit"):
            chosen(make_host(4), gpus, nproc=nproc)


def test_one_mig_instance_works_and_several_are_refused(make_host, make_gpu):
    instances = tuple(
        replace(make_gpu(index), uuid=f"MIG-{index}aaa-bbbb", is_mig=True, name="A100 MIG 3g.20gb")
        for index in range(2)
    )
    host = make_host(instances)
    assert chosen(host, "MIG-1aaa") == [1]
    with pytest.raises(LaunchError, match="one MIG instance"):
        chosen(host, "0,1")
    devices, findings = choose_devices(LaunchRequest(), host)
    assert len(devices) == 1
    assert "one of 2 MIG instances" in findings[0].seen


def test_whole_gpus_go_before_mig_instances(make_host, make_gpu):
    instance = replace(make_gpu(0), uuid="MIG-aaaa", is_mig=True)
    assert chosen(make_host((instance, make_gpu(1), make_gpu(2))), None) == [1, 2]


def test_an_index_mask_on_mixed_cards_is_warned_about(make_host, make_gpu):
    cards = (make_gpu(0), make_gpu(1, "GTX 1080"))
    findings = choose_devices(LaunchRequest(gpus="0"), make_host(cards, visible_devices="1"))[1]
    assert "PCI bus order" in findings[0].seen
    ordered = make_host(cards, visible_devices="1", environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert choose_devices(LaunchRequest(gpus="0"), ordered)[1] == []


def test_a_cpu_describes_itself(make_host):
    assert describe_device(choose_devices(LaunchRequest(gpus="CPU"), make_host(1))[0][0]) == "CPU"
