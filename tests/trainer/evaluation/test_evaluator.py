from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from trainer.evaluation.average_precision import average_precision
from trainer.evaluation.matching import IOU_THRESHOLDS, match_detections
from trainer.model.postprocess import non_max_suppression

CPU = torch.device("cpu")


class GatheringRanks:
    """Replaces ``world_size`` processes by threads that exchange pickled parts in ``gather``."""

    def __init__(self, world_size):
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.parts = [None] * world_size

    def gather_of(self, rank):
        def gather(part):
            self.parts[rank] = pickle.dumps(part)
            self.barrier.wait()
            return [pickle.loads(packed) for packed in self.parts]

        return gather


def evaluate_on_ranks(known, case, world_size, **options):
    ranks = GatheringRanks(world_size)
    results = [None] * world_size

    def work(rank):
        evaluator = known.evaluator_for(case, **options)
        mine = case.batches[rank::world_size]
        results[rank] = evaluator.evaluate(case.detector, mine, device=CPU, gather=ranks.gather_of(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("world_size", [2, 3, 4, 6], ids="{} ranks".format)
def test_any_number_of_ranks_computes_the_numbers_of_one(known, world_size):
    """Also with a rank that has no batches (4 batches, 6 ranks)."""
    case = known.make_case()
    alone = known.evaluator_for(case, keep_detections=True).evaluate(case.detector, case.batches, device=CPU)
    assert 0 < alone.map5095 < alone.map50 < 1
    expected = known.fingerprint(alone)
    for metrics in evaluate_on_ranks(known, case, world_size, keep_detections=True):
        assert known.fingerprint(metrics) == expected


@pytest.mark.slow
def test_two_real_processes_compute_the_numbers_of_one(known):
    case = known.make_case()
    alone = known.evaluator_for(case, keep_detections=True).evaluate(case.detector, case.batches, device=CPU)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    workers = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        workers.append(
            subprocess.Popen(
                [sys.executable, known.__file__], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    try:
        outputs = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    expected = known.fingerprint(alone)
    assert [out.decode().strip() for out, _ in outputs] == [expected] * 2, outputs


def test_the_numbers_are_those_of_boxes_in_the_pixels_of_the_files(known):
    """Put together by hand from the detector's table, image by image."""
    case = known.make_case()
    metrics = known.evaluator_for(case).evaluate(case.detector, case.batches, device=CPU)
    kept = non_max_suppression(
        case.detector.decoded, confidence_threshold=0.001, iou_threshold=0.6, multi_label=True, max_detections=300
    )
    geometry = [place for batch in case.batches for place in batch.geometry]
    positions = [int(p) for batch in case.batches for p in batch.positions]
    correct, detections = [], []
    for number in sorted(range(len(kept)), key=positions.__getitem__):
        rows = kept[number].numpy().copy()
        (height, width), (ratio_h, ratio_w), (pad_x, pad_y) = geometry[number]
        rows[:, [0, 2]] = ((rows[:, [0, 2]] - pad_x) / ratio_w).clip(0, width)
        rows[:, [1, 3]] = ((rows[:, [1, 3]] - pad_y) / ratio_h).clip(0, height)
        correct.append(match_detections(rows, case.labels[number], IOU_THRESHOLDS))
        detections.append(rows)
        if positions[number] in metrics.samples:
            np.testing.assert_allclose(metrics.samples[positions[number]], rows, rtol=1e-5, atol=1e-4)
    rows = np.concatenate(detections)
    label_class = np.concatenate(case.labels)[:, 0]
    expected = average_precision(np.concatenate(correct), rows[:, 4], rows[:, 5], label_class, known.NUM_CLASSES)
    assert metrics.map50 == pytest.approx(expected.map50, abs=1e-12)
    assert metrics.map5095 == pytest.approx(expected.map5095, abs=1e-12)
    assert metrics.precision == pytest.approx(expected.precision.mean(), abs=1e-12)
    assert metrics.recall == pytest.approx(expected.recall.mean(), abs=1e-12)
    assert metrics.fitness == pytest.approx(0.1 * metrics.map50 + 0.9 * metrics.map5095)
    assert metrics.images == 11
    assert metrics.boxes == len(label_class)


def test_a_detector_that_is_right_everywhere(known):
    case = known.make_case(noise=0.0)
    metrics = known.evaluator_for(case).evaluate(case.detector, case.batches, device=CPU)
    assert metrics.map50 == pytest.approx(0.995)
    assert metrics.map5095 == pytest.approx(0.995)
    assert metrics.precision == metrics.recall == pytest.approx(1.0)
    assert [row.class_index for row in metrics.per_class] == [0, 1, 2]
    counts = np.bincount(np.concatenate(case.labels)[:, 0].astype(int))
    images = [sum((labels[:, 0] == c).any() for labels in case.labels) for c in range(3)]
    assert [row.labels for row in metrics.per_class] == counts.tolist()
    assert [row.images for row in metrics.per_class] == images
    assert metrics.per_class[2].name == "cat"
    np.testing.assert_array_equal(metrics.confusion, np.diag([*counts, 0, 0]))
    assert metrics.worst_images == ()
    assert metrics.class_map() == pytest.approx([0.995] * 4)  # the last class, without labels, gets the mean


def test_the_loss_is_the_mean_over_batches_of_each_by_itself(known):
    case = known.make_case()
    metrics = known.evaluator_for(case).evaluate(case.detector, case.batches, device=CPU)
    items = []
    for start, batch in zip(range(0, 11, 3), case.batches, strict=True):
        raw = [level[start : start + 3] for level in case.detector.raw]
        matches = case.loss.match(batch.targets, [level.shape[2:4] for level in raw])
        items.append(case.loss(raw, matches, case.loss.counts(matches, len(batch))).items.double())
    assert metrics.loss == pytest.approx(torch.stack(items).mean(dim=0).tolist(), rel=1e-12)
    without = known.evaluator_for(case, loss=None).evaluate(case.detector, case.batches, device=CPU)
    assert without.loss == (0.0, 0.0, 0.0)
    assert without.map50 == metrics.map50
    assert list(metrics.row()) == [
        "metrics/precision",
        "metrics/recall",
        "metrics/mAP_0.5",
        "metrics/mAP_0.5:0.95",
        "val/box_loss",
        "val/obj_loss",
        "val/cls_loss",
    ]


def test_worst_images_count_what_was_missed_and_imagined(known):
    case = known.make_case(noise=0.0)
    # Image 0 sees nothing, image 1 sees one object more, image 2 sees too faintly to count.
    case.detector.decoded[0, :, 4] = 0
    case.detector.decoded[1, -1, :] = torch.tensor([50.0, 50, 8, 8, 0.9, 0, 0, 0, 0.9])
    case.detector.decoded[2, :, 4] *= 0.2
    metrics = known.evaluator_for(case).evaluate(case.detector, case.batches, device=CPU)
    positions = case.batches[0].positions.tolist()
    found = {worst.position: (worst.missed, worst.imagined) for worst in metrics.worst_images}
    assert found == {
        positions[0]: (len(case.labels[0]), 0),
        positions[1]: (0, 1),
        positions[2]: (len(case.labels[2]), 0),
    }
    errors = [worst.missed + worst.imagined for worst in metrics.worst_images]
    assert errors == sorted(errors, reverse=True)
    assert all(worst.index == worst.position + 100 for worst in metrics.worst_images)


def test_samples_are_bounded_and_all_detections_are_kept_on_request(known):
    case = known.make_case()
    metrics = known.evaluator_for(case, sample_batches=2, keep_detections=True).evaluate(
        case.detector, case.batches, device=CPU
    )
    assert metrics.detections is not None
    assert sorted(metrics.detections) == list(range(11))
    assert sorted(metrics.samples) == sorted(int(p) for batch in case.batches[:2] for p in batch.positions)
    for position, rows in metrics.samples.items():
        np.testing.assert_array_equal(rows, metrics.detections[position])
    assert known.evaluator_for(case).evaluate(case.detector, case.batches, device=CPU).detections is None


def test_an_epoch_without_detections_or_without_images_is_zero_and_finite(known):
    case = known.make_case()
    case.detector.decoded[..., 4] = 0
    blind = known.evaluator_for(case).evaluate(case.detector, case.batches, device=CPU)
    empty = known.evaluator_for(case, keep_detections=True).evaluate(case.detector, [], device=CPU)
    for metrics in (blind, empty):
        assert metrics.precision == metrics.recall == metrics.map50 == metrics.map5095 == metrics.fitness == 0.0
        assert np.isfinite(metrics.loss).all()
        assert np.isfinite(list(metrics.speed_ms.values())).all()
        assert np.isfinite(metrics.class_map()).all()
    assert blind.confusion[-1, :3].sum() == blind.boxes > 0
    assert empty.images == empty.boxes == 0
    assert empty.detections == {}


def test_progress_and_times_are_told(known):
    case = known.make_case()
    told = []
    metrics = known.evaluator_for(case).evaluate(
        case.detector, case.batches, device=CPU, on_batch=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(metrics.speed_ms) == ["load", "inference", "nms", "metrics"]
    assert all(value > 0 for value in metrics.speed_ms.values())
    unsized = []
    known.evaluator_for(case).evaluate(
        case.detector, iter(case.batches), device=CPU, on_batch=lambda *numbers: unsized.append(numbers)
    )
    assert unsized[-1] == (4, 0)


def test_names_must_belong_to_the_classes(known):
    with pytest.raises(ValueError, match="4 names for 3 classes"):
        known.evaluator_for(known.make_case(), num_classes=3)
