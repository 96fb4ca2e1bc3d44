"""YOLOv5's checkpoints, official and in every layout since v4, are read without its code; accidents are named."""

from __future__ import annotations

import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch

from tests.trainer.weights.foreign.yolov5_files import (
    NAMES,
    SMALL_DEFINITION,
    VERSIONS,
    AddressPickler,
    archive_parts,
    as_yolov5,
    layout,
    save_version,
    small_model,
    write_archive,
    yolov5_modules,
)
from trainer.errors import WeightsError
from trainer.weights.checkpoint import write_checkpoint
from trainer.weights.load import build_loaded, load_model, load_weights

BATCH_NORM_TOLERANCE = 1e-5


@pytest.fixture
def official(shared_dir):
    return shared_dir / "weights" / "yolov5n.pt"


def assert_same_state(found, expected, half=False):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        wanted = tensor.half().float() if half and tensor.is_floating_point() else tensor
        assert torch.equal(found[key], wanted), key


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        build_loaded(load_weights(path))
    return str(caught.value)


# What can be read


def test_the_official_file_is_read_whole(official, golden_dir):
    model, loaded = load_model(official)
    shapes = json.loads((golden_dir / "state_dict_shapes.json").read_text())["yolov5n"]
    assert {key: list(tensor.shape) for key, tensor in loaded.state.items()} == shapes
    assert list(loaded.state) == list(shapes) == list(model.state_dict())
    assert loaded.kind == "yolov5"
    assert (len(loaded.names), loaded.names[0], loaded.names[79]) == (80, "person", "toothbrush")
    assert loaded.stride == (8, 16, 32)
    assert loaded.definition["anchors"][2] == [116, 90, 156, 198, 373, 326]
    assert loaded.details["epoch"] == "finished"
    assert loaded.details["date"].startswith("2022-02-08")
    assert loaded.details["precision"] == "float16"
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in loaded.state.values())


def test_the_official_weights_see_objects_in_a_real_image(official, shared_dir):
    import cv2

    model, _ = load_model(official)
    photo = sorted((shared_dir / "data" / "coco_permissive").rglob("*.jpg"))[0]
    resized = cv2.resize(cv2.imread(str(photo)), (320, 320))[..., ::-1].copy()
    image = torch.from_numpy(resized).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        decoded, _ = model(image)
    assert float(decoded[..., 4].max()) > 0.3


def test_tensors_are_the_bytes_of_the_archive(official):
    """Found by hand: the first convolution is the first storage, the last bias the last of 255 halves."""
    loaded = load_weights(official)
    _, storages = archive_parts(official)
    first = np.frombuffer(storages["0"], np.float16).reshape(16, 3, 6, 6).astype(np.float32)
    assert np.array_equal(loaded.state["model.0.conv.weight"].numpy(), first)
    last = max((key for key in storages if len(storages[key]) == 510), key=int)
    bias = np.frombuffer(storages[last], np.float16).astype(np.float32)
    assert np.array_equal(loaded.state["model.24.m.2.bias"].numpy(), bias)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_layout_gives_the_average(tmp_path, version):
    path = tmp_path / "best.pt"
    _, average = save_version(path, version)
    loaded = load_weights(path)
    half = version not in ("v4", "v4 pair")
    assert_same_state(loaded.state, average.state_dict(), half)
    assert loaded.names == NAMES
    assert loaded.stride == (4, 8)
    assert loaded.definition["anchors"] == SMALL_DEFINITION["anchors"]
    assert loaded.details["precision"] == ("float16" if half else "float32")
    assert loaded.details["has_optimizer"] == (version != "v6 stripped")
    assert loaded.details.get("best_fitness") == (None if version == "v6 stripped" else 0.25)
    assert loaded.image_size == (416 if version == "v7" else None)
    assert "models" not in sys.modules
    image = torch.rand(1, 3, 64, 64)
    expected = average.half().float().eval() if half else average.eval()
    with torch.no_grad():
        assert torch.equal(build_loaded(loaded)(image)[0], expected(image)[0])


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_the_format_before_torch_1_6(tmp_path, version):
    path = tmp_path / "old.pt"
    _, average = save_version(path, version, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    assert_same_state(load_weights(path).state, average.state_dict(), half=version == "v5")


@pytest.mark.parametrize("prefix", ["archive", "yolov5s (1)", "best.pt.tmp"])
def test_any_prefix_and_addresses_as_keys(tmp_path, prefix):
    path = tmp_path / "a.pt"
    average = small_model(2)
    buffer = io.BytesIO()
    pickler = AddressPickler(buffer)
    with yolov5_modules() as classes:
        pickler.dump(layout("v4", small_model(1), average, classes))
    write_archive(path, buffer.getvalue(), pickler.storages, prefix)
    assert all(len(key) >= 15 for key in pickler.storages)
    assert_same_state(load_weights(path).state, average.state_dict())


def test_a_model_saved_alone_or_wrapped(tmp_path):
    model = small_model()
    with yolov5_modules() as classes:
        twin = as_yolov5(model, classes)
        torch.save(twin, tmp_path / "alone.pt")
        wrapper = classes["AutoShape"]()
        wrapper.model = twin
        torch.save({"model": wrapper}, tmp_path / "wrapped.pt")
    for name in ("alone.pt", "wrapped.pt"):
        assert_same_state(load_weights(tmp_path / name).state, model.state_dict())


def test_an_other_activation_is_found_in_the_modules(tmp_path):
    model = small_model()
    for module in model.modules():
        if type(getattr(module, "act", None)) is torch.nn.SiLU:
            module.act = torch.nn.LeakyReLU(0.1, inplace=True)
    with yolov5_modules() as classes:
        torch.save({"model": as_yolov5(model, classes)}, tmp_path / "leaky.pt")
    built, loaded = load_model(tmp_path / "leaky.pt")
    assert loaded.definition["activation"] == "nn.LeakyReLU(0.1)"
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(built(image)[0], model.eval()(image)[0])


def test_anchors_that_were_fitted_in_training_win_over_the_definition(tmp_path):
    model = small_model()
    with yolov5_modules() as classes:
        twin = as_yolov5(model, classes)
        twin.yaml = {**twin.yaml, "anchors": 2}
        torch.save({"model": twin}, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt").definition["anchors"] == SMALL_DEFINITION["anchors"]


def test_folded_batch_norms_are_unfolded(tmp_path):
    from trainer.model.graph import fuse_batch_norm

    model = small_model().eval()
    fused = fuse_batch_norm(model)
    for module in fused.modules():
        if "bn" in module._modules:
            del module._modules["bn"]
    with yolov5_modules() as classes:
        torch.save({"model": as_yolov5(fused, classes)}, tmp_path / "fused.pt")
    built, loaded = load_model(tmp_path / "fused.pt")
    assert "folded" in loaded.notes[0]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            built(image)[0], model(image)[0], rtol=BATCH_NORM_TOLERANCE, atol=BATCH_NORM_TOLERANCE * 100
        )


def test_the_project_own_file_is_told_apart(tmp_path):
    model = small_model()
    write_checkpoint(
        tmp_path / "best.pt",
        {
            "definition": model.definition,
            "names": list(NAMES),
            "stride": [4, 8],
            "image_size": 320,
            "config": {},
            "model": small_model(5).state_dict(),
            "ema": {"model": model.state_dict(), "updates": 3},
        },
    )
    built, loaded = load_model(tmp_path / "best.pt")
    assert (loaded.kind, loaded.names, loaded.image_size) == ("yolo-launch", NAMES, 320)
    assert_same_state(built.state_dict(), model.state_dict())


# What cannot


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("git_lfs_pointer.pt", ("Git LFS pointer", "42,578,991", "git lfs pull")),
        ("html404_saved_as.pt", ("web page", "Error 404")),
        ("truncated_yolov5n.pt", ("cut short", "915,353 bytes")),
    ],
)
def test_real_accidents(shared_dir, name, words):
    message = refusal(shared_dir / "weights" / "bad" / name)
    assert all(word in message for word in (name, *words))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00" * 5000, "not a checkpoint"),
        (b"\x1f\x8b" + b"x" * 600, "gzip"),
        (b'{"epoch": 3}', "JSON"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "Sign in"),
        (b"\x80\x04\x95\x10", "pickle that torch.save did not write"),
        (b"PK\x03\x04", "cut short"),
        (b"PK\x05\x06" + b"\0" * 18, "not one of torch.save"),
    ],
)
def test_other_bytes(tmp_path, content, words):
    (tmp_path / "a.pt").write_bytes(content)
    assert words in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("ultralytics.nn.tasks", "DetectionModel", "Ultralytics YOLOv8 or later"),
        ("ultralytics.yolo.v8.detect", "DetectionModel", "Ultralytics YOLOv8 or later"),
        ("yolov6.models.yolo", "Model", "YOLOv6"),
        ("mmengine.logging.history_buffer", "HistoryBuffer", "OpenMMLab"),
        ("somewhere.else", "Net", "asks for somewhere.else.Net"),
    ],
)
def test_files_of_other_projects(tmp_path, module, name, words):
    write_archive(
        tmp_path / "a.pt", b"\x80\x02}X\x05\x00\x00\x00modelc" + f"{module}\n{name}\n".encode() + b")\x81s.", {}
    )
    assert words in refusal(tmp_path / "a.pt")


def test_a_state_dict_alone(tmp_path):
    torch.save({"model": small_model().state_dict(), "start_epoch": 3}, tmp_path / "a.pt")
    assert "bare tensors without a model's definition" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("top", "head", "words"),
    [("SegmentationModel", "Detect", "segmentation model of YOLOv5"), ("Model", "IDetect", "YOLOv7")],
)
def test_other_tasks_and_relatives(tmp_path, top, head, words):
    with yolov5_modules() as classes:
        twin = as_yolov5(small_model(), {**classes, "Detect": classes[head]}, top)
        torch.save({"model": twin}, tmp_path / "a.pt")
    assert words in refusal(tmp_path / "a.pt")


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.torchscript.pt")
    assert "TorchScript" in refusal(tmp_path / "a.torchscript.pt")


def test_a_definition_with_unknown_layers(tmp_path):
    with yolov5_modules() as classes:
        twin = as_yolov5(small_model(), classes)
        twin.yaml = {**twin.yaml, "backbone": [[-1, 1, "BottleneckCSP", [64]], *SMALL_DEFINITION["backbone"][1:]]}
        torch.save({"model": twin}, tmp_path / "a.pt")
    assert "BottleneckCSP" in refusal(tmp_path / "a.pt")


def test_weights_that_do_not_fit_the_definition(tmp_path):
    with yolov5_modules() as classes:
        twin = as_yolov5(small_model(), classes)
        twin.yaml = {**twin.yaml, "width_multiple": 0.5}
        torch.save({"model": twin}, tmp_path / "a.pt")
    assert "do not fit the model definition" in refusal(tmp_path / "a.pt")


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    save_version(tmp_path / "a.pt", "v6 stripped")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    assert "damaged" in refusal(tmp_path / "a.pt")


def test_a_storage_that_is_too_short(tmp_path):
    save_version(tmp_path / "a.pt", "v6 stripped")
    pickled, storages = archive_parts(tmp_path / "a.pt")
    key = max(storages, key=lambda name: len(storages[name]))
    write_archive(tmp_path / "b.pt", pickled, {**storages, key: storages[key][:-2]})
    assert "damaged" in refusal(tmp_path / "b.pt")
    del storages[key]
    write_archive(tmp_path / "c.pt", pickled, storages)
    assert "lacks" in refusal(tmp_path / "c.pt")


def test_a_missing_official_name_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    message = refusal(Path("yolov5s.pt"))
    assert "downloads nothing" in message
    assert "releases" in message
    assert "missing" in refusal(Path("my.pt"))
    assert "folder" in refusal(tmp_path)
