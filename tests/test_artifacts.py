"""Checkerboards: the maps, the gains, the score and the initialisers, against what the layers really give."""

import warnings
from itertools import product
from math import log10

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upconv import ConvSpec, SpecError, artifacts, conv_transpose, nn


def make(kernel, stride, padding=0, cin=1, cout=1, **more):
    return ConvSpec.make(
        transposed=True, in_channels=cin, out_channels=cout, kernel_size=kernel, stride=stride, padding=padding, **more
    )


def run(spec, x, weight):
    return conv_transpose(
        x, weight, stride=spec.stride, padding=spec.padding, output_padding=spec.output_padding,
        groups=spec.groups, dilation=spec.dilation, padding_mode=spec.padding_mode,
    )  # fmt: skip


def interior(spec, weight, size=12):
    """Each phase's outputs, far from the borders, of a constant input: (in, out // groups, *stride) exactly."""
    found = np.zeros((*spec.weight_shape[:2], *spec.stride))
    single = make(spec.kernel_size, spec.stride, spec.padding, dilation=spec.dilation)
    middle = tuple(size * s // 2 // s * s for s in spec.stride)
    for c, m in np.ndindex(*spec.weight_shape[:2]):
        y = run(single, np.ones((1, 1, *(size,) * spec.rank)), weight[c : c + 1, m : m + 1])[0, 0]
        found[c, m] = y[tuple(slice(o, o + s) for o, s in zip(middle, spec.stride, strict=True))]
    return found


SPECS = [
    make(3, 2, 1), make(4, 2, 1, 3, 2), make((3, 4), (2, 2), 0, 2, 2), make((5, 2), (3, 1), ((1, 2), (0, 1)), 4, 4, groups=2),
    make(3, 4), make(5, 3, 2, dilation=2), make((2, 3, 4), (2, 2, 2), 1, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gains_are_what_a_constant_input_gives(spec):
    weight = np.random.default_rng(0).integers(-9, 9, spec.weight_shape).astype(float)
    np.testing.assert_array_equal(artifacts.phase_gains(spec, weight), interior(spec, weight))
    np.testing.assert_array_equal(artifacts.phase_gains(spec)[0, 0], artifacts.overlap(spec))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_overlap_is_what_ones_give(spec):
    size = (5, 4, 3)[: spec.rank]
    one = make(spec.kernel_size, spec.stride, spec.padding, dilation=spec.dilation)
    y = run(one, np.ones((1, 1, *size)), np.ones((1, 1, *spec.kernel_size)))[0, 0]
    np.testing.assert_array_equal(artifacts.overlap(spec, size), y)


def test_powers_are_the_variance_of_the_output_on_white_noise():
    spec = make(3, 2, 1, cin=4, cout=4, groups=2)
    weight = np.random.default_rng(1).normal(size=spec.weight_shape)
    x = np.random.default_rng(2).normal(size=(1, 4, 200_000))
    y = run(spec, x, weight)[0]
    measured = np.stack([y[:, a + 10 : -10 : 2].var(-1) for a in (0, 1)], -1)
    np.testing.assert_allclose(artifacts.phase_powers(spec, weight), measured, rtol=0.02)


def test_spectra_are_the_amplitude_of_a_wave_at_each_phase():
    spec = make((5, 4), (2, 2), 1)
    weight = np.random.default_rng(3).normal(size=spec.weight_shape)
    points, n = 5, 32
    spectra = artifacts.phase_spectra(spec, weight, points)
    assert spectra.shape == (2, 2, points, points)
    rows, columns = np.indices((n, n))
    for (i, f), (j, g) in product(enumerate(np.linspace(0, 0.5, points)), repeat=2):
        wave = np.exp(2j * np.pi * (f * rows + g * columns))
        y = run(spec, wave.real[None, None], weight) + 1j * run(spec, wave.imag[None, None], weight)
        np.testing.assert_allclose(np.abs(y[0, 0, 20:22, 20:22]), spectra[:, :, i, j], atol=1e-12)
    np.testing.assert_allclose(spectra[..., 0, 0], np.abs(artifacts.phase_gains(spec, weight)[0, 0]))


def test_kernel_3_against_kernel_4_at_stride_2_as_the_distill_article_says():
    """Some outputs get twice the inputs in one dimension, four times in two; kernel 4 is even."""
    for rank, factor in ((1, 2), (2, 4), (3, 8)):
        counts = artifacts.overlap(make((3,) * rank, 2))
        assert counts.max() == factor * counts.min()
        even = make((4,) * rank, 2)
        assert len(np.unique(artifacts.overlap(even))) == 1
        assert artifacts.score(even) == artifacts.Score(float("-inf"), float("-inf"))
        assert artifacts.score(make((3,) * rank, 2)).verdict == "strong"
    one, two = artifacts.score(make(3, 2)), artifacts.score(make((3, 3), 2))
    assert one.constant == pytest.approx(20 * log10(0.5 / 1.5))  # 2, 1: a ripple of 1/2 about 3/2
    assert two.constant == pytest.approx(10 * log10(1.1875 / 2.25**2))  # 4, 2, 2, 1
    assert two.constant > one.constant


def test_score_is_the_ripple_measured_on_the_layers_own_output():
    spec = make((4, 4), (2, 2), 1, cin=3, cout=2)
    weight = np.random.default_rng(4).normal(size=spec.weight_shape)
    gains = interior(spec, weight).reshape(-1, 4)
    ripple, mean = gains.std(-1), gains.mean(-1)
    expected = 20 * log10(np.sqrt((ripple**2).mean()) / np.sqrt((mean**2).mean()))
    assert artifacts.score(spec, weight).constant == pytest.approx(expected)
    assert artifacts.score(spec, weight * 7).constant == pytest.approx(expected)


def test_scores_of_extreme_weights():
    spec = make(4, 2)
    assert artifacts.score(spec, np.zeros((1, 1, 4))).constant == float("-inf")
    assert artifacts.score(spec, [[[1, -1, 0, 0]]]).constant == float("inf")
    found = artifacts.score(spec, [[[np.nan, 1, 1, 1]]])
    assert np.isnan(found.constant)
    assert found.verdict == "not a number"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 2), st.integers(0, 3))
def test_a_bilinear_kernel_is_clean_in_the_interior(stride, more, channels, padding):
    spec = make((2 * stride - 1 + more,) * 2, stride, min(padding, stride), channels, channels)
    weight = artifacts.bilinear(spec, dtype=np.float64)
    gains = artifacts.phase_gains(spec, weight)
    np.testing.assert_allclose(gains, np.broadcast_to(np.eye(channels)[:, :, None, None], gains.shape), atol=1e-15)
    assert artifacts.score(spec, weight).verdict == "clean"
    assert artifacts.score(spec, weight.astype(np.float32)).constant < -120


def test_a_bilinear_kernel_draws_a_ramp_as_a_ramp_and_agrees_with_torch():
    spec = make(4, 2, 1)
    y = run(spec, np.arange(8.0)[None, None], artifacts.bilinear(spec, dtype=np.float64))[0, 0]
    np.testing.assert_allclose(np.diff(y[1:-2]), 0.5)
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(5).normal(size=(1, 2, 7, 6))
    for scale in (2, 3, 4):
        spec = make((2 * scale - scale % 2,) * 2, scale, scale // 2, 2, 2)
        ours = run(spec, x, artifacts.bilinear(spec, dtype=np.float64))
        theirs = torch.nn.functional.interpolate(torch.tensor(x), scale_factor=scale, mode="bilinear").numpy()
        cut = (..., slice(scale, -scale), slice(scale, -scale))
        np.testing.assert_allclose(ours[cut], theirs[cut], atol=1e-12)


def test_bilinear_with_groups_and_a_mix():
    spec = make(4, 2, 1, 4, 4, groups=2)
    gains = artifacts.phase_gains(spec, artifacts.bilinear(spec))
    np.testing.assert_array_equal(gains[..., 0], [[1, 0], [0, 1], [1, 0], [0, 1]])
    mixed = artifacts.bilinear(make(4, 2, 1, 2, 3), mix=np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(mixed.sum(-1), 2 * np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("spec", "mix", "text"),
    [
        (make(4, 2, 1, 2, 3), None, "2 input and 3 output channels: give mix, an array (2, 3) that says how much of each "
         "goes where"),
        (make(4, 2, 1, 2, 3), [1, 2], "mix has shape (2,): it must be (2, 3), (in_channels, out_channels // groups)"),
        (make(2, 3), None, "kernel 2, stride 3, dilation 1 leaves outputs without a tap to interpolate with: use a kernel "
         "of at least 5, and dilation 1"),
    ],
)  # fmt: skip
def test_errors_of_bilinear(spec, mix, text):
    with pytest.raises(SpecError) as error:
        artifacts.bilinear(spec, mix)
    assert str(error.value) == text


@pytest.mark.parametrize(
    "spec",
    [make((2, 2), 2, 0, 3, 4), make((4, 4), 2, 1, 4, 4, groups=2), make(16, 8, 4, 2, 2), make((4, 2, 3), (2, 1, 3), 0, 2, 3)],
    ids=str,
)
def test_an_icnr_kernel_starts_clean(spec):
    weight = artifacts.icnr(spec, 0)
    assert weight.shape == spec.weight_shape
    assert weight.dtype == np.float32
    assert artifacts.score(spec, weight) == artifacts.Score(float("-inf"), float("-inf"))
    assert artifacts.score(spec, artifacts.kaiming(spec, 0)).verdict == "strong"
    # nearest-neighbour enlargement of a small convolution: blocks of equal outputs, on any input
    x = np.random.default_rng(6).normal(size=(1, spec.in_channels, *(4,) * spec.rank))
    full = make(spec.kernel_size, spec.stride, 0, spec.in_channels, spec.out_channels, groups=spec.groups)
    y = run(full, x, weight.astype(np.float64))
    small = y[(..., *(slice(None, None, s) for s in spec.stride))]
    for axis, s in enumerate(spec.stride, start=2):
        small = np.repeat(small, s, axis)
    np.testing.assert_allclose(y, small, atol=1e-12)


def test_errors_of_icnr_kaiming_and_of_convolutions():
    for call, text in [
        (lambda: artifacts.icnr(make(3, 2)), "kernel 3 is not a multiple of stride 2: icnr gives every phase the same taps; "
         "use kernel 4"),
        (lambda: artifacts.icnr(make(4, 2, dilation=3)), "dilation 3: icnr needs dilation 1, so that a phase's taps lie side "
         "by side"),
        (lambda: artifacts.kaiming(make(4, 2), mode="fan"), "mode is 'fan': use 'fan_in' or 'fan_out'"),
        (lambda: artifacts.kaiming(make(4, 2), distribution="cauchy"), "distribution is 'cauchy': use 'normal' or 'uniform'"),
        (lambda: artifacts.score(nn.Conv1d(1, 1, 3)), "Conv1d 1 -> 1, kernel 3 is a convolution: it has one phase and draws "
         "no checkerboard; give a transposed layer"),
        (lambda: artifacts.score(make(4, 2), np.ones((1, 1, 3))), "weight has shape (1, 1, 3): ConvTranspose1d 1 -> 1, kernel "
         "4, stride 2 has (1, 1, 4)"),
    ]:  # fmt: skip
        with pytest.raises(SpecError) as error:
            call()
        assert str(error.value) == text
    with pytest.raises(TypeError) as error:
        artifacts.score("layer")
    assert str(error.value) == "str is not a layer: give a ConvSpec or a layer of upconv.nn or torch.nn"


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("initialise", [artifacts.kaiming, artifacts.icnr])
def test_the_right_fan_keeps_the_power_through_a_relu_and_torchs_quarters_it(initialise, distribution):
    spec = make((4, 4), 2, 0, 96, 96)
    rng = np.random.default_rng(7)
    x = np.maximum(rng.normal(0, np.sqrt(2), size=(4, 96, 6, 6)), 0)  # mean square 1
    weight = initialise(spec, 8, distribution=distribution, dtype=np.float64)
    y = run(spec, x, weight)[..., 4:-4, 4:-4]
    assert np.square(np.maximum(y, 0)).mean() == pytest.approx(np.square(x).mean(), rel=0.25)
    assert np.prod(spec.weight_shape[1:]) == 4 * artifacts.fans(spec)[0]  # what torch.nn.init would divide by


def test_fans_count_products_exactly():
    spec = make((3, 5), (2, 3), 0, 6, 4, groups=2)
    fan_in, fan_out = artifacts.fans(spec)
    assert fan_in == pytest.approx(3 * artifacts.overlap(spec).mean())
    assert fan_out == 2 * 15
    conv = ConvSpec.make(transposed=False, in_channels=6, out_channels=4, kernel_size=(3, 5), stride=(2, 3), groups=2)
    assert artifacts.fans(conv) == (45, 5)


@pytest.mark.parametrize(
    "spec", [make(3, 2, 1), make((3, 3), 2, 1, 2, 2), make(5, 3, ((1, 2),)), make(3, 2, 1, dilation=2)], ids=str
)
def test_a_folded_blur_is_a_running_mean_over_the_stride_and_scores_clean(spec):
    weight = np.random.default_rng(9).normal(size=spec.weight_shape)
    smooth, blurred = artifacts.blurred(spec, weight)
    size = (7,) * spec.rank
    assert smooth.output_size(size) == spec.output_size(size)
    assert artifacts.score(smooth, blurred).constant < -200
    x = np.random.default_rng(10).normal(size=(1, spec.in_channels, *size))
    y = run(make(spec.kernel_size, spec.stride, 0, spec.in_channels, spec.out_channels, dilation=spec.dilation), x, weight)
    for axis, (s, (lo, _), o) in enumerate(zip(spec.stride, spec.padding, spec.output_size(size), strict=True), start=2):
        wide = np.pad(y, [(s, s) if a == axis else (0, 0) for a in range(y.ndim)])
        start = s + lo + (s - 1) // 2
        y = sum(np.take(wide, range(start - j, start - j + o), axis) for j in range(s)) / s
    np.testing.assert_allclose(run(smooth, x, blurred), y, atol=1e-12)
    assert artifacts.blurred(spec, weight.astype(np.float32))[1].dtype == np.float32


def test_the_divisible_kernel_of_the_advice_keeps_every_size():
    from upconv.artifacts.remedies import divisible

    for k, s, p in product(range(1, 8), range(1, 5), range(4)):
        for op in range(s):
            spec = make(k, s, p, output_padding=op)
            other = divisible(spec)
            assert other.kernel_size[0] % s == 0
            for n in (8, 11):
                assert other.output_size(n) == spec.output_size(n)
    assert str(divisible(make((3, 3), 2, 1, output_padding=1))) == "ConvTranspose2d(kernel_size=4, stride=2, padding=1)"


def test_a_report_of_a_torch_model_names_every_transposed_layer_and_changes_nothing():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=2), torch.nn.ConvTranspose2d(4, 1, 2, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[4].weight.copy_(torch.from_numpy(artifacts.icnr(model[4], 0)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = artifacts.report(model)
    assert [layer.name for layer in found.layers] == ["1", "3", "4"]
    assert [layer.taps for layer in found.layers] == [(1, 4), (4, 4), (1, 1)]
    assert found.convolutions == 1
    assert found.worst in found.layers[:2]
    assert found.layers[0].advice[0] == (
        "kernel 3x3 is not divisible by stride 2x2, so outputs take 1 to 4 taps: use "
        "ConvTranspose2d(kernel_size=4, stride=2, padding=1), of the same output size"
    )
    assert found.layers[1].advice[0].startswith("when training anew, start from artifacts.icnr(spec)")
    assert found.layers[2].advice == ()
    assert "4: ConvTranspose2d 4 -> 1, kernel 2x2, stride 2x2\n    constant clean, noise clean (clean)" in str(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert artifacts.report(model.to(torch.bfloat16)).layers[2].score.verdict == "clean"


def test_reports_of_layers_pairs_lists_and_of_nothing():
    layer = nn.ConvTranspose1d(2, 2, 3, stride=2, seed=0)
    found = artifacts.report([layer, (make(4, 2), np.ones((1, 1, 4))), nn.Conv1d(1, 1, 3)])
    assert [r.name for r in found.layers] == ["0", "1"]
    assert found.layers[0].score == artifacts.score(layer)
    assert str(artifacts.report(nn.Conv1d(1, 1, 3))) == (
        "no transposed convolution among 1 convolutions: nothing here draws phases"
    )
    assert artifacts.report([]).worst is None
    nan = artifacts.report((make(4, 2), [[[np.nan] * 4]]))
    assert nan.layers[0].advice == ("the weights hold NaN or infinity: load a sound checkpoint",)


def test_errors_of_a_report():
    with pytest.raises(TypeError) as error:
        artifacts.report(3)
    assert str(error.value) == (
        "int is not a model: give a torch.nn.Module, a layer of upconv.nn or torch.nn, a (ConvSpec, weight) pair, or a "
        "list of these"
    )
    torch = pytest.importorskip("torch")
    with pytest.raises(SpecError) as error:
        artifacts.report(torch.nn.Sequential(torch.nn.ConvTranspose1d(1, 1, 4, 2, device="meta")))
    assert str(error.value) == ("0: weight is on the meta device and holds no numbers: load or initialise the model first")
    with pytest.raises(SpecError) as error:
        artifacts.report(torch.nn.LazyConvTranspose1d(4, 4))
    assert str(error.value) == "LazyConvTranspose1d has no weights yet, being lazy: run the model once, then ask again"


def test_a_report_reads_parametrised_and_quantised_weights():
    torch = pytest.importorskip("torch")
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(4, 2, 4, 2, 1))
    found = artifacts.report(torch.nn.Sequential(normed)).layers
    assert [(r.name, r.score) for r in found] == [("0", artifacts.score(found[0].spec, normed.weight))]

    class Packed:  # as torch.ao.nn.quantized keeps its weight: behind a method, in eight bits
        in_channels, out_channels, kernel_size, stride, padding, transposed = 1, 1, (4,), (2,), (1,), True

        def weight(self):
            return torch.quantize_per_tensor(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), 0.5, 0, torch.qint8)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its quantised tensors
        (packed,) = artifacts.report(Packed()).layers
    assert packed.score == artifacts.score(packed.spec, [[[1, 2, 3, 4]]])
