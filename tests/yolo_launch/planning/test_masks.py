"""Inherited masks, read as CUDA and ROCm read them, and the masks that workers get."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_launch.errors import LaunchError
from yolo_launch.planning.devices import choose_devices
from yolo_launch.planning.masks import mask_environment, visible_devices
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import LaunchRequest, TorchFacts

ROCM_TORCH = TorchFacts("2.9.0+rocm6.4", "0.24.0+rocm6.4", "", "6.4", "==2.9.0", "rocm6.4")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("2,3", [2, 3]),
        ("3, 1", [3, 1]),
        ("GPU-1b,GPU-0b", [1, 0]),
        ("0,-1,1", [0]),
        ("0,9,1", [0]),
        ("1,1,2", [1, 2]),
        ("", []),
        ("NoDevFiles", []),
        ("GPU-", []),
    ],
)
def test_masks_are_read_as_cuda_reads_them(make_host, mask, expected):
    assert [device.index for device in visible_devices(make_host(4, visible_devices=mask))] == expected


@pytest.fixture(scope="session")
def split_machine(make_host, make_gpu):
    """Card 0 is split into two instances, cards 1 and 2 are whole: CUDA calls the latter 1 and 2."""
    parts = [make_gpu(i, "H100 MIG 3g.40gb", uuid=f"MIG-{i}a-1", is_mig=True, card_index=0) for i in (0, 1)]
    whole = [make_gpu(i, "H100", card_index=i - 1) for i in (2, 3)]
    return make_host((*parts, *whole))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("0", [0]), ("1", [2]), ("2,1", [3, 2]), ("0,1", [0, 2]), ("MIG-1a", [1]), ("3", []), ("1,3,2", [2])],
)
def test_numbers_in_a_mask_name_cards_not_their_instances(split_machine, mask, expected):
    found = visible_devices(replace(split_machine, visible_devices=mask))
    assert [device.index for device in found] == expected


def test_a_script_gets_the_number_of_the_card(split_machine):
    plan = make_plan(LaunchRequest(gpus="3", builtin_trainer=False), split_machine)
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "2"
    plan = make_plan(LaunchRequest(gpus="3"), split_machine)
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == split_machine.devices[3].uuid


@given(st.data())
def test_any_mask_beside_any_option_is_refused_or_gives_workers_the_chosen_devices(make_host, make_gpu, data):
    devices, card = [], 0
    for card in range(data.draw(st.integers(1, 4), label="cards")):
        for part in range(data.draw(st.sampled_from([0, 0, 2]), label="instances")) or (None,):
            name = "GPU" if part is None else "MIG"
            index, uuid = len(devices), f"{name}-{card}{part or 0}cd-77"
            devices.append(make_gpu(index, uuid=uuid, is_mig=part is not None, card_index=card))
    words = [str(n) for n in range(6)] + ["-1", "GPU-", "MIG-0", "x", "", " 1 "] + [d.uuid[:6] for d in devices]
    lists = st.lists(st.sampled_from(words), min_size=1, max_size=4).map(",".join)
    mask = data.draw(st.none() | lists, label="mask")
    gpus = data.draw(st.sampled_from([None, "all", "idle", "0-2"]) | lists, label="gpus")
    host = make_host(tuple(devices), visible_devices=mask)
    try:
        chosen, _ = choose_devices(LaunchRequest(gpus=gpus), host)
    except LaunchError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.what
        assert refused.seen
        return
    if chosen[0].kind == "cpu":
        assert mask is not None  # without a mask there is always a GPU
        assert mask_environment(chosen, host, by_index=False) == {"CUDA_VISIBLE_DEVICES": ""}
        return
    indices = [device.index for device in chosen]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= {device.index for device in visible_devices(host)}
    for by_index in (False, True):
        given_mask = mask_environment(chosen, host, by_index=by_index)["CUDA_VISIBLE_DEVICES"]
        assert visible_devices(replace(host, visible_devices=given_mask)) == chosen


def test_rocm_has_a_variable_of_its_own(make_host, make_gpu):
    cards = tuple(make_gpu(index, "MI300X", uuid="", compute_capability=None) for index in range(4))
    host = make_host(cards, torch=ROCM_TORCH, mask_variable="HIP_VISIBLE_DEVICES", visible_devices="2,3")
    plan = make_plan(LaunchRequest(gpus="1"), host)
    assert plan.environment["HIP_VISIBLE_DEVICES"] == plan.environment["CUDA_VISIBLE_DEVICES"] == "3"
    hidden = make_plan(LaunchRequest(gpus="cpu"), host)
    assert hidden.environment["HIP_VISIBLE_DEVICES"] == hidden.environment["CUDA_VISIBLE_DEVICES"] == "-1"
    with pytest.raises(LaunchError, match="HIP_VISIBLE_DEVICES names '7'"):
        choose_devices(LaunchRequest(), replace(host, visible_devices="7"))
