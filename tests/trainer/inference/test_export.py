"""``python -m trainer.inference.export``: files that compute what the model does, or no files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainer.config.fields import write_config
from trainer.config.inference import ExportConfig
from trainer.inference import export, export_check, export_formats
from trainer.inference.detector import load_detector
from trainer.inference.export_check import ExportError, check_detections, check_predictions
from trainer.model.postprocess import non_max_suppression


@pytest.fixture(scope="module")
def picture(bccd_yaml):
    return bccd_yaml.parent / "images" / "val" / "BloodImage_00000.jpg"


def start(weights, folder, **options):
    path = folder / "export.yaml"
    write_config(ExportConfig(**{"weights": str(weights), "imgsz": 160, **options}), path)
    return export.run([str(path), "--run-dir", str(folder)])


def test_torchscript_computes_the_same_and_says_what_it_is(detector, picture, tmp_path, capsys):
    out = tmp_path / "n.torchscript"
    assert start(detector, tmp_path, format="torchscript", out=str(out), image=str(picture)) == 0
    assert "within" in capsys.readouterr().out
    extra = {export_formats.TORCHSCRIPT_METADATA: ""}
    loaded = torch.jit.load(str(out), _extra_files=extra)
    metadata = json.loads(extra[export_formats.TORCHSCRIPT_METADATA])
    assert json.loads(metadata["names"])[1] == "WBC"
    assert (metadata["stride"], metadata["imgsz"]) == ("32", "[160, 160]")
    images = export_check.check_picture(picture, (160, 160))
    with torch.no_grad():
        found = loaded(images / 255)
    torch.testing.assert_close(found, load_detector(detector, torch.device("cpu"))(images), atol=1e-3, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.glob("*.torchscript")) == ["n.torchscript"]


def test_a_file_that_computes_something_else_is_not_kept(detector, tmp_path, monkeypatch, capsys):
    write = export_formats.write_torchscript

    def write_damaged(graph, path):
        with torch.no_grad():
            graph.module.model.detect.m[0].weight.mul_(1.05)
        write(graph, path)
        with torch.no_grad():
            graph.module.model.detect.m[0].weight.div_(1.05)

    monkeypatch.setattr(export_formats, "write_torchscript", write_damaged)
    out = tmp_path / "n.torchscript"
    out.write_text("the last good one")
    assert start(detector, tmp_path, format="torchscript", out=str(out)) == 2
    assert "was not kept" in capsys.readouterr().err
    assert out.read_text() == "the last good one"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".torchscript"] == ["n.torchscript"]


def test_checks_notice_what_differs():
    expected = torch.rand(1, 10, 8)
    assert check_predictions(expected, expected + 1e-5, 640, torch.float32) < 2e-5
    for wrong in (expected + 0.01, expected[:, :9], expected * torch.nan):
        with pytest.raises(ExportError):
            check_predictions(expected, wrong, 640, torch.float32)
    kept = torch.tensor([[10.0, 10, 50, 50, 0.9, 2], [60, 60, 90, 90, 0.5, 1], [0, 0, 9, 9, 0.2501, 0]])
    numbered = torch.cat((torch.zeros(3, 1), kept), dim=1)
    # The last one lies at the threshold, where either answer is right.
    assert check_detections([kept], numbered[:2], 0.25, torch.float32) == 2
    moved, other_class = numbered.clone(), numbered.clone()
    moved[0, 1:5] += 5
    other_class[1, 6] = 0
    for wrong in (numbered[:1], moved, other_class, torch.cat((numbered, moved[:1]))):
        with pytest.raises(ExportError):
            check_detections([kept], wrong, 0.25, torch.float32)


def test_suppression_is_for_onnx(detector, tmp_path, capsys):
    path = tmp_path / "export.yaml"
    path.write_text(f"weights: {detector}\nformat: torchscript\nwith_nms: true\n")
    assert export.run([str(path), "--run-dir", str(tmp_path)]) == 2
    assert "--with-nms is for ONNX" in capsys.readouterr().err


class TestOnnx:
    """Needs the extra ``export``."""

    @pytest.fixture(autouse=True)
    def _extra(self):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")

    def test_dynamic_file_takes_other_sizes(self, detector, picture, tmp_path):
        import onnx

        out = tmp_path / "n.onnx"
        assert start(detector, tmp_path, out=str(out), dynamic=True, image=str(picture)) == 0
        model = onnx.load(str(out))
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(metadata["names"])[0] == "RBC"
        assert (metadata["stride"], metadata["opset"], metadata["dynamic"]) == ("32", "17", "true")
        assert model.opset_import[0].version == 17
        run_file = export_formats.open_onnx(out)
        images = torch.cat([export_check.check_picture(picture, (96, 224))] * 3)
        expected = load_detector(detector, torch.device("cpu"))(images)
        torch.testing.assert_close(run_file(images / 255), expected, atol=1e-2, rtol=1e-3)
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["file"] == str(out)
        assert summary["largest_difference"] < 1e-3

    def test_suppression_in_the_graph_finds_the_same(self, detector, picture, tmp_path):
        limits = {"conf": 0.05, "iou": 0.5, "max_det": 7}
        out = tmp_path / "n.onnx"
        more = {"with_nms": True, "dynamic": True, "image": str(picture)}
        assert start(detector, tmp_path, out=str(out), **more, **limits) == 0
        images = export_check.check_picture(picture, (320, 320))
        images = torch.cat((images, images * 0, images.flip(3)))
        found = export_formats.open_onnx(out)(images / 255)
        kept = non_max_suppression(
            load_detector(detector, torch.device("cpu"))(images),
            confidence_threshold=limits["conf"],
            iou_threshold=limits["iou"],
            max_detections=limits["max_det"],
        )
        assert [len(image) for image in kept][::2] == [7, 7]
        for number, image in enumerate(kept):
            mine = found[found[:, 0] == number]
            torch.testing.assert_close(mine[:, 1:5], image[:, :4], atol=0.05, rtol=1e-3)
            torch.testing.assert_close(mine[:, 5], image[:, 4], atol=1e-3, rtol=0)
            assert mine[:, 6].tolist() == image[:, 5].tolist()
        assert found[:, 0].tolist() == sorted(found[:, 0].tolist())

    def test_half_precision(self, detector, picture, tmp_path):
        out = tmp_path / "n.onnx"
        assert start(detector, tmp_path, out=str(out), half=True, image=str(picture)) == 0
        import onnx

        model = onnx.load(str(out))
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert out.stat().st_size < 1.3e6  # 1.9e6 in single precision

    @pytest.mark.slow
    def test_onnxruntime_scores_the_same(self, detector, bccd_yaml, tmp_path):
        """mAP of the exported file within 0.001 of the model's on the blood cells."""
        from trainer.data.dataset import load_dataset_file
        from trainer.data.loader import ValidationData, make_validation_loader
        from trainer.data.sampler import ValidationBatches
        from trainer.data.scan.scan import scan_split
        from trainer.evaluation.evaluator import Evaluator

        out = tmp_path / "n.onnx"
        assert start(detector, tmp_path, out=str(out), dynamic=True) == 0
        dataset = load_dataset_file(bccd_yaml)
        images, _ = scan_split(dataset, "val", num_classes=3, cache_dir=tmp_path)
        batches = ValidationBatches(images.shapes_hw, 8, image_size=160)

        class FileModel(torch.nn.Module):
            """The exported file in the model's place."""

            run_file = staticmethod(export_formats.open_onnx(out))

            def forward(self, images):
                return self.run_file(images.contiguous()), []

        loaded = load_detector(detector, torch.device("cpu"))
        scores = {}
        for name, model in (("file", FileModel()), ("model", loaded.model)):
            loader = make_validation_loader(ValidationData(images, image_size=160), batches, num_workers=0)
            evaluator = Evaluator(num_classes=3, names=dataset.names)
            metrics = evaluator.evaluate(model, loader, device=torch.device("cpu"))
            scores[name] = np.array([metrics.map50, metrics.map5095])
        assert scores["model"][0] > 0.45
        np.testing.assert_allclose(scores["file"], scores["model"], atol=1e-3)
