"""Explanations: the facts against the reference kernel, the pictures as files, and the page in a browser."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import upconv
from upconv import explain as package
from upconv import shapes
from upconv.cli import main
from upconv.explain import explain
from upconv.explain.animate import animated_svg, frames, still_and_moving
from upconv.explain.figure import need
from upconv.explain.scene import LOOKS, scene_of
from upconv.spec import ConvSpec, SpecError


@st.composite
def lines(draw):
    """A layer of rank 1 and an input size."""
    transposed = draw(st.booleans())
    stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    spec = ConvSpec.make(
        transposed=transposed,
        in_channels=1,
        out_channels=1,
        kernel_size=draw(st.integers(1, 6)),
        stride=stride,
        dilation=dilation,
        padding=((draw(st.integers(0, 4)), draw(st.integers(0, 4))),),
        output_padding=draw(st.integers(0, max(stride, dilation) - 1)) if transposed else 0,
        padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        rank=1,
    )
    size = draw(st.integers(1, 7))
    try:
        spec.output_size((size,))
    except SpecError:
        assume(False)
    return spec, size


def links_of_the_reference(spec, size):
    """counts[i, k, o]: how often the reference kernel adds x[i]*w[k] to y[o], asked with a one in each place."""
    k = spec.kernel_size[0]
    x, eye = np.eye(size)[:, None, :], np.eye(k)
    options = {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "padding_mode": spec.padding_mode}
    if spec.transposed:
        return upconv.conv_transpose(x, eye[None], output_padding=spec.output_padding, **options)
    return upconv.conv(x, eye[:, None], **options)


@settings(max_examples=150)
@given(lines())
def test_connections_are_those_of_the_reference_kernel(line):
    spec, size = line
    e = explain(spec, size)
    expected = links_of_the_reference(spec, size)
    found = np.zeros_like(expected)
    for o in range(e.output_size[0]):
        terms = e.sources(o)
        assert all(t.output == (o,) for t in terms)
        assert e.writes(o) >= len(terms)
        for t in terms:
            found[t.input[0], t.tap[0], o] += 1
    np.testing.assert_array_equal(found, expected)
    back = np.zeros_like(expected)
    for i in range(size):
        for t in e.reached(i):
            back[t.input[0], t.tap[0], t.output[0]] += 1
    np.testing.assert_array_equal(back, expected)
    if spec.transposed or spec.padding_mode == "zeros":
        assert [e.writes(o) for o in range(e.output_size[0])] == expected.sum((0, 1)).tolist()


@given(lines())
def test_the_verdict_is_the_overlap_of_the_phases(line):
    spec, size = line
    least, most = shapes.overlap_range(spec)
    assert explain(spec, size).even == (least == most)
    if spec.transposed:
        counts = [len(p.taps) for p in shapes.phases(spec.kernel_size, spec.stride, spec.padding, spec.dilation)]
        assert explain(spec, size).axes[0].writes_by_phase(100) == tuple(counts)


@given(lines())
def test_the_round_trip_is_the_other_layer(line):
    spec, size = line
    trip = explain(spec, size).round_trip
    if trip is None:
        return
    assert trip.partner.output_size(spec.output_size((size,))) == trip.size
    assert trip.exact == (trip.size == (size,))
    assert trip.exact or spec.transposed  # a convolution always has a layer that goes back
    assert trip.exact or spec.output_padding[0] >= spec.stride[0]


def test_two_dimensions_are_the_product_of_two_lines():
    e = explain(dict(kernel_size=(3, 4), stride=2, padding=1), (4, 5))
    rows, columns = explain(dict(kernel_size=3, stride=2, padding=1), 4), explain(dict(kernel_size=4, stride=2, padding=1), 5)
    for r in range(e.output_size[0]):
        for c in range(e.output_size[1]):
            expected = {
                (a.input + b.input, a.tap + b.tap) for a in rows.sources(r) for b in columns.sources(c)
            }  # fmt: skip
            assert {(t.input, t.tap) for t in e.sources((r, c))} == expected
            assert e.writes((r, c)) == len(expected)


@pytest.mark.parametrize("source", ["ConvTranspose2d", "Conv2d"])
def test_layers_of_torch_and_numpy(source):
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, source)(4, 6, (3, 5), stride=2, padding=(1, 2), groups=2)
    from upconv import nn

    ours = getattr(nn, source)(4, 6, (3, 5), stride=2, padding=(1, 2), groups=2)
    assert package.as_spec(layer) == package.as_spec(ours)
    assert explain(layer, (9, 9)).output_size == tuple(layer(torch.zeros(1, 4, 9, 9)).shape[2:])


def test_what_is_no_layer():
    with pytest.raises(TypeError) as caught:
        explain(3, 4)
    assert str(caught.value) == (
        "int is no layer: give a ConvSpec, a layer of torch.nn, upconv.nn or upconv.torch, or a dict such as "
        "dict(kernel_size=4, stride=2, padding=1)"
    )
    with pytest.raises(SpecError) as caught:
        explain(dict(kernel_size=4, stride=2), 3).sources(8)
    assert str(caught.value) == "output cell (8,) is outside output size (8,): positions count from 0"


TEXT = """\
ConvTranspose1d 1 -> 1, kernel 3, stride 2, padding 1, output_padding 1
input 3 → output 6

size
  output = (input - 1)*stride - padding - padding + dilation*(kernel - 1) + output_padding + 1
  (3 - 1)*2 - 1 - 1 + 1*(3 - 1) + 1 + 1 = 6

phases: 2 (output position mod stride; each is a convolution with stride 1)
phase   taps   tap at input offset
─────────────────────────────────────
0          1   w[1] at +0
1          2   w[0] at +1  w[2] at +0

connections
  y[1] = x[0]*w[2] + x[1]*w[0]
  x[0] reaches y[0] through w[1], y[1] through w[2]

taps that write each output
  1 2 1 2 1 1
  The phases have unequal numbers of taps, so a checkerboard is built in: kernel 3 is not divisible
by stride 2; kernel 4 would be.

round trip
  Conv1d 1 -> 1, kernel 3, stride 2, padding 1 takes 6 to 3: back where it began"""


def test_the_whole_text():
    assert str(explain(dict(kernel_size=3, stride=2, padding=1, output_padding=1), 3)) == TEXT


def test_colour_is_left_out_where_it_is_not_wanted(monkeypatch):
    from io import StringIO

    from rich.console import Console

    e = explain(dict(kernel_size=3, stride=2), 3)
    plain, coloured = StringIO(), StringIO()
    Console(file=coloured, force_terminal=True, color_system="truecolor").print(e)
    monkeypatch.setenv("NO_COLOR", "1")
    Console(file=plain, force_terminal=True).print(e)
    assert "\x1b[3" not in plain.getvalue()
    assert "\x1b[" in coloured.getvalue()
    assert "\x1b" not in str(e)


LAYERS = {
    "even": (dict(kernel_size=4, stride=2, padding=1), 6),
    "output_padding": (dict(kernel_size=3, stride=2, padding=1, output_padding=1), (5, 5)),
    "spectrogram": (dict(kernel_size=1024, stride=256, padding=384), 400),
    "convolution": (dict(transposed=False, kernel_size=3, stride=2, padding=1), (9, 9)),
    "sparse phases": (dict(kernel_size=2, stride=3), (3, 4)),
    "circular": (dict(kernel_size=3, stride=3, padding=1, dilation=2, output_padding=2, padding_mode="circular"), 6),
    "reflected convolution": (dict(transposed=False, kernel_size=3, padding=1, padding_mode="reflect"), (4, 4)),
    "volume": (dict(kernel_size=4, stride=2, padding=1, in_channels=320, out_channels=256), (8, 40, 40)),
    "one pixel": (dict(kernel_size=1), (1, 1)),
    "long stride": (dict(kernel_size=2, stride=50, padding=((0, 1),)), 9),
    "huge": (dict(kernel_size=10**6, stride=10**5 + 1, padding=10**5), (10**6, 10**6)),
    "huge line": (dict(kernel_size=10**9, stride=10**6, padding=10**8, padding_mode="replicate"), 10**9),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_way_to_show_it_stays_bounded(name):
    e = explain(*LAYERS[name])
    start = time.perf_counter()
    svg, page, text = e.svg(), e.html(), str(e)
    assert time.perf_counter() - start < 10
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg) < 500_000
    assert len(page) < 1_500_000
    assert len(text.splitlines()) < 80
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)[^\s"')]+""", page)
    assert outside == [], "the page must need nothing from elsewhere"
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_large_layer_says_what_is_shown():
    e = explain(dict(kernel_size=4, stride=2, padding=1), (64, 64)).at((70, 100))
    told = [w.text for w in scene_of(e).items if getattr(w, "text", "").startswith("shown")]
    assert told == ["shown: rows 28 to 41 of 64, columns 43 to 56 of 64", "shown: rows 63 to 76 of 128, columns 93 to 106 of 128"]
    assert "rows 62 to 77 of 128, columns 88 to 111 of 128" in str(e)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """The ratio of WCAG 2: 1 for equal, 21 for black on white."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_input_and_output_are_told_apart_without_colour():
    x, y = LOOKS["input"], LOOKS["output"]
    assert x.shape != y.shape
    assert x.legend != y.legend
    for fill in (y.fill, "#fff6e0", "#e69f00"):  # palest and fullest output
        assert contrast(x.fill, fill) > 2.3, "in grey"
        assert contrast(y.ink, fill) > 4.5, "words on it"
    assert contrast(x.ink, x.fill) > 4.5
    assert contrast(LOOKS["used"].ink, LOOKS["used"].fill) > 4.5
    assert all(look.hatch and look.dash for kind, look in LOOKS.items() if kind in ("cropped", "padded"))


def test_the_picture_marks_the_sum_it_writes_down():
    e = explain(dict(kernel_size=4, stride=2, padding=1), (5, 5)).at((4, 3))
    strong = {m.key for m in scene_of(e).items if getattr(m, "strong", False)}
    terms = e.sources((4, 3))
    assert strong == {("y", (4, 3))} | {("x", t.input) for t in terms}
    used = {m.key[1] for m in scene_of(e).items if getattr(m, "kind", "") == "used" and m.key}
    assert used == {t.tap for t in terms}


def test_lines_of_the_picture_are_the_products():
    e = explain(dict(kernel_size=4, stride=2, padding=1), 6)
    drawn = {s.link for s in scene_of(e).items if getattr(s, "link", None)}
    assert drawn == {(t.input[0], t.tap[0], t.output[0]) for o in range(12) for t in e.sources(o)}


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("gif", b"GIF89a"), ("svg", b"<svg"), ("html", b"<!doc")]
)
def test_saved_pictures(tmp_path, kind, magic):
    for module in {"png": ["matplotlib"], "pdf": ["matplotlib"], "gif": ["PIL"]}.get(kind, []):
        pytest.importorskip(module)
    path = tmp_path / f"layer.{kind}"
    explain(dict(kernel_size=3, stride=2, padding=1), 4).save(path)
    assert path.read_bytes().startswith(magic)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saved_twice_is_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    e = explain(dict(kernel_size=3, stride=2, padding=1), 4)
    for kind in ("png", "pdf", "svg", "html"):
        e.save(tmp_path / f"a.{kind}")
        e.save(tmp_path / f"b.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize("name", ["even", "output_padding", "convolution", "volume"])
def test_the_png_shows_both_colours(name, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "layer.png"
    e = explain(*LAYERS[name])
    e.save(path)
    scene = scene_of(e)
    with image.open(path) as held:
        pixels = np.asarray(held.convert("RGB"), np.int32)
    scale = pixels.shape[1] / scene.width
    for mark in scene.items:
        if getattr(mark, "kind", "") == "input" and not mark.strong:
            row, column = round(mark.y * scale), round((mark.x - mark.size * 0.4) * scale)  # beside the words
            assert np.abs(pixels[row, column] - (0x00, 0x72, 0xB2)).max() < 40
    assert (pixels.min(axis=(0, 1)) < 60).all()


def test_gif_moves(tmp_path):
    image = pytest.importorskip("PIL.Image")
    explain(dict(kernel_size=3, stride=2, padding=1), 4).save(tmp_path / "layer.gif")
    with image.open(tmp_path / "layer.gif") as held:
        assert held.n_frames == 7
        assert held.info["loop"] == 0
        first = np.asarray(held.convert("RGB"))
        held.seek(3)
        assert (np.asarray(held.convert("RGB")) != first).any()


def test_svg_moves_by_itself():
    e = explain(dict(kernel_size=4, stride=2, padding=1), (8, 8))
    root = ElementTree.fromstring(animated_svg(e))
    moving = root.findall(".//{http://www.w3.org/2000/svg}animate")
    assert len(moving) == 49
    starts = [float(m.get("keyTimes").split(";")[1]) for m in moving[1:]]
    assert starts == sorted(starts)
    assert "<script" not in animated_svg(e)
    assert len(animated_svg(e)) < 200_000


def test_the_frames_of_an_animation_are_the_still_pictures():
    """What is drawn once plus what a frame draws over it shows each cell as the still picture does."""
    for name in ("even", "output_padding", "convolution", "circular"):
        scenes = frames(explain(*LAYERS[name]))
        ground, moving = still_and_moving(scenes)
        for scene, own in zip(scenes, moving, strict=True):
            cells = {m.key: m for m in [*ground, *own] if getattr(m, "key", None) and m.key[0] != "t"}
            assert cells == {m.key: m for m in scene.items if getattr(m, "key", None) and m.key[0] != "t"}
            loose = {i for i in scene.items if not getattr(i, "key", None)}
            assert loose <= {*ground, *own}
            words = {i for i in [*ground, *own] if hasattr(i, "text")}
            assert words == {i for i in scene.items if hasattr(i, "text")}


def test_the_picture_stands_still_while_the_kernel_moves():
    for layer, size in LAYERS.values():
        e = explain(layer, size)
        if max(e.spec.kernel_size) > 2000:
            continue
        scenes = frames(e)
        places = [{(m.key, m.x, m.y) for m in s.items if getattr(m, "key", None)} for s in scenes]
        outputs = [{p for p in place if p[0][0] == "y"} for place in places]
        assert all(o == outputs[0] for o in outputs)
        assert len({s.items for s in scenes}) == len(scenes)


def test_errors_of_save(tmp_path, monkeypatch):
    e = explain(dict(kernel_size=3, stride=2), 3)
    with pytest.raises(SpecError) as caught:
        e.save(tmp_path / "layer.bmp")
    assert str(caught.value) == "'layer.bmp' ends in '.bmp': use .svg, .html, .png, .pdf, .gif"
    with pytest.raises(SpecError) as caught:
        e.save(tmp_path / "layer.png", animate=True)
    assert str(caught.value) == "a .png file does not move: animate into .gif or .svg"
    with pytest.raises(FileNotFoundError):
        e.save(tmp_path / "nowhere" / "layer.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as caught:
        e.save(tmp_path / "layer.png")
    assert str(caught.value) == (
        "this picture needs matplotlib: install it with `pip install upconv[plot]`, or save as .svg or .html, which need nothing"
    )
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="this picture needs pillow"):
        e.save(tmp_path / "layer.gif")
    assert list(tmp_path.iterdir()) == []
    assert need("math").pi > 3


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "layer.svg"
    path.write_text("old")
    monkeypatch.setattr("upconv.explain.svg.render", lambda scene: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain(dict(kernel_size=3), 3).save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["layer.svg"]


def test_no_kernels_and_no_llvm():
    folder = Path(package.__file__).parent
    for file in [*folder.glob("*.py"), folder.parent / "conventions.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(
                    ("llvmlite", "torch", "upconv.kernels", "upconv.codegen", "upconv.execute", "upconv.plan")
                )


# The command


def test_command(capsys):
    assert main(["explain", "3", "-k", "3", "-s", "2", "-p", "1", "--output-padding", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines()[:2] == TEXT.splitlines()[:2]
    assert "y[1] = x[0]*w[2] + x[1]*w[0]" in out


def test_command_singles_out_a_cell(capsys):
    assert main(["explain", "3,3", "-k", "4", "-s", "2", "-p", "1", "--at", "0,0"]) == 0
    assert "y[0,0] = x[0,0]*w[1,1]" in capsys.readouterr().out


def test_command_prints_code(capsys):
    assert main(["explain", "3,3", "-k", "4", "-s", "2", "-p", "1", "-c", "64,3", "--code", "keras"]) == 0
    assert "keras.layers.Conv2DTranspose(3, (4, 4), strides=(2, 2), padding='same'" in capsys.readouterr().out


def test_command_writes_a_picture(tmp_path, capsys):
    path = tmp_path / "layer.svg"
    assert main(["explain", "6", "-k", "4", "-s", "2", "-p", "1", "-o", str(path), "--animate"]) == 0
    assert "<animate" in path.read_text()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["5", "-k", "3", "--at", "9"], "output cell (9,) is outside output size (7,): positions count from 0"),
        (["5", "-k", "3", "-c", "4"], "channels is '4': give channels in and out, as in 64,3"),
        (["5", "-k", "3", "--animate"], "--animate draws a picture: say where with --output layer.gif or layer.svg"),
        (["5", "-k", "3", "--code", "caffe"], "framework is 'caffe': use one of torch, keras, jax, onnx, upconv"),
        (["5", "-k", "3", "-o", "layer"], "'layer' ends in 'nothing': use .svg, .html, .png, .pdf, .gif"),
    ],
)
def test_command_errors(arguments, text, capsys):
    assert main(["explain", *arguments]) == 2
    assert capsys.readouterr() == ("", f"upconv: {text}\n")


# The page, in a browser


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(path, script, folder):
    """The page's text nodes after `script` ran in it."""
    page = path.read_text().replace("</body>", f"<script>{script}</script></body>")
    path.write_text(page)
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom", path.as_uri()]
    return subprocess.run([BROWSER, *arguments], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("in_front", [True, False])
def test_the_page_answers_to_mouse_and_keyboard(in_front, tmp_path):
    # A window that is not in front sends no focus events: keys must do without them.
    e = explain(dict(kernel_size=4, stride=2, padding=1), (5, 5))
    path = tmp_path / "layer.html"
    e.save(path)
    script = """
      const told = () => document.querySelector(".told").textContent;
      const on = (side) => [...document.querySelectorAll(`.cell.${side}.on`)].map((c) => c.dataset.at).join(" ");
      const cell = (side, at) => document.querySelector(`.cell.${side}[data-at="${at}"]`);
      const log = [];
      const note = () => log.push([told(), on("x"), on("w"), on("y")].join(" | "));
      note();
      cell("y", "0,0").dispatchEvent(new MouseEvent("mouseenter")); note();
      cell("x", "4,4").dispatchEvent(new MouseEvent("mouseenter")); note();
      cell("y", "0,0").focus();
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true})); note();
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true})); note();
      log.push(document.querySelectorAll('[tabindex="0"]').length);
      const shown = document.body.appendChild(document.createElement("pre"));
      shown.id = "log";
      shown.textContent = log.join("\\n");
    """
    if not in_front:
        script = 'addEventListener("focus", (event) => event.stopImmediatePropagation(), true);' + script
    log = re.search(r'<pre id="log">(.*?)</pre>', browse(path, script, tmp_path / "profile"), re.S).group(1).splitlines()

    def line(cell):
        terms = e.sources(cell)
        at = ",".join(map(str, cell))
        total = " + ".join("x[{},{}]*w[{},{}]".format(*t.input, *t.tap) for t in terms)
        xs = sorted({"{},{}".format(*t.input) for t in terms})
        ws = sorted({"{},{}".format(*t.tap) for t in terms})
        return f"Output {at}: y[{at}] = {total} | {' '.join(xs)} | {' '.join(ws)} | {at}"

    assert [log[0], log[1], log[3], log[4]] == [line(e.example), line((0, 0)), line((0, 1)), line((1, 1))]
    reached = {"{},{}".format(*t.output) for t in e.reached((4, 4))}
    assert log[2].startswith("Input 4,4 reaches y[")
    assert set(log[2].split(" | ")[3].split()) == reached
    assert log[5] == "2", "one stop for Tab in each grid"


# The documentation's pictures

PICTURES = {
    "line.svg": (dict(kernel_size=4, stride=2, padding=1), 6, False),
    "grid.svg": (dict(kernel_size=3, stride=2, padding=1, output_padding=1), (5, 5), False),
    "moving.svg": (dict(kernel_size=4, stride=2, padding=1), (5, 5), True),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_the_documentation_are_current(name, update, tmp_path):
    layer, size, moving = PICTURES[name]
    kept = Path(__file__).parents[1] / "docs" / "pictures" / name
    made = kept if update else tmp_path / name
    explain(layer, size).save(made, animate=moving)
    assert made.read_text() == kept.read_text(), "run pytest --update"
