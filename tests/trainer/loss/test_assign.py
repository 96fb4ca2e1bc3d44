from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.loss import match_targets

GRID_SIZES = ((16, 12), (8, 6), (4, 3))


@pytest.mark.parametrize("case", ["nc3", "nc80", "nc1", "smooth", "empty"])
def test_recorded_assignments_come_in_the_recorded_order(case, golden_dir, anchors):
    golden = np.load(golden_dir / "loss.npz")
    grid_sizes = [golden[f"{case}/pred{level}"].shape[2:4] for level in range(3)]
    matches = match_targets(torch.from_numpy(golden[f"{case}/targets"]), anchors, grid_sizes, 4.0)
    assert [len(found) for found in matches] == golden[f"{case}/matches"].tolist()
    for level, found in enumerate(matches):
        rows = torch.stack((found.image, found.anchor, found.grid_y, found.grid_x, found.class_index), dim=1)
        np.testing.assert_array_equal(rows.numpy(), golden[f"{case}/assign{level}"])


def slow_assignment(targets, anchors, grid_sizes, threshold):
    """The published rule, a loop per word of it."""
    levels = []
    for level, (rows, columns) in enumerate(grid_sizes):
        found = []
        for direction in range(5):
            for a, (anchor_w, anchor_h) in enumerate(anchors[level].tolist()):
                for image, class_index, cx, cy, w, h in targets.tolist():
                    x, y, w_cells, h_cells = cx * columns, cy * rows, w * columns, h * rows
                    pairs = ((w_cells, anchor_w), (h_cells, anchor_h))
                    if max(max(s / t, t / s) for s, t in pairs) >= threshold:
                        continue
                    column, row = math.floor(x), math.floor(y)
                    wanted = (
                        True,
                        x % 1 < 0.5 and x > 1,
                        y % 1 < 0.5 and y > 1,
                        (columns - x) % 1 < 0.5 and columns - x > 1,
                        (rows - y) % 1 < 0.5 and rows - y > 1,
                    )
                    step = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))[direction]
                    if wanted[direction]:
                        cell = (row + step[1], column + step[0])
                        found.append((image, a, *cell, class_index, x - cell[1], y - cell[0], w_cells, h_cells))
        levels.append(found)
    return levels


def test_assignment_equals_the_rule_written_as_loops(anchors):
    generator = torch.Generator().manual_seed(3)
    targets = torch.rand(60, 6, generator=generator, dtype=torch.float64)
    targets[:, :2] = (targets[:, :2] * 5).floor()
    targets[:, 4:] = targets[:, 4:] * 0.5 + 1e-3
    matches = match_targets(targets, anchors, GRID_SIZES, 4.0)
    expected = slow_assignment(targets, anchors.double(), GRID_SIZES, 4.0)
    assert sum(map(len, expected)) > 200
    for found, rows in zip(matches, expected, strict=True):
        integers = (found.image, found.anchor, found.grid_y, found.grid_x, found.class_index)
        actual = torch.cat((torch.stack(integers, dim=1).double(), found.boxes_cxcywh), dim=1)
        torch.testing.assert_close(actual, torch.tensor(rows, dtype=torch.float64).view(-1, 9))
    for level, found in enumerate(matches):
        torch.testing.assert_close(found.anchors_wh, anchors[level].double()[found.anchor])


def test_last_row_names_the_last_of_each_colliding_group(anchors):
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(300, 6, generator=generator)
    targets[:, 0] = (targets[:, 0] * 2).floor()
    targets[:, 1] = 0
    collisions = 0
    for found in match_targets(targets, anchors, GRID_SIZES, 4.0):
        cells = list(zip(*(t.tolist() for t in (found.image, found.anchor, found.grid_y, found.grid_x)), strict=True))
        last = {cell: row for row, cell in enumerate(cells)}
        assert found.last_row.tolist() == [last[cell] for cell in cells]
        collisions += len(cells) - len(last)
    assert collisions > 100


@pytest.mark.parametrize("center", [0.0, 1.0, 0.5, 1 / 12, 11 / 12, 1 - 1e-7])
def test_centers_on_an_edge_stay_inside_the_grid_and_reachable(center, anchors):
    targets = torch.tensor([[0, 0, center, center, 0.2, 0.2]])
    matches = match_targets(targets, anchors, GRID_SIZES, 4.0)
    assert sum(map(len, matches)) > 0
    for found, (rows, columns) in zip(matches, GRID_SIZES, strict=True):
        assert ((found.grid_y >= 0) & (found.grid_y < rows)).all()
        assert ((found.grid_x >= 0) & (found.grid_x < columns)).all()
        # Predictions reach -0.5 to 1.5 around a cell.
        assert (found.boxes_cxcywh[:, :2] >= -0.5).all()
        assert (found.boxes_cxcywh[:, :2] <= 1.5).all()


def test_a_ratio_at_the_threshold_does_not_match():
    anchors = torch.tensor([[[2.0, 2.0]]])
    at_threshold = torch.tensor([[0, 0, 0.5, 0.5, 1.0, 0.25]])  # 8 x 2 cells on an 8 x 8 grid
    assert len(match_targets(at_threshold, anchors, [(8, 8)], 4.0)[0]) == 0
    assert len(match_targets(at_threshold, anchors, [(8, 8)], 4.01)[0]) > 0


def test_a_box_without_area_and_a_batch_without_targets_match_nothing(anchors):
    for targets in (torch.tensor([[0, 0, 0.5, 0.5, 0.0, 0.2]]), torch.zeros(0, 6)):
        matches = match_targets(targets, anchors, GRID_SIZES, 4.0)
        assert [len(found) for found in matches] == [0, 0, 0]
        assert matches[0].boxes_cxcywh.shape == (0, 4)
