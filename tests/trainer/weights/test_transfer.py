"""Weights copied into models of the same and of other classes: the copied tensors, and the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.weights.foreign.yolov5_files import NAMES, SMALL_DEFINITION, save_version, small_model
from trainer.errors import WeightsError
from trainer.model.graph import build_model, load_definition
from trainer.weights.checkpoint import write_checkpoint
from trainer.weights.load import definition_of, load_weights, load_weights_into
from trainer.weights.transfer import transfer

HEAD_TENSORS = 4
OFFICIAL_TENSORS = 349


@pytest.fixture
def source():
    return small_model(3)


def fresh(names):
    torch.manual_seed(9)
    return build_model(SMALL_DEFINITION, num_classes=len(names))


def rows(model, level, kind="weight"):
    """A level's head by anchor: (A, 5 + classes, ...)."""
    parameter = getattr(model.detect.m[level], kind)
    return parameter.detach().unflatten(0, (model.detect.num_anchors, -1))


def test_the_same_classes_take_everything(source):
    model = fresh(NAMES)
    report = transfer(model, source.state_dict(), NAMES, NAMES)
    assert (report.loaded, report.total, report.skipped) == (len(source.state_dict()),) * 2 + ((),)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key]), key


@pytest.mark.parametrize(
    ("names", "knows"),
    [
        (NAMES, True),
        (tuple(reversed(NAMES)), True),
        (NAMES[:1], True),
        ((*NAMES[:2], "dust"), False),
        (("cat", "dog", "bird"), False),
    ],
)
def test_weights_know_the_classes_of_a_run_where_each_of_them_came_along(source, names, knows):
    assert transfer(fresh(names), source.state_dict(), NAMES, names).knows_classes is knows


def test_weights_with_a_layer_missing_do_not_know_the_classes(source):
    state = source.state_dict()
    key = next(key for key in state if key.endswith("conv.weight"))
    partial = {name: tensor for name, tensor in state.items() if name != key}
    assert not transfer(fresh(NAMES), partial, NAMES, NAMES).knows_classes


def test_capitals_and_spaces_of_names_do_not_matter(source):
    report = transfer(fresh(NAMES), source.state_dict(), NAMES, ("Red  Cell", "WHITE cell", "Platelet "))
    assert report.head_kept


def test_other_classes_take_all_but_the_head_and_the_rows_of_known_names(source):
    names = ("platelet", "parasite", "Red cell", "dust")
    model, untouched = fresh(names), fresh(names)
    report = transfer(model, source.state_dict(), NAMES, names)
    assert report.loaded == report.total - HEAD_TENSORS
    assert report.carried_classes == ("platelet", "Red cell")
    assert not report.head_kept
    for level in range(2):
        for kind in ("weight", "bias"):
            new, old, start = (rows(each, level, kind) for each in (model, source, untouched))
            assert torch.equal(new[:, :5], old[:, :5])
            assert torch.equal(new[:, 5], old[:, 5 + 2])
            assert torch.equal(new[:, 7], old[:, 5 + 0])
            assert torch.equal(new[:, 6], start[:, 6])
            assert torch.equal(new[:, 8], start[:, 8])


def test_the_same_number_of_other_classes_does_not_inherit_theirs(source):
    """Equal shapes say nothing: cats are not platelets because both come third."""
    names = ("red cell", "dog", "cat")
    model, untouched = fresh(names), fresh(names)
    report = transfer(model, source.state_dict(), NAMES, names)
    assert report.carried_classes == ("red cell",)
    assert torch.equal(rows(model, 0)[:, 6:], rows(untouched, 0)[:, 6:])


def test_anchors_come_along_and_reach_the_definition(source):
    source.set_anchors([[5, 6, 7, 8], [50, 60, 70, 80]])
    model = fresh(NAMES)
    assert transfer(model, source.state_dict(), NAMES, NAMES).anchors_kept
    assert model.definition["anchors"] == [[5, 6, 7, 8], [50, 60, 70, 80]]
    assert torch.equal(model.detect.anchors, source.detect.anchors)


def test_a_head_of_other_anchors_stays_as_it_is(source):
    definition = {**SMALL_DEFINITION, "anchors": [[5, 6, 7, 8, 9, 10], [50, 60, 70, 80, 90, 100]]}
    model = build_model(definition, num_classes=3)
    before = rows(model, 0).clone()
    report = transfer(model, source.state_dict(), NAMES, NAMES)
    assert not report.anchors_kept
    assert not report.head_kept
    assert torch.equal(rows(model, 0), before)
    assert "its anchors do not fit" in report.summary()
    assert model.definition["anchors"] == definition["anchors"]


def test_batch_counts_come_only_with_their_statistics(source):
    model = build_model({**SMALL_DEFINITION, "width_multiple": 0.5})
    report = transfer(model, source.state_dict(), NAMES, NAMES)
    assert report.loaded == 1  # the anchors
    assert all(key in report.skipped for key in model.state_dict() if key.endswith("num_batches_tracked"))


# From files


@pytest.fixture
def official(shared_dir):
    return shared_dir / "weights" / "yolov5n.pt"


def test_the_official_file_for_three_classes(official):
    names = ("RBC", "WBC", "Platelets")
    model = build_model(load_definition("yolov5n"), num_classes=3)
    report = load_weights_into(model, official, names)
    assert (report.loaded, report.total) == (OFFICIAL_TENSORS - 6, OFFICIAL_TENSORS)
    assert report.summary() == (
        "343 of 349 tensors from yolov5n.pt; the head is new for 3 classes, its box and objectness rows kept"
    )


def test_the_official_file_whole(official):
    loaded = load_weights(official)
    model = build_model(load_definition("yolov5n"))
    assert load_weights_into(model, official, loaded.names).summary() == "349 of 349 tensors from yolov5n.pt"
    assert all(torch.equal(tensor, loaded.state[key]) for key, tensor in model.state_dict().items())


def test_known_names_are_listed(official):
    model = build_model(load_definition("yolov5n"), num_classes=2)
    assert "1 of them known to the file (person)" in load_weights_into(model, official, ("helmet", "person")).summary()


def test_weights_of_another_model_are_refused(official):
    model = build_model(load_definition("yolov5s"))
    with pytest.raises(WeightsError, match="--cfg yolov5n"):
        load_weights_into(model, official, load_weights(official).names)


def test_the_definition_in_a_file_builds_its_model(official):
    model = build_model(definition_of(official), num_classes=3)
    assert load_weights_into(model, official, ("a", "b", "c")).loaded == OFFICIAL_TENSORS - 6


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = small_model()
    model.model[1].conv.weight.data[0] = float("nan")
    content = {"definition": model.definition, "names": list(NAMES), "stride": [4, 8], "config": {}}
    write_checkpoint(tmp_path / "a.pt", {**content, "ema": {"model": model.state_dict(), "updates": 0}})
    with pytest.raises(WeightsError, match=r"model\.1\.conv\.weight"):
        load_weights_into(fresh(NAMES), tmp_path / "a.pt", NAMES)


def test_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="downloads nothing"):
        load_weights_into(fresh(NAMES), Path("yolov5m6.pt"), NAMES)
    assert list(tmp_path.iterdir()) == []


def test_every_old_layout_starts_a_training(tmp_path):
    for version in ("v4", "v7"):
        save_version(tmp_path / "a.pt", version)
        report = load_weights_into(fresh(NAMES), tmp_path / "a.pt", NAMES)
        assert report.loaded == report.total
