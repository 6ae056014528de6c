"""Gradients of every order against numerical ones, and nothing computed that nobody asked for."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import upconv.torch as nn  # noqa: E402
from upconv.torch import arrays  # noqa: E402


@st.composite
def functions(draw: st.DrawFn) -> tuple[Any, tuple[Any, ...]]:
    """A function of (x, weight, bias) in float64, and small tensors for it."""
    rank, groups, transposed = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    kernel = tuple(draw(st.integers(1, 3 if rank < 3 else 2)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, 3 if rank == 1 else 2)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple((draw(st.integers(0, s // 2)), draw(st.integers(0, s // 2))) for s in span)
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "replicate"]))
    size = tuple(draw(st.integers(1, 2)) + (0 if transposed else s) for s in span)
    a, b = groups * draw(st.integers(1, 2)), groups
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    options["padding_mode"] = mode
    if transposed:
        options["output_padding"] = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    function = getattr(nn, f"conv_transpose{rank}d" if transposed else f"conv{rank}d")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def tensor(*shape: int) -> Any:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    weight = tensor(a, b // groups, *kernel) if transposed else tensor(b, a // groups, *kernel)
    return lambda x, w, bias: function(x, w, bias, **options), (tensor(2, a, *size), weight, tensor(b))


@settings(max_examples=25)
@given(functions())
def test_gradcheck(case: tuple[Any, tuple[Any, ...]]) -> None:
    function, tensors = case
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@settings(max_examples=15)
@given(functions())
def test_gradgradcheck(case: tuple[Any, tuple[Any, ...]]) -> None:
    function, tensors = case
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("transposed", [True, False])
def test_slow_check_with_batched_gradients_and_the_recorded_operators(transposed: bool) -> None:
    """The dispatcher's path (an active dispatch mode forces it) has the same gradients as the eager one."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.name())
            return func(*args, **(kwargs or {}))

    function = nn.conv_transpose1d if transposed else nn.conv1d
    x = torch.randn(2, 2, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Any, w: Any) -> Any:
        return function(x, w, stride=2, padding=1)

    assert torch.autograd.gradcheck(call, (x, w), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, w))
    with Watch():
        watched = torch.autograd.grad(call(x, w).square().sum(), (x, w))
    assert {"upconv::conv", "upconv::input_gradient", "upconv::weight_gradient"} <= seen
    for a, b in zip(watched, torch.autograd.grad(call(x, w).square().sum(), (x, w)), strict=True):
        assert torch.equal(a, b)


def test_third_order() -> None:
    x = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)

    def third(function: Any) -> Any:
        value = function(x, w, None, 2, 1).pow(4).sum()
        for _ in range(2):
            value = torch.autograd.grad(value, x, create_graph=True)[0].pow(2).sum()
        return torch.autograd.grad(value, w)[0]

    torch.testing.assert_close(third(nn.conv_transpose1d), third(torch.nn.functional.conv_transpose1d))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("x", {"input_gradient"}), ("w", {"weight_gradient"}), ("b", set()), ("xw", {"input_gradient", "weight_gradient"})],
)
def test_only_what_requires_grad(monkeypatch: pytest.MonkeyPatch, wanted: str, expected: set[str]) -> None:
    called: set[str] = set()

    def count(name: str) -> Any:
        real = getattr(arrays, name)

        def counted(*args: Any) -> Any:
            called.add(name)
            return real(*args)

        return counted

    for name in ("input_gradient", "weight_gradient"):
        monkeypatch.setattr(arrays, name, count(name))
    tensors = {"x": torch.randn(1, 2, 5), "w": torch.randn(2, 3, 4), "b": torch.randn(3)}
    for name in wanted:
        tensors[name].requires_grad_()
    nn.conv_transpose1d(tensors["x"], tensors["w"], tensors["b"], 2).sum().backward()
    assert called == expected
    assert {n for n, t in tensors.items() if t.grad is not None} == set(wanted)


def test_gradients_repeat_exactly() -> None:
    layer = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
    x = torch.randn(3, 8, 9, 7)
    runs = []
    for _ in range(3):
        layer.zero_grad()
        layer(x).square().sum().backward()
        runs.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_a_weight_changed_between_forward_and_backward_is_noticed() -> None:
    layer = nn.Conv1d(2, 3, 3)
    y = layer(torch.randn(1, 2, 8, requires_grad=True)).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def dcgan(kind: Any, seed: int, steps: int, width: int) -> list[float]:
    """Losses of a small DCGAN's discriminator and generator on generated pictures (soft discs)."""
    torch.manual_seed(seed)
    up, down = kind.ConvTranspose2d, kind.Conv2d
    plain = torch.nn
    maker = plain.Sequential(
        up(16, 4 * width, 4, 1, 0, bias=False), plain.BatchNorm2d(4 * width), plain.ReLU(True),
        up(4 * width, 2 * width, 4, 2, 1, bias=False), plain.BatchNorm2d(2 * width), plain.ReLU(True),
        up(2 * width, 1, 4, 2, 1, bias=False), plain.Tanh(),
    )  # fmt: skip
    judge = plain.Sequential(
        down(1, width, 4, 2, 1, bias=False), plain.LeakyReLU(0.2, True),
        down(width, 2 * width, 4, 2, 1, bias=False), plain.BatchNorm2d(2 * width), plain.LeakyReLU(0.2, True),
        down(2 * width, 1, 4, 1, 0, bias=False), plain.Flatten(),
    )  # fmt: skip
    for p in (*maker.parameters(), *judge.parameters()):
        if p.dim() == 4:
            plain.init.normal_(p, 0.0, 0.02)
    slow, fast = (torch.optim.Adam(m.parameters(), 2e-4, betas=(0.5, 0.999)) for m in (maker, judge))
    loss, grid = plain.BCEWithLogitsLoss(), torch.linspace(-1, 1, 16)
    losses = []
    for _ in range(steps):
        centre, radius = torch.rand(8, 2, 1, 1) - 0.5, 0.2 + 0.4 * torch.rand(8, 1, 1)
        distance = ((grid[:, None] - centre[:, 0]) ** 2 + (grid[None] - centre[:, 1]) ** 2).sqrt()
        real = torch.tanh(8 * (radius - distance))[:, None]
        made = maker(torch.randn(8, 16, 1, 1))
        fast.zero_grad()
        of_judge = loss(judge(real), torch.ones(8, 1)) + loss(judge(made.detach()), torch.zeros(8, 1))
        of_judge.backward()
        fast.step()
        slow.zero_grad()
        of_maker = loss(judge(made), torch.ones(8, 1))
        of_maker.backward()
        slow.step()
        losses += [of_judge.item(), of_maker.item()]
    return losses


def test_a_dcgan_learns_as_with_torch() -> None:
    ours, theirs = (dcgan(kind, seed=5, steps=12, width=8) for kind in (nn, torch.nn))
    assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-3)
    assert abs(theirs[-2] - theirs[0]) > 0.05  # it does learn: the curve is not a flat line


@pytest.mark.slow
def test_a_dcgan_follows_torchs_curve_for_hundreds_of_steps() -> None:
    """Rounding differs, so single losses drift apart in the end; the curves, smoothed, stay together."""
    ours, theirs = (torch.tensor(dcgan(kind, seed=5, steps=300, width=16)).view(-1, 2) for kind in (nn, torch.nn))
    torch.testing.assert_close(ours[:20], theirs[:20], rtol=2e-2, atol=2e-2)
    a, b = (t.view(-1, 25, 2).mean(1) for t in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=0.25, atol=0.15)
