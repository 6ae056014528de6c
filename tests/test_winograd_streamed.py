"""Winograd with weights transformed as they are read: every number of tiles, strips that are not full, what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
import upconv
from upconv.codegen.target import Target
from upconv.kernels import winograd_middle, winograd_streamed
from upconv.kernels.winograd_tiles import MIDDLE, NARROW
from upconv.spec import Problem

HOST = runs.target_of(runs.levels()[0])
AVX512 = Target("avx512", "x86_64-unknown-linux-gnu", "znver4", "", 64, 32, 32 << 10, 1 << 20, masks=True, fmas=1)
LEVELS = pytest.mark.parametrize("level", runs.ends())


def layer(size: tuple[int, ...], **more: Any) -> Problem:
    named: dict[str, Any] = dict(in_channels=9, out_channels=11, kernel_size=4, stride=2, padding=1, batch=1)
    return runs.make(size=size, **{**named, **more})


def check(problem: Problem, target: Target, threads: int = 1) -> None:
    reason = winograd_streamed.rejects(problem, target)
    if reason:
        pytest.skip(reason)
    given = runs.operands(problem)
    got = runs.run_kernel(winograd_streamed, problem, given, target, threads)
    np.testing.assert_array_equal(got, given.expected)


@LEVELS
@pytest.mark.parametrize("tiles", range(1, 17))
def test_sums_are_exact_for_every_number_of_tiles(tiles: int, level: str) -> None:
    problem = layer((4, 4), batch=tiles, out_channels=32)  # an image of 4 x 4 is one tile
    check(problem, runs.target_of(level), 1 + tiles % 2 * (runs.threads_allowed() - 1))
    assert winograd_streamed.blocking(problem, HOST, 1).cut.length == tiles


@LEVELS
@pytest.mark.parametrize("channels", [(8, 15), (63, 16), (64, 17), (65, 33), (130, 1)], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (7, 5)], ids=str)
def test_sums_are_exact_round_strips_of_rows_and_parts_of_channels(size: Any, channels: Any, level: str) -> None:
    inner, outer = channels
    check(layer(size, in_channels=inner, out_channels=outer), runs.target_of(level), runs.threads_allowed())


LAYERS: dict[str, dict[str, Any]] = {
    "shared windows": dict(size=(8, 7), padding=2),
    "uncropped": dict(size=(8, 8), padding=0, out_channels=5),
    "three taps a phase": dict(size=(6, 5), kernel_size=6, padding=2),
    "four taps a phase": dict(size=(5, 3), kernel_size=8, padding=3),
    "sixteen phases": dict(size=(8, 8), kernel_size=8, stride=4, padding=(2, 3)),
    "other strides in each dimension": dict(size=(6, 7), kernel_size=(6, 4), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
    "phases that lack a tap": dict(size=(7, 8), kernel_size=3, output_padding=1),
    "phases that lack the last tap": dict(size=(7, 6), kernel_size=3, padding=0),
    "phases that lack a tap in one dimension": dict(size=(5, 6), kernel_size=(3, 4), stride=2, padding=1),
    "phases that lack one of three taps": dict(size=(8, 5), kernel_size=5, padding=2),
    "groups": dict(size=(7, 8), in_channels=24, out_channels=15, groups=3),
    "volume": dict(size=(3, 4, 4), kernel_size=4, stride=2, padding=1),
    "volume, one tap deep": dict(size=(3, 4, 4), kernel_size=(2, 4, 4), stride=2, padding=(0, 1, 1)),
    "double": dict(size=(7, 8), dtype="float64"),
    "convolution": dict(size=(7, 9), kernel_size=3, stride=1, padding=1, transposed=False),
    "strided convolution": dict(size=(15, 12), transposed=False),
    "strided convolution of two rows of three": dict(size=(11, 12), kernel_size=(4, 3), stride=(2, 1), transposed=False),
}


@LEVELS
@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_exact_for_all_kinds_of_layers(name: str, level: str) -> None:
    check(layer(**LAYERS[name]), runs.target_of(level), runs.threads_allowed())


def test_six_codes_are_enough_for_all_sizes() -> None:
    codes = {
        winograd_streamed.code_parameters(problem, winograd_streamed.blocking(problem, AVX512, 2))
        for problem in (layer((n, n), batch=batch) for n in range(1, 17) for batch in range(1, 17))
        if winograd_streamed.rejects(problem, AVX512) is None
    }
    assert len(codes) == 6  # of one tile, of up to four, and of up to eight and sixteen by four and by five


def test_windows_are_of_five_where_they_fill_images() -> None:
    def points(problem: Problem) -> Any:
        return winograd_streamed.blocking(problem, AVX512, 2).ways[2].points

    assert points(layer((8, 8))) == MIDDLE  # four tiles of 25 points
    assert points(layer((8, 8), padding=2)) == MIDDLE  # seven outputs a side and phase
    assert points(layer((8, 8), padding=0)) == NARROW  # nine: as many tiles of 16 points
    assert points(layer((6, 6), kernel_size=3, stride=1, transposed=False)) == MIDDLE


def test_weights_are_packed_as_they_are() -> None:
    problem = layer((8, 8), in_channels=64, out_channels=64)
    plain, transformed = (
        kernel.weight_layout(problem, kernel.blocking(problem, AVX512, 2)).size for kernel in (winograd_streamed, winograd_middle)
    )
    assert plain == 64 * 64 * 16
    assert transformed >= plain * 25 / 4


def test_a_plan_says_what_is_done_and_how_many_products_are_left() -> None:
    problem = layer((8, 8), in_channels=1024, out_channels=512)
    how = winograd_streamed.blocking(problem, AVX512, 2)
    assert winograd_streamed.macs(problem, how) * 2 / problem.flops == 100 / 256
    lacking = layer((8, 8), kernel_size=3, output_padding=1, in_channels=512, out_channels=256)
    left = 2 * winograd_streamed.macs(lacking, winograd_streamed.blocking(lacking, AVX512, 2))
    assert left / lacking.flops == 4 * (25 + 20 + 20 + 16) / (64 * 9)  # without the points that are all zeros
    text = "weights transformed as they are read, phases in tiles of their own, 25 points, 4 tiles x 64 channels"
    assert winograd_streamed.describe(problem, how) == text
    assert winograd_streamed.code_name(problem, how, AVX512) == "convt_f32_winograd_streamed_f4x2_f4x2_16x4_avx512"
    assert how.splits == 2  # a share for each thread: each transforms the input anew


def test_it_is_left_out_where_it_cannot_gain() -> None:
    reasons = {
        "17 tiles, and one vector holds 16: transformed weights are met often enough": layer((4, 4), batch=17),
        "one dimension to transform: transformed weights are few": layer((9,)),
        "planes of x, or phases of its outer dimension, that lack a tap: their sums have other lengths": layer(
            (2, 4, 4), kernel_size=3
        ),
        "one tap a phase: nothing to save": layer((8, 8), kernel_size=2, padding=0),
    }
    for reason, problem in reasons.items():
        assert winograd_streamed.rejects(problem, AVX512) == reason
    few = replace(AVX512, name="avx2", vector_bytes=32, registers=16, fmas=2)
    assert winograd_streamed.rejects(layer((4, 4)), few) is None
    assert winograd_streamed.blocking(layer((4, 4)), few, 1).tile.turned == 4  # 16 registers do not hold two vectors of rows


@pytest.mark.skipif(HOST.lanes(4) < 8, reason="vectors that hold fewer tiles")
def test_plans_take_it_for_small_images_of_many_channels() -> None:
    plan = upconv.plan((1, 512, 8, 8), (512, 256, 4, 4), stride=2, padding=1)
    assert plan.algorithm == "winograd_streamed"
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((1, 512, 8, 8), (512, 256, 4, 4)))
    y = upconv.conv_transpose(x, w, stride=2, padding=1)
    upconv.set_precise(True)
    try:
        truth = upconv.conv_transpose(x.astype(np.float64), w.astype(np.float64), stride=2, padding=1)
    finally:
        upconv.set_precise(False)
    np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-3)
