"""Every reader of a user's file answers every input with a result or an error in four parts, and with nothing else."""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as starting_at
from hypothesis import strategies as st

from tests.trainer.mutation import WORDS, spoiled
from trainer.config.hyperparameters import BUILT_IN_SETS, Hyperparameters, load_hyperparameters
from trainer.config.train import TrainConfig, make_config, read_config
from trainer.data import dataset as dataset_module
from trainer.data import image_format
from trainer.data.dataset import load_dataset_file
from trainer.data.scan import label_file
from trainer.data.scan.scan import scan_split
from trainer.data.split_files import find_files
from trainer.errors import UserError
from trainer.inference.export_check import check_picture
from trainer.inference.sources import find_media, read_frames
from trainer.model.definition import load_definition, parse_rows
from trainer.model.graph import build_model
from trainer.reading import yaml_file
from trainer.weights.checkpoint import FORMAT, VERSION
from trainer.weights.load import load_weights

SEED = int(os.environ.get("YOLO_TEST_SEED", "20240607"))
"""Another seed tries other inputs; a failure prints the input's own."""
INPUTS_AN_EXAMPLE = 10
LONG_OPTIONS, LONG_SOURCES = 350, 100
"""Examples of the long run, beside those of each reader."""

DATA = b"""path: .
train: images/train
val: [images/val, list.txt]
nc: 3
names: {0: red, 1: green, 2: blue}
kpt_shape: [2, 3]
"""
DATA_SAMPLES = [DATA, b"train: list.txt\nval: images/val\nnames:\n  - red\n  - 'no'\n  - 1.0\nkpt_shape: [17, 3]\n"]
LIST_SAMPLES = [b"./images/train/a.jpg\nimages/train/b.png\n# c\nimages\\train\\a.jpg\n\n/none/x.jpg\n"]
LABEL_SAMPLES = [
    b"0 0.5 0.5 0.2 0.2\n1 .25 .5 .1 1.01\n2 0.1 0.1 0.3 0.1 0.3 0.5\n",
    b"0 .5 .5 .2 .2 .45 .45 1 0 0 0\n",
]
SMALL = {
    "nc": 2,
    "depth_multiple": 0.5,
    "width_multiple": 0.5,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 2, "C3", [8]], [[-1, 0], 1, "Concat", [1]]],
    "head": [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[2], 1, "Detect", ["nc", "anchors"]]],
}


class Reader(NamedTuple):
    """One way in: the file's name, good contents, and what reads it."""

    name: str
    samples: list[bytes]
    read: Callable[[Path], object]
    examples: int
    """Of ten inputs each, in the long run; a tenth of them in the short one."""


def read_data(path: Path) -> None:
    dataset = load_dataset_file(path)
    for split in dataset.splits:
        # Whole disks can be named, too.
        if all(entry.startswith(("images", "list.txt")) for entry in dataset.splits[split]):
            find_files(dataset, split)


def scan_folder(path: Path) -> None:
    """The folder that a list, a label or an image lies in, as training scans it."""
    root = next(parent for parent in path.parents if (parent / "data.yaml").exists())
    dataset = load_dataset_file(root / "data.yaml")
    scan_split(dataset, "train", num_classes=3, cache_dir=root / "cache", workers=1, writer=False)


def look_at_picture(path: Path) -> None:
    list(read_frames(find_media([str(path)]), image_size=64, stride=32, threads=1, on_unreadable=lambda *_: None))
    check_picture(path, (64, 64))


def read_cfg(path: Path) -> None:
    parse_rows(load_definition(str(path)))


def as_yaml(value: object) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


def pictures() -> list[bytes]:
    gray = np.random.default_rng(0).integers(0, 255, (3, 4), np.uint8)
    image = cv2.resize(np.dstack([gray] * 3), (24, 16))
    floats = image.astype(np.float32) / 255
    encoded = [cv2.imencode(suffix, image)[1] for suffix in (".jpg", ".png", ".bmp", ".webp", ".gif", ".tiff", ".ppm")]
    encoded += [cv2.imencode(suffix, floats)[1] for suffix in (".tiff", ".pfm", ".hdr")]
    encoded += [cv2.imencode(".png", image.astype(np.uint16) * 256)[1]]
    encoded += [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1]]
    return [content.tobytes() for content in encoded]


def weights() -> list[bytes]:
    model = build_model(SMALL)
    file = io.BytesIO()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "definition": SMALL,
        "names": ["a", "b"],
        "stride": [2],
        "model": model.state_dict(),
    }
    torch.save(content, file)
    return [file.getvalue()]


READERS = {
    "data": Reader("other.yaml", DATA_SAMPLES, read_data, 350),
    "list": Reader("list.txt", LIST_SAMPLES, scan_folder, 100),
    "label": Reader("labels/train/a.txt", LABEL_SAMPLES, scan_folder, 200),
    "image": Reader("images/train/a.jpg", pictures(), scan_folder, 150),
    "picture": Reader("picture.png", pictures(), look_at_picture, 250),
    "hyp": Reader("hyp.yaml", [as_yaml(Hyperparameters().model_dump()), b"lr0: 1e-3\n"],
                  lambda path: load_hyperparameters(str(path), {}), 200),
    "config": Reader("config.yaml", [as_yaml(TrainConfig().model_dump(mode="json")), b"epochs: 3\namp: off\n"],
                     read_config, 200),
    "cfg": Reader("cfg.yaml", [as_yaml(SMALL)], read_cfg, 150),
    "weights": Reader("weights.pt", weights(), load_weights, 150),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A data set of two images with a list, both good."""
    for name in ("images/train", "images/val", "labels/train"):
        (tmp_path / name).mkdir(parents=True)
    good = pictures()
    (tmp_path / "images/train/a.jpg").write_bytes(good[0])
    (tmp_path / "images/train/b.png").write_bytes(good[1])
    (tmp_path / "images/val/c.png").write_bytes(good[2])
    (tmp_path / "labels/train/a.txt").write_bytes(LABEL_SAMPLES[0])
    (tmp_path / "labels/train/b.txt").write_bytes(LABEL_SAMPLES[0])
    (tmp_path / "list.txt").write_bytes(LIST_SAMPLES[0])
    (tmp_path / "data.yaml").write_bytes(b"train: [images/train, list.txt]\nnames: [a, b, c]\n")
    return tmp_path


def answers(read: Callable[[], object]) -> str:
    """'result' or 'refused'; anything else than an error in four parts that can be printed goes through."""
    refusal: UserError | None = None
    try:
        read()
    except UserError as error:
        refusal = error
    if refusal is None:
        return "result"
    parts = refusal.to_dict()
    assert all(parts.values()), parts
    assert str(refusal).encode("utf-8"), parts
    assert len(str(refusal)) < 5000, parts
    return "refused"


def try_inputs(reader: Reader, folder: Path, first: int, count: int) -> Counter[str]:
    """What a reader answers to ``count`` inputs from the seed ``first`` on."""
    path, answered = folder / reader.name, Counter()
    for number in range(first, first + count):
        content = spoiled(number, reader.samples)
        path.write_bytes(content)
        try:
            answered[answers(lambda: reader.read(path))] += 1
        except Exception as error:
            raise AssertionError(f"input {number} of {reader.name}: {content[:300]!r}") from error
    return answered


def searched(check: Callable[[int], None], examples: int) -> None:
    """Runs ``check`` on numbers that hypothesis chooses, from the seed that is printed."""
    print(f"YOLO_TEST_SEED={SEED}, {examples} x {INPUTS_AN_EXAMPLE} inputs")
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    starting_at(SEED)(options(given(st.integers(0, 2**40))(check)))()


def check_reader(kind: str, folder: Path, examples: int) -> None:
    answered: Counter[str] = Counter()

    def check(first: int) -> None:
        answered.update(try_inputs(READERS[kind], folder, first, INPUTS_AN_EXAMPLE))

    searched(check, examples)
    # A search that only ever meets one answer has not looked.
    assert answered["result"] > 0
    assert answered["refused"] > 0
    assert answered.total() >= examples * INPUTS_AN_EXAMPLE


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_answers_spoiled_files(kind, folder):
    check_reader(kind, folder, READERS[kind].examples // 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_answers_many_spoiled_files(kind, folder):
    check_reader(kind, folder, READERS[kind].examples)


def an_option(chance: random.Random) -> tuple[str, object]:
    """A field of the configuration and something that might be typed for it."""
    name = chance.choice([*TrainConfig.model_fields, "hyperparameters", "nonsense"])
    text = b"".join(chance.choice(WORDS) for _ in range(chance.randrange(3))).decode("utf-8", "surrogateescape")
    values = [text, 0, -1, 10**30, 0.5, float("nan"), float("inf"), None, True, [], [1, "a"], {}, {"lr0": text}, "low"]
    return name, chance.choice(values)


def check_options(examples: int) -> None:
    def check(first: int) -> None:
        for number in range(first, first + INPUTS_AN_EXAMPLE):
            chance = random.Random(number)
            options = dict(an_option(chance) for _ in range(chance.randrange(1, 4)))
            overrides = {chance.choice([*Hyperparameters.model_fields, "lr"]): an_option(chance)[1]}
            answers(lambda o=options, c=chance, v=overrides: make_config(o, v if c.random() < 0.5 else {}))

    searched(check, examples)


def check_sources(folder: Path, examples: int) -> None:
    names = [os.fsencode(path) for path in folder.rglob("*")]

    def check(first: int) -> None:
        for number in range(first, first + INPUTS_AN_EXAMPLE):
            source = spoiled(number, names).replace(b"**", b"*")
            if not source.startswith(b"/") or source.startswith(os.fsencode(folder)):
                answers(lambda s=source: find_media([os.fsdecode(s)]))

    searched(check, examples)


def test_options_and_sources_are_answered(folder, monkeypatch):
    monkeypatch.chdir(folder)
    check_options(LONG_OPTIONS // 10)
    check_sources(folder, LONG_SOURCES // 10)


@pytest.mark.slow
def test_many_options_and_sources_are_answered(folder, monkeypatch):
    monkeypatch.chdir(folder)
    check_options(LONG_OPTIONS)
    check_sources(folder, LONG_SOURCES)


def test_the_long_run_sees_at_least_20_000_inputs():
    assert (
        INPUTS_AN_EXAMPLE * (sum(reader.examples for reader in READERS.values()) + LONG_OPTIONS + LONG_SOURCES)
        >= 20_000
    )


FAULTS = {
    "data": (dataset_module, "_parse_keypoints", ZeroDivisionError),
    "label": (label_file, "_bounds", ZeroDivisionError),
    "image": (image_format, "parse_jpeg", ZeroDivisionError),
    "hyp": (yaml_file, "_check_keys", AttributeError),
    "cfg": (yaml_file, "_check_keys", KeyError),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_shows_as_a_defect(kind, folder, monkeypatch):
    module, function, error = FAULTS[kind]

    def fail(*_: object) -> None:
        raise error("planted")

    monkeypatch.setattr(module, function, fail)
    with pytest.raises(AssertionError, match="input") as caught:
        try_inputs(READERS[kind], folder, 0, 200)
    assert isinstance(caught.value.__cause__, error)
    assert "planted" in str(caught.value.__cause__)


def test_the_built_in_sets_are_read():
    assert all(answers(lambda name=name: load_hyperparameters(name, {})) == "result" for name in BUILT_IN_SETS)
