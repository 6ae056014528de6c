"""What a layer remembers of its last inference call: whatever is changed between two calls, the second one knows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import upconv

torch = pytest.importorskip("torch")
upconv_torch = pytest.importorskip("upconv.torch")


ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])


def layer_and_input(order: Any = torch.contiguous_format, channels: int = 6) -> tuple[Any, Any]:
    torch.manual_seed(0)
    layer = upconv_torch.ConvTranspose2d(channels, channels, 4, stride=2, padding=1).to(memory_format=order)
    return layer, torch.randn(2, channels, 5, 5).to(memory_format=order)


def expected(layer: Any, x: Any) -> Any:
    """torch's own result of the layer as it is now."""
    function = torch.nn.functional.conv_transpose2d
    return function(x, layer.weight, layer.bias, layer.stride, layer.padding, 0, layer.groups, layer.dilation)


def swap(layer: Any) -> None:
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)


def edit(layer: Any) -> None:
    layer.weight.mul_(3)


def edit_data(layer: Any) -> None:
    layer.weight.data.mul_(-2)


def other_data(layer: Any) -> None:
    layer.weight.data = layer.weight.data * 5


def turned_data(layer: Any) -> None:
    """The same memory, bytes and shape."""
    layer.weight.data = layer.weight.data.transpose(0, 1)


def bent_data(layer: Any) -> None:
    layer.weight.data = layer.weight.data.view(6, 6, 2, 8)
    layer.padding = (0, 3)


def other_bias(layer: Any) -> None:
    layer.bias.data = layer.bias.data + 1


def edit_bias(layer: Any) -> None:
    layer.bias.add_(1)


def no_bias(layer: Any) -> None:
    layer.bias = None


def stride(layer: Any) -> None:
    layer.stride = (1, 3)


def double(layer: Any) -> None:
    layer.double()


CHANGES = [swap, edit, edit_data, other_data, turned_data, bent_data, other_bias, edit_bias, no_bias, stride, double]


@ORDERS
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_change_between_two_calls_is_seen(change: Callable[[Any], None], mode: Any, order: Any) -> None:
    layer, x = layer_and_input(order)
    with mode():
        for _ in range(3):
            before = layer(x)
        assert layer._last is not None  # else nothing is tested here
        change(layer)
        x = x.to(layer.weight.dtype)
        after = layer(x)
        torch.testing.assert_close(after, expected(layer, x))
        assert after.shape != before.shape or not torch.equal(after, before)
        torch.testing.assert_close(layer(x), after)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x[:1],
        lambda x: x[0],
        lambda x: x.transpose(2, 3),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.contiguous(),
        lambda x: torch._neg_view(x),
        lambda x: torch.nn.Parameter(x),
        lambda x: x[:, :, :4, :4].contiguous(),
    ],
    ids=["batch", "unbatched", "transposed", "channels-last", "contiguous", "negative view", "parameter", "size"],
)
@ORDERS
def test_another_input_is_seen(other: Callable[[Any], Any], order: Any) -> None:
    layer, x = layer_and_input(order)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        y = other(x)
        torch.testing.assert_close(layer(y), expected(layer, y))
        torch.testing.assert_close(layer(x), expected(layer, x))


@pytest.mark.filterwarnings("default")  # torch.func warns of itself
def test_what_surrounds_a_call_is_seen() -> None:
    layer, x = layer_and_input()
    with torch.no_grad():
        for _ in range(3):
            plain = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], plain)
        tangent = torch.func.jvp(layer, (x,), (x,))[1]
        torch.testing.assert_close(tangent, plain - layer.bias[:, None, None])
        torch.testing.assert_close(layer(x, output_size=(11, 10)), torch.nn.functional.conv_transpose2d(
            x, layer.weight, layer.bias, 2, 1, (1, 0)))  # fmt: skip
    assert layer(x).requires_grad


def test_forgotten_plans_and_threads_are_seen() -> None:
    layer, x = layer_and_input()
    with torch.no_grad():
        first, second = (layer(x), layer(x))[0], layer._last
        upconv.set_precise(True)
        try:
            torch.testing.assert_close(layer(x), first)
            assert layer._last is not second
        finally:
            upconv.set_precise(False)
        torch.testing.assert_close(layer(x), first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
def test_a_copy_starts_without_a_memory(copied: Callable[[Any], Any]) -> None:
    layer, x = layer_and_input()
    with torch.no_grad():
        y = layer(x)
        other = copied(layer)
        assert layer._last is not None
        assert other._last is None
        layer.weight.zero_()
        torch.testing.assert_close(other(x), y)


def test_a_layer_given_back_to_torch_keeps_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1)).eval()
    before = set(model[0].__dict__)
    upconv_torch.accelerate(model)
    with torch.no_grad():
        model(torch.randn(2, 6, 5, 5))
    upconv_torch.restore(model)
    assert type(model[0]) is torch.nn.ConvTranspose2d
    assert set(model[0].__dict__) == before
