"""What YOLOv5's users type, and commands retyped with a change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_launch.errors import LaunchError
from yolo_launch.request.answers import TRAIN
from yolo_launch.request.command_line import retype, without_value
from yolo_launch.request.yolov5_arguments import NEWEST_RUN, normalize_arguments


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("--cache", "--cache ram"),
        ("--cache disk", "--cache disk"),
        ("--cache --rect", "--cache ram --rect"),
        ("--cache=disk", "--cache disk"),
        ("--freeze 10", "--freeze 10"),
        ("--freeze 0 1 2 --rect", "--freeze 0,1,2 --rect"),
        ("--freeze 0,1", "--freeze 0,1"),
        ("--batch -1", "--batch auto"),
        ("--batch-size=-1", "--batch-size auto"),
        ("--batch 64", "--batch 64"),
        ("--resume", f"--resume {NEWEST_RUN}"),
        ("--resume --epochs 3", f"--resume {NEWEST_RUN} --epochs 3"),
        ("--resume runs/train/exp/weights/last.pt", "--resume runs/train/exp/weights/last.pt"),
        ("--resume=runs/train/exp", "--resume runs/train/exp"),
        ("--label_smoothing 0.1 --image_weights", "--label-smoothing 0.1 --image-weights"),
        ("--set warmup_epochs=1", "--set warmup_epochs=1"),
        ("--set=lr0=0.1", "--set lr0=0.1"),
        ("--save_period -1", "--save-period -1"),
        ("--project my_runs --name a_b", "--project my_runs --name a_b"),
        ("x --device 0 -- --cache --local_rank 0", "x --device 0 -- --cache --local_rank 0"),
    ],
)
def test_typed_arguments_become_what_the_parser_knows(typed, parsed):
    assert normalize_arguments(typed.split(" ")) == parsed.split(" ")


def test_an_empty_value_stays_empty():
    assert normalize_arguments(["--weights", "", "--data="]) == ["--weights", "", "--data", ""]


@pytest.mark.parametrize("flag", sorted(TRAIN))
def test_options_of_yolov5_alone_are_refused_by_name(flag):
    for spelling in (flag, flag.replace("_", "-"), f"{flag}=3"):
        with pytest.raises(LaunchError, match=f"{flag} is an option of YOLOv5 that yolo-launch does not have: "):
            normalize_arguments(["--epochs", "3", spelling])


def test_a_hyperparameter_typed_as_an_option_is_explained():
    with pytest.raises(LaunchError, match="lr0 is a hyperparameter") as caught:
        normalize_arguments(["--lr0", "0.1"])
    assert caught.value.expected == "--set lr0=VALUE"


@given(st.lists(st.sampled_from(["--epochs", "3", "--cache", "ram", "--freeze", "1", "--resume", "x", "--rect"])))
def test_normal_arguments_stay_normal(words):
    once = normalize_arguments(words)
    assert normalize_arguments(once) == once


@pytest.mark.parametrize(
    ("typed", "changes", "command"),
    [
        ("yolo-launch train", {"--gpus": "0,1"}, "yolo-launch train --gpus 0,1"),
        ("yolo-launch train --device 3 --rect", {"--gpus": "0"}, "yolo-launch train --rect --gpus 0"),
        ("yolo-launch train --batch-size=5 --rect", {"--batch": "4"}, "yolo-launch train --rect --batch 4"),
        ("yolo-launch run a.py --gpus 0 -- --gpus 7", {"--gpus": "1"}, "yolo-launch run a.py --gpus 1 -- --gpus 7"),
        (
            "yolo-launch run --gpus 0 a.py",
            {"--rank": "0", "--nodes": "2"},
            "yolo-launch run --rank 0 --nodes 2 --gpus 0 a.py",
        ),
    ],
)
def test_retyped_commands_keep_the_rest(typed, changes, command):
    assert retype(typed.split(), changes) == command


def test_retyped_commands_can_be_pasted():
    assert retype(("yolo-launch", "train", "--data", "a b.yaml"), {}) == "yolo-launch train --data 'a b.yaml'"


@pytest.mark.parametrize("typed", [("--token", "s3cret"), ("--token=s3cret",)])
def test_a_secret_is_not_typed_again(typed):
    command = without_value(("yolo-launch", "node", *typed, "--rank", "1"), "--token")
    assert command == ("yolo-launch", "node", "--rank", "1", "--token", "...")
    assert without_value(("yolo-launch", "node"), "--token") == ("yolo-launch", "node")


def test_an_option_can_be_left_out_of_a_command_that_is_typed_again():
    typed = ("yolo-launch", "node", "--config", "c.yaml", "--rank", "0")
    assert retype(typed, {"--resume": "exp"}, without=("--config",)) == "yolo-launch node --rank 0 --resume exp"
