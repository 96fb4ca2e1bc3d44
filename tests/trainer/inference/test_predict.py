"""``python -m trainer.inference.predict``: what is read, in which order, and what is written about it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from trainer.config.fields import write_config
from trainer.config.inference import PredictConfig
from trainer.errors import ConfigError, DataError
from trainer.inference import predict, results
from trainer.inference.sources import Frame, batches_of_one_size, find_media, read_frames


@pytest.fixture(scope="module")
def pictures(many_shapes_yaml, tmp_path_factory):
    """Four pictures of four shapes, a broken one, a text file and a film of 11 frames."""
    folder = tmp_path_factory.mktemp("pictures")
    for image in sorted((many_shapes_yaml.parent / "images" / "val").iterdir())[:4]:
        shutil.copy(image, folder)
    (folder / "broken.jpg").write_bytes(b"junk")
    (folder / "notes.md").write_text("no picture")
    first = cv2.imread(str(folder / "0001.jpg"))
    film = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    if not film.isOpened():
        pytest.skip("this OpenCV writes no films")
    for number in range(11):
        film.write(cv2.resize(first[:, number * 10 :], (320, 240)))
    film.release()
    return folder


@pytest.fixture(autouse=True)
def _own_output(monkeypatch):
    """--json sets the variable for the rest of the process."""
    monkeypatch.setenv("YOLO_TRAINER_OUTPUT", "")


def start(weights, run_dir, *sources, **options):
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "predict.yaml"
    write_config(PredictConfig(**{"weights": str(weights), "imgsz": 160, "sources": sources, **options}), path)
    return predict.run([str(path), "--run-dir", str(run_dir)])


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_sources_are_files_folders_and_patterns(pictures):
    everything = find_media([str(pictures)])
    assert [path.name for path in everything] == sorted(p.name for p in pictures.iterdir() if p.suffix != ".md")
    assert find_media([str(pictures / "*.jpg")]) == [path for path in everything if path.suffix == ".jpg"]
    twice = find_media([str(pictures / "film.mp4"), str(pictures / "f*")])
    assert [path.name for path in twice] == ["film.mp4"]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("nowhere.jpg", "no such file"),
        ("notes.md", "neither a picture nor a film"),
        ("*.gif", "matches no pictures"),
        ("0", "cameras"),
        ("rtsp://host/stream", "cameras"),
        ("empty", "holds no pictures"),
    ],
)
def test_sources_that_name_nothing_are_refused(pictures, tmp_path, monkeypatch, source, what):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.md").write_text("x")
    with pytest.raises(DataError, match=what):
        find_media([source])


def test_frames_come_in_order_and_boxes_find_their_way_back(pictures):
    failed = []
    frames = list(
        read_frames(
            find_media([str(pictures)]), image_size=320, stride=32, on_unreadable=lambda path, why: failed.append(path)
        )
    )
    assert [path.name for path in failed] == ["broken.jpg"]
    assert [frame.number for frame in frames] == list(range(15))
    assert [frame.index for frame in frames if frame.film] == list(range(11))
    for frame in frames:
        height, width = frame.canvas.shape[:2]
        assert max(height, width) == 320
        assert (height % 32, width % 32) == (0, 0)
        left, top = frame.fit.left_top
        inner = (left, top, left + frame.fit.resized_hw[1], top + frame.fit.resized_hw[0])
        shape = frame.pixels.shape
        assert frame.in_file(np.array([inner], float))[0].tolist() == pytest.approx([0, 0, shape[1], shape[0]])
        assert frame.in_file(np.array([[-50, -50, 500, 500]], float))[0].tolist() == [0, 0, shape[1], shape[0]]


def test_batches_hold_one_size_and_lose_nothing():
    sizes = [(32, 64), (64, 32), (32, 64), (32, 32), (32, 64), (64, 32), (32, 64), (64, 64)] * 3
    pixels = np.zeros((1, 1, 3), np.uint8)
    frames = [Frame(n, Path(), pixels, np.zeros((*size, 3), np.uint8), None) for n, size in enumerate(sizes)]
    batches = list(batches_of_one_size(iter(frames), 3))
    assert sorted(frame.number for batch in batches for frame in batch) == list(range(24))
    for batch in batches:
        assert len(batch) <= 3
        assert len({frame.canvas.shape for frame in batch}) == 1
    assert max(len(batch) for batch in batches) == 3
    # A rare size does not wait for the end of a long row.
    many = [frames[3]] + [frames[0]] * 40 + [frames[1]] * 40
    first_sizes = [batch[0].canvas.shape[:2] for batch in batches_of_one_size(iter(many), 4)]
    assert first_sizes.count((32, 32)) == 1


def test_everything_is_written_and_agrees(detector, pictures, tmp_path, capsys):
    options = {"save_txt": True, "save_conf": True, "save_crop": True, "json_lines": True, "batch": 4}
    assert start(detector, tmp_path, str(pictures), **options) == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    assert "broken.jpg: not an image" in captured.err
    assert [Path(row["file"]).name for row in rows] == [
        *(f"000{number}.jpg" for number in range(4)),
        *["film.mp4"] * 11,
    ]
    assert [row["frame"] for row in rows if "frame" in row] == list(range(1, 12))
    white = rows[0]["boxes"][0]
    assert (white["name"], white["class"]) == ("WBC", 1)
    assert white["confidence"] > 0.7
    for row in rows:
        name = Path(row["file"]).stem + (f"_{row['frame']}" if "frame" in row else "")
        label_path = tmp_path / "labels" / f"{name}.txt"
        assert label_path.exists() == bool(row["boxes"])
        if not row["boxes"]:
            continue
        labels = np.loadtxt(label_path, ndmin=2)
        boxes = np.array([box["xyxy"] for box in row["boxes"]])
        size = np.array((row["width"], row["height"]) * 2)
        center, half = labels[:, 1:3], labels[:, 3:5] / 2
        np.testing.assert_allclose(np.hstack((center - half, center + half)) * size, boxes, atol=0.02)
        np.testing.assert_allclose(labels[:, 5], [box["confidence"] for box in row["boxes"]], atol=1e-5)
        assert labels[:, 0].tolist() == [box["class"] for box in row["boxes"]]
    crop = cv2.imread(str(tmp_path / "crops" / "WBC" / "0000_1.jpg"))
    x1, y1, x2, y2 = white["xyxy"]
    assert crop.shape[0] == pytest.approx(y2 - y1, abs=2)
    assert crop.shape[1] == pytest.approx(x2 - x1, abs=2)
    drawn, original = (cv2.imread(str(folder / "0000.jpg")) for folder in (tmp_path, pictures))
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 50
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    frames = 0
    while film.read()[0]:
        frames += 1
    assert frames == 11


def test_batch_size_changes_no_result_and_classes_filter(detector, pictures, tmp_path, capsys):
    sources = [str(path) for path in sorted(pictures.glob("0*.jpg"))]
    found = {}
    for batch in (1, 4):
        assert start(detector, tmp_path, *sources, json_lines=True, nosave=True, batch=batch) == 0
        found[batch] = rows_of(capsys.readouterr().out)
    assert len(found[1]) == 4
    for one, four in zip(found[1], found[4], strict=True):
        assert [box["name"] for box in one["boxes"]] == [box["name"] for box in four["boxes"]]
        for a, b in zip(one["boxes"], four["boxes"], strict=True):
            assert a["xyxy"] == pytest.approx(b["xyxy"], abs=0.05)
    assert not list(tmp_path.glob("*.jpg"))
    assert start(detector, tmp_path, *sources, json_lines=True, nosave=True, classes="WBC,Platelets") == 0
    names = {box["name"] for row in rows_of(capsys.readouterr().out) for box in row["boxes"]}
    assert {box["name"] for row in found[1] for box in row["boxes"]} == {"RBC", "WBC"}
    assert names == {"WBC"}


def test_mistakes_are_answered_in_one_message(detector, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DISPLAY", "")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    picture = str(pictures / "0000.jpg")
    for source, options, what in (
        (picture, {"show": True}, "--show cannot open a window"),
        (picture, {"classes": "unicorn"}, "--classes names a class"),
        (str(pictures / "broken.jpg"), {}, "no file could be read"),
    ):
        assert start(detector, tmp_path, source, **options) == 2
        captured = capsys.readouterr()
        assert what in captured.err
        assert "Traceback" not in captured.err


def test_files_of_one_name_do_not_overwrite_one_another(tmp_path):
    writer = results.ResultWriter(tmp_path, ("../a/b", "dog"), results.Wanted(labels=True, crops=True))
    pixels = np.full((40, 60, 3), 90, np.uint8)
    found = np.array([[10, 10, 30, 30, 0.9, 0]], np.float32)
    for path in (Path("a/x.jpg"), Path("b/x.jpg"), Path("b/x.png")):
        writer.save(Frame(0, path, pixels, pixels, None), found)
    writer.close()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["x.jpg", "x_2.jpg", "x_3.png"]
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["x.txt", "x_2.txt", "x_3.txt"]
    crops = [p.relative_to(tmp_path / "crops") for p in (tmp_path / "crops").rglob("*.jpg")]
    assert len(crops) == 3
    assert {p.parent.name for p in crops} == {"_a_b"}
    assert (tmp_path / "labels" / "x.txt").read_text() == "0 0.333333 0.500000 0.333333 0.500000\n"


def test_a_failed_write_ends_the_run(tmp_path):
    writer = results.ResultWriter(tmp_path / "gone", ("a",), results.Wanted())
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match="cannot be written"), predict.Keeper(writer) as keeper:
        keeper.keep(Frame(0, Path("x.jpg"), pixels, pixels, None), np.zeros((0, 6), np.float32))


def thin(folder, name, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def test_no_picture_takes_the_others_down(detector, pictures, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "odd"
    folder.mkdir()
    good = pictures / "0001.jpg"
    shutil.copy(good, folder / "m.jpg")
    thin(folder, b"a.png", (1, 2000))
    thin(folder, b"b.png", (2000, 1))
    thin(folder, b"c.png", (1, 1))
    thin(folder, b"wide.webp", (2, 16000))
    thin(folder, b"caf\xe9.jpg", (40, 60))
    (folder / "junk.jpg").write_bytes(b"junk")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(
        folder / "z.gif", save_all=True, append_images=[Image.fromarray(np.full((9, 9, 3), 200, np.uint8))]
    )
    assert start(detector, tmp_path / "alone", str(good), json_lines=True) == 0
    (expected,) = rows_of(capsys.readouterr().out)
    assert (
        start(detector, tmp_path / "run", str(folder), "missing.jpg", json_lines=True, save_txt=True, save_crop=True)
        == 0
    )
    captured = capsys.readouterr()
    rows = {Path(row["file"]).name: row for row in rows_of(captured.out)}
    assert sorted(rows) == sorted(["a.png", "b.png", "c.png", "caf\udce9.jpg", "m.jpg", "wide.webp", "z.gif"])
    assert rows["m.jpg"]["boxes"] == expected["boxes"]
    assert "junk.jpg: not an image" in captured.err
    assert "there is no such file or folder: missing.jpg" in captured.err
    assert "z.gif: it holds several frames" in captured.err
    assert "Traceback" not in captured.err
    assert len(list((tmp_path / "run").glob("*.*"))) >= len(rows)


def test_a_picture_too_large_for_its_format_is_kept_as_another(tmp_path):
    writer = results.ResultWriter(tmp_path, ("a",), results.Wanted())
    pixels = np.zeros((4, 17_000, 3), np.uint8)
    writer.save(Frame(0, Path("x.webp"), pixels, pixels, None), np.zeros((0, 6), np.float32))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.webp.png"]


def test_films_whose_names_are_not_utf8_are_read_and_written(detector, pictures, tmp_path, capsys):
    film = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    shutil.copy(pictures / "film.mp4", film)
    assert start(detector, tmp_path / "run", str(film), json_lines=True) == 0
    assert len(rows_of(capsys.readouterr().out)) == 11
    (written,) = (tmp_path / "run").glob("*.mp4")
    assert written.name == "caf_.mp4"
    assert written.stat().st_size > 1000


def test_an_unreadable_folder_is_named(monkeypatch, tmp_path):
    def locked(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(DataError, match="cannot be read") as caught:
        find_media([str(tmp_path)])
    assert caught.value.seen == "Permission denied"
