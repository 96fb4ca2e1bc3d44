"""``python -m trainer.weights.inspect``: what it says of a file, and files it writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.trainer.weights.foreign.yolov5_files import NAMES, save_version
from trainer.protocol import EXIT_USAGE
from trainer.weights.checkpoint import read_checkpoint
from trainer.weights.inspect import run
from trainer.weights.load import load_model, load_weights


@pytest.fixture
def v7(tmp_path):
    save_version(tmp_path / "v7.pt", "v7")
    return tmp_path / "v7.pt"


def test_facts_for_people(v7, capsys):
    assert run([str(v7)]) == 0
    shown = capsys.readouterr().out
    for words in ("YOLOv5 checkpoint", "small.yaml: 9 layers", "moving average", "3: red cell, white cell, platelet"):
        assert words in shown
    for words in ("float16", "4, 8", "416", "epoch:        7", "2023-01-02", "0.25"):
        assert words in shown


def test_facts_as_json(v7, capsys):
    assert run([str(v7), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["names"], report["stride"]) == ("yolov5", list(NAMES), [4, 8])
    assert report["parameters"] == sum(p.numel() for p in load_model(v7)[0].parameters())
    assert report["hyperparameters"] == {"lr0": 0.01, "anchor_t": 4.0}
    assert report["problems"] == []


def test_a_converted_file_is_this_projects_own(v7, tmp_path, capsys):
    target = tmp_path / "own.pt"
    assert run([str(v7), "--convert", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    content = read_checkpoint(target)
    before, after = load_weights(v7), load_weights(target)
    assert after.kind == "yolo-launch"
    assert (after.names, after.stride, after.image_size) == (NAMES, (4, 8), 416)
    assert after.definition == before.definition
    for key, tensor in before.state.items():
        assert torch.equal(after.state[key], tensor)
        assert torch.equal(content["ema"]["model"][key], tensor)


def test_safetensors(v7, tmp_path, capsys):
    pytest.importorskip("safetensors", reason="needs the extra [export]")
    target = tmp_path / "own.safetensors"
    assert run([str(v7), "--convert", str(target)]) == 0
    before, after = load_weights(v7), load_weights(target)
    assert (after.names, after.definition) == (NAMES, before.definition)
    assert all(torch.equal(after.state[key], tensor) for key, tensor in before.state.items())
    target.write_bytes(target.read_bytes()[:500])
    assert run([str(target)]) == EXIT_USAGE
    assert "damaged" in capsys.readouterr().err


def test_safetensors_without_its_extra(v7, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert run([str(v7), "--convert", str(tmp_path / "own.safetensors")]) == EXIT_USAGE
    assert "yolo-launch[export]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["v7.pt"]


@pytest.mark.parametrize(
    ("target", "words"), [("own.onnx", ".pt or .safetensors"), ("v7.pt", "overwrite"), ("no/own.pt", "folder")]
)
def test_targets_that_cannot_be_written(v7, tmp_path, capsys, target, words):
    before = v7.read_bytes()
    assert run([str(v7), "--convert", str(tmp_path / target)]) == EXIT_USAGE
    assert words in capsys.readouterr().err
    assert v7.read_bytes() == before


def test_a_refusal_leaves_stdout_empty(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"<html>no</html>")
    assert run([str(tmp_path / "a.pt"), "--json"]) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "web page" in json.loads(captured.err)["error"]["what"]


@pytest.mark.slow
def test_the_command_itself(shared_dir):
    command = [sys.executable, "-m", "trainer.weights.inspect", str(shared_dir / "weights" / "yolov5n.pt"), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(result.stdout)
    assert (report["parameters"], report["classes"], report["image_size"]) == (1_872_157, 80, None)
