"""Sizes and phases, against counting on the definition `o + before = stride*i + dilation*k`."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drawing import Problem, problems, spec_error
from upconv import shapes
from upconv.spec import SpecError


def arguments(problem: Problem) -> dict[str, object]:
    spec = problem.spec
    return {
        "kernel_size": spec.kernel_size,
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
    }


@given(problems(transposed=True, asymmetric=True))
def test_transposed_size_is_what_the_definition_reaches(problem: Problem) -> None:
    spec = problem.spec
    for d, (got, n) in enumerate(
        zip(
            shapes.conv_transpose_size(problem.size, output_padding=spec.output_padding, **arguments(problem)),
            problem.size,
            strict=True,
        )
    ):
        reached = max(spec.stride[d] * i + spec.dilation[d] * k for i, k in product(range(n), range(spec.kernel_size[d])))
        assert got == reached + 1 - sum(spec.padding[d]) + spec.output_padding[d]


@given(problems(transposed=False, asymmetric=True))
def test_conv_size_counts_the_windows_that_fit(problem: Problem) -> None:
    spec = problem.spec
    for d, (got, n) in enumerate(zip(shapes.conv_size(problem.size, **arguments(problem)), problem.size, strict=True)):
        padded = n + sum(spec.padding[d])
        starts = range(0, padded, spec.stride[d])
        assert got == sum(start + spec.dilation[d] * (spec.kernel_size[d] - 1) < padded for start in starts)


@given(problems(transposed=True, asymmetric=True))
def test_output_padding_for_inverts_the_size(problem: Problem) -> None:
    spec = problem.spec
    size = spec.output_size(problem.size)
    assert shapes.output_padding_for(problem.size, size, **arguments(problem)) == spec.output_padding


@given(problems(transposed=True), st.integers(0, 2))
def test_a_transposed_layer_undoes_the_size_of_its_convolution(problem: Problem, slack: int) -> None:
    """For any input of a convolution there is an output_padding that gives it back."""
    spec = problem.spec
    assume(min(_least(problem)) >= 1)
    small = problem.size
    least = shapes.conv_transpose_size(small, **arguments(problem))
    # any size that the convolution maps to `small`: at least the least one, at most stride - 1 more
    large = tuple(n + min(slack, s - 1) for n, s in zip(least, spec.stride, strict=True))
    assert shapes.conv_size(large, **arguments(problem)) == small
    extra = shapes.output_padding_for(small, large, **arguments(problem))
    assert shapes.conv_transpose_size(small, output_padding=extra, **arguments(problem)) == large


def _least(problem: Problem) -> list[int]:
    spec = problem.spec
    return [
        (n - 1) * s + d * (k - 1) + 1 - lo - hi
        for n, s, d, k, (lo, hi) in zip(problem.size, spec.stride, spec.dilation, spec.kernel_size, spec.padding, strict=True)
    ]


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_multiplies_by_the_stride(kernel: int, stride: int, dilation: int) -> None:
    for n in (1, 2, 7):
        assert shapes.conv_transpose_size(n, kernel, stride, "same", dilation=dilation) == (n * stride,)
        assert shapes.conv_size(n, kernel, 1, "same", dilation) == (n,)


@pytest.mark.parametrize(
    ("given_", "size"),
    [((10, 4, 2, "valid"), 22), ((10, 4, 2, 1), 20), ((10, 4, 2, (1,)), 20), ((10, 4, 2, ((0, 3),)), 19)],
)
def test_forms_of_padding(given_: tuple[object, ...], size: int) -> None:
    assert shapes.conv_transpose_size(*given_) == (size,)


def test_numbers_spread_over_the_rank_of_the_longest_argument() -> None:
    assert shapes.conv_transpose_size((5, 6, 7), 3, 2) == (11, 13, 15)
    assert shapes.conv_transpose_size(5, (3, 4), 2) == (11, 12)
    assert shapes.conv_size(12, 3, (2, 1), 1) == (6, 12)


@given(problems(asymmetric=True))
def test_phases_hold_every_pair_of_input_and_tap_once(problem: Problem) -> None:
    """Each (output, input, kernel index) of the definition is in exactly one phase, and nothing else is."""
    spec = problem.spec
    found = []
    for phase in shapes.phases(**arguments(problem), transposed=spec.transposed):
        for tap in phase.taps:
            for q in product(*(range(-3, 6) for _ in spec.kernel_size)):
                o = tuple(a + step * j for a, step, j in zip(phase.index, phase.out_step, q, strict=True))
                i = tuple(step * j + off for step, j, off in zip(phase.in_step, q, tap.offset, strict=True))
                found.append((o, i, tap.kernel))
    assert len(found) == len(set(found))
    for o, i, k in found:
        large, small = (o, i) if spec.transposed else (i, o)
        for d, (lo, _) in enumerate(spec.padding):
            assert large[d] + lo == spec.stride[d] * small[d] + spec.dilation[d] * k[d]
    taps = sum(len(phase.taps) for phase in shapes.phases(**arguments(problem), transposed=spec.transposed))
    count = 1
    for k in spec.kernel_size:
        count *= k
    assert taps == count


def test_phase_without_taps_is_listed() -> None:
    assert [len(phase.taps) for phase in shapes.phases(2, stride=3)] == [1, 1, 0]


def test_a_convolution_has_one_phase_that_steps_over_the_input() -> None:
    (phase,) = shapes.phases((3, 3), stride=2, padding=1, transposed=False)
    assert (phase.index, phase.out_step, phase.in_step) == ((0, 0), (1, 1), (2, 2))
    assert phase.taps[0].offset == (-1, -1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: shapes.conv_transpose_size(1, 3, 2, 3),
            "ConvTranspose1d 1 -> 1, kernel 3, stride 2, padding 3 on input 1 gives output (-3,): every size must be "
            "at least 1; use less padding, a larger kernel or a larger input",
        ),
        (
            lambda: shapes.conv_size((4, 4), 5),
            "Conv2d 1 -> 1, kernel 5x5 on input 4x4 gives output (0, 0): every size must be at least 1; use a smaller "
            "kernel or dilation, more padding or a larger input",
        ),
        (
            lambda: shapes.output_padding_for((6, 6), (13, 12), 3, 2, 1),
            "output_size (13, 12) is not reachable: kernel 3x3, stride 2x2, padding 1x1 on input (6, 6) gives (11, 11) "
            "to (12, 12); use output_padding (1, 1) for (12, 12), or another kernel or padding for (13, 12)",
        ),
        (
            lambda: shapes.output_padding_for(6, 7, 3, 1, dilation=1),
            "output_size (7,) is not reachable: kernel 3, stride 1, padding 0 on input (6,) gives only (8,); use "
            "output_padding (0,) for (8,), or another kernel or padding for (7,)",
        ),
        (
            lambda: shapes.output_padding_for(6, 20, 3, 2, ((0, 1),), dilation=3),
            "output_size (20,) is not reachable: kernel 3, stride 2, padding ((0, 1),), dilation 3 on input (6,) gives "
            "(16,) to (18,); use output_padding (2,) for (18,), or another kernel or padding for (20,)",
        ),
        (lambda: shapes.conv_transpose_size(0, 3), "input_size is 0: it must be at least 1"),
        (lambda: shapes.conv_transpose_size((5, -1), 3), "input_size[1] is -1: it must be at least 1"),
        (lambda: shapes.conv_size(5.0, 3), "input_size is 5.0: give a whole number of at least 1"),
        (
            lambda: shapes.conv_size((5, 5), (3, 3, 3)),
            "kernel_size (3, 3, 3) has 3 values: give one int, or 2 ints for 2 dimensions",
        ),
    ],
)
def test_errors(call: object, text: str) -> None:
    assert spec_error(call) == text


def test_spec_error_is_a_value_error() -> None:
    assert issubclass(SpecError, ValueError)
