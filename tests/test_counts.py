"""Counts of products and taps, against counting them one by one, and multiply-adds of layers and models."""

from itertools import product

import numpy as np
import pytest

from upconv import ConvSpec, SpecError, artifacts, conv, conv_transpose, nn, shapes
from upconv.shapes.counts import kept, phase_range, source, taps_by_phase


def spec_of(transposed, kernel, stride, padding, dilation=1, **more):
    return ConvSpec.make(
        transposed=transposed, in_channels=1, out_channels=1, kernel_size=kernel, stride=stride, padding=padding,
        dilation=dilation, **more,
    )  # fmt: skip


def test_kept_products_are_counted_one_by_one():
    for few, many, k, s, lo, d in product((1, 2, 5), (1, 3, 9), (1, 2, 4, 7), (1, 2, 3), (0, 1, 4), (1, 2)):
        one_by_one = sum(0 <= s * i + d * j - lo < many for i in range(few) for j in range(k))
        assert kept(few, many, k, s, lo, d) == one_by_one


def test_taps_by_phase_and_their_range_come_from_the_phases():
    for k, s, d, lo in product(range(1, 8), range(1, 7), range(1, 7), range(3)):
        counts = [len(phase.taps) for phase in shapes.phases(k, s, ((lo, 0),), d)]
        assert list(taps_by_phase(k, s, d, lo)) == counts
        assert phase_range(k, s, d) == (min(counts), max(counts))
    assert shapes.overlap_range(spec_of(True, (3, 4), 2, 0)) == (2, 4)
    assert shapes.overlap_range(spec_of(False, (3, 4), 2, 0)) == (12, 12)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_taps_per_output_are_what_the_kernel_adds_up(transposed, mode):
    run = conv_transpose if transposed else conv
    for k, s, pair, d in product((1, 3, 4), (1, 2, 3), ((0, 0), (1, 0), (1, 2)), (1, 2)):
        spec = spec_of(transposed, k, s, (pair,), d, padding_mode=mode)
        x, w = np.ones((1, 1, 9)), np.ones((1, 1, k))
        y = run(x, w, stride=s, padding=(pair,), dilation=d, padding_mode=mode)
        if mode == "zeros" or transposed:
            assert shapes.taps_per_output(spec, 9) == (tuple(y[0, 0].astype(int)),)
        else:  # every tap reads something
            assert shapes.taps_per_output(spec, 9) == ((k,) * y.shape[-1],)
        assert shapes.multiply_adds(spec, 9) == sum(shapes.taps_per_output(spec, 9)[0])


def test_source_is_numpys_padding():
    modes = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
    for mode, size, reach in product(modes, (1, 2, 5), (1, 4, 9)):
        if mode == "reflect" and size == 1:
            continue  # numpy repeats the one element, as here
        padded = np.pad(np.arange(size), reach, mode=modes[mode])
        assert [source(p, size, mode) for p in range(-reach, size + reach)] == padded.tolist()
    assert [source(p, 1, "reflect") for p in (-2, 0, 3)] == [0, 0, 0]


def test_multiply_adds_against_naive_loops_over_channels_groups_and_borders():
    for transposed, groups, rank in product((True, False), (1, 2), (1, 2, 3)):
        spec = ConvSpec.make(
            transposed=transposed, in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=groups,
            rank=rank, output_padding=1 if transposed else 0,
        )  # fmt: skip
        size = (3, 4, 2)[:rank]
        out = spec.output_size(size)
        few, many = (size, out) if transposed else (out, size)
        pairs = sum(
            all(0 <= 2 * i + k - 1 < m for i, k, m in zip(where, tap, many, strict=True))
            for where in product(*map(range, few))
            for tap in product(range(3), repeat=rank)
        )
        assert shapes.multiply_adds(spec, size, batch=5) == 5 * pairs * 4 * 6 // groups
        assert shapes.multiply_adds(spec, size) < spec.macs(size)


def test_without_padding_every_counter_agrees():
    for spec in (spec_of(True, (3, 5), 2, 0), spec_of(False, (3, 5), 2, 0)):
        assert shapes.multiply_adds(spec, (9, 11)) == spec.macs((9, 11))


def test_huge_sizes_are_counted_at_once():
    spec = spec_of(True, 10**6, 10**6, 0)
    assert shapes.multiply_adds(spec, 10**3) == 10**9
    with pytest.raises(SpecError) as error:
        shapes.multiply_adds(spec_of(False, 5, 1, 0), 3)
    assert str(error.value) == (
        "Conv1d 1 -> 1, kernel 5 on input 3 gives output (-1,): every size must be at least 1; "
        "use a smaller kernel or dilation, more padding or a larger input"
    )


def test_a_layer_and_a_torch_model_are_counted_call_by_call():
    torch = pytest.importorskip("torch")
    shared = torch.nn.Conv2d(4, 4, 3, padding=1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), shared, torch.nn.ReLU(), shared, torch.nn.ConvTranspose2d(4, 2, 4, 2, 1),
        torch.nn.Flatten(), torch.nn.Linear(2 * 12 * 10, 3),
    )  # fmt: skip
    costs = artifacts.multiply_adds(model, torch.zeros(2, 2, 6, 5))
    edge = (3 * 6 - 2) * (3 * 5 - 2)
    up = (4 * 6 - 2) * (4 * 5 - 2)
    assert [c.multiply_adds for c in costs.calls] == [
        2 * 2 * 4 * edge, 2 * 16 * edge, 2 * 16 * edge, 2 * 8 * up, 2 * 240 * 3,
    ]  # fmt: skip
    assert [c.name for c in costs.calls] == ["0", "1", "1", "4", "6"]
    assert costs.multiply_adds == sum(c.multiply_adds for c in costs.calls) < costs.naive
    assert str(costs).splitlines()[-1].split() == ["total", f"{costs.multiply_adds:,}", f"{costs.naive:,}"]
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match="channels"):
        artifacts.multiply_adds(model, torch.zeros(2, 3, 6, 5))
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_are_counted_from_a_shape_or_an_array():
    layer = nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1)
    assert artifacts.multiply_adds(layer, (8, 3)).multiply_adds == 320
    assert artifacts.multiply_adds(layer, np.zeros((2, 8, 3))).multiply_adds == 640
    assert shapes.multiply_adds(layer, 3) == 320
    with pytest.raises(TypeError) as error:
        artifacts.multiply_adds("a model", 1)
    assert str(error.value) == ("str with 1 inputs: give a layer and one input shape, or a torch.nn.Module and its inputs")
