"""N ranks equal one: the gradient of a global batch and the validation numbers, in real processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

GRADIENT = str(Path(__file__).parents[2] / "rank_scripts" / "gradient.py")


def measure(run_ranks, config, tmp_path, world_size, *arguments):
    out = tmp_path / f"result{world_size}"
    run_ranks([GRADIENT, str(config), str(tmp_path / f"run{world_size}"), str(out), *arguments], world_size)
    return [torch.load(f"{out}.{rank}") for rank in range(world_size)]


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


# Step 2 of 22 images in batches of 8 has 6: uneven shards for 4 ranks.
@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_gradient_of_two_and_four_ranks_is_that_of_one(run_ranks, run_config, tmp_path, step):
    config = run_config(imgsz=128, autoanchor=False)
    alone = measure(run_ranks, config, tmp_path, 1, "float32", "gradient", str(step))[0]
    assert float(alone["gradient"].norm()) > 0
    for world_size in (2, 4):
        ranks = measure(run_ranks, config, tmp_path, world_size, "float32", "gradient", str(step))
        assert sum(rank["images"] for rank in ranks) == alone["images"]
        for rank in ranks:
            assert relative_error(rank["gradient"], alone["gradient"]) < 1e-5
            assert torch.allclose(rank["loss"], alone["loss"], rtol=1e-5)


def test_a_rank_without_images_changes_nothing(run_ranks, run_config, tmp_path):
    config = run_config(imgsz=128, autoanchor=False, batch_size=21)  # the second step has one image
    alone = measure(run_ranks, config, tmp_path, 1, "float64", "gradient", "1")[0]
    ranks = measure(run_ranks, config, tmp_path, 3, "float64", "gradient", "1")
    assert [rank["images"] for rank in ranks] == [1, 0, 0]
    for rank in ranks:
        assert relative_error(rank["gradient"], alone["gradient"]) < 1e-9


def test_validation_numbers_of_one_two_and_three_ranks_are_identical(run_ranks, run_config, tmp_path):
    config = run_config(imgsz=128, autoanchor=False, batch_size=4)
    alone = measure(run_ranks, config, tmp_path, 1, "float32", "val")[0]
    assert alone["images"] == 10
    assert alone["row"]["val/obj_loss"] > 0
    for world_size in (2, 3):
        for rank in measure(run_ranks, config, tmp_path, world_size, "float32", "val"):
            assert rank["row"] == alone["row"]
            assert torch.equal(rank["confusion"], alone["confusion"])


TRAJECTORY = str(Path(__file__).parents[2] / "rank_scripts" / "trajectory.py")


@pytest.fixture
def follow(run_ranks, tmp_path):
    """Trains for fifty steps; gives each rank's record of losses, weights and buffers."""

    def run(config, world_size, dtype, batch_norm):
        out = tmp_path / f"path-{world_size}-{dtype}"
        arguments = [str(config), str(tmp_path / f"run-{world_size}-{dtype}"), str(out), dtype, "50", batch_norm]
        run_ranks([TRAJECTORY, *arguments], world_size)
        paths = [torch.load(f"{out}.{rank}") for rank in range(world_size)]
        assert len(paths[0]["losses"]) >= 50
        assert not torch.equal(paths[0]["losses"][0], paths[0]["losses"][-1]), "it learns"
        return paths

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-3)])
def test_with_frozen_batch_norm_ranks_follow_the_path_of_one(follow, run_config, dtype, tolerance):
    config = run_config(epochs=20, imgsz=64, batch_size=8, autoanchor=False)  # shards of 2 and 3, and uneven last steps
    (alone,) = follow(config, 1, dtype, "frozen")
    for world_size in (2, 3):
        path = follow(config, world_size, dtype, "frozen")[0]
        torch.testing.assert_close(path["losses"], alone["losses"], rtol=tolerance, atol=0)
        assert relative_error(path["weights"], alone["weights"]) < tolerance


@pytest.mark.slow
def test_with_synchronized_batch_norm_ranks_follow_the_path_of_one(follow, run_config, detector):
    """From trained weights: from random ones any rounding grows a millionfold within fifty steps, on one rank too."""
    # Shards of 2, 3 and 4; of an epoch's last step one rank has the only image.
    config = run_config(
        epochs=20, imgsz=96, batch_size=7, autoanchor=False, cfg="", weights=str(detector), sync_bn=True
    )
    (exact,) = follow(config, 1, "float64", "synchronized")
    (alone,) = follow(config, 1, "float32", "synchronized")
    rounding = mean_error(alone["losses"], exact["losses"])
    for world_size in (2, 3):
        ranks = follow(config, world_size, "float64", "synchronized")
        torch.testing.assert_close(ranks[0]["losses"], exact["losses"], rtol=1e-9, atol=0)
        for name in ("weights", "buffers"):
            assert relative_error(ranks[0][name], exact[name]) < 1e-9
            assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks)
    ranks = follow(config, 3, "float32", "synchronized")
    assert mean_error(ranks[0]["losses"], exact["losses"]) < 2 * rounding


def mean_error(losses, exact):
    return float(((losses - exact).abs() / exact).mean())
