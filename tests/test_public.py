"""The public surface: complete, silent, and as light as what is asked of it."""

from __future__ import annotations

import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import upconv

ROOT = Path(__file__).parents[1]
INSIDE = {
    "advice",
    "arguments",
    "cli",
    "codegen",
    "execute",
    "execute_packing",
    "execute_reorder",
    "execute_weight",
    "functional",
    "gradients",
    "kernels",
    "planner",
    "spec",
}
"""Modules behind the public names."""
OPTIONAL = {"bench", "dask", "explore", "onnx", "torch"}
"""Public modules that need an extra and bear its name: `from upconv import *` must not need it, nor hide it."""


def python(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, warnings being errors, so that nothing imported here helps."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    command = [sys.executable, "-W", "error", *flags, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def without(*modules: str) -> str:
    """Code after which importing `modules` fails as if they were not installed."""
    return f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"


@pytest.mark.parametrize("name", upconv.__all__)
def test_every_name_is_there_and_explained(name: str) -> None:
    value = getattr(upconv, name)
    assert inspect.getdoc(value), "no docstring"
    if inspect.isfunction(value):
        assert ">>>" in value.__doc__, "no example"


def test_all_is_complete() -> None:
    modules = {module.name for module in pkgutil.iter_modules(upconv.__path__)}
    assert modules - INSIDE - OPTIONAL <= set(upconv.__all__), "a module that is neither public nor listed in INSIDE"
    assert not OPTIONAL & set(upconv.__all__)
    assert len(upconv.__all__) == len(set(upconv.__all__))
    assert dir(upconv) == sorted(upconv.__all__)


@pytest.mark.parametrize("name", ["functional", "nn", "shapes", "gradients", "streaming"])
def test_all_of_a_module_holds_its_public_names(name: str) -> None:
    module = __import__(f"upconv.{name}", fromlist=["_"])
    public = set(getattr(module, "__all__", upconv.__all__))
    for found, value in vars(module).items():
        if not found.startswith("_") and inspect.isroutine(value) and value.__module__ == module.__name__:
            assert found in public, f"upconv.{name}.{found} is public and not in __all__"


def test_star_import() -> None:
    done = python("from upconv import *\nprint(conv_transpose2d.__name__, shapes.__name__)")
    assert (done.stdout, done.stderr) == ("conv_transpose2d upconv.shapes\n", "")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = upconv.deconvolution  # type: ignore[attr-defined]
    assert str(caught.value) == "module 'upconv' has no attribute 'deconvolution'"
    assert not hasattr(upconv, "_private")


def test_importing_says_nothing_and_loads_nothing() -> None:
    done = python(
        "import sys, upconv, upconv.shapes\n"
        "upconv.shapes.conv_transpose_size(5, 4, 2, 1)\n"
        "loaded = {'numpy', 'llvmlite', 'torch', 'rich', 'typer', 'platformdirs'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_module_imports_without_output() -> None:
    import importlib.util

    there = OPTIONAL & {module.name for module in pkgutil.iter_modules(upconv.__path__)}
    usable = [name for name in there if importlib.util.find_spec({"explore": "marimo"}.get(name, name))]
    done = python(f"import upconv\nfor name in [*upconv.__all__, *{usable!r}]: getattr(upconv, name)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sizes_without_numpy_or_llvmlite() -> None:
    done = python(
        without("numpy", "llvmlite", "torch")
        + "import upconv.cli\nsys.exit(upconv.cli.main(['shape', '50,100', '--kernel', '3', '--stride', '2']))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "101,201\n", "")


def test_numpy_alone_is_enough() -> None:
    """Without llvmlite the reference kernel runs, without a word; the plan says so."""
    done = python(
        without("llvmlite", "torch", "onnx", "dask", "PIL", "safetensors")
        + "import numpy as np, upconv\n"
        + "x = np.ones((1, 2, 5, 5), np.float32)\n"
        + "layer = upconv.nn.ConvTranspose2d(2, 3, 4, stride=2, seed=0)\n"
        + "y = layer(x)\n"
        + "for _ in range(2): y = layer(x)\n"
        + "print(y.shape, *(g.shape for g in upconv.conv_transpose_backward(y, x, layer.weight, stride=2)))\n"
        + "print(upconv.plan(x.shape, layer.weight.shape, stride=2).summary)\n"
        + "print(upconv.streaming.ConvTranspose1d(layer.weight[..., 0], stride=2)(x[..., 0]).shape)\n"
        + "upconv.set_num_threads(1)"
    )
    shapes = "(1, 3, 12, 12) (1, 2, 5, 5) (2, 3, 4, 4) (3,)\n"
    plan = "reference, 1 thread; no code can be made on this machine\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{shapes}{plan}(1, 3, 10)\n", "")


def test_stages_are_shown_on_request() -> None:
    call = "import numpy as np, upconv\nupconv.conv_transpose(np.ones((1, 2, 5), np.float32), np.ones((2, 3, 4), np.float32))"
    done = python(call, UPCONV_DEBUG="spec|plan")
    assert [line for line in done.stderr.splitlines() if line.startswith("; ----")] == ["; ---- upconv spec", "; ---- upconv plan"]
    assert "ConvTranspose1d 2 -> 3, kernel 4" in done.stderr
    assert python(call).stderr == ""


@pytest.mark.skipif(not (ROOT / "src/upconv/torch").exists(), reason="upconv.torch is not in this tree")
@pytest.mark.parametrize("how", ["import upconv.torch", "import upconv; upconv.torch"])
def test_without_torch_it_says_what_to_install(how: str) -> None:
    done = python(without("torch") + how)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: upconv.torch needs ")
    assert "pip install 'upconv[torch]'" in done.stderr.splitlines()[-1]


def test_our_torch_does_not_hide_the_real_one() -> None:
    pytest.importorskip("torch")
    done = python("import upconv\nimport upconv.nn\nimport torch\nassert hasattr(torch, 'Tensor'), torch")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_door_is_small() -> None:
    assert len((ROOT / "src/upconv/__init__.py").read_text().splitlines()) < 40


def test_typed() -> None:
    assert (ROOT / "src/upconv/py.typed").exists()
