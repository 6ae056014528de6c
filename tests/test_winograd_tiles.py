"""Winograd's tiles as integers: the classes of phases that lack taps, and where nothing is left of their weights."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from upconv.kernels import winograd_tiles as tiles
from upconv.spec import ConvSpec


def layer(transposed: bool, kernel: int, stride: int) -> ConvSpec:
    return ConvSpec.make(transposed=transposed, in_channels=8, out_channels=8, kernel_size=(kernel, kernel), stride=stride)


LAYERS = [(k, s) for s in (1, 2, 3, 4) for k in range(s + 1, 3 * s + 1) if not isinstance(tiles.ways_of(layer(True, k, s)), str)]


@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_a_class_is_live_exactly_where_its_transformed_weights_are_not_all_zero(kernel: int, stride: int, transposed: bool) -> None:
    spec = layer(transposed, kernel, stride)
    taps = -(-kernel // stride)
    every = tiles.classes(spec)
    assert sorted(r for c in every for r in c.residues) == [(0, h, w) for h, w in product(range(stride), range(stride))]
    for i, found in enumerate(every):
        _, h, w = found.residues[0]
        weights = []
        for residue in (h, w):
            there = np.array([float(residue + stride * t < kernel) for t in range(taps)])
            line = there * np.array([2.0, 3.0, 7.0][:taps])  # no sum or difference of which is zero
            weights.append(tiles.WEIGHT[taps] @ (line[::-1] if transposed else line))
        for point in product(range(tiles.WINDOW), range(tiles.WINDOW)):
            left = weights[0][point[0]] * weights[1][point[1]]
            assert (i in tiles.live(spec, point)) == (left != 0), (found, point)


def test_kernel_3_at_stride_2_takes_49_products_for_nine_positions_of_four_phases() -> None:
    spec = layer(True, 3, 2)
    points = list(product(range(4), range(4)))
    assert sum(len(tiles.classes(spec)[i].residues) for p in points for i in tiles.live(spec, p)) == 49
    assert [c.short for c in tiles.classes(spec)] == [(False, True), (False, False), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("taps", "groups_of"), [(2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (5, (3, 2)), (6, (3, 2)), (7, (2, 4)), (8, (2, 4)), (9, (3, 3))]
)
def test_more_taps_are_taken_in_groups_for_the_fewest_products(taps: int, groups_of: tuple[int, int]) -> None:
    for transposed in (True, False):
        way = tiles.ways_of(layer(transposed, 2 * taps, 2))[1]
        assert way == tiles.Way(*groups_of)
        assert taps <= way.total < taps + way.taps
        others = [-(-taps // n) * 4 / tiles.OUTPUTS[n] for n in tiles.OUTPUTS]
        assert way.groups * way.window / way.outputs == min(others)


def test_too_many_taps_are_refused_with_the_reason() -> None:
    assert tiles.ways_of(layer(True, 20, 2)) == "10 taps a phase from kernel 20, stride 2"


def test_a_kernel_that_is_a_multiple_of_the_stride_has_one_class() -> None:
    assert [len(c.residues) for c in tiles.classes(layer(True, 4, 2))] == [4]
    assert tiles.live(layer(True, 4, 2), (0, 3)) == range(1)
