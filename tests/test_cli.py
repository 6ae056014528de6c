"""The shell command, in a process of its own where that matters and in this one where it does not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upconv
from upconv import cli
from upconv.cli import files
from upconv.cli.demo import EXAMPLES
from upconv.cli.progress import working

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(8)
X, W, B = (RNG.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 4, 6, 5), (4, 3, 3, 3), (3,)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with arrays in it."""
    monkeypatch.chdir(tmp_path)
    for name, array in (("x", X), ("w", W), ("b", B)):
        np.save(f"{name}.npy", array)
    np.savez("layer.npz", weight=W, bias=B)
    return tmp_path


class Shell:
    """Calls the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, line: str) -> str:
        """Standard output of a call that must succeed."""
        code = cli.main(shlex.split(line))
        out, err = self.capsys.readouterr()
        assert (code, err) == (0, ""), (line, err)
        return out

    def refuses(self, line: str) -> str:
        """The one line with which a call exits 2."""
        code = cli.main(shlex.split(line))
        out, err = self.capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert err.startswith("upconv: ")
        return err[len("upconv: ") : -1]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    code = "import sys, upconv.cli; sys.exit(upconv.cli.main())"
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)


# run


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ("-w w.npy", lambda: upconv.conv_transpose(X, W)),
        ("--weight w.npy --bias b.npy --stride 2", lambda: upconv.conv_transpose(X, W, B, 2)),
        ("-w layer.npz -b layer.npz -s 2,1", lambda: upconv.conv_transpose(X, W, B, (2, 1))),
        ("-w layer.npz:weight -p 1:0,0:2", lambda: upconv.conv_transpose(X, W, padding=((1, 0), (0, 2)))),
        ("-w w.npy -s 2 -p 1 --output-padding 1", lambda: upconv.conv_transpose(X, W, None, 2, 1, 1)),
        ("-w w.npy -s 2 -p 1 --output-size 12,9", lambda: upconv.conv_transpose(X, W, None, 2, 1, output_size=(12, 9))),
        ("-w w.npy -s 2 -p same", lambda: upconv.conv_transpose(X, W, None, 2, "same")),
        ("-w w.npy -g 2 -d 2", lambda: upconv.conv_transpose(X, W, groups=2, dilation=2)),
        ("-w w.npy -a leaky_relu:0.5", lambda: upconv.conv_transpose(X, W, activation=("leaky_relu", 0.5))),
        (
            "-w w.npy -p 1 --padding-mode circular",
            lambda: upconv.conv_transpose(X, W, padding=1, padding_mode="circular"),
        ),
        ("-w w.npy --dtype float64", lambda: upconv.conv_transpose(X.astype(float), W.astype(float))),
    ],
)
def test_run_is_the_function(shell: Shell, folder: Path, options: str, call: Any) -> None:
    expected = call()
    said = shell(f"run x.npy {options} -o y.npy")
    y = np.load("y.npy")
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)
    assert re.fullmatch(rf"x\.npy \(2, 4, 6, 5\) -> y\.npy {re.escape(str(y.shape))} {y.dtype}, [\d.]+ ms\n", said)


def test_run_an_ordinary_convolution(shell: Shell, folder: Path) -> None:
    np.save("w.npy", W.transpose(1, 0, 2, 3))
    shell("run x.npy -w w.npy -b b.npy --conv -s 2 -p 1 -o y.npz")
    np.testing.assert_array_equal(np.load("y.npz")["y"], upconv.conv(X, W.transpose(1, 0, 2, 3), B, 2, 1))


def test_run_with_safetensors(shell: Shell, folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"up.weight": W, "up.bias": B}, "model.safetensors")
    shell("run x.npy -w model.safetensors:up.weight -b model.safetensors:up.bias -o y.npy")
    np.testing.assert_array_equal(np.load("y.npy"), upconv.conv_transpose(X, W, B))
    assert shell.refuses("run x.npy -w model.safetensors -o z.npy") == (
        "model.safetensors has no array 'weight': it has up.bias, up.weight; name one as model.safetensors:NAME"
    )
    Path("broken.safetensors").write_bytes(b"\xff" * 40)
    assert shell.refuses("run x.npy -w broken.safetensors -o z.npy").startswith(
        "broken.safetensors cannot be read as .safetensors: "
    )


@pytest.mark.parametrize("ending", [".png", ".jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_run_on_a_picture(shell: Shell, folder: Path, ending: str, mode: str) -> None:
    image = pytest.importorskip("PIL.Image")
    channels = len(mode)
    levels = np.linspace(0, 255, 12 * 10 * channels).reshape(12, 10, channels).astype(np.uint8)
    image.fromarray(levels[..., 0] if channels == 1 else levels).save(f"photo{ending}")
    # every pixel becomes four: a depthwise layer of ones
    np.save("double.npy", np.ones((channels, 1, 2, 2), np.float32))
    shell(f"run photo{ending} -w double.npy -s 2 -g {channels} -o large.png")
    with image.open(f"photo{ending}") as small, image.open("large.png") as large:
        assert (large.mode, large.size) == (mode, (20, 24))
        np.testing.assert_array_equal(np.asarray(large), np.asarray(small).repeat(2, 0).repeat(2, 1))
    shell(f"run photo{ending} -w double.npy -s 2 -g {channels} -o large{ending}")
    with image.open(f"large{ending}") as large:
        assert large.size == (20, 24)


def test_a_deep_picture_keeps_its_levels(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    levels = np.array([[0, 1000], [30000, 65535]], np.uint16)
    image.fromarray(levels).save("deep.png")
    np.testing.assert_allclose(files.read("deep.png", "x")[0] * 65535, levels, rtol=1e-6)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("run none.npy -w w.npy -o y.npy", "[Errno 2] No such file or directory: 'none.npy'"),
        ("run x.npy -w w.npy", "Missing option '--output' / '-o'. See `upconv run --help`."),
        ("run x.npy -w w.npy -o y.npy --strid 2", "No such option: --strid"),
        ("run x.npy -w w.npy -o y.npy -s two", "stride is 'two': give a whole number, or one a dimension as in 2,1"),
        ("run x.npy -w w.npy -o y.npy -s 0", "stride is 0: it must be at least 1"),
        (
            "run x.npy -w w.npy -o y.npy -p 1:x",
            "padding is '1:x': give a whole number, one a dimension as in 1,2, before:after pairs as in 0:1,0:1, same or valid",
        ),
        (
            "run x.npy -w w.npy -o y.npy -a leaky_relu:much",
            "activation is 'leaky_relu:much': give a name, or name:number as in leaky_relu:0.1",
        ),
        (
            "run x.npy -w w.npy -o y.npy -a gelu",
            "activation is 'gelu': use one of relu, leaky_relu, elu, sigmoid, tanh, silu, or None",
        ),
        (
            "run x.npy -w w.npy -o y.npy --conv --output-size 3",
            "--output-size and --output-padding belong to transposed layers: leave them out, or --conv",
        ),
        ("run x.npy -w w.npy -o y.npy --dtype int8", "dtype is 'int8': use float32 or float64"),
        (
            "run x.npy -w w.npy -o y.npy --dtype float64 -b w.npy",
            "bias has shape (4, 3, 3, 3): it must be (3,), one value an output channel",
        ),
        (
            "run x.npy -w b.npy -o y.npy",
            "weight has shape (3,): it must be 3-D, 4-D or 5-D for rank 1, 2 or 3, (channels, channels // groups, *kernel)",
        ),
        (
            "run x.txt -w w.npy -o y.npy",
            "x.txt ends in '.txt': arrays are read from .npy, .npz, .safetensors, .png, .jpg, .jpeg",
        ),
        (
            "run x.npy -w w.npy -o y.txt",
            "y.txt ends in '.txt': results are written to .npy, .npz, .png, .jpg, .jpeg",
        ),
        ("run x.npy -w w.npy -o no/y.npy", "no is not a folder: make it first, or choose another place for y.npy"),
        (
            "run x.npy -w layer.npz:kernel -o y.npy",
            "layer.npz has no array 'kernel': it has bias, weight; name one as layer.npz:NAME",
        ),
        ("run x.npy -w w.npy:weight -o y.npy", "w.npy holds one array without a name: leave out 'weight'"),
        (
            "run x.npy -w w.npy -o y.png",
            "the result has shape (2, 3, 8, 7): a picture has 1, 3 or 4 channels; write it to a .npy file",
        ),
        (
            "run ints.npy -w w.npy -o y.npy",
            "x has dtype int64: float32 and float64 are supported; convert it with x.astype(np.float32)",
        ),
    ],
)
def test_run_refuses(shell: Shell, folder: Path, line: str, text: str) -> None:
    pytest.importorskip("PIL")
    np.save("ints.npy", X.astype(np.int64))
    Path("y.npy").write_bytes(b"kept")
    before = sorted(os.listdir())
    assert shell.refuses(line).startswith(text)
    assert sorted(os.listdir()) == before
    assert Path("y.npy").read_bytes() == b"kept"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n",
     b"PK\x03\x04broken", b"(lp0\n."],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".npy", ".npz", ".png"])
def test_damaged_files_give_one_line(shell: Shell, folder: Path, content: bytes, ending: str) -> None:
    pytest.importorskip("PIL")
    Path(f"bad{ending}").write_bytes(content)
    assert shell.refuses(f"run bad{ending} -w w.npy -o y.npy").startswith(f"bad{ending} cannot be read")
    assert not Path("y.npy").exists()


def test_a_pickle_is_not_opened(shell: Shell, folder: Path) -> None:
    np.save("objects.npy", np.array([print], object), allow_pickle=True)
    assert shell.refuses("run objects.npy -w w.npy -o y.npy") == (
        "objects.npy cannot be read as .npy: Object arrays cannot be loaded when allow_pickle=False"
    )


def test_a_write_that_fails_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Path("y.npy")
    target.write_bytes(b"kept")

    def full(stream: Any, array: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.np, "save", full)
    before = sorted(os.listdir())
    with pytest.raises(OSError, match="No space left"):
        files.write(target, X)
    assert target.read_bytes() == b"kept"
    assert sorted(os.listdir()) == before


def test_a_written_file_has_the_usual_rights(folder: Path) -> None:
    Path("plain").touch()
    files.write(Path("y.npy"), X)
    assert Path("y.npy").stat().st_mode == Path("plain").stat().st_mode


def test_pictures_without_pillow(shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert shell.refuses("run x.npy -w w.npy -o y.png") == "writing y.png needs pillow: pip install pillow"


# shape and plan


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("shape 50,100 --kernel 3 --stride 2", "101,201"),
        ("shape 50x100 -k 3,5 -s 2,1 -p 4,2", "93,100"),
        ("shape 12,12 --kernel 3 --stride 2 --padding 1 --conv", "6,6"),
        ("shape 6,6 -k 3 -s 2 -p 1 --output-size 12,12", "1,1"),
        ("shape 10 -k 4 -s 2 -p same", "20"),
        ("shape 4,4,4 -k 2 -s 2 --output-padding 0,1,0", "8,9,8"),
    ],
)
def test_shape(shell: Shell, line: str, answer: str) -> None:
    assert shell(line) == f"{answer}\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "shape 6,6 -k 3 -s 2 -p 1 --output-size 13,12",
            "output_size (13, 12) is not reachable: kernel 3x3, stride 2x2, padding 1x1 on input (6, 6) gives (11, 11) "
            "to (12, 12); use output_padding (1, 1) for (12, 12), or another kernel or padding for (13, 12)",
        ),
        ("shape 6,6", "Missing option '--kernel' / '-k'. See `upconv shape --help`."),
        ("shape -k 3", "Missing argument 'INPUT_SIZE'. See `upconv shape --help`."),
        ("shape six -k 3", "input size is 'six': give a whole number, or one a dimension as in 2,1"),
        ("shape 6 -k 3 --output-padding 1 --conv", "--output-size and --output-padding belong to transposed layers: "
         "leave them out, or --conv"),
        ("plan 4,4 -m 3 -k 3", "input shape is '4,4': give batch, channels and sizes, as in 1,256,32,24"),
        ("plan 1,4,4 -m 3 -k 3 --dtype int8", "dtype is 'int8': use float32 or float64"),
        ("plan 1,4,4 -m x -k 3", "Invalid value for '--out-channels' / '-m': "),
        ("frobnicate", "No such command 'frobnicate'. See `upconv --help`."),
        ("", "Missing command. See `upconv --help`."),
    ],
)  # fmt: skip
def test_wrong_arguments(shell: Shell, line: str, text: str) -> None:
    assert shell.refuses(line).startswith(text)


def test_plan_explains(shell: Shell) -> None:
    said = shell("plan 1,256,32,24 --out-channels 256 --kernel 4 --stride 2 --padding 1").splitlines()
    assert said[0].startswith("ConvTranspose2d 256 -> 256, kernel 4x4, stride 2x2, padding 1x1")
    assert "(1, 256, 32, 24) -> (1, 256, 64, 48) float32" in said[0]
    assert any(line.startswith("kernel ") for line in said)


def test_plan_takes_an_output_size(shell: Shell) -> None:
    assert "-> (1, 8, 12, 11) float64" in shell("plan 1,8,6,6 -m 8 -k 3 -s 2 -p 1 --output-size 12,11 --dtype float64")


# cache


def test_cache(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upconv.codegen import cache

    monkeypatch.setenv("UPCONV_CACHE_DIR", str(tmp_path / "objects"))
    assert shell("cache info") == f"{tmp_path / 'objects'}\n0 kernels, 0.00 MB\n"
    cache.save(b"k" * 32, b"not run, only counted" * 1000)
    assert shell("cache info") == f"{tmp_path / 'objects'}\n1 kernels, 0.02 MB\n"
    assert shell("cache clear") == "1 kernels removed\n"
    assert shell("cache info") == f"{tmp_path / 'objects'}\n0 kernels, 0.00 MB\n"


# the whole


def test_version(shell: Shell) -> None:
    assert shell("--version") == f"upconv {upconv.__version__}\n"


@pytest.mark.parametrize("command", ["", *cli.COMMANDS, "cache info", "cache clear"])
def test_help_has_examples(shell: Shell, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = shell(f"{command} --help")
    assert "Usage: " in said
    if command not in ("", "cache"):
        assert "Example" in said
        assert re.search(rf"^.{{0,4}}upconv {command}\b", said.split("Example", 1)[1], re.MULTILINE), said


@pytest.mark.parametrize("colour", [True, False])
def test_no_color(colour: bool) -> None:
    environment = {"FORCE_COLOR": "1"} | ({} if colour else {"NO_COLOR": "1"})
    said = process("shape", "--help", **environment).stdout
    assert bool(re.search(r"\x1b\[[\d;]*3\d", said)) is colour


def test_a_wrong_argument_in_a_process_of_its_own() -> None:
    done = process("shape", "6", "-k", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "upconv: kernel_size is 0: it must be at least 1\n"


@pytest.mark.parametrize("with_torch", [True, False])
def test_demo(with_torch: bool) -> None:
    if with_torch:
        pytest.importorskip("torch")
        done = process("demo", NO_COLOR="1")
    else:
        code = "import sys; sys.modules['torch'] = None; import upconv.cli; sys.exit(upconv.cli.main(['demo']))"
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    rival = "torch" if with_torch else "the reference kernel"
    assert ("torch is not installed" in done.stdout) is not with_torch
    verdicts = re.findall(rf"largest difference from {rival}: ([\d.e+-]+) \(largest output ([\d.]+)\) ok", done.stdout)
    steps = [step for example in EXAMPLES for step in example.steps]
    assert len(verdicts) == len(steps) == 6
    assert all(float(difference) <= 1e-5 * float(largest) for difference, largest in verdicts)
    for shapes in ("(20, 33, 101, 201)", "(20, 33, 93, 100)", "(1, 16, 6, 6) -> (1, 16, 12, 12)", "(1, 16, 4, 4)"):
        assert shapes in done.stdout
    assert len(re.findall(r"^  [\d.]+ ms \(first call [\d.]+ ms\)$", done.stdout, re.MULTILINE)) == 6


def test_a_wrong_result_fails_the_demo(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from upconv.cli import demo

    right = demo._compared
    monkeypatch.setattr(demo, "EXAMPLES", EXAMPLES[2:3])
    monkeypatch.setattr(demo, "_compared", lambda *given: (right(*given)[0], 0.5))
    assert cli.main(["demo"]) == 1
    out, err = shell.capsys.readouterr()
    assert out.count("WRONG") == 2
    assert err == "upconv: a result above is wrong; please report it with the output of this command\n"


def test_progress_shows_only_what_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with working("quick", patience=5):
        pass
    assert capsys.readouterr() == ("", "")
    with working("slow [1/2]", patience=0.01):
        time.sleep(0.2)
    assert capsys.readouterr() == ("", "slow [1/2] ...\n")


def test_readme_s_shell_examples(shell: Shell, folder: Path) -> None:
    """The lines that start with `$ upconv` print what the README says, times aside."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    calls = re.findall(r"^\$ (upconv .*)\n((?:(?!\$|```).*\n)*)", text, re.MULTILINE)
    assert len(calls) >= 3
    hide = lambda said: re.sub(r"[\d.]+ ms", "0 ms", said)  # noqa: E731
    for line, expected in calls:
        if "demo" not in line:
            assert hide(shell(line.removeprefix("upconv "))) == hide(expected), line
