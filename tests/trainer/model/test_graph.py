"""From YAML to module: a user's own definitions, their mistakes, and what other parts rely on."""

from __future__ import annotations

import copy
import io
import pickle
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from trainer.model.definition import ZOO_DIR
from trainer.model.graph import build_model, fuse_batch_norm, load_definition


def test_every_layer_of_a_users_file_trains(write_yaml, every_layer):
    model = build_model(load_definition(write_yaml(every_layer)))
    assert model.stride.tolist() == [16, 32]
    assert model.num_classes == 4
    raw = model(torch.rand(2, 3, 64, 96))
    assert [tuple(output.shape) for output in raw] == [(2, 3, 4, 6, 9), (2, 3, 2, 3, 9)]
    sum((output * torch.randn_like(output)).sum() for output in raw).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 64, 96))[0].shape == (1, 3 * (24 + 6), 9)


def test_depth_and_width_are_scaled_as_published(write_yaml, every_layer):
    model = build_model(load_definition(write_yaml(every_layer)))
    assert len(model.model[4].m) == 2  # round(3 x 0.67)
    assert len(model.model[6]) == 3  # round(4 x 0.67)
    assert model.model[0].conv.conv.out_channels == 16
    odd = yaml.safe_load(every_layer) | {"width_multiple": 0.3, "depth_multiple": 0.1}
    scaled = build_model(odd)
    assert scaled.model[2].cv3.conv.out_channels == 24  # 19.2 rounded up to a multiple of 8
    assert len(scaled.model[4].m) == 1


def test_the_activation_line_replaces_every_default_and_no_linear_one(write_yaml, every_layer):
    model = build_model(load_definition(write_yaml(every_layer)))
    kinds = {type(module) for module in model.modules()}
    assert nn.LeakyReLU in kinds
    assert nn.SiLU not in kinds
    assert all(module.negative_slope == 0.1 for module in model.modules() if isinstance(module, nn.LeakyReLU))
    assert isinstance(model.model[16].conv[2].cv1.act, nn.Identity)  # a ghost bottleneck ends without


@pytest.mark.parametrize("line", ["nn.ReLU()", "nn.ReLU", "torch.nn.Hardswish(inplace=True)", "Mish", "nn.GELU()"])
def test_spellings_of_an_activation(line):
    model = build_model({**load_definition("yolov5n"), "activation": line})
    name = line.split("(")[0].split(".")[-1]
    assert type(model.model[0].act).__name__ == name


def test_a_count_of_anchors_starts_from_placeholders(write_yaml, every_layer):
    model = build_model(load_definition(write_yaml(every_layer)))
    assert not model.anchors_given
    assert model.detect.anchors.shape == (2, 3, 2)
    assert model.definition["anchors"][0] == [32, 32, 64, 64, 128, 128]
    model.set_anchors([[10, 20, 30, 40, 50, 60], [70, 80, 90, 100, 110, 120]])
    assert model.anchors_given
    assert model.detect.anchors[0, 1].tolist() == [30 / 16, 40 / 16]


def test_anchors_listed_from_large_to_small_are_turned_round():
    definition = load_definition("yolov5n")
    turned = build_model({**definition, "anchors": definition["anchors"][::-1]})
    assert torch.equal(turned.detect.anchors, build_model(definition).detect.anchors)


def test_arguments_override_the_definition():
    anchors = [[8.0, 8, 16, 16], [32, 32, 64, 64], [128, 128, 256, 256]]
    model = build_model(load_definition("yolov5n"), num_classes=3, anchors=anchors)
    assert model.definition["nc"] == model.num_classes == 3
    assert model.definition["anchors"] == anchors
    assert [convolution.out_channels for convolution in model.detect.m] == [16, 16, 16]


def test_a_resolved_definition_builds_the_same_model():
    first = build_model(load_definition("yolov5n"), num_classes=7)
    again = build_model(yaml.safe_load(yaml.safe_dump(first.definition)))
    again.load_state_dict(first.state_dict())


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n.yaml", "models/yolov5n.yaml"])
def test_built_in_names_as_users_type_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_definition(name)["width_multiple"] == 0.25


def test_a_file_in_the_working_directory_comes_before_a_built_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("yolov5n.yaml").write_text((ZOO_DIR / "yolov5n.yaml").read_text().replace("nc: 80", "nc: 2"))
    assert load_definition("yolov5n.yaml")["nc"] == 2
    assert load_definition("yolov5n")["nc"] == 80


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov3-tiny"])
def test_strides_from_the_graph_are_those_of_a_real_image(name):
    model = build_model(load_definition(name), num_classes=2)
    with torch.no_grad():
        raw = model(torch.zeros(2, 3, 128, 192))
    for output, stride in zip(raw, model.stride.tolist(), strict=True):
        assert output.shape[2:4] == (128 / stride, 192 / stride)


def test_building_leaves_batch_norm_untouched_and_in_training_mode():
    model = build_model(load_definition("yolov5n"))
    assert all(module.training for module in model.modules())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 0 and norm.running_mean.abs().sum() == 0 for norm in norms)


def test_a_seed_decides_the_initial_weights():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model(load_definition("yolov5n"), num_classes=1).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["model.0.conv.weight"], states[2]["model.0.conv.weight"])


def test_building_is_quick():
    started = time.perf_counter()
    build_model(load_definition("yolov5n"))
    elapsed_s = time.perf_counter() - started
    assert elapsed_s < 2  # 0.1 s on a free core; a busy machine gets room


def test_only_outputs_that_are_needed_later_are_saved():
    assert sorted(build_model(load_definition("yolov5n"))._saved) == [4, 6, 10, 14, 17, 20]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_folding_batch_norm_changes_no_output(nano, memory_format):
    model = copy.deepcopy(nano).to(memory_format=memory_format)
    fused = fuse_batch_norm(model)
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = model(images)[0], fused(images)[0]
    assert (got - expected).abs().max() < 5e-6 * expected.abs().max()
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert fused.model[0].conv.weight.is_contiguous(memory_format=memory_format)
    assert [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not fused.training


def test_channels_last_gives_the_same_outputs(nano):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(nano).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, got = nano(images)[0], other(images.to(memory_format=torch.channels_last))[0]
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_a_model_survives_copying_and_pickling(nano):
    buffer = io.BytesIO()
    pickle.dump(nano, buffer)
    buffer.seek(0)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for other in (copy.deepcopy(nano), pickle.load(buffer)):
            assert torch.equal(other(images)[0], nano(images)[0])
            assert other.stride.tolist() == [8, 16, 32]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_records_the_same_computation_for_other_sizes(nano):
    traced = torch.jit.trace(nano, torch.rand(1, 3, 64, 64), check_trace=False)
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        assert torch.allclose(traced(images)[0], nano(images)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_export_records_the_same_computation(nano):
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        exported = torch.export.export(nano, (images,)).module()
        assert torch.allclose(exported(images)[0], nano(images)[0], rtol=1e-4, atol=1e-3)


def without_the_coarsest_level():
    """yolov5n whose head reads strides 8 and 16 only, with the backbone still going to 32."""
    definition = load_definition("yolov5n")
    head = [*definition["head"][:11], [[17, 20], 1, "Detect", ["nc", "anchors"]]]
    return {**definition, "head": head, "anchors": definition["anchors"][:2]}


def with_a_deeper_branch():
    """The same with a layer of stride 64 that nothing but a later, doubled layer reads."""
    rows = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 9], 1, "Concat", [1]]]
    definition = without_the_coarsest_level()
    return {**definition, "backbone": [*definition["backbone"], *rows], "head": [[-1, 1, "Detect", ["nc", "anchors"]]]}


@pytest.mark.parametrize(
    ("definition", "strides", "grid"),
    [
        (load_definition("yolov5n"), [8, 16, 32], 32),
        (load_definition("yolov5n6"), [8, 16, 32, 64], 64),
        (without_the_coarsest_level(), [8, 16], 32),
        ({**with_a_deeper_branch(), "anchors": 3}, [32], 64),
        ({"backbone": [[-1, 1, "Conv", [64, 3, 4]]], "head": [[-1, 1, "Detect", ["nc", "anchors"]]]}, [4], 32),
        ({"backbone": [[-1, 1, "Conv", [64, 3, 6]]], "head": [[-1, 1, "Detect", ["nc", "anchors"]]]}, [6], 36),
    ],
)
def test_sizes_are_multiples_of_the_largest_reduction_anywhere(definition, strides, grid):
    model = build_model(definition).eval()
    assert model.stride.tolist() == strides
    assert model.size_grid == grid
    assert fuse_batch_norm(model).size_grid == grid
    for sides in ((grid, 3 * grid), (3 * grid, grid)):
        cells = sum((sides[0] // stride) * (sides[1] // stride) for stride in strides)
        assert model(torch.zeros(1, 3, *sides))[0].shape[1] == 3 * cells
