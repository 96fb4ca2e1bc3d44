"""Checks what a machine makes of the master's job: options, its own paths, its own folder."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from trainer.config.train import make_config, read_config
from trainer.errors import ConfigError
from yolo_launch.cli.typer_options import options_from
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.sources import Sources
from yolo_launch.nodes.context import round_request
from yolo_launch.nodes.master import make_settings
from yolo_launch.nodes.training import (
    describe_job,
    job_config,
    member_command,
    member_request,
    own_run_dir,
    refuse_other_options,
)
from yolo_launch.rendezvous.messages import Round
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.spec import LaunchRequest

CONFIG = make_config({"data": "/master/coco.yaml", "cfg": "yolov5s", "epochs": 3, "batch_size": 64}, {"lr0": "0.02"})


def typed(**values) -> NodeOptions:
    """Returns options as Typer parses them."""
    return options_from(NodeOptions, values)


def description(tmp_path, **more) -> dict:
    facts = {
        "config": CONFIG.model_dump(mode="json"),
        "is_demo": False,
        "run_dir": str(tmp_path / "runs" / "exp"),
        "run_id": "this-run",
        "stall_timeout_s": 120.0,
    }
    return json.loads(json.dumps({**facts, **more}))


# ---- options


def test_a_machine_without_options_takes_the_job_as_it_is(tmp_path):
    assert job_config(description(tmp_path), NodeOptions(), print)[0] == CONFIG


def test_its_own_path_and_loaders_are_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = job_config(description(tmp_path), typed(data="here/coco.yaml", workers=2), print)
    assert (config.data, config.workers) == (str(tmp_path / "here/coco.yaml"), 2)
    assert config.model_copy(update={"data": CONFIG.data, "workers": CONFIG.workers}) == CONFIG


def test_each_machine_reads_the_masters_url_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text("names: [a]", encoding="utf-8")
    sources = {"data": f"file://{tmp_path}/set/data.yaml"}
    config, held = job_config(description(tmp_path, sources=sources), NodeOptions(), print)
    assert config.data == str(held.copies[0].path)
    assert held.copies[0].path.read_text(encoding="utf-8") == "names: [a]"
    own, held = job_config(description(tmp_path, sources=sources), typed(data="/here/data.yaml"), print)
    assert (own.data, held.copies) == ("/here/data.yaml", ())


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 3, "batch_size": "64"},
        {"data": "other/coco.yaml", "workers": 7, "project": "elsewhere", "name": "mine"},
        {"cfg": "/home/me/yolov5s"},
        {"hyperparameters": ["lr0=0.020"]},
        {"epochs": None, "gpus": "0", "json": True},
    ],
    ids=str,
)
def test_the_same_options_everywhere_are_fine(values):
    refuse_other_options(CONFIG, typed(**values))


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"epochs": 5}, ["--epochs 5 here, 3 in the job"]),
        (
            {"batch_size": "32", "cfg": "yolov5n"},
            ["--batch 32 here, 64 in the job", "yolov5n here, yolov5s in the job"],
        ),
        ({"batch_size": "auto"}, ["--batch None here, 64 in the job"]),
        ({"hyperparameters": ["lr0=0.01"]}, ["--set lr0=0.01 here, 0.02 in the job"]),
    ],
    ids=str,
)
def test_other_options_are_refused_by_name(values, rows):
    with pytest.raises(LaunchError, match="other options than the job") as caught:
        refuse_other_options(CONFIG, typed(**values))
    for row in rows:
        assert row in caught.value.seen
    assert len(caught.value.seen.splitlines()) == len(rows)


@pytest.mark.parametrize("pair", ["lr0=fast", "nothing=1"])
def test_hyperparameters_that_cannot_be_are_refused_without_a_traceback(pair):
    with pytest.raises(ConfigError):
        refuse_other_options(CONFIG, typed(hyperparameters=[pair]))


def test_the_embedded_data_is_drawn_on_each_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "yolo_launch.nodes.training.with_demo_data", lambda config: config.model_copy(update={"data": "drawn here"})
    )
    assert job_config(description(tmp_path, is_demo=True), NodeOptions(), print)[0].data == "drawn here"


def test_the_request_is_this_machines_devices_and_the_jobs_numbers(tmp_path):
    draft = LaunchRequest(gpus="1", global_batch_size=None, nnodes=2)
    request = member_request(draft, CONFIG, description(tmp_path))
    assert (request.gpus, request.global_batch_size, request.image_size) == ("1", 64, CONFIG.imgsz)
    assert (request.stall_timeout_s, request.max_restarts) == (120.0, 0)


# ---- folders


def test_a_shared_disk_has_one_folder(tmp_path):
    run_dir = tmp_path / "runs" / "exp"
    run_dir.mkdir(parents=True)
    (run_dir / run_directory.PLAN_FILE).write_text(json.dumps({"run_id": "this-run", "mode": "ddp"}))
    assert own_run_dir(description(tmp_path), 1) == run_dir
    assert not (run_dir / "logs").exists()
    assert "mode" in run_directory.read_plan(run_dir)


def test_a_disk_of_its_own_gets_a_folder_of_that_name_and_keeps_it(tmp_path):
    run_dir = own_run_dir(description(tmp_path), 1)
    assert run_dir == tmp_path / "runs" / "exp"
    assert (run_dir / "logs").is_dir()
    assert run_directory.read_plan(run_dir) == {"run_id": "this-run", "master_run_dir": str(run_dir)}
    assert own_run_dir(description(tmp_path), 1) == run_dir, "the same run goes on in the same folder"


def test_another_folder_can_be_named_here(tmp_path):
    description = {"run_dir": "/nobody/may/write/exp", "run_id": "r1"}
    assert own_run_dir(description, 1, str(tmp_path / "logs")) == tmp_path / "logs" / "exp"


def test_an_earlier_run_of_that_name_is_left_alone(tmp_path):
    own_run_dir(description(tmp_path, run_id="an earlier run"), 1)
    mine = own_run_dir(description(tmp_path), 1)
    assert mine == tmp_path / "runs" / "exp-machine1"
    assert own_run_dir(description(tmp_path, run_id="a third"), 1).name == "exp-machine1-2"
    assert own_run_dir(description(tmp_path, run_id="a third"), 2).name == "exp-machine2"
    assert own_run_dir(description(tmp_path), 1) == mine


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "runs" / "exp").mkdir(parents=True)
    (tmp_path / "runs" / "exp" / "holiday.jpg").touch()
    assert own_run_dir(description(tmp_path), 3).name == "exp-machine3"


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    (tmp_path / "runs").write_text("a file is in the way")
    with pytest.raises(LaunchError):
        own_run_dir(description(tmp_path), 1)


def test_each_machine_has_a_configuration_of_its_own_beside_its_logs(tmp_path):
    run_dir = own_run_dir(description(tmp_path), 1)
    command = member_command(CONFIG, run_dir, 1)
    path = run_dir / "logs" / "machine1.yaml"
    assert command.arguments == ("-m", "trainer", str(path), "--run-dir", str(run_dir))
    assert read_config(path) == CONFIG


# ---- the master's part


def test_a_round_becomes_this_machines_request():
    start = Round(number=2, members=((0, 2), (3, 1), (5, 4)), batch_size=48, even=False)
    request = round_request(LaunchRequest(gpus="0", global_batch_size=64, batch_is_default=True), start, 3)
    assert (request.nnodes, request.node_rank, request.nproc_by_node) == (3, 1, (2, 1, 4))
    assert (request.global_batch_size, request.batch_is_default, request.uneven_batch_ok) == (48, False, True)


def test_times_come_from_the_options():
    identity = SimpleNamespace(nodes=(1, 4))
    settings = make_settings(identity, max_restarts=7, join_timeout=0.0, rejoin_timeout=9.0)
    assert (settings.nodes, settings.is_elastic, settings.max_restarts) == ("1:4", True, 7)
    assert (settings.join_timeout_s, settings.rejoin_timeout_s, settings.join_grace_s) == (0.0, 9.0, 30.0)


def test_times_below_zero_are_refused():
    with pytest.raises(LaunchError, match="--rejoin-timeout cannot be used") as caught:
        make_settings(SimpleNamespace(nodes=(2, 2)), max_restarts=3, join_timeout=600.0, rejoin_timeout=-1.0)
    assert caught.value.seen == "--rejoin-timeout -1"


def test_the_description_of_a_job_is_plain_json(tmp_path):
    job = SimpleNamespace(
        config=CONFIG.model_copy(update={"workers": 8}),
        wanted_workers=None,
        is_demo=True,
        run_dir=tmp_path,
        request=LaunchRequest(stall_timeout_s=77.0),
        sources=Sources({"data": "s3://b/data.yaml", "weights": "s3://b/w.pt"}),
    )
    received = describe_job(job, "this-run")
    assert json.loads(json.dumps(received)) == received
    assert received["sources"] == {"data": "s3://b/data.yaml"}, "the master reads the weights and sends them"
    assert received["config"]["workers"] is None, "each machine chooses by its own cores"
    assert (received["run_id"], received["is_demo"], received["stall_timeout_s"]) == ("this-run", True, 77.0)
