"""Winograd's tiles as integers: the classes of phases that lack taps, and where nothing is left of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from upconv.codegen.target import Target
from upconv.kernels import winograd, winograd_last, winograd_wide
from upconv.kernels import winograd_depth as depth
from upconv.kernels import winograd_tiles as tiles
from upconv.kernels.winograd_way import divisors
from upconv.spec import ConvSpec, Problem


def layer(transposed: bool, kernel: int, stride: int, padding: int = 0) -> ConvSpec:
    size: dict[str, Any] = {"kernel_size": (kernel, kernel), "stride": stride, "padding": padding}
    return ConvSpec.make(transposed=transposed, in_channels=8, out_channels=8, **size)


LAYERS = [(k, s) for s in (1, 2, 3, 4) for k in range(s + 1, 3 * s + 1)]
POINTS = {"narrow": tiles.NARROW, "middle": tiles.MIDDLE, "wide": tiles.WIDE, "widest": tiles.WIDEST}


@pytest.mark.parametrize(("name", "taps"), [(name, taps) for name, points in POINTS.items() for taps in tiles.TAPS[points.window]])
def test_the_transforms_give_the_direct_sums_and_integers_stay_integers(name: str, taps: int) -> None:
    points = POINTS[name]
    rng = np.random.default_rng(0)
    x, g = rng.integers(-9, 10, points.window).astype(float), 64 * rng.integers(-9, 10, taps).astype(float)
    window, weight = 4 * points.input @ x, points.weight(taps) @ g
    assert np.array_equal(window, np.round(window))
    assert np.array_equal(weight, np.round(weight))
    outputs = points.output(taps) @ (weight * (points.input @ x))
    for n in points.odd:
        outputs = (outputs.astype(np.float32) * np.float32(1 / n)).astype(float)
    assert outputs.tolist() == [float(x[q : q + taps] @ g) for q in range(points.window - taps + 1)]


@pytest.mark.parametrize(("dtype", "bits", "element"), [(np.float32, 24, "float"), (np.float64, 53, "double")])
@pytest.mark.parametrize("several", list(product(POINTS.values(), repeat=2)))
def test_multiplying_by_the_inverses_of_odd_factors_divides_integers_exactly(
    several: Any, dtype: Any, bits: int, element: str
) -> None:
    """An inverse is off by less than half of the last place of any quotient, wherever it lies between two powers of two."""
    ways = tuple(tiles.Way(2, 1, points) for points in several)
    factors = divisors(ways, element)
    assert prod(factors) == prod(n for points in several for n in points.odd)
    for odd in factors:
        check_division(odd, dtype, bits)


def check_division(odd: int, dtype: Any, bits: int) -> None:
    rng = np.random.default_rng(0)
    most = 2**bits // odd
    quotients = np.unique(np.concatenate([np.arange(1, 1000), most - np.arange(1000), rng.integers(1, most, 100_000)]))
    whole = (odd * quotients).astype(dtype)
    assert np.array_equal(whole.astype(np.int64), odd * quotients)
    assert np.array_equal(whole * dtype(1 / odd), quotients.astype(dtype))


def phases(tiling: tiles.Tiling) -> Iterator[tuple[tuple[int, int, int], list[Any]]]:
    """The phases of the output, and the depth taps that each one's sums go over; a convolution has one phase."""
    every, channels = depth.depth_taps(tiling), tiling.spec.in_channels
    if not tiling.spec.transposed:
        yield (0, 0, 0), every
        return
    for c in depth.classes(tiling):
        first, rows = depth.depth_of(tiling, c.part)
        for residue in c.residues:
            yield residue, every[first // channels : (first + rows) // channels]


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_each_element_of_a_window_meets_the_tap_that_leads_from_it_to_the_output(
    kernel: int, stride: int, transposed: bool, points: tiles.Points
) -> None:
    for padding in range(kernel):
        sizes: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "rank": 1}
        spec = ConvSpec.make(transposed=transposed, in_channels=8, out_channels=8, **sizes)
        tiling, size = tiles.tiling_of(spec, points), (4 * kernel,)
        line, window = tiles.windows(Problem(spec, 1, size, spec.output_size(size)), tiling.ways)[2]
        met = []
        for residue, taps in phases(tiling):
            places = depth.weight_places(tiling, np.array([[residue]]))[0, :, 0, :, 0]  # depth tap, element of the window
            for ((_, _, group), (_, _, plane)), row in zip(taps, places, strict=True):
                for e, place in enumerate(row.tolist()):  # of the first tile, and its first output
                    read = window.origin + window.step * group + (e if transposed else stride * e + plane)
                    written = residue[2] - line.crop
                    tap = written + padding - stride * read if transposed else read + padding - stride * written
                    assert place == (tap if 0 <= tap < kernel else -1)
                    met.append(place)
        assert sorted(place for place in met if place >= 0) == list(range(kernel)), padding
        assert line.positions * line.out_step >= line.out_size + line.crop > (line.positions - 1) * line.out_step


@pytest.mark.parametrize(("size", "positions"), [(12, 4), (24, 8), (13, 5), (16, 6)])
def test_kernel_3_at_stride_2_with_padding_has_as_many_positions_as_x(size: int, positions: int) -> None:
    spec = layer(True, 3, 2, 1)
    problem = Problem(spec, 1, (size, size), (2 * size, 2 * size))
    assert [line.positions for line in tiles.lines(problem, tiles.tiling_of(spec).ways)] == [1, positions, positions]


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_a_class_is_live_exactly_where_its_transformed_weights_are_not_all_zero(
    kernel: int, stride: int, transposed: bool, points: tiles.Points
) -> None:
    for padding in range(stride):
        check_classes(tiles.tiling_of(layer(transposed, kernel, stride, padding), points))


def check_classes(tiling: tiles.Tiling) -> None:
    transposed, kernel, stride = tiling.spec.transposed, tiling.spec.kernel_size[0], tiling.spec.stride[0]
    taps = -(-kernel // stride)
    every = depth.classes(tiling)
    assert sorted(r for c in every for r in c.residues) == [(0, h, w) for h, w in product(range(stride), range(stride))]
    for i, found in enumerate(every):
        _, h, w = found.residues[0]
        weights = []
        for residue, way, front in zip((h, w), tiling.ways[1:], tiles.fronts(tiling.spec)[1:], strict=True):
            first = residue - front
            there = np.array([float(0 <= first + stride * t < kernel) for t in range(taps)])
            line = there * np.array([2.0, 3.0, 7.0][:taps])  # no sum or difference of which is zero
            assert way.points is not None
            weights.append(way.points.weight(taps) @ (line[::-1] if transposed else line))
        for point in tiling.points:
            left = weights[0][point[0]] * weights[1][point[1]]
            assert (i in depth.live(tiling, point, found.part)) == (left != 0), (found, point)


def test_kernel_3_at_stride_2_takes_49_products_for_nine_positions_of_four_phases() -> None:
    tiling = tiles.tiling_of(layer(True, 3, 2))
    assert sum(len(depth.classes(tiling)[i].residues) for p in tiling.points for i in depth.live(tiling, p)) == 49
    wide = tiles.tiling_of(layer(True, 3, 2), tiles.WIDE)
    assert sum(len(depth.classes(wide)[i].residues) for p in wide.points for i in depth.live(wide, p)) == 7 * 11  # for fifteen
    assert [c.short for c in depth.classes(tiling)] == [(False, True), (False, False), (True, False), (True, True)]


@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (4, 3), (7, 3), (4, 2), (2, 2), (1, 2), (2, 3), (3, 1)])
def test_the_outer_dimension_of_a_volume_has_no_product_of_a_tap_that_is_missing(
    kernel: int, stride: int, padding: int, transposed: bool
) -> None:
    """Over all phases (all planes of x) there are as many of its taps as the kernel has."""
    size: dict[str, Any] = {"kernel_size": (kernel, 4, 3), "stride": (stride, 2, 2), "padding": (padding, 0, 0), "rank": 3}
    tiling = tiles.tiling_of(ConvSpec.make(transposed=transposed, in_channels=8, out_channels=8, **size))
    if transposed:
        taps = {r: depth.depth_of(tiling, c.part) for c in depth.classes(tiling) for r in c.residues}
        for (d, _, _), (first, rows) in taps.items():
            first_tap = d - tiles.fronts(tiling.spec)[0]
            there = [0 <= first_tap + stride * t < kernel for t in reversed(range(tiling.ways[0].groups))]  # the last is read first
            if any(there):
                assert (first, rows) == (8 * there.index(True), 8 * sum(there)), (d, first, rows)
            else:  # products with zeros: whatever is added up has to be written
                assert (first, rows) == (0, 8)
    else:
        taps_of = depth.depth_taps(tiling)
        assert sorted({stride * group[0] + plane[0] for group, plane in taps_of}) == list(range(kernel))
        assert 8 * len(taps_of) == tiling.depth == 8 * kernel * 2 * 2


@pytest.mark.parametrize(
    ("taps", "narrow", "wide"),
    [
        (2, (2, 1), (2, 1)), (3, (3, 1), (3, 1)), (4, (2, 2), (4, 1)), (5, (3, 2), (3, 2)), (6, (3, 2), (3, 2)),
        (7, (2, 4), (4, 2)), (8, (2, 4), (4, 2)), (9, (3, 3), (3, 3)), (11, (3, 4), (3, 4)),
    ],
)  # fmt: skip
def test_more_taps_are_taken_in_groups_for_the_fewest_products(taps: int, narrow: tuple[int, int], wide: tuple[int, int]) -> None:
    for transposed in (True, False):
        _, h, w = tiles.tiling_of(layer(transposed, 2 * taps, 2), tiles.WIDE).ways
        assert (h, w) == (tiles.Way(*narrow, tiles.NARROW), tiles.Way(*wide, tiles.WIDE))
        for way in (h, w):
            assert taps <= way.total < taps + way.taps
            others = [-(-taps // n) * way.window / (way.window - n + 1) for n in tiles.TAPS[way.window]]
            assert way.groups * way.window / way.outputs == min(others)


def test_too_many_taps_are_refused_with_the_reason() -> None:
    assert tiles.ways_of(layer(True, 66, 2), tiles.WIDE) == "33 taps a phase from kernel 66, stride 2"
    assert not isinstance(tiles.ways_of(layer(True, 64, 2), tiles.WIDE), str)


def test_windows_that_no_block_could_hold_are_refused_with_the_reason() -> None:
    def reasons(channels: int, kernel: int) -> set[str | None]:
        spec = ConvSpec.make(
            transposed=False, in_channels=channels, out_channels=32, kernel_size=kernel, padding=kernel // 2, rank=2
        )
        problem = Problem(spec, 1, (64, 64), spec.output_size((64, 64)))
        target = Target("avx2", "x86_64-unknown-linux-gnu", "", "", 32, 16, 32 << 10, 512 << 10, masks=False)
        return {k.rejects(problem, target) for k in (winograd, winograd_wide, winograd_last)}

    assert reasons(32, 31) == {None}
    assert reasons(33, 31) == {"135168 numbers in a tile's transformed windows: a block would leave the caches"}
    assert reasons(128, 11) == {None}


def test_a_kernel_that_is_a_multiple_of_the_stride_has_one_class() -> None:
    tiling = tiles.tiling_of(layer(True, 4, 2))
    assert [len(c.residues) for c in depth.classes(tiling)] == [4]
    assert depth.live(tiling, (0, 3)) == range(1)


def test_the_last_transformed_dimension_alone_has_wide_windows() -> None:
    def windows(rank: int, kernel: Any, stride: Any) -> list[int]:
        spec = ConvSpec.make(transposed=True, in_channels=8, out_channels=8, kernel_size=kernel, stride=stride, rank=rank)
        return [way.window for way in tiles.tiling_of(spec, tiles.WIDE).ways]

    assert windows(1, 4, 2) == [1, 1, 6]
    assert windows(2, 4, 2) == [1, 4, 6]
    assert windows(3, 4, 2) == [1, 4, 6]
    assert windows(2, (4, 2), 2) == [1, 6, 1]
    assert windows(2, (2, 4), 2) == [1, 1, 6]
    assert windows(2, 2, 2) == [1, 1, 1]
    assert [way.window for way in tiles.tiling_of(layer(True, 4, 2), tiles.MIDDLE).ways] == [1, 5, 5]


@pytest.mark.parametrize("n", range(1, 20))
def test_phases_that_stand_apart_have_as_many_positions_as_x_and_fill_tiles_of_four(n: int) -> None:
    spec = layer(True, 4, 2, 1)
    tiling = tiles.tiling_of(spec, tiles.MIDDLE)
    assert [way.apart for way in tiling.ways] == [False, True, True]
    problem = Problem(spec, 1, (n, n), (2 * n, 2 * n))
    assert [line.positions for line in tiles.lines(problem, tiling.ways)] == [1, -(-n // 4), -(-n // 4)]
    assert [line.crop for line in tiles.lines(problem, tiling.ways)] == [0, 0, 0]
    assert [c.part for c in depth.classes(tiling)] == [(False, h, w) for h, w in product(range(2), range(2))]
    assert tiling.depth == 4 * tiling.sum_depth == 4 * 8  # each phase has a window of its own


def test_phases_stand_apart_where_the_padding_sets_them_apart_and_none_lacks_a_tap() -> None:
    def apart(kernel: Any, stride: Any, padding: Any, transposed: bool = True, points: tiles.Points = tiles.MIDDLE) -> list[bool]:
        size: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "rank": 2}
        spec = ConvSpec.make(transposed=transposed, in_channels=8, out_channels=8, **size)
        return [way.apart for way in tiles.tiling_of(spec, points).ways[1:]]

    assert apart(4, 2, 1) == apart(8, 4, 2) == apart(6, 3, 1) == [True, True]
    assert apart(4, 2, (1, 0)) == [True, False]
    assert apart(4, 2, 2) == [False, False]  # all begin an element later
    assert apart(3, 2, 1) == [False, False]  # those that have all taps do, and the others lack the first (`fronts`)
    assert apart(8, 2, 1) == [False, False]  # two groups of taps
    assert apart(4, 2, 1, transposed=False) == [False, False]
    assert apart(4, 2, 1, points=tiles.WIDE) == [False, False]
