"""A training step (forward and both gradients) of every layer marked "train" in layers.json, beside PyTorch's.

    python bench/training.py --threads 2 --output bench/training.md

One process, contenders in turn and in bursts (upconv.bench.timing). The ratio is the faster of PyTorch channels-first and
channels-last to ours: above 1 is faster. The gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from math import exp, log
from pathlib import Path
from typing import Any

import torch

import upconv.torch
from upconv.bench.rivals import versions
from upconv.bench.timing import race

LAYERS = Path(__file__).with_name("layers.json")
_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def layer_of(kind: Any, entry: dict[str, Any]) -> torch.nn.Module:
    """The entry's layer, of torch.nn or of upconv.torch."""
    return getattr(kind, f"ConvTranspose{entry['dims']}d")(  # type: ignore[no-any-return]
        entry["in_channels"],
        entry["out_channels"],
        entry["kernel"],
        entry["stride"],
        entry["padding"],
        entry["output_padding"],
        entry["groups"],
        entry["bias"],
        entry["dilation"],
    )


def step(layer: torch.nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    """One training step on its own: the output, then the gradients for x and every parameter."""
    wanted = (x.requires_grad_(), *layer.parameters())
    return lambda: torch.autograd.grad(layer(x), wanted, grad)


def contenders(entry: dict[str, Any]) -> dict[str, Callable[[], tuple[torch.Tensor, ...]]]:
    """PyTorch in both layouts, and ours, on the same numbers."""
    torch.manual_seed(0)
    theirs, ours = layer_of(torch.nn, entry), layer_of(upconv.torch, entry)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(entry["batch"], entry["in_channels"], *entry["input_spatial"])
    grad = torch.randn(entry["batch"], entry["out_channels"], *entry["output_spatial"])
    found = {"upconv": step(ours, x.clone(), grad), "torch": step(theirs, x.clone(), grad)}
    if entry["dims"] in _FORMATS:
        layout = {"memory_format": _FORMATS[entry["dims"]]}
        last = layer_of(torch.nn, entry)
        last.load_state_dict(theirs.state_dict())
        found["torch channels-last"] = step(last.to(**layout), x.contiguous(**layout), grad.contiguous(**layout))
    return found


def difference(calls: dict[str, Callable[[], tuple[torch.Tensor, ...]]]) -> float:
    """The largest difference of a gradient from PyTorch's, relative to the largest of that gradient."""
    ours, theirs = calls["upconv"](), calls["torch"]()
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def measure(entries: list[dict[str, Any]], seconds: float) -> Iterator[tuple[str, dict[str, float], float]]:
    """(layer, milliseconds of each contender, largest relative difference) of each entry."""
    for entry in entries:
        calls = contenders(entry)
        error = difference(calls)
        times = race(calls, seconds=seconds, rounds=(2, 30))
        yield entry["id"], {name: t.median * 1e3 for name, t in times.items()}, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="layers whose id contains this")
    parser.add_argument("--most", type=float, default=6e9, help="leave out layers of more multiply-adds (default 6e9)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to time each layer")
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    entries = [e for e in json.loads(LAYERS.read_text())["layers"] if e["mode"] == "train" and options.only in e["id"]]
    chosen = [e for e in entries if e["macs"] <= options.most]
    lines = [
        f"Training step, {options.threads} threads, {', '.join(f'{k} {v}' for k, v in versions().items())}.",
        f"{len(entries) - len(chosen)} of {len(entries)} layers left out (over {options.most:.1e} multiply-adds).",
        "",
        "| layer | upconv ms | torch ms | torch channels-last ms | ratio | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    ratios = []
    for name, ms, error in measure(chosen, options.seconds):
        best = min(v for k, v in ms.items() if k != "upconv")
        ratios.append(best / ms["upconv"])
        last = f"{ms['torch channels-last']:.2f}" if "torch channels-last" in ms else "-"
        lines.append(f"| {name} | {ms['upconv']:.2f} | {ms['torch']:.2f} | {last} | {ratios[-1]:.2f} | {error:.1e} |")
        print(lines[-1], flush=True)
    if ratios:
        mean = exp(sum(map(log, ratios)) / len(ratios))
        lines += ["", f"Geometric mean {mean:.2f}, least {min(ratios):.2f}, over {len(ratios)} layers."]
        print("\n".join(lines[-2:]))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
