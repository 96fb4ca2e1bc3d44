"""Every option of YOLOv5's four scripts and of torchrun works under its own spelling, or is answered."""

from __future__ import annotations

import pytest

from yolo_launch.cli.command_table import COMMANDS, load_command
from yolo_launch.cli.main import run_program
from yolo_launch.errors import LaunchError
from yolo_launch.request import answers
from yolo_launch.request.yolov5_arguments import normalize_arguments

# The published options of YOLOv5 7.0's scripts, with a value where one is taken.
TRAIN = """--weights w.pt|--cfg yolov5s.yaml|--data coco.yaml|--hyp h.yaml|--epochs 3|--batch-size 16|--batch 16
--imgsz 640|--img 640|--img-size 640|--rect|--resume|--resume a.pt|--nosave|--noval|--noautoanchor|--noplots
--evolve 300|--evolve|--bucket gs://b|--cache|--cache disk|--image-weights|--device 0|--device cpu
--device 0,1|--multi-scale|--single-cls|--optimizer AdamW|--sync-bn|--workers 8|--project runs/train
--name exp|--exist-ok|--quad|--cos-lr|--label-smoothing 0.1|--patience 100|--freeze 0|--freeze 0 1 2
--save-period 5|--seed 0|--local_rank -1|--entity e|--upload_dataset|--bbox_interval 1|--artifact_alias latest
--notest|--linear-lr|--adam|--image_weights|--save_period 5"""
VAL = """--data coco.yaml|--weights w.pt|--weights a.pt b.pt|--batch-size 32|--imgsz 640|--img 640|--img-size 640
--conf-thres 0.001|--iou-thres 0.6|--max-det 300|--task val|--task test|--device 0|--workers 8|--single-cls
--augment|--verbose|--save-txt|--save-hybrid|--save-conf|--save-json|--project runs/val|--name exp|--exist-ok
--half|--dnn"""
PREDICT = """--weights w.pt|--weights a.pt b.pt|--source a.jpg|--source 0|--data coco.yaml|--imgsz 640|--imgsz 640 480
--imgsz 640 640|--img 640|--img-size 640|--conf-thres 0.25|--iou-thres 0.45|--max-det 1000|--device 0
--view-img|--save-txt|--save-csv|--save-conf|--save-crop|--nosave|--classes 0|--classes 0 2|--agnostic-nms
--augment|--visualize|--update|--project runs/detect|--name exp|--exist-ok|--line-thickness 3|--hide-labels
--hide-conf|--half|--dnn|--vid-stride 1|--save_txt"""
EXPORT = """--data coco.yaml|--weights w.pt|--imgsz 640|--imgsz 640 480|--img 640|--img-size 640|--batch-size 1
--device cpu|--half|--inplace|--keras|--optimize|--int8|--dynamic|--simplify|--opset 17|--verbose
--workspace 4|--nms|--agnostic-nms|--topk-per-class 100|--topk-all 100|--iou-thres 0.45|--conf-thres 0.25
--include onnx|--include torchscript|--include onnx engine|--train"""
TORCHRUN = """--nnodes 1|--nnodes 1:1|--nnodes 2|--nproc-per-node 2|--nproc-per-node auto|--nproc-per-node gpu
--nproc-per-node cpu|--rdzv-backend c10d|--rdzv-endpoint a:29500|--rdzv-id 7|--rdzv-conf timeout=3
--standalone|--max-restarts 3|--monitor-interval 1|--start-method spawn|--role r|--no-python|--run-path
--log-dir d|--redirects 3|--tee 3|--local-ranks-filter 0|--node-rank 0|--node-rank 1|--master-addr 127.0.0.1
--master-addr 192.168.1.1|--master-port 1234|--local-addr a|--logs-specs s"""
LISTS = {"train": TRAIN, "val": VAL, "predict": PREDICT, "export": EXPORT}
ENTRIES = {entry.name: entry for entry in COMMANDS}


def words_of(text):
    return [tuple(one.split(" ")) for line in text.split("\n") for one in line.split("|")]


CASES = [(command, words) for command, text in LISTS.items() for words in words_of(text)]
CASES += [(command, words) for command in ("train", "run", "node") for words in words_of(TORCHRUN)]
CASES += [
    (command, (words[0].replace("-", "_").replace("__", "--", 1), *words[1:]))
    for command in ("train", "run", "node")
    for words in words_of(TORCHRUN)
]


def parsed(command, words):
    """What the parser makes of the words, as a mapping; raises what a user would be shown."""
    before = {"predict": ["picture.jpg"]}.get(command, [])
    after = {"run": ["script.py"]}.get(command, [])
    loaded = load_command(ENTRIES[command])
    with loaded.make_context(command, [*before, *words, *after]) as context:
        return dict(context.params)


def answer_to(command, words):
    """What the words change, or the answer to them."""
    try:
        return parsed(command, words), None
    except LaunchError as error:
        return None, error


@pytest.mark.parametrize(
    ("command", "words"), CASES, ids=lambda value: value if isinstance(value, str) else "_".join(value)
)
def test_each_option_works_or_is_answered(command, words, capsys):
    before = parsed(command, ())
    after, refusal = answer_to(command, words)
    noted = capsys.readouterr().err
    if refusal is not None:
        assert refusal.what
        assert refusal.seen
        assert refusal.expected or refusal.next_command
        return
    changed = {name for name in after if after[name] != before[name]}
    if noted:
        assert noted.startswith(f"note: {words[0]} of torchrun changes nothing here: ")
        assert not changed
        return
    means_nothing_here = {("--nnodes", "1"), ("--nnodes", "1:1"), ("--node-rank", "0"), ("--master-addr", "127.0.0.1")}
    means_nothing_here |= {("--standalone",), ("--nproc-per-node", "auto"), ("--nproc-per-node", "gpu")}
    plain = (words[0].replace("_", "-"), *words[1:])
    if (command, plain[0]) == ("node", "--rdzv-endpoint"):
        assert changed == {"master", "port"}
        return
    assert (
        len(changed) == (0 if plain in means_nothing_here and command != "node" else 1) or plain in means_nothing_here
    )
    assert after.get("sources") == before.get("sources"), "no value is taken for a picture"


@pytest.mark.parametrize(
    ("command", "typed", "words"),
    [
        ("predict", "--classes 0 2 a.jpg", "--classes 0,2 a.jpg"),
        ("predict", "--imgsz 640 640 a.jpg", "--imgsz 640 a.jpg"),
        ("predict", "--imgsz 640 0", "--imgsz 640 0"),  # a camera
        ("predict", "--weights a.pt 7.jpg", "--weights a.pt 7.jpg"),
        ("run", "--nproc_per_node 2 x.py", "--nproc 2 x.py"),
        ("run", "--rdzv_backend c10d -r 3 --run-path --nproc 2 x.py", "--nproc 2 x.py"),
        ("node", "--rdzv_endpoint 192.168.1.1:1234 --rdzv-id=7", "--master 192.168.1.1 --port 1234"),
        ("node", "--rdzv-endpoint=[fd00::1]:1234", "--master fd00::1 --port 1234"),
        ("node", "--rdzv-endpoint host", "--master host"),
        ("run", "--nproc_per_node=2 --nnodes=1 x.py", "--nproc 2 x.py"),
        ("run", "--standalone -m pkg -- --nnodes 3", "--module pkg -- --nnodes 3"),
        ("train", "--nproc_per_node cpu", "--gpus cpu"),
        ("train", "--master_port 1234", "--port 1234"),
        (
            "node",
            "--nnodes 2 --node_rank 1 --master_addr 192.168.1.1 --master_port 1234",
            "--nodes 2 --rank 1 --master 192.168.1.1 --port 1234",
        ),
    ],
)
def test_what_the_words_become(command, typed, words):
    assert normalize_arguments(typed.split(), command) == words.split()


@pytest.mark.parametrize(
    ("command", "typed", "seen"),
    [
        ("predict", "--imgsz 640 480 a.jpg", "--imgsz 640 480"),
        ("export", "--include onnx engine", "--include onnx engine"),
        ("val", "--weights a.pt b.pt", "--weights a.pt b.pt"),
        ("train", "data=coco.yaml", "data=coco.yaml"),
        ("train", "--nnodes 2", "--nnodes 2"),
        ("run", "--node_rank 1 x.py", "--node_rank 1"),
        ("run", "--no-python x.py", "--no-python"),
    ],
)
def test_what_would_be_misread_is_refused(command, typed, seen):
    with pytest.raises(LaunchError) as caught:
        normalize_arguments(typed.split(), command)
    assert caught.value.seen == seen
    assert caught.value.expected


@pytest.mark.parametrize("word", [*answers.COMMANDS, "detect.py", "train.py", "yolov5/val.py", "model=yolov5s.pt"])
def test_commands_of_other_programs_are_answered(word, capsys):
    if word.rpartition("/")[2].removesuffix(".py") in ENTRIES:
        pytest.skip("a command of this program")
    assert run_program([word, "--weights", "w.pt"]) == 2
    error = capsys.readouterr().err
    assert f"no command '{word}'" in error
    assert "Next:" in error
