"""``val``, ``predict``, ``export`` and ``weights`` as typed: what is refused at once, and what workers are asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from trainer.config.fields import read_options
from trainer.config.inference import ExportConfig, PredictConfig, ValConfig
from yolo_launch.cli.main import app, run_program
from yolo_launch.spec import Outcome, RankFailure

PROJECT_DIR = Path(__file__).resolve().parents[3]
VAL_FLAGS = """
--batch --batch-size --coco-json --conf --conf-thres --data --debug --device --exist-ok --gpus --half --img --img-size
--imgsz --iou --iou-thres --json --max-bad-share --max-det --name --noplots --nproc --port --project
--skip-difficult --skip-truncated --split --stall-timeout --task --weights --workers
"""
PREDICT_FLAGS = """
--batch --batch-size --classes --conf --conf-thres --debug --device --exist-ok --gpus --half --img --img-size --imgsz
--iou --iou-thres --json --max-det --name --nosave --project --save-conf --save-crop --save-txt --show --source
--stall-timeout --view-img --weights
"""
EXPORT_FLAGS = """
--batch --batch-size --conf --conf-thres --debug --device --dynamic --format --gpus --half --image --img --img-size
--imgsz --include --iou --iou-thres --json --max-det --opset --out --stall-timeout --weights --with-nms
"""


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("val", VAL_FLAGS),
        ("predict", PREDICT_FLAGS),
        ("export", EXPORT_FLAGS),
        ("weights", "--convert --debug --json"),
    ],
)
def test_the_options_are_these_and_no_others(command, flags):
    """A new option is a decision: it changes this list."""
    parameters = typer.main.get_command(app).commands[command].params
    found = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {flag for flag in found if flag.startswith("--")} == set(flags.split())


class Supervisor:
    """Stands in for yolo_launch.supervision.supervisor: keeps what it is given and ends as it is told."""

    def __init__(self):
        self.calls = []
        self.configs = {}
        self.outcome = Outcome("done", 0)

    def launch(self, plan, command, run_dir, **more):
        """Record the call."""
        self.calls.append(types.SimpleNamespace(plan=plan, command=command, run_dir=run_dir, **more))
        self.configs[command.arguments[2]] = read_options(Path(command.arguments[2]))
        if self.outcome.kind == "done":
            (run_dir / "summary.json").write_text(json.dumps({"map50": 0.5}))
        return self.outcome


@pytest.fixture
def supervisor(monkeypatch, tmp_path):
    """No GPU, a folder with weights and a data set in it, and nothing that really starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "best.pt").write_bytes(b"weights")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"picture")
    (tmp_path / "cats.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    stand_in = Supervisor()
    monkeypatch.setitem(sys.modules, "yolo_launch.supervision.supervisor", stand_in)
    return stand_in


def test_val_asks_each_worker_for_whole_batches(supervisor, capsys):
    typed = "val --weights best.pt --data cats.yaml --imgsz 320 --batch 8 --gpus cpu --nproc 2 --conf-thres 0.01"
    assert run_program([*typed.split(), "--coco_json", "out.json", "--split", "train", "--half", "--json"]) == 0
    (call,) = supervisor.calls
    assert (call.plan.world_size, call.plan.max_restarts, call.console_json) == (2, 0, True)
    assert str(call.run_dir) == "runs/val/exp"
    config_path = "runs/val/exp/val.yaml"
    assert call.command.arguments == ("-m", "trainer.inference.val", config_path, "--run-dir", "runs/val/exp")
    config = ValConfig.read(Path(config_path))
    assert (config.weights, config.data, config.split) == ("best.pt", "cats.yaml", "train")
    assert (config.imgsz, config.batch, config.conf, config.iou) == (320, 8, 0.01, 0.6)
    assert (config.coco_json, config.half, config.workers) == ("out.json", True, call.plan.workers_per_rank)
    assert call.command.foreign is False
    assert json.loads(capsys.readouterr().out) == {"map50": 0.5}
    assert run_program(["val", "--weights", "best.pt", "--data", "cats.yaml"]) == 0
    assert str(supervisor.calls[1].run_dir) == "runs/val/exp2"


def config_of(supervisor, model):
    """The configuration that the last workers were given; the launcher types what they take."""
    *program, path, flag, run_dir = supervisor.calls[-1].command.arguments
    assert program == ["-m", f"trainer.inference.{model.__name__.removesuffix('Config').lower()}"]
    assert (flag, run_dir) == ("--run-dir", str(supervisor.calls[-1].run_dir))
    return model(**supervisor.configs[path])


def test_each_worker_is_given_what_was_typed(supervisor):
    typed = "val --weights best.pt --data cats.yaml --split val --imgsz 64 --batch 2 --conf 0.1 --iou 0.5 --max-det 9 "
    assert run_program([*typed.split(), *["--half", "--coco-json", "x.json", "--noplots", "--workers", "0"]]) == 0
    assert config_of(supervisor, ValConfig) == ValConfig(
        **{"weights": "best.pt", "data": "cats.yaml", "imgsz": 64, "batch": 2, "conf": 0.1, "iou": 0.5, "max_det": 9},
        **{"half": True, "coco_json": "x.json", "noplots": True, "workers": 0},
    )
    assert run_program(["predict", "--weights", "best.pt", "--", "-odd.jpg"]) == 0
    assert config_of(supervisor, PredictConfig) == PredictConfig(weights="best.pt", sources=("-odd.jpg",))
    typed = "export --weights best.pt --format torchscript --out x --imgsz 64 --batch 2 --half --image a.jpg "
    limits = ("--conf", "0.1", "--iou", "0.5", "--max-det", "9", "--opset", "16", "--dynamic")
    assert run_program([*typed.split(), *limits]) == 0
    assert config_of(supervisor, ExportConfig) == ExportConfig(
        **{"weights": "best.pt", "format": "torchscript", "out": "x", "imgsz": 64, "batch": 2, "half": True},
        **{"image": "a.jpg", "conf": 0.1, "iou": 0.5, "max_det": 9, "opset": 16, "dynamic": True},
    )
    more = "predict --source images --weights best.pt --classes 0,1 --half --save-txt --save-conf --save-crop --nosave"
    assert run_program([*more.split(), "--show", "--json", "--batch", "3"]) == 0
    config = config_of(supervisor, PredictConfig)
    assert (config.sources, config.classes, config.batch) == (("images",), "0,1", 3)
    assert all((config.half, config.save_txt, config.save_conf, config.save_crop, config.nosave, config.show))
    assert config.json_lines


def test_predict_leaves_stdout_to_its_one_worker(supervisor, capsys):
    assert run_program(["predict", "--weights", "best.pt", "--json", "images"]) == 0
    (call,) = supervisor.calls
    assert (call.plan.world_size, call.console_json) == (1, False)
    assert capsys.readouterr().out == ""
    supervisor.outcome = Outcome("worker_failed", 2, RankFailure(0, 0, 2, message="ConfigError: no"))
    assert run_program(["predict", "--weights", "best.pt", "--json", "images"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no" in captured.err


def test_export_keeps_its_logs_only_where_it_fails(supervisor, capsys):
    assert run_program(["export", "--weights", "best.pt", "--format", "torchscript", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"map50": 0.5}
    assert not supervisor.calls[0].run_dir.exists()
    assert supervisor.calls[0].plan.devices[0].kind == "cpu"
    supervisor.outcome = Outcome("worker_failed", 1, RankFailure(0, 0, 1, message="RuntimeError: x"))
    assert run_program(["export", "--weights", "best.pt", "--format", "torchscript"]) == 1
    assert supervisor.calls[1].run_dir.exists()
    shutil.rmtree(supervisor.calls[1].run_dir)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("val --data cats.yaml", "yolo-launch val needs weights"),
        ("val --weights gone.pt --data cats.yaml", "The weights file gone.pt is missing"),
        ("val --weights yolov5s.pt --data cats.yaml", "releases of github.com/ultralytics/yolov5"),
        ("val --weights images --data cats.yaml", "is a folder, not a weights file"),
        ("val --weights best.pt", "needs a data set"),
        ("val --weights best.pt --data gone.yaml", "does not exist"),
        ("val --weights best.pt --data cats.yaml --split test", "has no 'test' split"),
        ("val --weights best.pt --data cats.yaml --split dev", "--split dev"),
        ("val --weights best.pt --data cats.yaml --conf 1.5", "--conf 1.5"),
        ("val --weights best.pt --data cats.yaml --batch 0", "--batch 0\n  Expected: a number above 0"),
        ("val --weights best.pt --data cats.yaml --iou -0.1", "--iou -0.1\n  Expected: 0 to 1"),
        ("val --weights best.pt --data cats.yaml --workers -1", "--workers -1\n  Expected: a number of at least 0"),
        ("val --weights best.pt --data cats.yaml --split dev", "Expected: train, val or test"),
        ("val --weights best.pt --data cats.yaml --max-det 0", "Next:     yolo-launch val --help"),
        ("val --weights best.pt --data cats.yaml --gpus 7", "--gpus 7"),
        ("predict --weights best.pt", "needs something to look at"),
        ("predict --weights best.pt --gpus 0,1 images", "uses one device"),
        ("export --weights best.pt --format tflite", "onnx or torchscript"),
        ("export --weights best.pt --format torchscript --with-nms", "--with-nms is for ONNX"),
        ("weights gone.pt", "The weights file gone.pt is missing"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(supervisor, typed, said, capsys):
    assert run_program(typed.split()) in (2, 3)
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert supervisor.calls == []
    assert not Path("runs").exists()


def test_a_missing_extra_is_named(supervisor, monkeypatch, capsys):
    find = __import__("importlib.util", fromlist=["util"]).find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "onnx" else find(name, *a))
    assert run_program(["export", "--weights", "best.pt"]) == 3
    assert 'pip install "yolo-launch[export]"' in capsys.readouterr().err
    assert supervisor.calls == []


def start(folder, *words):
    """The program in a process of its own, on one CPU."""
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_DIR), "CUDA_VISIBLE_DEVICES": ""}
    code = "import sys; from yolo_launch.cli.main import main; main()"
    # As the installed program, the launcher itself does not look into the working directory.
    command = [sys.executable, *["-P"] * (sys.version_info >= (3, 11)), "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.parametrize("typed", ["val --help", "val --weights x.pt --data y.yaml", "predict --weights x.pt a.jpg"])
def test_torch_stays_unloaded_until_workers_start(tmp_path, typed):
    code = (
        "import sys\nfrom yolo_launch.cli.main import run_program\nrun_program(sys.argv[1:])\n"
        "heavy = {'torch', 'torchvision', 'cv2', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", code, *typed.split()]
    child = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def test_weights_describes_and_converts(shared_dir, tmp_path):
    official = str(shared_dir / "weights" / "yolov5n.pt")
    child = start(tmp_path, "weights", official, "--convert", "ours.pt", "--json")
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout)
    assert (report["kind"], report["classes"]) == ("yolov5", 80)
    assert (tmp_path / "ours.pt").stat().st_size > 5e6
    (tmp_path / "bad.pt").write_text("<html>not found</html>")
    child = start(tmp_path, "weights", "bad.pt", "--json")
    assert child.returncode == 2
    assert json.loads(child.stdout)["error"]["what"]
    assert "Traceback" not in child.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 looks into the working directory first")
@pytest.mark.parametrize("name", ["trainer", "torch"])
def test_weights_takes_no_code_from_the_folder_it_is_used_in(detector, tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')")
    child = start(tmp_path, "weights", str(detector))
    assert child.returncode == 0, child.stderr


def test_predict_for_real(detector, bccd_yaml, tmp_path):
    picture = bccd_yaml.parent / "images" / "val" / "BloodImage_00000.jpg"
    words = ("--weights", str(detector), str(picture), "--imgsz", "160", "--json", "--gpus", "cpu")
    child = start(tmp_path, "predict", *words)
    assert child.returncode == 0, child.stderr
    (line,) = child.stdout.splitlines()
    assert json.loads(line)["boxes"][0]["name"] == "WBC"
    assert (tmp_path / "runs" / "predict" / "exp" / picture.name).is_file()


@pytest.mark.slow
def test_val_for_real_on_two_workers(detector, bccd_yaml, tmp_path):
    words = ("--imgsz", "160", "--batch", "8", "--gpus", "cpu", "--nproc", "2", "--json", "--noplots")
    child = start(tmp_path, "val", "--weights", str(detector), "--data", str(bccd_yaml), *words)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert (found["images"], found["boxes"]) == (20, 339)
    assert 0.15 < found["map5095"] < found["map50"] < 0.5
