"""Whole models (examples/models.py) before and after accelerate, beside torch.compile, ONNX Runtime and OpenVINO.

    python bench/models.py --threads 2 --output bench/models.md

One process, contenders in turn and in bursts (upconv.bench.timing). A contender that is not installed, or that cannot
take a model, is left out and named. Outputs are compared with eager PyTorch's before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import upconv.torch
from upconv.bench.rivals import versions
from upconv.bench.timing import race

Call = Callable[[], Any]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "models.py"


def examples() -> Any:
    """The module examples/models.py."""
    spec = importlib.util.spec_from_file_location("upconv_example_models", EXAMPLES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def eager(model: nn.Module, x: Tensor, threads: int) -> Call:
    """PyTorch as it is."""

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)  # type: ignore[no-any-return]

    return call


def channels_last(model: nn.Module, x: Tensor, threads: int) -> Call:
    """PyTorch with model and input channels-last."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if layout is None:
        raise ValueError("no channels-last format of rank 1")
    last: Any = copy.deepcopy(model)
    return eager(last.to(memory_format=layout), x.contiguous(memory_format=layout), threads)


def compiled(model: nn.Module, x: Tensor, threads: int) -> Call:
    """torch.compile with the weights frozen into the code."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    frozen = torch.compile(copy.deepcopy(model))

    def call() -> Any:
        with torch.no_grad():
            return frozen(x)

    call()
    return call


def accelerated(model: nn.Module, x: Tensor, threads: int) -> Call:
    """accelerate(model, x), each layer timed, the table printed."""
    return eager(upconv.torch.accelerate(copy.deepcopy(model), x), x, threads)


def handed_over(model: nn.Module, x: Tensor, threads: int) -> Call:
    """accelerate(model): every layer ours, nothing timed."""
    return eager(upconv.torch.accelerate(copy.deepcopy(model)), x, threads)


def onnx_bytes(model: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, input_names=["x"], output_names=["y"], dynamo=False)  # type: ignore[arg-type]
    return file.getvalue()


def onnx_runtime(model: nn.Module, x: Tensor, threads: int) -> Call:
    """ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_bytes(model, x), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)[0]


def openvino(model: nn.Module, x: Tensor, threads: int) -> Call:
    """OpenVINO's CPU device in float32."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(onnx_bytes(model, x)), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return call


CONTENDERS: dict[str, Callable[[nn.Module, Tensor, int], Call]] = {
    "torch": eager,
    "accelerate": accelerated,
    "all layers ours": handed_over,
    "torch channels-last": channels_last,
    "torch.compile frozen": compiled,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
}


def compete(model: nn.Module, x: Tensor, threads: int, seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """(milliseconds of each contender, why the others are left out)."""
    calls: dict[str, Call] = {}
    absent = {}
    expected = eager(model, x, threads)()
    for name, maker in CONTENDERS.items():
        try:
            call = maker(model, x, threads)
            found = torch.as_tensor(call())
        except Exception as error:  # a rival may fail in any way; the race goes on without it
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        gap = float((found - expected).abs().max() / expected.abs().max())
        if gap > 1e-3:
            absent[name] = f"its outputs differ by {gap:.1e}"
            continue
        calls[name] = call
    times = race(calls, seconds=seconds, rounds=(3, 30))
    return {name: t.median * 1e3 for name, t in times.items()}, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names from examples/models.py (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to time each model")
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    zoo = examples()
    unknown = [name for name in options.models if name not in zoo.MODELS]
    if unknown:
        parser.error(f"no model {unknown[0]!r}: there are {', '.join(zoo.MODELS)}")
    lines = [
        f"Milliseconds a call, {options.threads} threads, {', '.join(f'{k} {v}' for k, v in versions().items())}.",
        "",
        "| model | " + " | ".join(CONTENDERS) + " | torch / accelerate |",
        "|---" * (len(CONTENDERS) + 2) + "|",
    ]
    notes = []
    for name in options.models or zoo.MODELS:
        ms, absent = compete(*zoo.make(name), options.threads, options.seconds)
        cells = [f"{ms[c]:.1f}" if c in ms else "-" for c in CONTENDERS]
        ratio = f"{ms['torch'] / ms['accelerate']:.2f}" if "accelerate" in ms else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio} |")
        notes += [f"{name}: {rival} left out ({why})" for rival, why in absent.items()]
        print(lines[-1], flush=True)
    text = "\n".join([*lines, "", *notes])
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
