"""accelerate and restore: outputs kept, everything undone, and no model broken that is not understood."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import upconv.torch  # noqa: E402
from upconv import execute  # noqa: E402
from upconv.kernels.fingerprint import SAMPLES, SMALL  # noqa: E402
from upconv.torch import accelerate, accelerating, finding, restore  # noqa: E402
from upconv.torch.fusing import activation_of, fold  # noqa: E402

OURS = (upconv.torch.Conv1d, upconv.torch.Conv2d, upconv.torch.Conv3d, upconv.torch.ConvTranspose1d)
OURS += (upconv.torch.ConvTranspose2d, upconv.torch.ConvTranspose3d)
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def lively(model: Any) -> Any:
    """BatchNorm with statistics and an affine part that matter."""
    for m in model.modules():
        if isinstance(m, tuple(NORMS.values())):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return model.eval()


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """(spec name, activation) of every call that reaches the kernels."""
    seen: list[tuple[str, Any]] = []
    real = execute.Prepared.run

    def watched(self: execute.Prepared, *addresses: Any) -> None:
        spec = self.plan.problem.spec
        seen.append((spec.name, None if spec.activation is None else spec.activation.name))
        real(self, *addresses)

    monkeypatch.setattr(execute.Prepared, "run", watched)
    return seen


@pytest.fixture
def ours_always_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing decided beforehand, so that what follows from it can be tested."""
    monkeypatch.setattr(accelerating, "in_turn", lambda c, **_: {name: 2.0 - i for i, name in enumerate(c)})


class Residual(nn.Module):
    """A block of the usual kind: its own forward, direct children, an activation used twice in one place only."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.conv1 = getattr(nn, f"Conv{rank}d")(4, 4, 3, padding=1)
        self.bn1 = NORMS[rank](4)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = getattr(nn, f"Conv{rank}d")(4, 4, 3, padding=1, bias=False)
        self.bn2 = NORMS[rank](4)

    def forward(self, x: Any) -> Any:
        y = self.act(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Stubborn(nn.Module):
    """Cannot be traced: what it does depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Tanh())
        self.head = nn.Conv1d(4, 2, 1)
        self.norm = nn.BatchNorm1d(2)
        self.last = None

    def forward(self, x: Any) -> Any:
        y = self.body[0](x) if x.sum() > 1e9 else self.body(x)
        self.last = self.head(y)
        return self.norm(self.last) if y.mean() < 1e9 else self.last


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folding_every_rank_grouped_or_not(rank: int, transposed: bool, affine: bool) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{rank}d")
    for groups in (1, 2):
        layer = kind(4, 6, 3, stride=2, groups=groups, bias=affine)
        norm = lively(NORMS[rank](6, affine=affine))
        weight, bias = fold(layer, norm)
        twin = kind(4, 6, 3, stride=2, groups=groups)
        twin.load_state_dict({"weight": weight, "bias": bias})
        x = torch.randn(2, 4, *(7,) * rank)
        with torch.no_grad():
            close(twin(x), norm(layer(x)))


def test_a_sequential_is_joined_and_undone(ran: list[Any]) -> None:
    model = lively(
        nn.Sequential(
            nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.SiLU(),
            nn.Conv2d(4, 2, 1), nn.Dropout(), nn.Sigmoid(),
        )
    )  # fmt: skip
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        expected = model(x)
        assert accelerate(model) is model
        close(model(x), expected)
        assert ran == [("ConvTranspose2d", "leaky_relu"), ("Conv2d", "silu"), ("Conv2d", "sigmoid")]
        close(model[0](x), nn.functional.conv_transpose2d(x, model[0].weight, model[0].bias, 2, 1))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    ran.clear()
    restore(model)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    assert not ran
    assert not any(isinstance(m, OURS) or "forward" in m.__dict__ for m in model.modules())
    assert "_upconv_changes" not in model.__dict__
    assert restore(model) is model


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_block_with_a_forward_of_its_own(rank: int, ran: list[Any]) -> None:
    model = lively(nn.Sequential(Residual(rank), Residual(rank)))
    x = torch.randn(2, 4, *(5,) * rank)
    with torch.inference_mode():
        expected = model(x)
        accelerate(model)
        close(model(x), expected)
    assert ran == [(f"Conv{rank}d", "relu"), (f"Conv{rank}d", None)] * 2


class Wrapped(nn.Module):
    """The layer alone in a Sequential, the norm beside it, dropout before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Sequential(nn.ConvTranspose1d(3, 4, 4, 2)))
        self.norm, self.drop, self.act = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh()

    def forward(self, x: Any) -> Any:
        return self.act(self.drop(self.norm(self.conv(x)))) + 0


def test_a_layer_inside_a_sequential_and_what_is_inert(ran: list[Any]) -> None:
    model = lively(Wrapped())
    x = torch.randn(2, 3, 7)
    with torch.inference_mode():
        expected, bare = model(x), model.conv(x)
        accelerate(model)
        close(model(x), expected)
        assert ran == [("ConvTranspose1d", "tanh")]
        close(model.conv(x), bare)
        model.drop.train()  # some estimate uncertainty that way
        torch.manual_seed(0)
        noisy = model(x)
        torch.manual_seed(0)
        close(noisy, restore(model)(x))


def test_children_called_by_others_do_their_own_work(ran: list[Any]) -> None:
    model = lively(Residual())
    x = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        expected = model.bn1(model.conv1(x))
        accelerate(model)
        model(x)
        assert torch.equal(model.bn1(x), restore(model).bn1(x))
        accelerate(model)
        close(model.bn1(model.conv1(x)), expected)


def test_what_cannot_be_traced_is_left_whole(ran: list[Any]) -> None:
    model = lively(Stubborn())
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        expected, last = model(x), model.last
        accelerate(model)
        close(model(x), expected)
        close(model.last, last)
        assert ran == [("Conv1d", "tanh"), ("Conv1d", None)]
        ran.clear()
        close(model.body[0](x), nn.functional.conv1d(x, model.body[0].weight, model.body[0].bias, padding=1))


def test_tracing_leaves_no_trace() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls, self.kept = nn.Conv1d(2, 2, 3), 0, None

        def forward(self, x: Any) -> Any:
            self.calls += 1
            self.kept = self.conv(x)
            return torch.relu(self.kept)

    model = Remembering().eval()
    accelerate(model)
    assert (model.calls, model.kept) == (0, None)


def shared_layer() -> Any:
    conv = nn.Conv1d(3, 3, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm1d(3), nn.ReLU(), conv, nn.Tanh())


def shared_followers() -> Any:
    norm, act = nn.BatchNorm1d(3), nn.ELU()
    a, b = nn.Conv1d(3, 3, 3), nn.ConvTranspose1d(3, 3, 3)
    return nn.Sequential(a, norm, act, nn.Sequential(b, norm), act, nn.Softsign(), a, norm)


class TwoNames(nn.Module):
    """The same block under two names and run twice, as DynUNet keeps its own."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(3), nn.ReLU())
        self.again = self.block

    def forward(self, x: Any) -> Any:
        return self.again(self.block(x)) + self.block[1](x)


def shared_weight() -> Any:
    a, b = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 3, padding=1)
    b.weight = a.weight
    return nn.Sequential(a, nn.BatchNorm1d(3), nn.ReLU(), b, nn.BatchNorm1d(3, affine=False))


def hooked_norm() -> Any:
    model = nn.Sequential(nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3), nn.ReLU())
    model[1].register_forward_hook(lambda m, a, y: y + 1)
    return model


def without_statistics() -> Any:
    return nn.Sequential(nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.ReLU())


class Fork(nn.Module):
    """The layer's result goes two ways, and an argument left out changes which."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.two = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.Conv1d(3, 3, 1)
        self.act = nn.ReLU()

    def forward(self, x: Any, raw: Any = None) -> Any:
        y = self.conv(x)
        z = self.two(x)
        return self.norm(y) + y + (self.act(z) if raw is None else z + raw)


@pytest.mark.parametrize("make", [shared_layer, shared_followers, TwoNames, shared_weight, hooked_norm, without_statistics, Fork])
def test_awkward_models_keep_their_results(make: Callable[[], Any]) -> None:
    model = lively(make()) if make is not without_statistics else make().eval()
    x = torch.randn(2, 3, 9)
    with torch.inference_mode():
        expected = model(x)
        accelerate(model)
        close(model(x), expected)
        if isinstance(model, Fork):
            raw = torch.randn(2, 3, 9)
            close(model(x, raw), restore(model)(x, raw))


def test_a_subclass_with_a_forward_of_its_own_stays(ran: list[Any]) -> None:
    class Doubled(nn.Conv1d):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(2, 2, 3), nn.ReLU()).eval()
    x = torch.randn(1, 2, 6)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(accelerate(model)(x), expected)
    assert not ran


def test_training_goes_on_as_with_torch() -> None:
    """Train, evaluate, train, evaluate: folded statistics follow, gradients are torch's."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.ConvTranspose1d(2, 4, 4, 2, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 1, 3)).eval()
    ours = accelerate(copy.deepcopy(theirs))
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (ours, theirs)]
    for step in range(3):
        x = torch.randn(3, 2, 8)
        with torch.inference_mode():
            close(ours.eval()(x), theirs.eval()(x))
        for model, optimiser in zip((ours, theirs), optimisers, strict=True):
            model.train(step < 2)  # the last step trains with frozen statistics
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    for k, v in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[k], v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["in place", "data", "new data", "state_dict"])
def test_folded_weights_follow_their_sources(change: str) -> None:
    theirs = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    ours, x = accelerate(copy.deepcopy(theirs)), torch.randn(1, 3, 6, 6)
    with torch.inference_mode():
        close(ours(x), theirs(x))
    for model in (ours, theirs):
        weight = model[0].weight
        if change == "in place":
            with torch.no_grad():
                weight.mul_(3)
        elif change == "data":
            weight.data.mul_(3)
            model[1].running_var.data.mul_(2)
        elif change == "new data":
            weight.data = weight.data * 3
        else:
            model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})
    with torch.inference_mode():
        close(ours(x), theirs(x))


def test_changes_behind_torchs_back_reach_folded_weights() -> None:
    """A single value of the norm at once, a single one of a large weight before every sample has had its turn."""
    torch.manual_seed(0)
    theirs = lively(nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32)))
    ours, x = accelerate(copy.deepcopy(theirs)), torch.randn(1, 64, 3, 3)
    with torch.inference_mode():
        close(ours(x), theirs(x))
        for model in (ours, theirs):
            model[1].running_var.data[7] *= 9
        close(ours(x), theirs(x))
        assert ours[0].weight.nbytes > SMALL
        for model in (ours, theirs):
            model[0].weight.data[9, 9, 1, 1] += 100
        expected = theirs(x)
        assert any(torch.allclose(ours(x), expected, atol=1e-3) for _ in range(SAMPLES))
        close(ours(x), expected)


def test_weights_that_torch_counts_nothing_of_are_compared_whole() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        theirs = lively(nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32)))
        ours, x = accelerate(copy.deepcopy(theirs)), torch.randn(1, 64, 3, 3)
        assert ours[0].weight.is_inference()
        close(ours(x), theirs(x))
        for model in (ours, theirs):
            model[0].weight[9, 9, 1, 1] += 100
        close(ours(x), theirs(x))


def test_a_layer_called_with_and_without_what_follows_it() -> None:
    torch.manual_seed(0)
    theirs = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    ours, x = accelerate(copy.deepcopy(theirs)), torch.randn(1, 3, 6, 6)
    with torch.inference_mode():
        for _ in range(3):
            close(ours(x), theirs(x))
            close(ours[0](x), theirs[0](x))


def test_a_saved_model_holds_no_folded_weight() -> None:
    sizes = []
    for change in (lambda m: m, accelerate):
        model = change(lively(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))))
        with torch.inference_mode():
            model(torch.randn(1, 64, 6, 6))
        file = io.BytesIO()
        torch.save(model, file)
        sizes.append(file.tell())
    assert sizes[1] < sizes[0] + 20_000 < 2 * sizes[0]


def test_a_gradient_for_the_input_alone_may_pass_through_folded_weights() -> None:
    theirs = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU())).requires_grad_(False)
    ours = accelerate(copy.deepcopy(theirs))
    with torch.inference_mode():
        ours(torch.randn(1, 3, 6, 6))
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    a, b = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (ours, theirs))
    close(a, b)


def test_copies_pickles_and_compiled_models_work() -> None:
    torch.manual_seed(0)  # else a ReLU may let nothing through
    model = accelerate(lively(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), Residual(1))))
    x = torch.randn(2, 3, 9)
    with torch.inference_mode():
        expected = model(x)
        twin = copy.deepcopy(model)
        close(twin(x), expected)
        with torch.no_grad():
            twin[0].weight.mul_(2)
        assert not torch.equal(twin(x), expected)
        close(model(x), expected)
        close(restore(twin)(x), accelerate(twin)(x))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        close(torch.load(file, weights_only=False)(x), expected)
        close(pickle.loads(pickle.dumps(model))(x), expected)
        close(torch.fx.symbolic_trace(model)(x), expected)
    with torch.no_grad():
        close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_parametrised_layers_take_part() -> None:
    norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.ConvTranspose1d(3, 4, 4, 2)), nn.Tanh(), norm(nn.Conv1d(4, 2, 3))).eval()
    x = torch.randn(1, 3, 9)
    with torch.inference_mode():
        expected = model(x)
        accelerate(model)
        assert isinstance(model[0], upconv.torch.ConvTranspose1d)
        close(model(x), expected)
        close(copy.deepcopy(model)(x), expected)
    for m in (model[0], model[2]):
        torch.nn.utils.parametrize.remove_parametrizations(m, "weight")
    with torch.inference_mode():
        close(model(x), expected)
    assert type(model[0]) is upconv.torch.ConvTranspose1d


def test_a_single_layer_is_a_model() -> None:
    layer = nn.ConvTranspose2d(3, 4, 4, 2, 1)
    assert type(accelerate(layer)) is upconv.torch.ConvTranspose2d
    assert type(restore(layer)) is nn.ConvTranspose2d


def test_examples_time_each_layer_and_print_a_table(
    capsys: pytest.CaptureFixture[str], ours_always_win: None, ran: list[Any]
) -> None:
    model = lively(nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()))
    model.train()
    mean = model[1].running_mean.clone()
    x = torch.randn(2, 3, 6, 6)
    accelerate(model, x)
    printed = " ".join(capsys.readouterr().out.split())
    assert "layer" in printed
    assert "2x3x6x6" in printed
    assert "the model took 2000.00 ms and takes 1000.00 ms; outputs differ by" in printed
    assert model.training
    assert torch.equal(model[1].running_mean, mean)
    assert type(model[0]) is upconv.torch.ConvTranspose2d


def test_torch_keeps_what_it_runs_faster(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerating, "in_turn", lambda c, **_: {name: 1.0 + i for i, name in enumerate(c)})
    model = lively(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3)))
    accelerate(model, (torch.randn(1, 3, 8),))
    assert not any(isinstance(m, OURS) for m in model.modules())
    assert "every layer stays torch's" in capsys.readouterr().out


def test_a_model_that_would_give_other_outputs_is_left_as_it_was(capsys: pytest.CaptureFixture[str], ours_always_win: None) -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3)

        def forward(self, x: Any) -> Any:
            return self.conv(x) + (type(self.conv) is nn.Conv1d)

    model = accelerate(Curious(), torch.randn(1, 2, 8))
    assert type(model.conv) is nn.Conv1d
    assert "its outputs changed" in capsys.readouterr().out


def test_a_call_that_fails_leaves_the_model_as_it_was() -> None:
    model = lively(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)))
    with pytest.raises(RuntimeError):
        accelerate(model, torch.randn(1, 5, 8))
    assert not any(m._forward_pre_hooks or isinstance(m, OURS) for m in model.modules())


def test_named_arguments_random_models_and_layers_never_called(capsys: pytest.CaptureFixture[str], ours_always_win: None) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.spare = nn.ConvTranspose1d(2, 2, 3, 2, 1), nn.Conv1d(2, 2, 1)

        def forward(self, *, x: Any, size: Any) -> Any:
            return {"y": self.conv(x, output_size=size) + torch.randn(1)}

    model = Noisy().eval()
    torch.manual_seed(9)
    drawn = torch.rand(5)
    torch.manual_seed(9)
    accelerate(model, {"x": torch.ones(1, 2, 8), "size": (16,)})
    assert torch.equal(torch.rand(5), drawn)
    assert type(model.conv) is upconv.torch.ConvTranspose1d
    assert type(model.spare) is nn.Conv1d
    assert "not called" in capsys.readouterr().out


def test_activations_known() -> None:
    assert activation_of(nn.ELU(0.3)) == ("elu", 0.3)
    assert activation_of(nn.LeakyReLU(0.2)) == ("leaky_relu", 0.2)
    assert activation_of(nn.GELU()) is None
    assert activation_of(None) is None
    assert not finding.chains(nn.Sequential(nn.Conv1d(1, 1, 1), nn.GELU()))
