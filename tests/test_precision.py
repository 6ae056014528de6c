"""Winograd's and Strassen's rounding beside the direct sum's, against float64; and the way to do without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import upconv
from upconv import execute, planner
from upconv.codegen import target as targets
from upconv.kernels import direct, winograd, winograd_middle, winograd_wide, winograd_widest
from upconv.planner import Plan
from upconv.spec import Problem

LAYERS = {
    "k4s2, 2-D": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=2), (20, 20), 128),
    "k3s2, 2-D": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=2), (20, 20), 128),
    "k5s2, 2-D": (dict(transposed=True, kernel_size=5, stride=2, padding=2, rank=2), (20, 20), 128),
    "k3s2, 2-D, one part": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=2), (20, 20), 96),
    "k3s2, 2-D, few": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=2), (20, 20), 64),
    "k3s2, 3-D": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=3), (4, 10, 10), 64),
    "k3s2, 3-D, deep": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=3), (3, 7, 10), 192),
    "k5s4, 2-D": (dict(transposed=True, kernel_size=5, stride=4, rank=2), (17, 18), 96),
    "k9s8, 1-D": (dict(transposed=True, kernel_size=9, stride=8, rank=1), (90,), 128),
    "k4s2, 3-D": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=3), (4, 8, 8), 64),
    "k4s2, 2-D, deep": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=2), (8, 8), 512),
    "k6s2, 2-D": (dict(transposed=True, kernel_size=6, stride=2, padding=2, rank=2), (12, 12), 128),
    "k3s2, 1-D": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=1), (90,), 128),
    "k3s2 convolution, 2-D": (dict(transposed=False, kernel_size=3, stride=2, padding=1, rank=2), (40, 40), 128),
    "k3 stride 1, 2-D": (dict(transposed=False, kernel_size=3, padding=1, rank=2), (24, 24), 128),
    "k16s8, 1-D": (dict(transposed=True, kernel_size=16, stride=8, padding=4, rank=1), (96,), 256),
    "k32s8, 1-D": (dict(transposed=True, kernel_size=32, stride=8, padding=12, rank=1), (96,), 256),
    "k16s4, 1-D": (dict(transposed=True, kernel_size=16, stride=4, padding=6, rank=1), (96,), 256),
    "k13s4, 1-D": (dict(transposed=True, kernel_size=13, stride=4, padding=4, rank=1), (96,), 128),
    "k7s2, 2-D": (dict(transposed=True, kernel_size=7, stride=2, padding=3, rank=2), (20, 20), 96),
    "k4 stride 1, 2-D": (dict(transposed=False, kernel_size=4, padding=1, rank=2), (24, 24), 128),
    "k7 stride 1, 1-D": (dict(transposed=False, kernel_size=7, padding=3, rank=1), (96,), 192),
    "k4s2, 1-D": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=1), (90,), 96),
    "k5s2, 1-D": (dict(transposed=True, kernel_size=5, stride=2, padding=1, rank=1), (90,), 24),
    "k2 stride 1, 1-D": (dict(transposed=False, kernel_size=2, rank=1), (96,), 128),
    "k5 stride 1, 1-D": (dict(transposed=False, kernel_size=5, padding=2, rank=1), (96,), 8),
    "k8x1s4x1": (dict(transposed=True, kernel_size=(8, 1), stride=(4, 1), padding=(2, 0), rank=2), (24, 20), 96),
    "k25s2, 1-D": (dict(transposed=True, kernel_size=25, stride=2, padding=12, rank=1), (96,), 128),
    "k11 stride 1, 1-D": (dict(transposed=False, kernel_size=11, padding=5, rank=1), (96,), 256),
    "k31 stride 1, 1-D": (dict(transposed=False, kernel_size=31, padding=15, rank=1), (96,), 128),
    "k11 stride 1, 2-D": (dict(transposed=False, kernel_size=11, padding=5, rank=2), (24, 24), 64),
    "k7 stride 1, 2-D": (dict(transposed=False, kernel_size=7, padding=3, rank=2), (24, 24), 128),
    "k8s2, 2-D": (dict(transposed=True, kernel_size=8, stride=2, padding=3, rank=2), (20, 20), 128),
    "k4s2 convolution, 2-D": (dict(transposed=False, kernel_size=4, stride=2, padding=1, rank=2), (40, 40), 128),
    "k4s2 convolution, 2-D, deep": (dict(transposed=False, kernel_size=4, stride=2, padding=1, rank=2), (20, 20), 512),
    "k3 dilation 3, 1-D": (dict(transposed=False, kernel_size=3, dilation=3, padding=3, rank=1), (96,), 256),
    "k3 dilation 2, 2-D": (dict(transposed=True, kernel_size=3, dilation=2, padding=2, rank=2), (20, 20), 128),
    "k2s2, 2-D": (dict(transposed=True, kernel_size=2, stride=2, rank=2), (20, 20), 256),
    "k2s2, 2-D, middling": (dict(transposed=True, kernel_size=2, stride=2, rank=2), (16, 16), 512),
    "k2s2, 2-D, deep": (dict(transposed=True, kernel_size=2, stride=2, rank=2), (16, 16), 1024),
    "k16s8, 1-D, deep": (dict(transposed=True, kernel_size=16, stride=8, padding=4, rank=1), (96,), 1024),
    "k1 convolution, deep": (dict(transposed=False, kernel_size=1, rank=2), (24, 24), 1024),
    # of few tiles
    "k4s2, 2-D, 8 x 8": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=2), (8, 8), 128),
    "k4s2, 2-D, 4 x 4": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=2), (4, 4), 1024),
    "k4s2, 2-D, 8 x 8, uncropped": (dict(transposed=True, kernel_size=4, stride=2, rank=2), (8, 8), 256),
    "k3s2, 2-D, 8 x 8": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=2), (8, 8), 128),
    "k3s2, 2-D, 4 x 4, deep": (dict(transposed=True, kernel_size=3, stride=2, padding=1, rank=2), (4, 4), 1024),
    "k5s2, 2-D, 6 x 6": (dict(transposed=True, kernel_size=5, stride=2, padding=2, rank=2), (6, 6), 256),
    "k6s2, 2-D, 6 x 6": (dict(transposed=True, kernel_size=6, stride=2, padding=2, rank=2), (6, 6), 256),
    "k8s4, 2-D, 7 x 7": (dict(transposed=True, kernel_size=8, stride=4, padding=2, rank=2), (7, 7), 64),
    "k3 stride 1, 2-D, 7 x 7": (dict(transposed=False, kernel_size=3, padding=1, rank=2), (7, 7), 512),
    "k4s2 convolution, 2-D, 16 x 16": (dict(transposed=False, kernel_size=4, stride=2, padding=1, rank=2), (16, 16), 256),
    "k4s2, 3-D, 4 x 4": (dict(transposed=True, kernel_size=4, stride=2, padding=1, rank=3), (4, 4, 4), 128),
}


def error(kernel, problem: Problem, x, weight, truth) -> float:
    """The kernel's root mean square error, relative to the truth's."""
    target = targets.host()
    how = kernel.blocking(problem, target, 1)
    prepared = execute.Prepared(Plan(problem, target, 1, kernel.NAME, kernel.code_name(problem, how, target), "", how, ()))
    y = np.empty(problem.output_shape, problem.dtype)
    if kernel in planner.LAST:  # arrays of the same sizes in the other order
        n, c, *size = problem.output_shape
        prepared(np.ascontiguousarray(np.moveaxis(x, 1, -1)).reshape(x.shape), weight, None, y)
        y = np.moveaxis(y.reshape(n, *size, c), -1, 1)
    else:
        prepared(x, weight, None, y)
    return float(np.sqrt(np.mean((y - truth) ** 2) / np.mean(truth**2)))


@pytest.mark.parametrize("kernel", [winograd, winograd_wide], ids=lambda module: module.NAME)
def test_a_volume_whose_outermost_kernel_alone_is_longer_than_its_stride_has_nothing_to_transform(kernel: Any) -> None:
    spec = upconv.ConvSpec.make(transposed=True, in_channels=16, out_channels=16, kernel_size=(4, 2, 2), stride=2, rank=3)
    problem = Problem(spec, 1, (4, 5, 6), spec.output_size((4, 5, 6)))
    if targets.host().lanes(4) >= 4:
        assert kernel.rejects(problem, targets.host()) == "one tap a phase: nothing to save"


def test_wide_windows_leave_out_layers_whose_direct_sum_is_too_short_for_their_rounding() -> None:
    arguments, size, channels = LAYERS["k5s4, 2-D"]
    spec = upconv.ConvSpec.make(in_channels=channels, out_channels=64, **arguments)
    problem = Problem(spec, 1, size, spec.output_size(size))
    if not winograd.rejects(problem, targets.host()):
        reason = "1.6 taps a phase in the mean: it would round too much for what it saves"
        assert winograd_wide.rejects(problem, targets.host()) == reason


def test_windows_of_five_leave_out_volumes_whose_direct_sum_is_too_short_and_signals() -> None:
    reasons = {
        "k3s2, 3-D": "phases that lack a tap of the outer dimension: it would round too much beside sums so short",
        "k16s8, 1-D": "one dimension to transform: windows of six and eight save more",
    }
    for name, reason in reasons.items():
        arguments, size, channels = LAYERS[name]
        spec = upconv.ConvSpec.make(in_channels=channels, out_channels=64, **arguments)
        problem = Problem(spec, 1, size, spec.output_size(size))
        if not winograd.rejects(problem, targets.host()):
            assert winograd_middle.rejects(problem, targets.host()) == reason


def test_windows_of_eight_leave_out_layers_whose_direct_sum_is_too_short_for_their_rounding() -> None:
    one = dict(transposed=True, rank=1)
    for arguments, channels, reason in (
        (LAYERS["k4s2, 2-D"][0], 128, "two dimensions to transform: it would round too much"),
        (LAYERS["k3s2, 1-D"][0], 128, "1.5 taps a phase in the mean: it would round too much for what it saves"),
        (dict(one, kernel_size=4, stride=2), 95, "sums of 95 products of 2 taps: it would round too much beside sums so short"),
        (dict(one, kernel_size=3), 23, "sums of 23 products of 3 taps: it would round too much beside sums so short"),
        (dict(one, kernel_size=4, stride=2), 96, None),
        (dict(one, kernel_size=3), 24, None),
        (dict(one, kernel_size=5), 8, None),
        (dict(transposed=True, rank=2, kernel_size=(8, 1), stride=(4, 1)), 96, None),
    ):
        spec = upconv.ConvSpec.make(in_channels=channels, out_channels=64, **arguments)
        problem = Problem(spec, 1, (20,) * spec.rank, spec.output_size((20,) * spec.rank))
        if not winograd.rejects(problem, targets.host()):
            assert winograd_widest.rejects(problem, targets.host()) == reason


KERNELS = [kernel for kernel in (*planner.CANDIDATES, *planner.LAST) if not kernel.EXACT]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda module: module.NAME)
def test_no_kernel_errs_more_than_four_times_as_much_as_the_direct_sum(kernel: Any, name: str) -> None:
    arguments, size, channels = LAYERS[name]
    spec = upconv.ConvSpec.make(in_channels=channels, out_channels=64, **arguments)
    problem = Problem(spec, 1, size, spec.output_size(size))
    if kernel.rejects(problem, targets.host()):
        pytest.skip(str(kernel.rejects(problem, targets.host())))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(problem.input_shape, np.float32)
    weight = rng.standard_normal(spec.weight_shape, np.float32)
    call = upconv.conv_transpose if spec.transposed else upconv.conv
    wide = dict(stride=spec.stride, padding=spec.padding, dilation=spec.dilation)
    upconv.set_precise(True)
    try:
        truth = call(x.astype(np.float64), weight.astype(np.float64), **wide)
    finally:
        upconv.set_precise(False)
    errors = [error(module, problem, x, weight, truth) for module in (kernel, direct)]
    assert errors[1] < 2e-6
    assert errors[0] <= 4 * errors[1], errors


def test_precise_leaves_winograd_out_and_says_so() -> None:
    shape, weight = (1, 256, 64, 64), (256, 256, 4, 4)
    upconv.set_precise(True)
    try:
        plan = upconv.plan(shape, weight, stride=2, padding=1)
        assert plan.algorithm == "direct"
        assert ("winograd", "precise results are asked for, and its rounding is not the direct sum's") in plan.not_chosen
    finally:
        upconv.set_precise(False)
    assert not upconv.get_precise()
    if targets.host().lanes(4) >= 8:
        assert upconv.plan(shape, weight, stride=2, padding=1).algorithm in ("winograd", "winograd_middle", "winograd_wide")
