"""The size solver, the inverse and the chain, against brute force over small settings and against the kernels."""

import doctest
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from upconv import SpecError, conv, conv_transpose, shapes
from upconv.shapes.axis import BORDERS, EXTRA, REPEATS, SMALL
from upconv.shapes.solve import table
from upconv.spec import conv_extent, effective_kernel, transposed_extent

SMALL_LAYERS = [(k, s, (lo, hi), d) for k, s, lo, hi, d in product(range(1, 6), range(1, 5), range(4), range(4), range(1, 4))]


def test_inverse_of_every_small_convolution_is_exact_and_needs_less_output_padding_than_a_stride():
    checked = 0
    for k, s, pair, d in SMALL_LAYERS:
        for n in range(1, 9):
            if n + sum(pair) < effective_kernel(k, d):
                continue
            between = conv_extent(n, k, s, sum(pair), d)
            back = shapes.inverse(n, k, s, (pair,), d)
            fitting = [op for op in range(max(s, d) + 3) if transposed_extent(between, k, s, sum(pair), op, d) == n]
            assert back.output_padding == tuple(fitting), (n, k, s, pair, d)
            assert back.output_padding[0] < s
            assert shapes.conv_transpose_size(between, **back.arguments()) == (n,)
            checked += 1
    assert checked > 5000


def test_inverse_of_every_small_transposed_layer_is_a_convolution_or_there_is_none():
    refused = 0
    for k, s, pair, d in SMALL_LAYERS:
        for n, op in product(range(1, 6), range(max(s, d))):
            size = transposed_extent(n, k, s, sum(pair), op, d)
            if size < 1:
                continue
            there = {"kernel_size": k, "stride": s, "padding": (pair,), "dilation": d, "output_padding": op}
            try:
                back = shapes.inverse(n, transposed=True, **there)
            except SpecError:
                assert not any(conv_extent(size, k, s, pad, d) == n for pad in range(sum(pair) + 1))
                refused += 1
                continue
            assert shapes.conv_size(size, **back.arguments()) == (n,)
            if op < s:
                assert back.pairs == (pair,)
    assert refused > 100


def test_inverse_takes_strings_tuples_and_returns_what_a_constructor_takes():
    up = shapes.inverse((13, 12), (3, 5), (2, 1), (1, 2))
    assert up.arguments() == {
        "kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "output_padding": (0, 0), "dilation": (1, 1),
    }  # fmt: skip
    assert shapes.inverse((9, 9), 4, padding="same").padding == ((1, 2), (1, 2))
    assert "output_padding" not in shapes.inverse(6, 4, 2, 1, transposed=True).arguments()


def test_inverse_errors():
    with pytest.raises(SpecError) as error:
        shapes.inverse(4, 2, stride=1, dilation=3, output_padding=2, transposed=True)
    assert str(error.value) == (
        "no convolution with kernel 2, stride 1 and dilation 3 takes 9 back to 4: output_padding[0] is 2; "
        "use at most 0, or more padding"
    )
    with pytest.raises(SpecError) as error:
        shapes.inverse(4, 2, output_padding=1)
    assert str(error.value) == "output_padding 1 belongs to transposed layers: add transposed=True, or leave it out"


def brute(n, o, transposed, kernel=None, stride=None, padding=None, extra=None, dilation=1):
    """The documented bounds, walked through one setting after the other."""
    few, many = (n, o) if transposed else (o, n)
    strides = [s for s in range(1, max(SMALL, many) + 2) if s <= SMALL or abs(s * few - many) <= few]
    found = set()
    for s in [stride] if stride else strides:
        near = {r * s + c for r in range(1, REPEATS + 1) for c in (-1, 0, 1)}
        whole = {many} if few == 1 else set()
        kernels = [k for k in range(1, max(SMALL, 4 * s, many) + 2) if k <= SMALL or k in near | whole]
        for k in [kernel] if kernel else kernels:
            e = effective_kernel(k, dilation)
            pairs = [(p, p + c) for p in range(e) for c in (0, 1) if p + c < e] if padding is None else [(padding,) * 2]
            top = max(s, dilation) - 1 if (kernel and stride) else min(max(s, dilation) - 1, EXTRA)
            extras = range(top + 1) if extra is None else [x for x in [extra] if x < max(s, dilation)]
            for (lo, hi), x in product(pairs, extras if transposed else [0]):
                if transposed and transposed_extent(n, k, s, lo + hi, x, dilation) == o:
                    found.add((k, s, lo, hi, x))
                if not transposed and n + lo + hi >= e and conv_extent(n, k, s, lo + hi, dilation) == o:
                    found.add((k, s, lo, hi, 0))
    return found


def flat(solution):
    return (*solution.kernel_size, *solution.stride, *solution.pairs[0], *solution.output_padding)


PINS = [
    {},
    {"kernel": 3},
    {"kernel": 5, "stride": 3},
    {"stride": 2, "padding": 1},
    {"kernel": 4, "stride": 2, "padding": 1},
    {"kernel": 3, "stride": 2, "extra": 1},
    {"kernel": 2, "stride": 1, "dilation": 4},
    {"dilation": 2},
    {"extra": 0},
]
NAMES = {"kernel": "kernel_size", "extra": "output_padding"}


@pytest.mark.parametrize(
    ("transposed", "pins"),
    [(way, pins) for way in (True, False) for pins in PINS if way or "extra" not in pins],
    ids=str,
)
def test_solve_finds_exactly_what_brute_force_finds(transposed, pins):
    given = {NAMES.get(name, name): value for name, value in pins.items()}
    for n, o in product((1, 2, 3, 6, 7), (1, 2, 5, 6, 12, 13, 30)):
        found = shapes.solve(n, o, transposed=transposed, limit=None, **given)
        assert len(found) == len(set(found))
        assert {flat(s) for s in found} == brute(n, o, transposed, **pins), (n, o)
        assert all(s.output_size(n) == (o,) for s in found)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    "pins",
    [{"kernel_size": 3}, {"kernel_size": 1}, {"kernel_size": 3, "stride": 2, "padding": 1},
     {"kernel_size": 5, "padding": 0}, {"stride": 3, "padding": 4}, {"padding": "same", "kernel_size": 3},
     {"kernel_size": 2, "dilation": 3}, {}],
    ids=str,
)  # fmt: skip
def test_nearest_is_what_a_scan_finds(pins, transposed):
    for n in (1, 2, 5, 12):
        reachable = [o for o in range(1, 160) if shapes.solve(n, o, transposed=transposed, limit=1, **pins)]
        for wanted in (1, 2, 3, 7, 12, 31, 100):
            below, above = [o for o in reachable if o < wanted], [o for o in reachable if o > wanted]
            expected = {wanted} if wanted in reachable else {*below[-1:], *above[:1]}
            got = shapes.nearest(n, wanted, transposed=transposed, **pins)
            assert {size for (size,) in got} == expected, (n, wanted)
            assert got == sorted(got, key=lambda size: (abs(size[0] - wanted), size))


def test_the_order_is_the_documented_one():
    found = shapes.solve((6, 6), (12, 12), limit=200)
    first = [str(s) for s in found[:3]]
    assert first == [
        "ConvTranspose2d(kernel_size=2, stride=2)",
        "ConvTranspose2d(kernel_size=4, stride=2, padding=1)",
        "ConvTranspose2d(kernel_size=6, stride=2, padding=2)",
    ]
    one = shapes.solve(6, 13, limit=None)
    keys = [(not s.uniform, s.pairs[0][0] != s.pairs[0][1], s.output_padding[0] > 0, s.kernel_size) for s in one]
    assert keys == sorted(keys)
    assert shapes.solve(1, 4)[0].arguments()["kernel_size"] == (4,)


def test_dimensions_are_independent_and_the_product_is_bounded():
    rows = shapes.solve(3, 6, limit=None, kernel_size=3), shapes.solve(4, 9, limit=None, kernel_size=3)
    both = shapes.solve((3, 4), (6, 9), limit=None, kernel_size=3)
    assert {(s.stride, s.pairs, s.output_padding) for s in both} == {
        ((*a.stride, *b.stride), (*a.pairs, *b.pairs), (*a.output_padding, *b.output_padding)) for a, b in product(*rows)
    }
    assert len(shapes.solve((5, 6, 7), (10, 13, 14), limit=7)) == 7
    assert len(shapes.solve(10, 10**10, kernel_size=10**9, stride=10**9, limit=None)) == BORDERS


def call(solution):
    """The arguments of the functions, whose kernel_size is the weight's."""
    return {name: value for name, value in solution.arguments().items() if name != "kernel_size"}


def test_every_solution_run_by_the_kernels_has_the_promised_size_and_cost():
    for n, o in [(3, 6), (5, 9), (6, 3), (1, 4), (4, 4)]:
        for s in shapes.solve(n, o, limit=14):
            x, w = np.ones((1, 1, n)), np.ones((1, 1, *s.kernel_size))
            y = (conv_transpose if s.transposed else conv)(x, w, **call(s))
            assert y.shape == (1, 1, o)
            assert y.sum() == s.multiply_adds
    for s in shapes.solve((2, 3), (4, 7), limit=8):
        y = conv_transpose(np.ones((1, 1, 2, 3)), np.ones((1, 1, *s.kernel_size)), **call(s))
        assert y.shape == (1, 1, 4, 7)
        assert y.sum() == s.multiply_adds


def test_what_cannot_be_reached_is_empty_and_the_nearest_are_named():
    pins = {"kernel_size": 3, "stride": 2, "padding": 1}
    assert shapes.solve((6, 6), (13, 12), **pins) == []
    assert shapes.nearest((6, 6), (13, 12), **pins) == [(12, 12)]
    assert shapes.nearest((6, 6), (10, 10), **pins) == [(11, 11)]
    assert shapes.nearest(5, 5, padding=9, kernel_size=3, stride=1) == []
    assert shapes.solve(3, 6, kernel_size=3, stride=2, output_padding=2) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((6, 6), (0, 12)), "output_size[0] is 0: it must be at least 1"),
        (((6, 6), (12, 12, 12)), "output_size (12, 12, 12) has 3 values: give one int, or 2 ints for 2 dimensions"),
        (((6,) * 4, 12), "4 spatial dimensions: layers have 1, 2 or 3"),
        ((6, -1), "output_size is -1: it must be at least 1"),
    ],
)
def test_errors_of_sizes(arguments, text):
    for function in (shapes.solve, shapes.nearest):
        with pytest.raises(SpecError) as error:
            function(*arguments)
        assert str(error.value) == text


def test_errors_of_arguments():
    with pytest.raises(SpecError) as error:
        shapes.solve(6, 3, output_padding=1, transposed=False)
    assert str(error.value) == "output_padding 1 belongs to transposed layers; a convolution has none"
    with pytest.raises(SpecError) as error:
        shapes.solve(6, 12, limit=0)
    assert str(error.value) == "limit is 0: it must be at least 1"


def test_the_table_is_aligned_under_its_heading():
    lines = table(shapes.solve(6, 12, limit=5)).split("\n")
    assert len(lines) == 6
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "overlap", "multiply-adds"]
    assert " ".join(lines[1].split()) == "ConvTranspose1d(kernel_size=2, stride=2) uniform, 1 tap 12"


def shell(*arguments):
    code = "import sys, upconv.cli; c = upconv.cli.main(sys.argv[1:]); print('numpy' in sys.modules); sys.exit(c)"
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-W", "error", "-c", code, "solve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def test_the_shell_prints_layers_without_numpy():
    ran = shell("7,6", "13,12", "--kernel", "3", "--stride", "2", "--limit", "2")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [*table(shapes.solve((7, 6), (13, 12), kernel_size=3, stride=2)[:2]).splitlines(), "False"]
    down = shell("12", "6", "-n", "1")
    assert down.stdout.splitlines()[1].startswith("Conv1d(kernel_size=2, stride=2)")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("6,6 13,12 -k 3 -s 2 -p 1", "no such layer takes 6,6 to 13,12; nearest that can be reached: 12,12"),
        ("1000 1500", "no such layer takes 1000 to 1500; nearest that can be reached: 1991 and 1007"),
        ("5 5 -p 9 -k 3 -s 1", "no such layer takes 5 to 5; these arguments leave no output at all"),
        ("6 x", "output size is 'x': give a whole number, or one a dimension as in 2,1"),
    ],
)
def test_the_shell_names_the_nearest_sizes_in_one_line(line, text):
    ran = shell(*line.split())
    assert ran.returncode == 2
    assert ran.stderr == f"upconv: {text}\n"


def down(k, s, p, **more):
    return shapes.Geometry.make(kernel_size=k, stride=s, padding=p, transposed=False, **more)


def up(k, s, p, **more):
    return shapes.Geometry.make(kernel_size=k, stride=s, padding=p, **more)


def run(layers, size):
    for layer in layers:
        size = layer.output_size(size)
    return size


@pytest.mark.parametrize("size", range(8, 40))
def test_a_u_net_of_any_size_comes_back_once_mended(size):
    layers = [down(3, 1, 1), down(2, 2, 0), down(3, 1, 1), down(2, 2, 0), down(2, 2, 0)] + [up(2, 2, 0)] * 3
    found = shapes.chain(size, layers)
    assert found.output_size == run(layers, (size,))
    assert run(found.mended, (size,)) == (size,)
    assert bool(found.broken) == (size % 8 != 0)
    assert found.clean_input == (-(-size // 8) * 8,)
    assert all(found.steps[i].mend.output_padding == (1,) for i in found.broken)


def test_a_codec_with_odd_strides_is_mended_by_output_padding():
    # The decoder of descript-audio-codec#42: padding ceil(s / 2) shortens the audio where the stride is odd.
    strides = (2, 4, 5, 8)
    layers = [down(2 * s, s, -(-s // 2)) for s in strides] + [up(2 * s, s, -(-s // 2)) for s in reversed(strides)]
    assert strides[::-1].index(5) + 4 == 5
    found = shapes.chain(320 * 20, layers)
    assert found.output_size == (320 * 20 - 8,)
    assert found.broken == (5,)
    assert found.steps[5].partner == 2
    assert found.steps[5].mend.output_padding == (1,)
    assert run(found.mended, (6400,)) == (6400,)


def test_a_break_that_needs_padding_and_one_that_nothing_mends():
    found = shapes.chain(12, [down(4, 2, 1), up(4, 2, 0)])
    assert found.steps[1].mend.padding == (1,)
    assert found.steps[1].advice == "gives 14, the input of layer 0 is 12: use padding=1"
    found = shapes.chain(64, [down(4, 8, 0), up(4, 2, 1)])
    assert found.broken == (1,)
    assert found.steps[1].mend is None
    assert found.steps[1].advice == ("gives 16, the input of layer 0 is 64: no padding does it with this kernel and stride")
    assert found.clean_input is None
    shrinks = shapes.chain(16, [down(3, 1, 0), down(2, 2, 0), up(2, 2, 0)])
    assert shrinks.broken == (0,)
    assert shrinks.steps[0].mend == down(3, 1, 1)


def test_a_generator_has_no_way_down_so_nothing_breaks():
    found = shapes.chain(1, [up(4, 1, 0), up(4, 2, 1), up(4, 2, 1)])
    assert found.broken == ()
    assert found.output_size == (16,)
    assert str(found).endswith("1 goes through")


def test_a_chain_of_two_dimensions_prints_what_to_change():
    layers = [down(3, 2, 1, rank=2), up(3, 2, 1, rank=2)]
    found = shapes.chain((13, 12), layers)
    assert str(found) == "\n".join(
        [
            "  0   Conv2d(kernel_size=3, stride=2, padding=1)           13x12 -> 7x6",
            "  1 x ConvTranspose2d(kernel_size=3, stride=2, padding=1)  7x6 -> 13x11",
            "      gives 13x11, the input of layer 0 is 13x12: use output_padding=(0, 1)",
            "13x12 comes out as 13x11: change layer 1; or pad the input to 13x13",
        ]
    )


def test_a_chain_reads_torch_layers():
    nn = pytest.importorskip("torch.nn")
    layers = [
        nn.Conv2d(1, 2, 3, padding="same"), nn.MaxPool2d(2), nn.Conv2d(2, 4, 5, 2, 2),
        nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.ConvTranspose2d(2, 1, 2, 2),
    ]  # fmt: skip
    found = shapes.chain((30, 28), layers)
    assert found.steps[1].output_size == (15, 14)
    assert found.broken == (3,)
    assert (found.steps[3].mend.padding, found.steps[3].mend.output_padding) == ((2, 1), (1, 0))
    assert run(found.mended, (30, 28)) == (30, 28)
    with pytest.raises(SpecError) as error:
        shapes.chain(8, [nn.MaxPool1d(2, ceil_mode=True)])
    assert str(error.value) == "MaxPool1d has ceil_mode=True: sizes here round down; use ceil_mode=False"


def test_errors_of_a_chain():
    with pytest.raises(SpecError) as error:
        shapes.chain(8, [])
    assert str(error.value) == "the chain has no layers: give at least one"
    with pytest.raises(SpecError) as error:
        shapes.chain(8, [up(2, 2, 0), up(2, 2, 0, rank=2)])
    assert str(error.value) == "layer 1 has 2 dimensions and layer 0 has 1: give layers of one rank"
    with pytest.raises(TypeError) as error:
        shapes.chain(8, [object()])
    assert str(error.value) == (
        "object is not a layer that changes sizes: give a ConvSpec, or a convolution, transposed convolution or "
        "pooling layer with kernel_size, stride, padding and dilation"
    )


@pytest.mark.parametrize("page", ["shapes.md", "checkerboard.md"])
def test_the_pages_examples_run(page):
    path = Path(__file__).parents[1] / "docs" / page
    failed, tried = doctest.testfile(str(path), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 10
    assert failed == 0
