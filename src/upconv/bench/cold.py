"""A layer's first call, in a process that has neither its plan, its code nor its packed weight.

    python -m upconv.bench.cold JSON      prints the seconds of that call

The process has done another layer before, in float64, so that starting it and its threads is not counted. It is run twice:
with an empty cache of compiled kernels, and with the one that the first run has left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from upconv.spec import ConvSpec, Problem

PATIENCE = 120.0  # seconds that a process may take


@dataclass(frozen=True, slots=True)
class Cold:
    """Seconds of a first call: with compilation, and with the compiled code found on disk."""

    compiling: float
    cached: float


def measure(problem: Problem, bias: bool, count: int) -> Cold | None:
    """The first call's times on `count` threads; None where a process of our own cannot be run."""
    given = json.dumps({"problem": asdict(problem), "bias": bias})
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="upconv-cold-") as folder:
        settings = {"UPCONV_CACHE_DIR": folder, "UPCONV_CACHE": "", "UPCONV_DEBUG": "", "UPCONV_NUM_THREADS": str(count)}
        command = [sys.executable, "-m", "upconv.bench.cold", given]
        env = {**os.environ, **settings, "PYTHONPATH": path}
        seconds = []
        for _ in range(2):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env, check=True)
            except (OSError, subprocess.SubprocessError):
                return None
            seconds.append(float(done.stdout))
    return Cold(*seconds)


def _call(spec: ConvSpec, shape: tuple[int, ...], dtype: str, bias: bool) -> float:
    """Seconds of a call on arrays made before."""
    from upconv import functional

    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal(spec.weight_shape).astype(dtype)
    weight.flags.writeable = False
    of_bias = np.zeros(spec.out_channels, dtype) if bias else None
    arguments: dict[str, Any] = {n: getattr(spec, n) for n in ("stride", "padding", "dilation", "groups")}
    if spec.transposed:
        arguments["output_padding"] = spec.output_padding
    call = functional.conv_transpose if spec.transposed else functional.conv
    start = perf_counter()
    call(x, weight, of_bias, **arguments)
    return perf_counter() - start


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def main(text: str) -> None:
    """Print the seconds of the first call of the layer that the JSON describes."""
    given = json.loads(text)
    problem = given["problem"]
    spec = ConvSpec(**{name: _tuples(value) for name, value in problem["spec"].items()})
    other = ConvSpec.make(transposed=True, in_channels=32, out_channels=32, kernel_size=3, stride=2, rank=2)
    _call(other, (1, 32, 48, 48), "float64", bias=True)
    print(_call(spec, (problem["batch"], spec.in_channels, *problem["input_size"]), problem["dtype"], given["bias"]))


if __name__ == "__main__":
    main(sys.argv[1])
