"""Every layer of bench/layers.json: integers exactly as the reference, real numbers as PyTorch within its rounding."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
import upconv
from upconv.spec import ConvSpec, Problem

LAYERS = json.loads((Path(__file__).parent.parent / "bench" / "layers.json").read_text())["layers"]
MOST_CHANNELS = 512
REFERENCE_MACS = 1.5e7
"""What a cut layer may cost: the reference takes about a second a GMAC."""


def spec_of(layer: dict[str, Any], most_channels: int) -> ConvSpec:
    def cut(channels: int) -> int:
        groups = layer["groups"]
        return max(1, min(channels, most_channels * max(1, groups // most_channels)) // groups) * groups

    return ConvSpec.make(
        transposed=True,
        in_channels=cut(layer["in_channels"]),
        out_channels=cut(layer["out_channels"]),
        kernel_size=tuple(layer["kernel"]),
        stride=tuple(layer["stride"]),
        padding=tuple(layer["padding"]),
        output_padding=tuple(layer["output_padding"]),
        dilation=tuple(layer["dilation"]),
        groups=layer["groups"],
    )


def cut_problem(layer: dict[str, Any], dtype: str = "float32", macs: float = REFERENCE_MACS) -> Problem:
    """The layer on fewer images and a smaller one: its channels, kernel, stride and padding are as they are."""
    spec = spec_of(layer, MOST_CHANNELS)
    batch, size = min(layer["batch"], 2), list(layer["input_spatial"])
    smallest = [-(-(1 + lo + hi - d * (k - 1)) // s) for k, s, d, (lo, hi) in _axes(spec)]
    while spec.macs(tuple(size), batch) > macs:
        if batch > 1:
            batch = 1
            continue
        longest = max(range(spec.rank), key=lambda i: size[i] - max(3, smallest[i]))
        if size[longest] <= max(3, smallest[longest]):
            break
        size[longest] = max(3, smallest[longest], size[longest] * 2 // 3)
    return Problem(spec, batch, tuple(size), spec.output_size(size), dtype)


def _axes(spec: ConvSpec) -> list[tuple[int, int, int, tuple[int, int]]]:
    return list(zip(spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True))


def whole_problem(layer: dict[str, Any], dtype: str = "float32") -> Problem:
    spec = spec_of(layer, 1 << 30)
    return Problem(spec, layer["batch"], tuple(layer["input_spatial"]), tuple(layer["output_spatial"]), dtype)


def call(problem: Problem, given: runs.Operands) -> np.ndarray:
    s = problem.spec
    return upconv.conv_transpose(
        given.x,
        given.weight,
        given.bias,
        stride=s.stride,
        padding=s.padding,
        output_padding=s.output_padding,
        groups=s.groups,
        dilation=s.dilation,
    )


def torch_answer(problem: Problem, given: runs.Operands) -> np.ndarray:
    torch = pytest.importorskip("torch")
    s = problem.spec
    function = getattr(torch.nn.functional, f"conv_transpose{s.rank}d")
    bias = None if given.bias is None else torch.from_numpy(given.bias)
    padding = [lo for lo, _ in s.padding]
    arguments = (s.stride, padding, s.output_padding, s.groups, s.dilation)
    with torch.inference_mode():
        return function(torch.from_numpy(given.x), torch.from_numpy(given.weight), bias, *arguments).numpy()


def real(problem: Problem, bias: bool) -> runs.Operands:
    """Normal numbers; torch is the judge, so no reference answer is made."""
    rng = np.random.default_rng(7)
    s = problem.spec

    def numbers(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(problem.dtype)

    return runs.Operands(
        numbers(problem.input_shape), numbers(s.weight_shape), numbers((s.out_channels,)) if bias else None, np.empty(0)
    )


def check_against_torch(problem: Problem, bias: bool) -> None:
    given = real(problem, bias)
    got, wanted = call(problem, given), torch_answer(problem, given)
    bound = 1e-5 if problem.dtype == "float32" else 1e-12
    assert got.shape == wanted.shape == problem.output_shape
    assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()


IDS = [layer["id"] for layer in LAYERS]


def test_cutting_keeps_what_makes_the_layer() -> None:
    """The cut problems are the layers: at most the sizes, and channels beyond 512, are less."""
    for layer in LAYERS:
        whole, cut = whole_problem(layer), cut_problem(layer)
        assert whole.spec.output_size(whole.input_size) == whole.output_size
        if max(whole.spec.in_channels, whole.spec.out_channels) <= MOST_CHANNELS:
            assert cut.spec == whole.spec
        assert all(a <= b for a, b in zip(cut.input_size, whole.input_size, strict=True))


@pytest.mark.parametrize("layer", LAYERS, ids=IDS)
def test_integers_come_out_exactly(layer: dict[str, Any]) -> None:
    problem = cut_problem(layer)
    given = runs.operands(problem, bias=layer["bias"])
    got = call(problem, given)
    plan = upconv.plan(given.x, given.weight, stride=problem.spec.stride, padding=problem.spec.padding, groups=problem.spec.groups)
    assert plan.algorithm != "reference"
    if plan.module is not None and runs.exact(plan.module):
        np.testing.assert_array_equal(got, given.expected)
    else:
        np.testing.assert_allclose(got, given.expected, atol=1e-5 * np.abs(given.expected).max(), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS, ids=IDS)
def test_real_numbers_agree_with_torch(layer: dict[str, Any], dtype: str) -> None:
    check_against_torch(cut_problem(layer, dtype, macs=4 * REFERENCE_MACS), layer["bias"])


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS, ids=IDS)
def test_whole_layers_agree_with_torch(layer: dict[str, Any]) -> None:
    problem = whole_problem(layer)
    if prod(problem.output_shape) > 1 << 28:
        pytest.skip("more than a gigabyte of output")
    check_against_torch(problem, layer["bias"])
