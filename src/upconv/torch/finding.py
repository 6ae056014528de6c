"""Which layers of a model are followed by a BatchNorm or an activation, and by nothing else.

A Sequential tells by its order. Any other module is traced (torch.fx) alone, every child a closed box; where that
fails, or where a module is called twice, shared or watched, nothing is joined.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from upconv.torch.fusing import NORMS, Fused, activation_of, flattened, hooked, plain_sequence
from upconv.torch.layers import OURS


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


def _fused(owner: nn.Module, run: list[Any], single: Any) -> Fused | None:
    """What of a run of modules (a layer, then up to two more) can be joined."""
    layer, *rest = run
    if base_of(layer) is None or getattr(layer, "activation", None) is not None or not single(layer) or hooked(layer):
        return None
    rest = [m for m in rest if isinstance(m, nn.Module)]
    norm = rest.pop(0) if rest and _foldable(layer, rest[0]) and single(rest[0]) and not hooked(rest[0]) else None
    follows = rest[0] if rest else None
    usable = activation_of(follows) is not None and single(follows) and follows is not None and not hooked(follows)
    fused = Fused(owner, layer, norm, follows if usable else None)
    return fused if len(fused.modules) > 1 else None


def _trace(module: nn.Module, concrete: dict[str, Any]) -> fx.Graph | None:
    """The graph of a module's own forward, its attributes put back as they were; None where it cannot be had."""

    class Boxes(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return True

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
        while len(run) < 3 and len(at.users) == 1:
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
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))

    def single(m: Any) -> bool:
        return places[id(m)] == 1

    found: list[Fused | None] = []
    inside: set[int] = set()  # Sequentials that a Sequential round them runs
    for module in model.modules():
        if plain_sequence(module):
            steps = flattened(module)
            if id(module) not in inside:
                found += [_fused(module, steps[i : i + 3], single) for i in range(len(steps))]
            inside.update(id(m) for m in module.modules() if m is not module and plain_sequence(m))
        elif "forward" not in module.__dict__ and any(m and base_of(m) for m in module._modules.values()):
            found += [_fused(module, list(run), single) for run in _runs_of(module)]
    return [f for f in found if f is not None]
