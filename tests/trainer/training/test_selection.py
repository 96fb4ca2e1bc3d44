"""The start as epoch 0, short trainings from weights that know the classes, and runs that nothing can judge."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
import yaml

from trainer.config.fields import write_config
from trainer.config.inference import ValConfig
from trainer.inference import val


def train(run_ranks, config, run_dir, world_size=1):
    return run_ranks(["-m", "trainer", str(config), "--run-dir", str(run_dir)], world_size)[0]


def summary_of(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def rows_of(run_dir):
    with (run_dir / "results.csv").open() as file:
        return list(csv.DictReader(file))


def summary_row(summary):
    return {"metrics/mAP_0.5": summary["map50"], "metrics/mAP_0.5:0.95": summary["map5095"]}


def fitness_of(row):
    return 0.1 * float(row["metrics/mAP_0.5"]) + 0.9 * float(row["metrics/mAP_0.5:0.95"])


@pytest.fixture
def without_val_labels(copy_bccd, tmp_path):
    """A data-set YAML whose validation split has lost its labels."""
    data = copy_bccd(tmp_path / "unlabeled", 22, 10)
    for label in (data.parent / "labels" / "val").iterdir():
        label.unlink()
    return data


def test_a_run_without_a_labeled_validation_image_has_no_best_epoch_no_early_stop_and_says_so(
    run_ranks, run_config, without_val_labels, tmp_path
):
    run_dir = tmp_path / "run"
    output = train(run_ranks, run_config(data=str(without_val_labels), epochs=3, patience=1), run_dir)
    first = sorted((without_val_labels.parent / "images" / "val").iterdir())[0].stem
    label = without_val_labels.parent / "labels" / "val" / f"{first}.txt"
    assert f"warning: no validation image has a label (looked for {label}): this run cannot be judged." in output
    assert "warning: this run could not be judged: no validation image has a label" in output
    assert "best epoch:" not in output
    assert "0.000" not in output
    assert sorted(path.name for path in (run_dir / "weights").iterdir()) == ["last.previous.pt", "last.pt"]
    rows = rows_of(run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"], "no number, no early stop"
    assert {row["metrics/mAP_0.5:0.95"] for row in rows} == {"nan"}
    summary = summary_of(run_dir)
    assert summary["is_judged"] is False
    measured = ("best_epoch", "weights_epoch", "precision", "recall", "map50", "map5095", "start")
    assert {summary[name] for name in measured} == {None}


def test_val_without_labels_measures_nothing_and_says_so(run_ranks, run_config, without_val_labels, tmp_path, capsys):
    run_dir = tmp_path / "run"
    train(run_ranks, run_config(data=str(without_val_labels), epochs=1), run_dir)
    capsys.readouterr()
    options = {"weights": str(run_dir / "weights" / "last.pt"), "data": str(without_val_labels), "imgsz": 64}
    config, val_dir = tmp_path / "val.yaml", tmp_path / "val"
    write_config(ValConfig(**options, workers=0), config)
    val_dir.mkdir()
    assert val.run([str(config), "--run-dir", str(val_dir)]) == 0
    output = capsys.readouterr().out
    assert "nothing could be measured: none of the 10 images has a label" in output
    assert "0.000" not in output
    summary = summary_of(tmp_path / "val")
    assert (summary["is_judged"], summary["map50"], summary["map5095"]) == (False, None, None)
    assert (summary["images"], summary["boxes"]) == (10, 0)


def test_epochs_that_find_nothing_use_up_no_patience(run_ranks, run_config, tmp_path):
    output = train(run_ranks, run_config(epochs=4, patience=1), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [fitness_of(row) for row in rows] == [0.0] * 4, "too little training to find anything"
    assert "stopping early" not in output
    assert torch.load(tmp_path / "run" / "weights" / "best.pt", weights_only=True)["epoch"] == 3


@pytest.fixture(scope="module")
def few_images(shared_dir, tmp_path_factory):
    """A data-set YAML with a few images of COCO, whose classes the official weights know."""
    folder, source = tmp_path_factory.mktemp("few"), shared_dir / "data" / "coco_permissive"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for image in sorted((source / "images" / split).iterdir())[:8]:
            shutil.copy(image, folder / "images" / split)
            shutil.copy(source / "labels" / split / f"{image.stem}.txt", folder / "labels" / split)
    names = yaml.safe_load((source / "coco_permissive.yaml").read_text())["names"]
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": names}))
    return path


@pytest.fixture
def further(few_images, shared_dir, run_config):
    """Writes the configuration of a training of these images from weights that know their classes."""
    fixed = {"data": str(few_images), "weights": str(shared_dir / "weights" / "yolov5n.pt"), "cfg": "", "imgsz": 160}
    return lambda **options: run_config(**{**fixed, "epochs": 1, "batch_size": 4, **options})


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_short_training_from_weights_that_know_the_classes_does_not_forget(run_ranks, further, tmp_path, epochs):
    run_dir = tmp_path / "run"
    output = train(run_ranks, further(epochs=epochs), run_dir)
    summary, rows = summary_of(run_dir), rows_of(run_dir)
    first, *later = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert (first["epoch"], len(later), len(rows)) == (0, epochs, epochs)
    assert summary["start"] == {"map50": first["metrics/mAP_0.5"], "map5095": first["metrics/mAP_0.5:0.95"]}
    assert f"   0/{epochs} " in output
    assert summary["start"]["map50"] > 0.3, "the anchors of the weights are kept, with which they were learned"
    assert "anchors: those of the weights are kept, which know the classes; --set anchors=3 fits new ones" in output
    assert max(fitness_of(row) for row in [first, *rows]) == pytest.approx(fitness_of(summary_row(summary)), abs=1e-6)
    assert fitness_of(rows[-1]) > 0.9 * fitness_of(first), "the last average is near the start, or above it"
    assert summary["recipe"]["knows_classes"] is True


@pytest.mark.slow
@pytest.mark.parametrize("save", [True, False])
def test_where_the_start_was_best_it_is_what_is_kept_and_said(run_ranks, further, tmp_path, save):
    run_dir = tmp_path / "run"
    config = further(epochs=3, patience=2, recipe="yolov5", hyperparameters={"lr0": 5.0, "warmup_epochs": 0}, save=save)
    output = train(run_ranks, config, run_dir)
    summary = summary_of(run_dir)
    kept = torch.load(run_dir / "weights" / "best.pt", weights_only=True)
    assert summary["best_epoch"] == 0
    assert "best: epoch 0, the weights you started from; no epoch after it measured better" in output
    assert "stopping early: no better epoch than the weights at the start for 2 epochs" in output
    assert len(rows_of(run_dir)) == 2
    if save:
        assert (summary["weights_epoch"], kept["epoch"]) == (0, -1)
        assert summary["map5095"] == pytest.approx(summary["start"]["map5095"], abs=1e-6)
    else:
        assert (summary["weights_epoch"], kept["epoch"]) == (2, 1)
        warning = "best.pt is that of epoch 2; the one of 0 measured better and was not kept (--nosave)"
        assert f"warning: {warning}" in output


@pytest.mark.slow
def test_two_ranks_and_a_resume_choose_the_same_recipe_and_measure_the_start_once(run_ranks, further, tmp_path):
    for ranks in (1, 2):
        train(run_ranks, further(epochs=1), tmp_path / str(ranks), ranks)
    one, two = (summary_of(tmp_path / str(ranks)) for ranks in (1, 2))
    assert one["recipe"] == two["recipe"]
    assert one["start"] == pytest.approx(two["start"], abs=1e-6)
    (tmp_path / "1" / "summary.json").unlink()
    output = train(run_ranks, further(epochs=2), tmp_path / "1")
    assert "   0/2 " not in output, "a run that goes on has measured its start"
    resumed = summary_of(tmp_path / "1")
    assert (resumed["recipe"], resumed["start"], resumed["epochs"]) == (one["recipe"], one["start"], 2)
