"""N ranks equal one: the gradient of a global batch and the validation numbers, in real processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

GRADIENT = str(Path(__file__).parent / "workers" / "gradient.py")


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


TRAJECTORY = str(Path(__file__).parent / "workers" / "trajectory.py")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-3)])
def test_two_and_three_ranks_follow_the_path_of_one_for_fifty_steps(run_ranks, run_config, tmp_path, dtype, tolerance):
    config = run_config(epochs=20, imgsz=64, batch_size=8, autoanchor=False)  # shards of 2 and 3, and uneven last steps
    paths = {}
    for world_size in (1, 2, 3):
        out = tmp_path / f"path{world_size}"
        run_ranks([TRAJECTORY, str(config), str(tmp_path / f"run{world_size}"), str(out), dtype, "50"], world_size)
        paths[world_size] = torch.load(f"{out}.0")
    alone = paths[1]
    assert len(alone["losses"]) >= 50
    assert not torch.equal(alone["losses"][0], alone["losses"][-1]), "it learns"
    for world_size in (2, 3):
        torch.testing.assert_close(paths[world_size]["losses"], alone["losses"], rtol=tolerance, atol=0)
        assert relative_error(paths[world_size]["weights"], alone["weights"]) < tolerance
