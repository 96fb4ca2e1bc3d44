from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from trainer.boxes import xyxy_from_cxcywh
from trainer.data.augment.basic import AugmentationSettings
from trainer.data.collate import Batch, Collate, LoadedSample
from trainer.data.image_cache import open_image_cache
from trainer.data.images import ImageFiles
from trainer.data.loader import TrainingData, ValidationData, make_training_loader, make_validation_loader
from trainer.data.loading.image_store import SharedStore, WindowStore
from trainer.data.sampler import EpochBatches, SampleKey, ValidationBatches
from trainer.data.scan.label_cache import LabeledImages

PROJECT_DIR = Path(__file__).resolve().parents[3]
SIZE, BATCH, SEED = 128, 8, 11
EVERYTHING = AugmentationSettings(
    **{"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 5, "translate": 0.1, "scale": 0.5, "shear": 2},
    **{"perspective": 0.0002, "flipud": 0.1, "fliplr": 0.5, "mosaic": 0.7, "mixup": 0.3, "copy_paste": 0.2},
)


def first(images: LabeledImages, count: int) -> LabeledImages:
    return LabeledImages.of(
        images.paths[:count], images.shapes_hw[:count], images.boxes[:count], images.segments[:count], f"first {count}"
    )


@pytest.fixture(scope="module")
def few(bccd, many_shapes):
    """Images of two data sets, with polygons for some objects."""
    bccd, many_shapes = first(bccd, 15), first(many_shapes, 15)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    circle = np.stack((np.cos(angles), np.sin(angles)), 1) / 2
    round_cells = [[(row[1:3] + circle * row[3:5]).astype(np.float32) for row in boxes] for boxes in bccd.boxes]
    return LabeledImages.of(
        [*bccd.paths, *many_shapes.paths],
        np.concatenate((bccd.shapes_hw, many_shapes.shapes_hw)),
        [*bccd.boxes, *many_shapes.boxes],
        [*round_cells, *many_shapes.segments],
        "few",
    )


def training_data(images, source=None, **options) -> TrainingData:
    options.setdefault("settings", EVERYTHING)
    return TrainingData(images, image_size=SIZE, seed=SEED, source=source, **options)


def sample_hashes(batch: Batch) -> list[tuple[int, str]]:
    """Position and a hash of uint8 pixels and labels, in the batch's order."""
    assert batch.images_bchw.dtype == torch.uint8
    hashes = []
    for at, position in enumerate(batch.positions.tolist()):
        rows = batch.targets[batch.targets[:, 0] == at, 1:].numpy().tobytes()
        hashes.append((position, hashlib.sha256(batch.images_bchw[at].numpy().tobytes() + rows).hexdigest()))
    return hashes


def run_epoch(
    data, epoch=2, *, ranks=1, workers=0, start_step=0, rect=False, weights=None, window=0, **options
) -> list[list]:
    """Per global step, the hashes of all ranks' samples in the order of ranks."""
    ratios = data.images.shapes_hw[:, 0] / data.images.shapes_hw[:, 1] if rect else None
    steps: list[list] = []
    for rank in range(ranks):
        sampler = EpochBatches(
            SEED, len(data), BATCH, rank, ranks, aspect_ratios=ratios, image_size=SIZE, window=window
        )
        loader = make_training_loader(data, sampler, num_workers=workers, **options)
        sampler.set_epoch(epoch, start_step, weights)
        for step, batch in enumerate(loader):
            if rank == 0:
                steps.append([])
            steps[step] += sample_hashes(batch)
    return steps


@pytest.fixture(scope="module")
def reference(few):
    return run_epoch(training_data(few))


def test_an_epoch_is_new_each_time_but_never_random(few, reference):
    positions = [[position for position, _ in step] for step in reference]
    assert positions == [[*range(a, min(a + BATCH, 30))] for a in range(0, 30, BATCH)]
    assert run_epoch(training_data(few)) == reference
    other = run_epoch(training_data(few), epoch=3)
    assert not {h for step in other for _, h in step} & {h for step in reference for _, h in step}


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (4, 0), (1, 1), (1, 4), (3, 4), (5, 1)])
def test_samples_do_not_depend_on_ranks_or_workers(few, reference, ranks, workers):
    assert run_epoch(training_data(few), ranks=ranks, workers=workers) == reference


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0), (3, 1)])
def test_samples_do_not_depend_on_a_resume(few, reference, ranks, workers):
    assert run_epoch(training_data(few), start_step=2, ranks=ranks, workers=workers) == reference[2:]


@pytest.mark.parametrize("prefetch", [1, 5])
def test_samples_do_not_depend_on_the_prefetch(few, reference, prefetch):
    assert run_epoch(training_data(few), workers=2, prefetch=prefetch) == reference


@pytest.mark.parametrize("window", [3, 16])
@pytest.mark.parametrize(
    ("ranks", "workers", "start_step"), [(2, 0, 0), (3, 0, 2), (1, 1, 0), (1, 8, 1), (2, 3, 0), (3, 2, 1)]
)
def test_partners_from_a_lane_depend_on_nothing_but_the_position(few, window, ranks, workers, start_step):
    def data() -> TrainingData:
        files = ImageFiles(few.paths, few.shapes_hw, SIZE, training=True)
        return training_data(few, WindowStore(files, window))

    expected = run_epoch(training_data(few), window=window)
    assert expected != run_epoch(training_data(few))
    steps = run_epoch(data(), window=window, ranks=ranks, workers=workers, start_step=start_step)
    assert steps == expected[start_step:]
    weights = np.arange(30.0)
    by_weight = run_epoch(data(), window=window, ranks=ranks, workers=workers, weights=weights)
    assert by_weight == run_epoch(training_data(few), window=window, weights=weights)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("max_bytes", [1 << 30, 20 * 3 * SIZE * SIZE])
def test_samples_do_not_depend_on_what_is_kept_decoded(few, reference, workers, max_bytes):
    files = ImageFiles(few.paths, few.shapes_hw, SIZE, training=True)
    data = training_data(few, SharedStore(files, few.shapes_hw, SIZE, max_bytes))
    sampler = EpochBatches(SEED, len(data), BATCH, 0, 1)
    loader = make_training_loader(data, sampler, num_workers=workers)
    for _ in range(2):
        assert [sample_hashes(batch) for batch in loader.epoch(2, 0)] == reference


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_samples_do_not_depend_on_the_cache(few, reference, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("trainer.data.image_cache._memory_folder", lambda: tmp_path)
    cache = open_image_cache(few, image_size=SIZE, training=True, kind=kind, cache_dir=tmp_path)
    assert run_epoch(training_data(few, cache), workers=2) == reference
    for path in few.paths:
        assert path.exists()
    data = training_data(few, cache)
    data.images = LabeledImages.of([Path("gone")] * 30, few.shapes_hw, few.boxes, few.segments, few.key)
    assert run_epoch(data) == reference


def test_rectangular_and_weighted_epochs_are_as_reproducible(few):
    data, weights = training_data(few), np.arange(30.0)
    for options in ({"rect": True}, {"weights": weights}):
        assert run_epoch(data, ranks=3, workers=2, **options) == run_epoch(data, **options)


def test_persistent_workers_follow_epochs_and_abandoned_ones(few):
    data = training_data(first(few, 18))
    sampler = EpochBatches(SEED, len(data), BATCH, 0, 1)
    loader = make_training_loader(data, sampler, num_workers=2)
    for epoch in (2, 0):
        sampler.set_epoch(epoch)
        assert [sample_hashes(batch) for batch in loader] == run_epoch(data, epoch)
        next(iter(loader))


def test_mosaics_stop_when_asked(few):
    data = training_data(few, settings=AugmentationSettings(mosaic=1.0), mosaic_until_epoch=5)
    for epoch, is_mosaic in ((4, True), (5, False), (9, False)):
        whole = data[SampleKey(epoch, 0, 0)].image
        assert np.array_equal(whole[20:-20], data.load_sample(0).image[4:-4]) == (not is_mosaic)
    rectangular = data[SampleKey(0, 0, 0, (), (96, 128))]
    np.testing.assert_array_equal(rectangular.image, data.load_sample(0).image)


def test_unreadable_images_count_as_background(few, tmp_path):
    paths = [*few.paths]
    paths[0] = tmp_path / "gone.jpg"
    images = LabeledImages.of(paths, few.shapes_hw, few.boxes, few.segments, "gone")
    sample = training_data(images, settings=AugmentationSettings())[SampleKey(0, 0, 0)]
    assert (sample.image == 114).all()
    assert len(sample.boxes) == 0


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_real_boxes_stay_in_the_image_and_follow_it(bccd, mosaic):
    """White blood cells are the purple things: saturated where they are labeled."""
    settings = AugmentationSettings(mosaic=mosaic, scale=0.5, translate=0.1, fliplr=0.5)
    data = TrainingData(bccd, image_size=320, settings=settings, seed=1)
    inside, outside = [], []
    for position in range(30):
        sample = data[SampleKey(0, position, position)]
        assert sample.image.shape == (320, 320, 3)
        assert (sample.boxes[:, 1:3] < sample.boxes[:, 3:]).all()
        assert sample.boxes[:, 1:].min() >= 0
        assert sample.boxes[:, 1:].max() <= 320
        planes = np.empty((3, 320, 320), np.uint8)
        sample.finish.write(sample.image, planes)
        saturation = cv2.cvtColor(cv2.merge(planes), cv2.COLOR_RGB2HSV)[..., 1]
        mask = np.zeros((320, 320), bool)
        for _, x1, y1, x2, y2 in sample.boxes[sample.boxes[:, 0] == 1].round().astype(int):
            mask[y1:y2, x1:x2] = True
        if mask.any():
            inside.append((saturation[mask] > 90).mean())
            outside.append((saturation[~mask] > 90).mean())
    assert len(inside) > 20
    assert np.mean(inside) > 0.2
    assert np.mean(inside) > 6 * np.mean(outside)


def test_collate_puts_red_first_and_normalizes():
    image = np.zeros((4, 8, 3), np.uint8)
    image[..., 2] = np.arange(32).reshape(4, 8)
    boxes = np.array([[2, 2, 1, 6, 3]], np.float32)
    none = np.zeros((0, 5), np.float32)
    batch = Collate((64, 64))([LoadedSample(image[:, ::-1], none, 5, 7), LoadedSample(image, boxes, 6, 9)])
    assert (batch.images_bchw.shape, batch.images_bchw.dtype) == ((2, 3, 4, 8), torch.uint8)
    assert batch.images_bchw.is_contiguous()
    np.testing.assert_array_equal(batch.images_bchw[1, 0], image[..., 2])
    np.testing.assert_array_equal(batch.images_bchw[0, 0], image[:, ::-1, 2])
    assert not batch.images_bchw[:, 1:].any()
    assert batch.targets.tolist() == [[1, 2, 0.5, 0.5, 0.5, 0.5]]
    assert (batch.positions.tolist(), batch.indices.tolist(), len(batch)) == ([5, 6], [7, 9], 2)
    empty = Collate((64, 64))([])
    assert (empty.images_bchw.shape, empty.targets.shape, len(empty)) == ((0, 3, 64, 64), (0, 6), 0)
    assert empty.to(torch.device("cpu")).positions.dtype == torch.int64


def test_a_rank_without_images_gets_an_empty_batch(few):
    for workers in (0, 1):
        data = training_data(first(few, 9))
        sampler = EpochBatches(SEED, 9, 8, 1, 2)
        assert [len(batch) for batch in make_training_loader(data, sampler, num_workers=workers)] == [4, 0]


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 3)])
def test_validation_shows_each_image_once_and_maps_back(many_shapes, workers, world_size):
    many_shapes = first(many_shapes, 20)
    data = ValidationData(many_shapes, image_size=320)
    batches = ValidationBatches(many_shapes.shapes_hw, 8, image_size=320)
    seen = []
    for rank in range(world_size):
        for batch in make_validation_loader(data, batches, rank=rank, world_size=world_size, num_workers=workers):
            assert len(batch.geometry) == len(batch)
            height, width = batch.images_bchw.shape[2:]
            for at, (index, geometry) in enumerate(zip(batch.positions.tolist(), batch.geometry, strict=True)):
                seen.append(index)
                (h0, w0), (ry, rx), (left, top) = geometry
                assert (h0, w0) == tuple(many_shapes.shapes_hw[index])
                rows = batch.targets[batch.targets[:, 0] == at, 1:]
                boxes = xyxy_from_cxcywh(rows[:, 1:]) * torch.tensor([width, height, width, height])
                mapped = (boxes - torch.tensor([left, top, left, top])) / torch.tensor([rx, ry, rx, ry])
                original = xyxy_from_cxcywh(torch.from_numpy(many_shapes.boxes[index][:, 1:])) * torch.tensor(
                    [w0, h0, w0, h0]
                )
                torch.testing.assert_close(mapped, original, atol=2e-3, rtol=0)
                image = batch.images_bchw[at].numpy()
                inner = image[::-1, top : top + round(h0 * ry), left : left + round(w0 * rx)]
                size = inner.shape[:0:-1]
                method = cv2.INTER_AREA if max(h0, w0) > 320 else cv2.INTER_LINEAR
                expected = cv2.resize(cv2.imread(str(many_shapes.paths[index])), size, interpolation=method)
                np.testing.assert_array_equal(inner.transpose(1, 2, 0), expected)
                assert (image[:, :top] == 114).all()
                assert (image[:, :, :left] == 114).all()
    assert sorted(seen) == list(range(len(many_shapes)))


SCRIPT = """
import os, sys, time
from pathlib import Path
from trainer.data.augment.basic import AugmentationSettings
from trainer.data.dataset import load_dataset_file
from trainer.data.scan.scan import scan_split
from trainer.data.images import ImageFiles
from trainer.data.loader import TrainingData, make_training_loader
from trainer.data.sampler import EpochBatches
dataset = load_dataset_file(sys.argv[1])
images, _ = scan_split(dataset, "train", num_classes=3, cache_dir=Path(sys.argv[2]))
data = TrainingData(images, image_size=64, settings=AugmentationSettings(), seed=0)
loader = make_training_loader(data, EpochBatches(0, len(data), 4, 0, 1), num_workers=2)
batches = iter(loader)
next(batches), next(batches)  # one from each process: both have started
print(*[process.pid for process in batches._workers], flush=True)
if sys.argv[3] == "end":
    sys.exit(0)
sys.stdin.readline()
print(sum(len(batch) for batch in batches), flush=True)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "loader processes are left"
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["end", "signals", "kill"])
def test_loader_processes_end_with_their_worker_and_not_before(small_bccd, tmp_path, end):
    worker = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(small_bccd), str(tmp_path), end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT_DIR,
        start_new_session=True,
    )
    loaders = [int(pid) for pid in worker.stdout.readline().split()]
    assert len(loaders) == 2
    if end == "signals":
        for pid in loaders:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(pid, number)
        time.sleep(0.3)
        assert all(map(is_running, loaders))
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert int(worker.stdout.readline()) == 14
    elif end == "kill":
        worker.kill()
    code = worker.wait(timeout=20)
    assert code == (-9 if end == "kill" else 0)
    wait_until_gone(loaders)
    worker.stdin.close()
    worker.stdout.close()
