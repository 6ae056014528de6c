"""upconv.torch's layers and functions beside torch.nn's: the same arguments, parameters, results and errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import upconv.torch as nn  # noqa: E402
from upconv import execute  # noqa: E402
from upconv.spec import SpecError  # noqa: E402
from upconv.torch import calls, torchs  # noqa: E402

NAMES = [f"{kind}{rank}d" for kind in ("ConvTranspose", "Conv") for rank in (1, 2, 3)]


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Our layer and torch's with the same parameters."""
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    ours = getattr(nn, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def close(a: Any, b: Any) -> None:
    scale = max(float(b.detach().abs().max()), 1e-30) if b.numel() else 1.0
    torch.testing.assert_close(a, b, rtol=0, atol=(1e-5 if b.dtype == torch.float32 else 1e-12) * scale)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """A layer's name and arguments, and the shape of an input."""
    name = draw(st.sampled_from(NAMES))
    rank, groups = int(name[-2]), draw(st.integers(1, 2))
    each = st.tuples(*[st.integers(1, 3)] * rank)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, s // 2)) for s in span)
    arguments: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    size = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    if name.startswith("ConvT"):
        arguments["output_padding"] = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    else:
        size = tuple(n + s for n, s in zip(size, span, strict=True))
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return name, arguments, (*batch, arguments["in_channels"], *size)


@settings(max_examples=80)
@given(drawn(), st.sampled_from([torch.float32, torch.float64]))
def test_equal_to_torch(case: tuple[str, dict[str, Any], tuple[int, ...]], dtype: Any) -> None:
    name, arguments, shape = case
    torch.manual_seed(0)
    ours, theirs = pair(name, **arguments, dtype=dtype)
    assert repr(ours) == repr(theirs)
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        close(ours(x), theirs(x))
    a, b = (x.clone().requires_grad_() for _ in range(2))
    y, z = ours(a), theirs(b)
    close(y, z)
    g = torch.randn_like(z)
    y.backward(g)
    z.backward(g)
    close(a.grad, b.grad)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_parameters_and_state_dict(name: str) -> None:
    torch.manual_seed(1)
    ours = getattr(nn, name)(4, 6, 3, stride=2, groups=2)
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(4, 6, 3, stride=2, groups=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert isinstance(ours, getattr(torch.nn, name))
    assert type(pickle.loads(pickle.dumps(ours))) is type(ours)
    assert torch.equal(copy.deepcopy(ours).weight, ours.weight)


def test_every_other_name_is_torch_nns() -> None:
    assert nn.Linear is torch.nn.Linear
    assert nn.functional is torch.nn.functional
    with pytest.raises(AttributeError):
        _ = nn.NoSuchLayer


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_functions_take_torchs_arguments_in_torchs_order(rank: int) -> None:
    x, w = torch.randn(2, 4, *(5,) * rank), torch.randn(4, 3, *(3,) * rank)
    b = torch.randn(6)
    args = (b, 2, 1, 1, 2, 1)
    close(
        getattr(nn, f"conv_transpose{rank}d")(x, w, *args),
        getattr(torch.nn.functional, f"conv_transpose{rank}d")(x, w, *args),
    )
    w = torch.randn(6, 2, *(3,) * rank)
    args = (b, [2] * rank, 1, 1, 2)
    close(getattr(nn, f"conv{rank}d")(x, w, *args), getattr(torch.nn.functional, f"conv{rank}d")(x, w, *args))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_output_size_for_every_rank_batched_or_not(rank: int, batch: tuple[int, ...]) -> None:
    layer = getattr(nn, f"ConvTranspose{rank}d")(2, 3, 3, stride=2, padding=1)
    x = torch.randn(*batch, 2, *(6,) * rank)
    wanted = (12,) * rank
    for given_size in (wanted, list(wanted), (*batch, 3, *wanted)):
        assert layer(x, given_size).shape == (*batch, 3, *wanted)
    with pytest.raises(SpecError) as error:
        layer(x, output_size=(13,) * rank)
    assert "is not reachable: kernel 3" in str(error.value)
    assert f"use output_padding {(1,) * rank} for {wanted}" in str(error.value)


def test_padding_beyond_torchs() -> None:
    x = torch.randn(1, 2, 7)
    assert nn.ConvTranspose1d(2, 3, 4, stride=3, padding="same")(x).shape == (1, 3, 21)
    assert nn.ConvTranspose1d(2, 3, 1, stride=3, padding="same")(x).shape == (1, 3, 21)
    assert nn.ConvTranspose1d(2, 3, 4, stride=3, padding="valid")(x).shape == (1, 3, 22)
    full = nn.ConvTranspose1d(2, 3, 4, stride=3)
    cropped = nn.ConvTranspose1d(2, 3, 4, stride=3, padding=((2, 1),))
    cropped.load_state_dict(full.state_dict())
    close(cropped(x), full(x)[..., 2:-1])
    causal = nn.Conv1d(2, 3, 3, padding=((2, 0),))
    close(causal(x), torch.nn.functional.conv1d(torch.nn.functional.pad(x, (2, 0)), causal.weight, causal.bias))
    assert repr(cropped) == "ConvTranspose1d(2, 3, kernel_size=(4,), stride=(3,), padding=((2, 1),))"


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_mode_is_the_adjoint_of_the_convolution_that_pads_so(mode: str, rank: int) -> None:
    up = getattr(nn, f"ConvTranspose{rank}d")(2, 3, 3, stride=2, padding=1, padding_mode=mode, bias=False).double()
    down = getattr(torch.nn, f"Conv{rank}d")(3, 2, 3, stride=2, padding=1, padding_mode=mode, bias=False).double()
    down.weight = torch.nn.Parameter(up.weight.detach().clone())
    big = torch.randn(2, 3, *(7,) * rank, dtype=torch.float64, requires_grad=True)
    small = torch.randn_like(down(big))
    (expected,) = torch.autograd.grad(down(big), big, small)
    close(up(small).detach(), expected)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("transposed", [True, False])
def test_torchs_own_path_agrees_with_the_kernels(mode: str, transposed: bool) -> None:
    """What other devices run: the same layers composed of torch's operators."""
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64) if transposed else torch.randn(6, 2, 3, 3, dtype=torch.float64)
    b = torch.randn(6, dtype=torch.float64)
    extra = {"output_padding": (1, 0)} if transposed else {}
    for padding in (1, ((2, 1), (0, 1))):
        function = nn.conv_transpose2d if transposed else nn.conv2d
        ours = function(x, w, b, 2, padding, groups=2, padding_mode=mode, **extra)
        flat = (1, 1, 1, 1) if padding == 1 else (2, 1, 0, 1)
        arguments = (transposed, (2, 2), flat, (1, 0) if transposed else (0, 0), (1, 1), 2, mode)
        close(torchs.convolve(x, w, b, arguments), ours)


@pytest.mark.parametrize(
    ("activation", "same"),
    [
        ("relu", torch.relu),
        (("leaky_relu", 0.2), lambda y: torch.nn.functional.leaky_relu(y, 0.2)),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
        ("silu", torch.nn.functional.silu),
        (("elu", 0.5), lambda y: torch.nn.functional.elu(y, 0.5)),
    ],
)
def test_activation_with_and_without_gradient(activation: Any, same: Any) -> None:
    layer = nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1, activation=activation).double()
    x = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    plain = torch.nn.functional.conv_transpose1d(x, layer.weight, layer.bias, 2, 1)
    (expected,) = torch.autograd.grad(same(plain).square().sum(), x)
    y = layer(x)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    close(found, expected)
    with torch.inference_mode():
        close(layer(x), y.detach())
    assert f"activation={activation!r}" in repr(layer)


@pytest.mark.parametrize(("rank", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
@pytest.mark.parametrize("grad", [False, True])
def test_channels_last_stays_channels_last(rank: int, layout: Any, grad: bool) -> None:
    ours, theirs = pair(f"ConvTranspose{rank}d", 4, 6, 4, stride=2, padding=1)
    x = torch.randn(2, 4, *(5,) * rank).to(memory_format=layout).requires_grad_(grad)
    y = ours(x)
    assert y.is_contiguous(memory_format=layout)
    close(y, theirs(x))
    if grad:
        (g,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert g.is_contiguous(memory_format=layout)
    ours = ours.to(memory_format=layout)
    with torch.no_grad():
        y = ours(torch.randn(2, 4, *(5,) * rank))
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_channels_last_layers_run_as_torchs_do(kernel: int, dtype: torch.dtype, layout: Any) -> None:
    """Wide enough for the kernel of such arrays, forward and for the input gradient."""
    rank = 2 if layout is torch.channels_last else 3
    for kind, sizes in (("ConvTranspose", (9, 6, 5)[-rank:]), ("Conv", (12, 11, 9)[-rank:])):
        ours, theirs = (layer.to(dtype) for layer in pair(f"{kind}{rank}d", 36, 40, kernel, stride=2, padding=kernel // 3))
        x = torch.randn(2, 36, *sizes, dtype=dtype).to(memory_format=layout).requires_grad_()
        y, wanted = ours(x), theirs(x)
        assert y.is_contiguous(memory_format=layout)
        if wanted.is_contiguous(memory_format=layout):  # torch's own is not in float64 and three dimensions
            assert y.stride() == wanted.stride()
        close(y, wanted)
        direction = torch.randn_like(wanted)
        for got, expected in zip(
            torch.autograd.grad(y, (x, *ours.parameters()), direction),
            torch.autograd.grad(wanted, (x, *theirs.parameters()), direction),
            strict=True,
        ):
            close(got, expected)
        with torch.inference_mode():
            close(ours(x.detach()), wanted)
        torch.library.opcheck(torch.ops.upconv.conv.default, _call_of(ours, x.detach()))


def _call_of(layer: Any, x: torch.Tensor) -> tuple[Any, ...]:
    padding = [p for p in layer.padding for _ in range(2)]
    rest = (layer.output_padding, layer.dilation, layer.groups, "zeros", None, 0.0)
    return (x, layer.weight.detach(), layer.bias.detach(), layer.transposed, layer.stride, padding, *rest)


def test_the_same_bytes_are_another_weight_with_their_channels_last() -> None:
    numbers = torch.randn(40, 16, 3, 3)
    as_they_are, last = numbers, numbers.view(40, 3, 3, 16).permute(0, 3, 1, 2)
    assert as_they_are.data_ptr() == last.data_ptr()
    for x in (torch.randn(1, 40, 9, 9), torch.randn(1, 40, 9, 9).to(memory_format=torch.channels_last)):
        for weight in (as_they_are, last, as_they_are):
            with torch.inference_mode():
                close(nn.conv_transpose2d(x, weight, stride=2), torch.nn.functional.conv_transpose2d(x, weight, stride=2))


def test_a_model_of_channels_last_weights_packs_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (layer.to(memory_format=torch.channels_last) for layer in pair("ConvTranspose2d", 32, 48, 2, stride=2))
    assert not ours.weight.is_contiguous()
    packed: list[object] = []
    real = execute.Packer.__call__
    monkeypatch.setattr(execute.Packer, "__call__", lambda self, weight: packed.append(weight) or real(self, weight))
    for layout in (torch.channels_last, torch.contiguous_format):
        x = torch.randn(2, 32, 11, 12).to(memory_format=layout)
        packed.clear()
        with torch.inference_mode():
            for _ in range(3):
                y = ours(x)
                assert y.is_contiguous(memory_format=torch.channels_last)
                close(y, theirs(x))
        assert len(packed) == 1
        with torch.no_grad():
            for layer in (ours, theirs):
                layer.weight.data[0, 0, 0, 0] += 1
        with torch.inference_mode():
            close(ours(x), theirs(x))
        assert len(packed) == 2


def test_why_says_what_becomes_of_channels_last() -> None:
    wide = nn.ConvTranspose2d(192, 192, 2, stride=2)
    x = torch.zeros(1, 192, 80, 80)
    assert nn.why(wide, x).endswith("(1, 192, 80, 80)")
    assert nn.why(wide, x.to(memory_format=torch.channels_last)).endswith(", channels-last as it is")
    few = nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1)
    x = torch.zeros(1, 2, 32, 32).to(memory_format=torch.channels_last)
    assert nn.why(few, x).endswith(", channels-last: reordered for a channels-first kernel, and back")


def test_strided_expanded_and_negated_inputs() -> None:
    ours, theirs = pair("Conv2d", 3, 4, 3)
    base = torch.randn(2, 8, 9, 3)
    with torch.no_grad():
        for x in (
            base.permute(0, 3, 1, 2)[..., ::2],
            torch.randn(1, 3, 6, 1).expand(2, 3, 6, 6),
            torch.randn(2, 3, 6, 6, dtype=torch.complex64).conj().imag,  # its values are negated when they are read
        ):
            close(ours(x), theirs(x))


def test_attributes_changed_after_construction_count() -> None:
    """Segmentation networks trade a layer's stride for dilation that way."""
    ours, theirs = pair("Conv2d", 3, 4, 3, stride=2, padding=1)
    x = torch.randn(1, 3, 9, 9)
    close(ours(x), theirs(x))
    for layer in (ours, theirs):
        layer.stride, layer.dilation, layer.padding = (1, 1), (2, 2), (2, 2)
    close(ours(x), theirs(x))


def test_weight_changes_are_seen() -> None:
    ours, theirs = pair("ConvTranspose2d", 3, 4, 4, stride=2, padding=1)
    x = torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        close(ours(x), theirs(x))
    for change in (
        lambda w: w.data.mul_(2),
        lambda w: w.data.view(-1)[7:8].add_(1),
        lambda w: setattr(w, "data", w.data.clone().neg_()),
        lambda w: torch.nn.init.normal_(w, generator=torch.Generator().manual_seed(3)),
    ):
        change(ours.weight)
        change(theirs.weight)
        with torch.inference_mode():
            close(ours(x), theirs(x))


def test_an_inference_tensor_and_a_grad_mode_in_turn() -> None:
    ours, theirs = pair("Conv1d", 2, 3, 3)
    x = torch.randn(1, 2, 8)
    with torch.inference_mode():
        assert ours(x).is_inference()
    assert not ours(x).is_inference()
    with torch.no_grad():
        assert not ours(x).requires_grad
    close(ours(x), theirs(x))


def test_why_says_who_and_why() -> None:
    layer = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
    x = torch.zeros(1, 8, 5, 5)
    assert nn.why(layer, x).startswith("upconv: ConvTranspose2d 8 -> 4, kernel 4x4")
    assert nn.why(layer, x.to("meta")) == "torch: x is on meta; the kernels here run on the CPU"
    assert nn.why(layer, x.to(torch.bfloat16)).startswith("torch: x is torch.bfloat16; the kernels here take")
    assert nn.why(layer, x.double()) == "torch: x is torch.float64 on cpu and weight torch.float32 on cpu"
    assert nn.why(layer, x.to_sparse()).startswith("torch: x is torch.sparse_coo")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.why(layer, x) == "torch: autocast asks for torch.bfloat16"
    assert nn.why(torch.nn.Conv2d(8, 4, 3), x) == "torch: Conv2d is torch.nn's; accelerate(model) replaces it"


def test_what_the_kernels_refuse_goes_to_torch() -> None:
    ours, theirs = pair("ConvTranspose2d", 8, 4, 4, stride=2, padding=1)
    x = torch.randn(1, 8, 5, 5)
    assert ours.to("meta")(x.to("meta")).shape == theirs(x).shape
    ours, theirs = pair("ConvTranspose2d", 8, 4, 4, stride=2, padding=1, dtype=torch.bfloat16)
    assert torch.equal(ours(x.bfloat16()), theirs(x.bfloat16()))
    assert torch.equal(torch.vmap(ours)(x.bfloat16()[None]), torch.vmap(theirs)(x.bfloat16()[None]))
    with pytest.raises(RuntimeError):
        ours(x)


def test_who_catches_what_torch_raises_catches_ours() -> None:
    ours, theirs = pair("ConvTranspose2d", 8, 4, 4, stride=2, padding=1)
    for layer in (ours, theirs):
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 7, 5, 5))
    with pytest.raises(ValueError, match="has 7 channels"):
        ours(torch.randn(1, 7, 5, 5))


def test_errors_teach() -> None:
    layer = nn.ConvTranspose2d(16, 33, 3, stride=2)
    for shape, text in (
        (
            (1, 15, 5, 5),
            "x has 15 channels (shape (1, 15, 5, 5)) and weight of shape (16, 33, 3, 3) with groups 1 takes 16",
        ),
        (
            (16, 5),
            "x has shape (16, 5): a rank-2 layer takes (N, C, *spatial) with 4 dimensions or (C, *spatial) with 3",
        ),
        ((1, 16, 0, 5), "x has shape (1, 16, 0, 5): every spatial size must be at least 1 (an empty batch is allowed)"),
    ):
        with pytest.raises(SpecError) as error:
            layer(torch.zeros(shape))
        assert str(error.value) == text
    with pytest.raises(SpecError) as error:
        nn.ConvTranspose2d(16, 33, 3, stride=2, output_padding=2)
    assert str(error.value) == (
        "output_padding[0] is 2: it must be smaller than stride 2 or dilation 1; use at most 1, or a larger kernel"
    )
    with pytest.raises(SpecError) as error:
        nn.conv1d(torch.zeros(1, 2, 5), torch.zeros(3, 2, 3), torch.zeros(2))
    assert str(error.value) == "bias has shape (2,): it must be (3,), one value an output channel"
    with pytest.raises(SpecError) as error:
        nn.conv2d(torch.zeros(1, 2, 5), torch.zeros(3, 2, 3))
    assert str(error.value) == "weight has shape (3, 2, 3): a rank-2 layer takes 4 dimensions"


def test_empty_batch() -> None:
    layer = nn.ConvTranspose1d(2, 3, 4, stride=2)
    x = torch.zeros(0, 2, 5, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 3, 12)
    y.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


def test_symbolic_tracing_keeps_a_layer_one_node() -> None:
    model = torch.nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=2), torch.nn.ReLU(), nn.Conv1d(3, 2, 3))
    traced = torch.fx.symbolic_trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [calls.conv_transpose1d, calls.conv1d]
    x = torch.randn(1, 2, 9)
    close(traced(x), model(x))
