"""Which layers of a model are followed by a BatchNorm or an activation, and by nothing else.

A Sequential tells by its order. Any other module is traced (torch.fx) alone, every child but Sequentials a closed box;
where that fails, or where a module is called twice or watched, nothing is joined.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from upconv.torch.fusing import INERT, NORMS, Fused, activation_of, flattened, hooked, plain_sequence
from upconv.torch.layers import OURS

_LONGEST = 6  # modules of a run that are looked at


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """Which of the six layers, torch's or ours, a module is: exactly it, or it under a parametrisation."""
    kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    known = (kind in OURS or kind in OURS.values()) and "forward" not in module.__dict__
    return kind if known else None


def _foldable(layer: Any, norm: Any) -> bool:
    return (
        type(norm) in NORMS
        and norm.running_mean is not None
        and norm.num_features == layer.out_channels
        and type(norm) is NORMS[len(layer.kernel_size) - 1]
        and "weight" in layer._parameters  # a parametrised weight is new at every call: nothing to fold once
    )


def _fused(owner: nn.Module, run: Sequence[nn.Module]) -> Fused | None:
    """What of a run of modules, called one after the other, can be joined to the first."""
    layer = run[0]
    if base_of(layer) is None or getattr(layer, "activation", None) is not None:
        return None
    found: list[nn.Module] = []
    norm = activation = None
    for module in run:
        if hooked(module):
            break
        if module is not layer and type(module) not in INERT:
            if norm is None and _foldable(layer, module):
                norm = module
            elif activation_of(module) is not None:
                activation = module
            else:
                break
        found.append(module)
        if activation is not None:
            break
    while found and type(found[-1]) in INERT:
        found.pop()
    return Fused(owner, found, norm, activation) if len(found) > 1 else None


def _trace(module: nn.Module, concrete: dict[str, Any]) -> fx.Graph | None:
    """The graph of a module's own forward, its attributes put back as they were; None where it cannot be had."""

    class Boxes(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return not plain_sequence(m)

    kept = dict(module.__dict__)
    inner = {k: dict(kept[k]) for k in ("_parameters", "_buffers", "_modules")}
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return Boxes().trace(module, concrete)
    except Exception:  # whatever a stranger's forward raises when it is called with a proxy
        return None
    finally:
        module.__dict__.clear()
        module.__dict__.update(kept)
        for name, values in inner.items():
            module.__dict__[name].clear()
            module.__dict__[name].update(values)


def _runs(module: nn.Module, graph: fx.Graph) -> list[tuple[nn.Module, ...]]:
    """Layers of a graph with the modules through which their result, and nothing else, then goes."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def called(node: fx.Node) -> nn.Module | None:
        if node.op != "call_module" or calls[node.target] != 1:
            return None
        return module.get_submodule(str(node.target))

    found = []
    for node in graph.nodes:
        at, start = node, called(node)
        if start is None or base_of(start) is None:
            continue
        run = [start]
        while len(run) < _LONGEST and len(at.users) == 1:
            at = next(iter(at.users))
            following = called(at)
            if following is None or len(at.args) != 1 or at.kwargs:
                break
            run.append(following)
        found.append(tuple(run))
    return found


def _runs_of(module: nn.Module) -> list[tuple[nn.Module, ...]]:
    """The runs of a module's forward, the same with its optional arguments given and left out."""
    first = _trace(module, {})
    if first is None:
        return []
    runs = _runs(module, first)
    parameters = inspect.signature(module.forward).parameters.values()
    optional = {p.name: p.default for p in parameters if p.default is not p.empty}
    if optional:
        second = _trace(module, optional)
        other = set() if second is None else set(_runs(module, second))
        runs = [r for r in runs if r in other]
    return runs


def chains(model: nn.Module) -> list[Fused]:
    """Every layer of the model that can be joined with what follows it."""
    found: list[Fused | None] = []
    inside: set[int] = set()  # Sequentials that a Sequential round them runs
    for module in model.modules():
        if plain_sequence(module):
            steps = flattened(module)
            if id(module) not in inside:
                once = Counter(map(id, steps))
                found += [_fused(module, steps[i : i + _LONGEST]) for i, m in enumerate(steps) if once[id(m)] == 1]
            inside.update(id(m) for m in module.modules() if m is not module and plain_sequence(m))
        elif "forward" not in module.__dict__ and base_of(module) is None and any(map(base_of, module.modules())):
            found += [_fused(module, run) for run in _runs_of(module)]
    longest: dict[int, Fused] = {}
    for fused in found:  # a layer in a Sequential in a traced module is found twice
        known = None if fused is None else longest.get(id(fused.layer))
        if fused is not None and (known is None or len(fused.modules) >= len(known.modules)):
            longest[id(fused.layer)] = fused
    return list(longest.values())
