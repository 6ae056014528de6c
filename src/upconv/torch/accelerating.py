"""accelerate(model): the layers that gain from it handed to this library's kernels, in place; restore undoes it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from upconv.torch import finding
from upconv.torch.choice import refusal
from upconv.torch.fusing import Fused, FusedSequence, Joined, Owner, Skip, flattened, plain_sequence
from upconv.torch.layers import OURS, spec_of
from upconv.torch.measuring import in_turn
from upconv.torch.report import Row, show

_RECORD = "_upconv_changes"  # where an accelerated model keeps what restore needs
_WORTH = 0.97  # a layer changes hands where it then takes less than this of torch's time
_TOLERANCE = 1e-4  # the largest difference of the outputs allowed, relative to the largest output


class Change(Protocol):
    """One reversible step."""

    def apply(self) -> None: ...
    def undo(self) -> None: ...


@dataclass(eq=False)
class Swap:
    """A torch.nn layer that becomes ours: the same object, parameters and hooks, another class."""

    module: nn.Module
    before: type[nn.Module]
    after: type[nn.Module]

    def apply(self) -> None:
        self.module.__class__ = self.after

    def undo(self) -> None:
        self.module.__class__ = self.before


@dataclass(eq=False)
class Forward:
    """A module whose forward is done otherwise."""

    module: nn.Module
    forward: Callable[..., Any]

    def apply(self) -> None:
        self.module.forward = self.forward

    def undo(self) -> None:
        self.module.__dict__.pop("forward", None)


@dataclass(eq=False)
class Candidate:
    """A layer that could change hands, with what it could be joined with, and how it was called."""

    name: str
    swap: Swap
    fused: Fused | None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def modules(self) -> list[nn.Module]:
        return [self.swap.module] if self.fused is None else self.fused.modules


def accelerate(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Hand the model's convolutions, transposed and ordinary, to this library's kernels; returns the same model.

    >>> model = nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> x = torch.randn(1, 8, 6, 6)
    >>> with torch.inference_mode():
    ...     before, after = model(x), accelerate(model)(x)
    >>> torch.allclose(before, after, atol=1e-5), type(model[0]).__module__
    (True, 'upconv.torch.layers')
    >>> type(restore(model)[0]).__module__
    'torch.nn.modules.conv'

    Layers keep their parameters, buffers, hooks and names, so state_dict, optimisers and pickles are as before. A model
    in eval mode also has BatchNorm folded, on a copy of the weights, and the activation behind a layer fused, wherever
    the model's structure proves that nothing else reads what is between; both step back by themselves in training mode,
    where gradients are to reach the folded parameters, and under torch.compile.

    With `example_inputs` (a tensor, a tuple of arguments, or a dict of keyword arguments) every layer is timed on what
    the model gives it; those that torch runs faster stay torch's, the outputs are compared, the whole model is timed
    against itself as it was, and a table is printed. Modules of unknown kinds are left alone.
    """
    restore(model)
    candidates = _candidates(model)
    if example_inputs is None:
        _apply(model, _changes(candidates))
        return model
    arguments, keywords = _call_of(example_inputs)

    def call() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model(*arguments, **keywords)

    with _evaluating(model), torch.inference_mode():
        expected = copy.deepcopy(_watched(call, candidates))
        rows = _choose(candidates)
        chosen = [c for c, row in zip(candidates, rows, strict=True) if row.ours]
        changes, note = _settle(call, expected, chosen)
    _apply(model, changes)
    show(rows, note)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`, whatever of it is there; returns the same model."""
    for change in reversed(model.__dict__.pop(_RECORD, [])):
        change.undo()
    return model


def _apply(model: nn.Module, changes: list[Change]) -> None:
    for change in changes:
        change.apply()
    model.__dict__[_RECORD] = changes


def _call_of(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def _candidates(model: nn.Module) -> list[Candidate]:
    """Every layer of torch.nn's in the model, once each; in eval mode with what it can be joined with."""
    joined = {} if model.training else {id(f.layer): f for f in finding.chains(model)}
    found = []
    for name, module in model.named_modules():
        base = finding.base_of(module)
        if base in OURS:
            swap = Swap(module, type(module), _our_class(module, base))
            found.append(Candidate(name or "(model)", swap, joined.get(id(module))))
    return found


def _our_class(module: nn.Module, base: type[nn.Module]) -> type[nn.Module]:
    """Our class for a layer; for a parametrised one, its own class on ours in place of torch's."""
    if type(module) is base:
        return OURS[base]
    own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
    return type(type(module).__name__, (OURS[base],), own)


def _changes(candidates: list[Candidate]) -> list[Change]:
    """What hands these layers over: classes first, then the forwards of what is joined."""
    changes: list[Change] = [c.swap for c in candidates]
    owners: dict[nn.Module, list[Fused]] = {}
    for fused in (c.fused for c in candidates if c.fused is not None):
        owners.setdefault(fused.owner, []).append(fused)
    for owner, joined in owners.items():
        if plain_sequence(owner):
            changes.append(Forward(owner, _sequence(owner, joined)))
            continue
        changes.append(Forward(owner, Owner(owner, joined)))
        for fused in joined:
            changes.append(Forward(fused.layer, Joined(fused)))
            changes += [Forward(m, Skip(m, fused)) for m in fused.modules[1:]]
    return changes


def _sequence(owner: Any, joined: list[Fused]) -> FusedSequence:
    children = flattened(owner)
    starts = {id(f.layer): f for f in joined}
    steps: list[Any] = []
    left = children
    while left:
        fused = starts.get(id(left[0]))
        steps.append(left[0] if fused is None else fused)
        left = left[1 if fused is None else len(fused.modules) :]
    return FusedSequence(owner, steps, tuple(children))


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each module's mode put back after; measuring must not move running statistics."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _watched(call: Callable[[], Any], candidates: list[Candidate]) -> Any:
    """The result of a call, each candidate's own calls (what it was given) noted on the way."""
    handles = []
    for candidate in candidates:

        def note(module: nn.Module, args: Any, kwargs: Any, to: Candidate = candidate) -> None:
            x = args[0] if args else kwargs.get("input")
            size = args[1] if len(args) > 1 else kwargs.get("output_size")
            if isinstance(x, Tensor):
                to.calls.append((x.shape, x.stride(), x.dtype, x.device, None if size is None else tuple(size)))

        handles.append(candidate.swap.module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        return call()
    finally:
        for handle in handles:
            handle.remove()


def _choose(candidates: list[Candidate]) -> list[Row]:
    """Time each candidate on every distinct call it got, torch's way and ours, and say who keeps it."""
    known: dict[Any, tuple[float, float] | str] = {}
    rows = []
    for c in candidates:
        before = after = 0.0
        verdict = "not called" if not c.calls else ""
        for called in c.calls:
            key = (spec_of(c.swap.module), tuple(type(m) for m in c.modules), called)
            if key not in known:
                known[key] = _timed(c, called)
            found = known[key]
            if isinstance(found, str):
                verdict = found
                break
            before, after = before + found[0], after + found[1]
        rows.append(Row.make(c.name, c.modules, c.calls, before, after, verdict, after < before * _WORTH))
    return rows


def _timed(c: Candidate, called: tuple[Any, ...]) -> tuple[float, float] | str:
    """(torch's seconds, ours) on a call like this, or why it is torch's."""
    shape, strides, dtype, device, output_size = called
    x = None
    if dtype.is_floating_point:  # drawn from a generator of its own: the user's is not to move
        generator = torch.Generator(device).manual_seed(0)
        x = torch.empty_strided(shape, strides, dtype=dtype, device=device).normal_(generator=generator)
    layer: Any = c.swap.module
    reason = "x is not a floating-point tensor" if x is None else refusal(x, layer.weight, layer.bias)
    if reason is not None or x is None:
        return reason or ""
    rest = () if output_size is None else (output_size,)

    def torchs() -> None:
        y = c.swap.before.forward(layer, x, *rest)
        for module in c.modules[1:]:
            y = module(y)

    def ours() -> None:
        if c.fused is not None:
            c.fused.joined(x, *rest)
        else:
            c.swap.after.forward(layer, x, *rest)

    def run(work: Callable[[], None], kind: type[nn.Module]) -> Callable[[], None]:
        def timed() -> None:
            layer.__class__ = kind
            try:
                work()
            finally:
                layer.__class__ = c.swap.before

        return timed

    times = in_turn({"torch": run(torchs, c.swap.before), "ours": run(ours, c.swap.after)})
    return times["torch"], times["ours"]


def _settle(call: Callable[[], Any], expected: Any, chosen: list[Candidate]) -> tuple[list[Change], str]:
    """The changes that keep the outputs and do not slow the model, and a line that says how it went."""
    for c in chosen:
        c.calls.clear()
    for attempt, note in ((chosen, ""), ([Candidate(c.name, c.swap, None) for c in chosen], "nothing joined: ")):
        changes = _changes(attempt)
        with _applied(changes):
            error = _difference(expected, call())
        if error > _TOLERANCE:
            continue

        def after(changes: list[Change] = changes) -> None:
            with _applied(changes):
                call()

        times = in_turn({"before": call, "after": after}, rounds=6)
        report = (
            f"{note}the model took {times['before'] * 1e3:.2f} ms and takes {times['after'] * 1e3:.2f} ms; outputs "
            f"differ by {error:.1e} of the largest"
        )
        if not chosen:
            return [], "every layer stays torch's"
        if times["after"] > times["before"]:
            return [], f"left as it was: {report}"
        return changes, report
    return [], "left as it was: its outputs changed, so something in it depends on what the layers are"


@contextlib.contextmanager
def _applied(changes: list[Change]) -> Iterator[None]:
    done: list[Change] = []
    try:
        for change in changes:
            done.append(change)
            change.apply()
        yield
    finally:
        for change in reversed(done):
            change.undo()


def _difference(expected: Any, found: Any) -> float:
    """The largest difference between two results' tensors, relative to the largest value of each; inf if unlike."""
    first, shape = _pytree.tree_flatten(expected)
    second, other = _pytree.tree_flatten(found)
    if shape != other:
        return float("inf")
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if not isinstance(a, Tensor) or a.numel() == 0:
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        scale = a.double().abs().max().item() or 1.0
        gap = (a.double() - b.double()).abs().max().item() / scale
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst
