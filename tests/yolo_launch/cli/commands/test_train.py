"""``train`` from options to what is handed to the supervisor, and from its outcome to the user."""

from __future__ import annotations

import json
import types
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml

from trainer.config.train import read_config
from yolo_launch.cli.main import run_program
from yolo_launch.jobs import run_directory, run_lock
from yolo_launch.spec import Outcome, RankFailure

SUMMARY = {"run_dir": "x", "epochs": 2, "best_epoch": 1, "map50": 0.5, "map5095": 0.25}


class Supervisor:
    """Stands in for yolo_launch.supervision.supervisor: keeps what it is given and ends as it is told."""

    def __init__(self):
        self.calls = []
        self.outcome = Outcome("done", 0)
        self.summary = SUMMARY

    def launch(self, plan, command, run_dir, **more):
        """Record the call."""
        self.calls.append(types.SimpleNamespace(plan=plan, command=command, run_dir=run_dir, **more))
        if self.outcome.kind == "done":
            (run_dir / "summary.json").write_text(json.dumps(self.summary))
        return self.outcome

    @property
    def last(self):
        """The last call."""
        return self.calls[-1]


@pytest.fixture
def supervisor(monkeypatch, tmp_path):
    """No GPU, an empty folder, and nothing that really starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    stand_in = Supervisor()
    monkeypatch.setitem(__import__("sys").modules, "yolo_launch.supervision.supervisor", stand_in)
    return stand_in


@pytest.fixture
def data(tmp_path):
    """A data set of a few pictures, as a path relative to the working folder."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / "cats" / folder / split).mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 255, (64, 64, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "cats" / "images" / split / f"{index}.png"), pixels)
            (tmp_path / "cats" / "labels" / split / f"{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "cats.yaml").write_text("path: cats\ntrain: images/train\nval: images/val\nnames: [cat]\n")
    return "cats.yaml"


def train(*arguments):
    return run_program(["train", *arguments])


def test_options_reach_the_configuration_and_the_plan(supervisor, data, tmp_path):
    assert (
        train(
            *("--data", data, "--device", "cpu", "--nproc", "2", "--batch-size", "8", "--img", "320", "--cache"),
            *("--freeze", "0", "1", "--hyp", "med", "--set", "lr0=0.02", "--noval", "--cos-lr", "--epochs", "7"),
            *("--max-restarts", "1", "--stall-timeout", "60", "--label_smoothing", "0.1", "--weights", ""),
        )
        == 0
    )
    call = supervisor.last
    assert (call.plan.mode, call.plan.world_size, call.plan.local_batch_size) == ("ddp", 2, 4)
    assert (call.plan.max_restarts, call.plan.stall_timeout_s) == (1, 60.0)
    assert (call.console_json, call.inline) == (False, False)
    assert call.command.arguments == (
        *("-m", "trainer", "runs/train/exp/config.yaml"),
        *("--run-dir", "runs/train/exp"),
    )
    config = read_config(tmp_path / "runs" / "train" / "exp" / "config.yaml")
    assert config.data == str(tmp_path / "cats.yaml")
    assert (config.batch_size, config.imgsz, config.cache, config.freeze, config.epochs) == (8, 320, "ram", (0, 1), 7)
    assert (config.val, config.cos_lr, config.label_smoothing) == (False, True, 0.1)
    assert (config.hyperparameters.lr0, config.hyperparameters.mixup) == (0.02, 0.1)
    plan = json.loads((tmp_path / "runs" / "train" / "exp" / "plan.json").read_text())
    assert plan["request"] == {"gpus": "cpu", "nproc": 2}


def test_defaults_with_data_are_yolov5s_from_scratch(supervisor, data, tmp_path):
    assert train("--data", data) == 0
    config = read_config(tmp_path / "runs" / "train" / "exp" / "config.yaml")
    assert (config.model_name, config.weights) == ("yolov5s", "")
    assert (config.epochs, config.batch_size, config.imgsz) == (100, 16, 640)


def test_without_data_the_embedded_set_is_made_and_suits(supervisor, tmp_path, monkeypatch, capsys):
    made = []
    demo = __import__("trainer.data.demo.dataset", fromlist=["demo"])
    monkeypatch.setattr(demo, "ensure_demo_dataset", lambda folder: made.append(folder) or tmp_path / "demo.yaml")
    assert train("--epochs", "2") == 0
    config = read_config(tmp_path / "runs" / "train" / "exp" / "config.yaml")
    assert (config.data, config.cfg, config.epochs) == (str(tmp_path / "demo.yaml"), "yolov5n", 2)
    assert len(made) == 1
    out = capsys.readouterr().out
    assert "rank 0 -> CPU" in out
    assert "mAP50 0.500, mAP50-95 0.250 at epoch 1 of 2" in out
    assert "runs/train/exp/weights/best.pt" in out
    assert "yolo-launch train --data YOUR.yaml" in out
    assert "yolo-launch predict --weights runs/train/exp/weights/best.pt PICTURES" in out


def test_a_run_that_could_not_be_judged_recommends_nothing_and_has_its_own_exit_code(supervisor, data, capsys):
    supervisor.summary = {**SUMMARY, "is_judged": False, "best_epoch": None, "map50": None, "map5095": None}
    assert train("--data", data) == 7
    out = capsys.readouterr().out
    assert "could not be judged: no validation image has a label" in out
    assert "best.pt" not in out
    assert "predict" not in out
    assert "yolo-launch val --weights runs/train/exp/weights/last.pt --data LABELED.yaml" in out
    assert train("--data", data, "--json") == 7
    assert json.loads(capsys.readouterr().out)["map50"] is None


@pytest.mark.parametrize(
    ("summary", "line", "predicts"),
    [
        (
            {"best_epoch": 0, "weights_epoch": 0},
            "mAP50-95 0.250 at epoch 0 of 2: the weights you started from; no epoch after it measured better",
            True,
        ),
        (
            {"best_epoch": 0, "weights_epoch": 2},
            "at epoch 2 of 2; the weights you started from measured better, and only epoch 2 was kept",
            False,
        ),
        (
            {"best_epoch": 1, "weights_epoch": 2},
            "at epoch 2 of 2; epoch 1 measured better, and only epoch 2 was kept",
            False,
        ),
        ({"best_epoch": 2, "weights_epoch": 2}, "mAP50 0.500, mAP50-95 0.250 at epoch 2 of 2\n", True),
        ({"map50": 0.0, "map5095": 0.0}, "mAP50 0.000, mAP50-95 0.000 at epoch 1 of 2", False),
    ],
)
def test_a_worse_model_is_not_recommended(supervisor, data, capsys, summary, line, predicts):
    supervisor.summary = {**SUMMARY, **summary}
    assert train("--data", data) == 0
    out = capsys.readouterr().out
    assert line in out
    assert ("predict" in out) is predicts
    assert "train --resume runs/train/exp --epochs 4" in out


def test_json_prints_the_summary_alone(supervisor, data, capsys):
    assert train("--data", data, "--json") == 0
    assert json.loads(capsys.readouterr().out) == SUMMARY
    assert supervisor.last.console_json is True


def test_a_written_configuration_reproduces_the_run(supervisor, data, tmp_path):
    assert train("--data", data, "--hyp", "high", "--set", "lr0=0.3", "--epochs", "3", "--name", "first") == 0
    first = tmp_path / "runs" / "train" / "first" / "config.yaml"
    assert train("--config", str(first)) == 0
    second = tmp_path / "runs" / "train" / "first2" / "config.yaml"
    assert yaml.safe_load(second.read_text()) == yaml.safe_load(first.read_text())
    assert train("--config", str(first), "--hyp", "low", "--epochs", "9", "--name", "third") == 0
    third = read_config(tmp_path / "runs" / "train" / "third" / "config.yaml")
    assert (third.hyperparameters.lr0, third.epochs) == (0.01, 9)


def test_failures_end_with_their_cause_and_code(supervisor, data, capsys):
    failure = RankFailure(rank=0, local_rank=0, exit_code=1, message="ValueError: box 7", log_path="logs/rank0.log")
    supervisor.outcome = Outcome("worker_failed", 1, failure)
    assert train("--data", data) == 1
    err = capsys.readouterr().err
    assert "ValueError: box 7" in err
    assert err.rstrip().splitlines()[-1].endswith("yolo-launch train --resume runs/train/exp")


@pytest.mark.parametrize(("kind", "code"), [("saved_and_stopped", 75), ("stalled", 4), ("interrupted", 130)])
def test_exit_codes_are_the_outcomes(supervisor, data, kind, code, capsys):
    supervisor.outcome = Outcome(kind, code, signal=2)
    assert train("--data", data, "--json") == code
    assert json.loads(capsys.readouterr().out)["outcome"] == kind


def unfinished(supervisor, data, *options):
    supervisor.outcome = Outcome("interrupted", 130, signal=2)
    assert train("--data", data, "--epochs", "5", "--batch", "8", *options) == 130
    supervisor.outcome = Outcome("done", 0)


def test_resume_goes_on_in_the_same_folder_on_the_same_devices(supervisor, data, tmp_path, capsys):
    unfinished(supervisor, data, "--gpus", "cpu", "--nproc", "2")
    before = read_config(tmp_path / "runs" / "train" / "exp" / "config.yaml")
    assert train("--resume") == 0
    assert str(supervisor.last.run_dir) == "runs/train/exp"
    assert supervisor.last.plan.world_size == 2
    assert read_config(tmp_path / "runs" / "train" / "exp" / "config.yaml") == before
    assert "Changed since" not in capsys.readouterr().out


def test_resume_may_change_the_number_of_workers_and_split_unevenly(supervisor, data, monkeypatch):
    unfinished(supervisor, data)
    monkeypatch.setattr("yolo_launch.host.inventory.affinity_cores", lambda: 8)
    assert train("--resume", "--gpus", "cpu", "--nproc", "3") == 0
    assert (supervisor.last.plan.global_batch_size, supervisor.last.plan.local_batch_size) == (8, 3)


def test_resume_shows_changes_and_wants_a_word_for_those_that_matter(supervisor, data, capsys, tmp_path):
    unfinished(supervisor, data)
    assert train("--resume", "--seed", "4", "--epochs", "9") == 2
    assert "--seed  0 -> 4" in capsys.readouterr().err
    assert len(supervisor.calls) == 1
    assert train("--resume", "--seed", "4", "--epochs", "9", "--override") == 0
    assert "changes the result" in capsys.readouterr().out
    assert read_config(tmp_path / "runs" / "train" / "exp" / "config.yaml").seed == 4


def test_a_finished_run_goes_on_with_more_epochs_only(supervisor, data, capsys, tmp_path):
    assert train("--data", data, "--epochs", "5") == 0
    assert train("--resume", "exp") == 2
    assert "yolo-launch train --resume runs/train/exp --epochs 10" in capsys.readouterr().err
    supervisor.outcome = Outcome("interrupted", 130, signal=2)
    assert train("--resume", "exp", "--epochs", "10") == 130
    assert not (tmp_path / "runs" / "train" / "exp" / "summary.json").exists()


def test_exist_ok_starts_anew_in_the_folder(supervisor, data, tmp_path):
    assert train("--data", data) == 0
    run = tmp_path / "runs" / "train" / "exp"
    (run / "weights").mkdir()
    (run / "weights" / "last.pt").write_text("old")
    supervisor.outcome = Outcome("interrupted", 130, signal=2)
    assert train("--data", data, "--exist-ok") == 130
    assert str(supervisor.last.run_dir) == "runs/train/exp"
    assert not (run / "weights" / "last.pt").exists()
    assert not (run / "summary.json").exists()


def test_a_run_that_is_being_trained_is_left_alone(supervisor, data, tmp_path, capsys):
    unfinished(supervisor, data)
    with run_lock.hold(tmp_path / "runs" / "train" / "exp"):
        for arguments in (("--resume",), ("--resume", "exp"), ("--data", data, "--exist-ok")):
            assert train(*arguments) == 2
            assert "being trained right now" in capsys.readouterr().err
    assert len(supervisor.calls) == 1


def test_inline_takes_one_worker(supervisor, data, capsys):
    assert train("--data", data, "--inline") == 0
    assert supervisor.last.inline is True
    assert train("--data", data, "--inline", "--gpus", "cpu", "--nproc", "2") == 2
    assert "--inline trains with one worker" in capsys.readouterr().err


def test_a_script_runs_once_unless_restarts_are_asked_for(supervisor, tmp_path, capsys):
    (tmp_path / "train.py").write_text("")
    assert run_program(["run", "train.py", "--gpus", "cpu", "--nproc", "2", "--", "--epochs", "3"]) == 0
    call = supervisor.last
    assert call.command.arguments == ("train.py", "--epochs", "3")
    assert call.command.foreign is True
    assert (call.plan.max_restarts, call.plan.world_size) == (0, 2)
    assert (tmp_path / "runs" / "run" / "exp" / "logs").is_dir()
    assert run_program(["run", "--module", "--max-restarts", "2", "json.tool"]) == 0
    assert supervisor.last.command.arguments == ("-m", "json.tool")
    assert supervisor.last.plan.max_restarts == 2
    supervisor.outcome = Outcome("worker_failed", 1, RankFailure(0, 0, 1, "boom"))
    assert run_program(["run", "train.py"]) == 1
    assert "boom" in capsys.readouterr().err


def tiny(data):
    common = ("--data", data, "--cfg", "yolov5n", "--imgsz", "64", "--batch", "4", "--workers", "0", "--noplots")
    return ("train", *common, "--epochs", "1")


def test_auto_batch_on_a_cpu_is_16_and_says_so(supervisor, data, tmp_path, capsys):
    assert train("--data", data, "--gpus", "cpu", "--batch", "auto", "--dry-run") == 0
    assert "--batch auto takes 16 on a CPU" in capsys.readouterr().out
    assert train("--data", data, "--gpus", "cpu", "--batch", "auto") == 0
    assert supervisor.last.plan.global_batch_size == 16
    assert read_config(supervisor.last.run_dir / "config.yaml").batch_size == 16


def test_auto_batch_on_gpus_is_measured_before_the_start_and_then_planned(
    supervisor, data, monkeypatch, make_host, capsys
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("yolo_launch.cli.commands.train.inspect_host", lambda: make_host(2))
    asked = []

    def measured(plan, config, say):
        asked.append((len(plan.devices), config.imgsz))
        return 48

    monkeypatch.setattr("yolo_launch.probes.batch_size.measure_batch", measured)
    assert train("--data", data, "--batch", "auto", "--imgsz", "320", "--dry-run") == 0
    assert "measured on the devices at the start" in capsys.readouterr().out
    assert asked == []  # a dry run starts nothing
    assert train("--data", data, "--batch", "auto", "--imgsz", "320") == 0
    assert asked == [(2, 320)]
    plan = supervisor.last.plan
    assert (plan.global_batch_size, plan.local_batch_size, plan.batch_is_auto) == (48, 24, False)
    assert read_config(supervisor.last.run_dir / "config.yaml").batch_size == 48
    assert json.loads((supervisor.last.run_dir / "plan.json").read_text())["global_batch_size"] == 48


def test_a_real_run_end_to_end(yolo_launch, data):
    done = yolo_launch(*tiny(data), "--json", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["epochs"], summary["world_size"], summary["global_batch_size"]) == (1, 1, 4)


@pytest.mark.slow
def test_a_real_run_is_trained_further(yolo_launch, data):
    assert yolo_launch(*tiny(data), OMP_NUM_THREADS="1").returncode == 0
    second = yolo_launch("train", "--resume", "exp", "--epochs", "2", OMP_NUM_THREADS="1")
    assert second.returncode == 0, second.stderr
    assert "--epochs  1       2" in second.stdout
    assert "resumed at epoch 2" in second.stdout
    assert "weights" in second.stdout


FULL = RankFailure(1, 1, 1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", epoch=0, step=3)


@pytest.fixture
def two_gpus(supervisor, monkeypatch, make_host):
    """A machine with two GPUs on which --batch auto chooses 32; the supervisor's outcomes come in order."""
    monkeypatch.setattr("yolo_launch.cli.commands.train.inspect_host", lambda: make_host(2))
    monkeypatch.setattr("yolo_launch.probes.batch_size.measure_batch", lambda *given, **options: 32)
    outcomes = []

    def launch(*given, **more):
        supervisor.outcome = outcomes.pop(0)
        return Supervisor.launch(supervisor, *given, **more)

    monkeypatch.setattr(supervisor, "launch", launch, raising=False)
    supervisor.outcomes = outcomes
    return supervisor


def test_a_batch_that_was_chosen_and_does_not_fit_is_halved_and_gathered(two_gpus, data, capsys):
    failed, done = Outcome("worker_failed", 1, failure=FULL), Outcome("done", 0)
    two_gpus.outcomes += [failed, failed, done]
    assert train("--data", data, "--batch", "auto", "--epochs", "2") == 0
    assert [call.plan.global_batch_size for call in two_gpus.calls] == [32, 16, 8]
    assert [call.plan.local_batch_size for call in two_gpus.calls] == [16, 8, 4]
    assert len({call.run_dir for call in two_gpus.calls}) == 1
    config = read_config(two_gpus.last.run_dir / "config.yaml")
    assert (config.batch_size, config.nominal_batch) == (8, 32)
    assert run_directory.read_plan(two_gpus.last.run_dir)["global_batch_size"] == 8
    assert "32 did not fit after all; 16 now, and 32 images an update" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("batch", "failure", "calls"),
    [
        ("32", FULL, 1),
        ("auto", replace(FULL, epoch=1), 1),
        ("auto", replace(FULL, message="ValueError: labels are out of range"), 1),
        ("auto", FULL, 4),
    ],
)
def test_a_batch_is_not_halved_without_end_or_reason(two_gpus, data, batch, failure, calls):
    two_gpus.outcomes += 9 * [Outcome("worker_failed", 1, failure=failure)]
    assert train("--data", data, "--batch", batch, "--epochs", "2") == 1
    assert len(two_gpus.calls) == calls
