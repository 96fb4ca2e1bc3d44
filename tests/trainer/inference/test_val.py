"""``trainer.inference.val``: YOLOv5's figures on real images, the same for any number of ranks, and its files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from trainer.config.fields import write_config
from trainer.config.inference import ValConfig
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.label_file import read_label_file
from trainer.inference import coco_results, val


@pytest.fixture(scope="module")
def official(shared_dir):
    return shared_dir / "weights" / "yolov5n.pt"


@pytest.fixture(scope="module")
def coco_yaml(shared_dir):
    return shared_dir / "data" / "coco_permissive" / "coco_permissive.yaml"


@pytest.fixture(scope="module")
def few_images(many_shapes_yaml, tmp_path_factory):
    """A data-set YAML with 7 images of as many shapes."""
    return copy_first(many_shapes_yaml, tmp_path_factory.mktemp("few"), 7)


def copy_first(source_yaml, folder, count):
    """Copies the first validation images of a data set; returns the path of their data-set YAML."""
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for image in sorted((source_yaml.parent / "images" / "val").iterdir())[:count]:
        shutil.copy(image, folder / "images" / "val")
        shutil.copy(source_yaml.parent / "labels" / "val" / f"{image.stem}.txt", folder / "labels" / "val")
    names = yaml.safe_load(source_yaml.read_text())["names"]
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump({"path": ".", "train": "images/val", "val": "images/val", "names": names}))
    return path


def arguments(weights, data, run_dir, **more):
    """The command line of a worker whose configuration is written beside the run directory's files."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "val.yaml"
    write_config(ValConfig(**{"weights": str(weights), "data": str(data), "workers": 0, **more}), path)
    return [str(path), "--run-dir", str(run_dir)]


def summary_of(run_dir, **dropped):
    content = json.loads((run_dir / "summary.json").read_text())
    return {key: value for key, value in content.items() if key not in ("run_dir", "speed_ms")}


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "margin"), [(640, 0.003), (320, 0.01)])
def test_official_weights_score_what_yolov5_computes(official, coco_yaml, golden_dir, tmp_path, image_size, margin):
    more = {"imgsz": image_size, "batch": 8, "noplots": True}
    assert val.run(arguments(official, coco_yaml, tmp_path, **more)) == 0
    content = json.loads((golden_dir / "results.json").read_text())
    expected = next(part for name, part in content.items() if name.startswith("validate"))[str(image_size)]
    found = summary_of(tmp_path)
    assert (found["images"], found["boxes"]) == (52, 384)
    assert found["map50"] == pytest.approx(expected["map50"], abs=margin)
    assert found["map5095"] == pytest.approx(expected["map5095"], abs=margin)


def test_two_ranks_find_exactly_what_one_does(detector, few_images, tmp_path, run_ranks, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for ranks in (1, 2):
        more = {"imgsz": 160, "batch": 2, "noplots": True, "coco_json": str(tmp_path / f"{ranks}.json")}
        words = arguments(detector, few_images, tmp_path / str(ranks), **more)
        run_ranks(["-m", "trainer.inference.val", *words], ranks)
    one = summary_of(tmp_path / "1")
    assert one["map50"] > 0.3
    assert one == summary_of(tmp_path / "2")
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()


def test_summary_pictures_and_coco_results(detector, few_images, tmp_path, capsys):
    coco_json = tmp_path / "out" / "coco.json"
    more = {"imgsz": 160, "batch": 4, "coco_json": str(coco_json)}
    assert val.run(arguments(detector, few_images, tmp_path, **more)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    wanted = {"precision", "recall", "map50", "map5095", "images", "boxes", "per_class", "speed_ms"}
    assert wanted <= set(summary)
    assert set(summary["speed_ms"]) == {"load", "inference", "nms", "metrics"}
    assert sum(row["boxes"] for row in summary["per_class"]) == summary["boxes"]
    assert np.mean([row["map50"] for row in summary["per_class"]]) == pytest.approx(summary["map50"])
    for name in ("PR_curve.png", "F1_curve.png", "confusion_matrix.png", "worst_images.jpg"):
        assert (tmp_path / name).stat().st_size > 5000, name
    said = capsys.readouterr().out
    assert "mAP50-95" in said
    assert "RBC" in said
    assert "per image: load" in said

    rows = json.loads(coco_json.read_text())
    image_ids = {int(path.stem) for path in (few_images.parent / "images" / "val").iterdir()}
    assert {row["image_id"] for row in rows} <= image_ids
    best = max((row for row in rows if row["image_id"] == 0), key=lambda row: row["score"])
    assert best["category_id"] == 1  # white blood cells
    boxes = read_label_file(few_images.parent / "labels" / "val" / "0000.txt").boxes
    (label,) = boxes[boxes[:, 0] == 1]
    x, y, width, height = best["bbox"]
    assert (x + width / 2) / 640 == pytest.approx(label[1], abs=0.1)
    assert height / 480 == pytest.approx(label[4], abs=0.2)
    assert y >= 0


def test_coco_results_of_80_classes_have_cocos_numbers(official, coco_yaml, tmp_path):
    data, coco_json = copy_first(coco_yaml, tmp_path / "few", 1), tmp_path / "coco.json"
    more = {"imgsz": 160, "coco_json": str(coco_json), "noplots": True}
    assert val.run(arguments(official, data, tmp_path, **more)) == 0
    rows = json.loads(coco_json.read_text())
    assert {row["image_id"] for row in rows} == {285}
    best = max(rows, key=lambda row: row["score"])
    assert best["category_id"] == 23  # COCO's number for bear, class 21 of 80
    label = read_label_file(data.parent / "labels" / "val" / "000000000285.txt").boxes[0]
    x, y, width, height = best["bbox"]
    assert (x + width / 2) / 586 == pytest.approx(label[1], abs=0.1)
    assert height / 640 == pytest.approx(label[4], abs=0.2)
    assert y >= 0


def test_other_classes_are_refused(detector, few_images, tmp_path, capsys):
    content = yaml.safe_load(few_images.read_text()) | {"names": ["cat", "dog"]}
    path = few_images.parent / "two.yaml"
    path.write_text(yaml.safe_dump(content))
    assert val.run(arguments(detector, path, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "3 classes in the weights, 2 in the data set" in said
    assert "Traceback" not in said
    assert not (tmp_path / "summary.json").exists()


def test_half_needs_a_gpu(detector, few_images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert val.run(arguments(detector, few_images, tmp_path, half=True)) == 2
    assert "--half needs a GPU" in capsys.readouterr().err


def test_category_and_image_ids():
    assert coco_results.category_ids(["cat", "dog"]) == [0, 1]
    coco = ["x"] * 80
    coco[0], coco[11], coco[79] = "person", "stop sign", "toothbrush"
    ids = coco_results.category_ids(coco)
    assert (len(set(ids)), ids[0], ids[11], ids[79]) == (80, 1, 13, 90)
    from pathlib import Path

    assert coco_results.image_id(Path("a/000000000139.jpg")) == 139
    assert coco_results.image_id(Path("a/frame_7.jpg")) == "frame_7"


def labeled(boxes):
    shapes = np.full((len(boxes), 2), 100, np.int32)
    rows = [np.array(image, np.float32).reshape(-1, 5) for image in boxes]
    from pathlib import Path

    return LabeledImages.of([Path(f"{n}.jpg") for n in range(len(boxes))], shapes, rows, [[] for _ in boxes], "")


def test_cocos_own_numbers():
    pytest.importorskip("faster_coco_eval")
    images = labeled([[[0, 0.5, 0.5, 0.4, 0.4]], [[1, 0.3, 0.3, 0.2, 0.2]]])
    perfect = {0: np.array([[30, 30, 70, 70, 0.9, 0]]), 1: np.array([[20, 20, 40, 40, 0.8, 1]])}
    numbers = coco_results.coco_numbers(perfect, images, ["a", "b"])
    assert numbers["map50"] == pytest.approx(1.0)
    assert numbers["map5095"] == pytest.approx(1.0)
    # A box of IoU 0.6 counts at 0.50, 0.55 and 0.60 of ten thresholds, for one of two classes.
    shifted = perfect | {0: np.array([[30, 30, 70, 54.1, 0.9, 0]])}
    numbers = coco_results.coco_numbers(shifted, images, ["a", "b"])
    assert numbers["map50"] == pytest.approx(1.0)
    assert numbers["map5095"] == pytest.approx((1 + 0.3) / 2)
    assert coco_results.coco_numbers({0: np.zeros((0, 6)), 1: np.zeros((0, 6))}, images, ["a", "b"])["map50"] == 0


def test_what_single_cls_trained_can_be_measured(run_ranks, run_config, small_bccd, tmp_path, capsys):
    config = run_config(single_cls=True, epochs=1)
    run_ranks(["-m", "trainer", str(config), "--run-dir", str(tmp_path / "run")], 1)
    best = tmp_path / "run" / "weights" / "best.pt"
    assert val.run(arguments(best, small_bccd, tmp_path / "val", imgsz=64, noplots=True)) == 0
    measured, trained = summary_of(tmp_path / "val"), json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["name"] for row in measured["per_class"]] == ["item"]
    assert measured["map50"] == pytest.approx(trained["map50"], abs=1e-6)
    assert measured["data"]["val"] == trained["data"]["val"]
    assert trained["data"]["train"]["images"] == 22
    assert "every class counts as 'item'" in capsys.readouterr().out


def test_the_same_classes_in_another_order_are_matched_by_name(detector, few_images, tmp_path, capsys):
    content = yaml.safe_load(few_images.read_text())
    names = list(content["names"].values()) if isinstance(content["names"], dict) else content["names"]
    order = [1, 0, *range(2, len(names))]
    folder = tmp_path / "turned"
    shutil.copytree(few_images.parent, folder)
    for label in (folder / "labels" / "val").iterdir():
        rows = [line.split(maxsplit=1) for line in label.read_text().splitlines() if line.strip()]
        label.write_text("".join(f"{order.index(int(name))} {box}\n" for name, box in rows))
    (folder / "few.yaml").write_text(yaml.safe_dump({**content, "names": [names[index] for index in order]}))
    found = []
    for data in (few_images, folder / "few.yaml"):
        run_dir = tmp_path / data.parent.name
        assert val.run(arguments(detector, data, run_dir, imgsz=160, noplots=True)) == 0
        found.append(summary_of(run_dir))
    assert found[0] == found[1]
    assert "names decide" in capsys.readouterr().out
