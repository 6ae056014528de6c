"""`upconv explore` as a person meets it: in a browser. And its parts: settings, guard, picture, the command's refusals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from browser import chromium
from upconv import ConvSpec, SpecError, conv_transpose, explain
from upconv.cli import main
from upconv.explore import Settings, page, picture, server

SOURCE = str(Path(__file__).parents[1] / "src")
COMMAND = [sys.executable, "-c", "import sys; from upconv.cli import main; sys.exit(main())", "explore"]


@contextmanager
def served() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The explorer, served by the command itself on a free port, and its address."""
    pytest.importorskip("marimo", reason="the extra `explore` is absent")
    paths = os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH"))))
    arguments = [*COMMAND, "--port", "0", "--no-browser"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"upconv explore: (http://127\.0\.0\.1:\d+/) \(stop with Ctrl\+C\)\n", line)
            assert match, line
            yield process, match[1]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as (_, found):
        yield found


@pytest.fixture(scope="module")
def tab(address: str) -> Iterator[Any]:
    """One browser tab for the module; every request it makes is written down."""
    with chromium(viewport={"width": 1400, "height": 1600}, accept_downloads=True) as opened:
        opened.asked = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        yield opened


def visit(tab: Any, address: str, query: str = "") -> None:
    tab.goto(address + query)
    tab.get_by_test_id("sizes").or_(tab.get_by_role("alert")).first.wait_for()
    control(tab, "layer").wait_for()


def expect_sizes(tab: Any, text: str) -> None:
    from playwright.sync_api import expect

    expect(tab.get_by_test_id("sizes")).to_have_text(text, timeout=30_000)


def control(tab: Any, label: str) -> Any:
    """The control that a person sees: marimo keeps a second sidebar, hidden, for narrow windows."""
    return tab.get_by_label(label, exact=True).filter(visible=True)


FOCUSED = """() => { let at = document.activeElement; while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  return at.getAttribute("aria-label") || at.labels?.[0]?.innerText || at.tagName; }"""


def set_number(tab: Any, label: str, value: int) -> None:
    field = control(tab, label)
    field.fill(str(value))
    field.press("Enter")


def cells(tab: Any) -> Any:
    return tab.frame_locator("iframe")


class TestInTheBrowser:
    def test_a_control_changes_the_output_size(self, tab: Any, address: str) -> None:
        visit(tab, address)
        expect_sizes(tab, "5x5 → 10x10")
        set_number(tab, "stride", 3)
        expect_sizes(tab, "5x5 → 14x14")
        tab.get_by_text("(5 - 1)*3 - 1 - 1 + 1*(4 - 1) + 0 + 1 = 14").nth(1).wait_for()
        assert tab.get_by_text("(5 - 1)*3 - 1 - 1 + 1*(4 - 1) + 0 + 1 = 14").count() == 2
        cells(tab).get_by_text("input 5x5 -> output 14x14", exact=True).wait_for()

    def test_the_keyboard_alone_is_enough(self, tab: Any, address: str) -> None:
        """From the first control to the last by Tab; numbers step by arrows, cells are walked by arrows."""
        visit(tab, address, "?size=4&kernel=4&stride=2&padding=1")
        expect_sizes(tab, "4 → 8")
        control(tab, "layer").focus()
        met = []
        for _ in range(40):
            tab.keyboard.press("Tab")
            name = tab.evaluate(FOCUSED)
            met.append(name)
            if name == "output_padding":
                tab.keyboard.press("ArrowUp")
                expect_sizes(tab, "4 → 9")
            if name == "groups":
                break
        settings = ["dimensions", "input size", "kernel", "stride", "padding", "output_padding", "dilation", "padding_mode"]
        assert [name for name in met if name in (*settings, "in_channels", "out_channels", "groups")] == [
            *settings,
            "in_channels",
            "out_channels",
            "groups",
        ]
        frame = cells(tab)
        frame.locator(".y[data-at='4']").wait_for()
        frame.locator(".y[data-at='2']").focus()
        tab.keyboard.press("ArrowRight")
        frame.locator(".told").get_by_text("Output 3: y[3] = x[1]*w[2] + x[2]*w[0]").wait_for()

    def test_pointing_at_an_output_shows_its_inputs_and_taps(self, tab: Any, address: str) -> None:
        visit(tab, address, "?size=4,4&kernel=3&stride=2&padding=1")
        expect_sizes(tab, "4x4 → 7x7")
        frame = cells(tab)
        frame.locator(".y[data-at='2,3']").hover()
        frame.locator(".told").get_by_text("Output 2,3: y[2,3] = x[1,1]*w[1,2] + x[1,2]*w[1,0]").wait_for()
        assert frame.locator(".x.on").evaluate_all("all => all.map(e => e.dataset.at)") == ["1,1", "1,2"]
        assert frame.locator(".w.on").evaluate_all("all => all.map(e => e.dataset.at)") == ["1,0", "1,2"]
        frame.locator(".x[data-at='0,0']").hover()
        frame.locator(".told").get_by_text("Input 0,0 reaches y[0,0] through w[1,1]").wait_for()

    def test_the_frame_is_as_tall_as_its_picture(self, tab: Any, address: str) -> None:
        visit(tab, address)
        cells(tab).locator(".help").wait_for()
        tab.wait_for_function(
            "() => { const f = document.querySelector('iframe'), h = f.contentDocument.querySelector('.help');"
            " const rest = f.clientHeight - h.getBoundingClientRect().bottom; return 0 <= rest && rest < 80; }"
        )

    def test_an_impossible_setting_says_why_and_comes_back(self, tab: Any, address: str) -> None:
        visit(tab, address)
        set_number(tab, "output_padding", 2)
        told = tab.get_by_role("alert")
        told.get_by_text("output_padding[0] is 2: it must be smaller than stride 2 or dilation 1").wait_for()
        tab.locator("iframe").wait_for(state="detached")
        set_number(tab, "output_padding", 1)
        expect_sizes(tab, "5x5 → 11x11")
        set_number(tab, "groups", 2)
        told.get_by_text("in_channels 1 is not divisible by groups 2").wait_for()
        set_number(tab, "in_channels", 2)
        told.get_by_text("out_channels 1 is not divisible by groups 2").wait_for()
        set_number(tab, "out_channels", 4)
        expect_sizes(tab, "5x5 → 11x11")
        set_number(tab, "stride", 0)
        told.get_by_text("stride[0] is 0: it must be at least 1").wait_for()

    def test_dimensions_for_themselves_begin_where_all_were(self, tab: Any, address: str) -> None:
        visit(tab, address)
        set_number(tab, "kernel", 6)
        expect_sizes(tab, "5x5 → 12x12")
        control(tab, "dimensions").select_option("3")
        expect_sizes(tab, "5x5x5 → 12x12x12")
        control(tab, "each dimension for itself").click()
        set_number(tab, "kernel depth", 2)
        expect_sizes(tab, "5x5x5 → 8x12x12")
        control(tab, "padding before and after apart").click()
        control(tab, "padding after width").wait_for()
        tab.wait_for_timeout(1000)  # new fields are seen a moment before they listen
        set_number(tab, "padding after width", 0)
        expect_sizes(tab, "5x5x5 → 8x12x13")

    def test_an_address_says_every_dimension(self, tab: Any, address: str) -> None:
        visit(tab, address, "?size=3,4,5&kernel=3&stride=2,2,1&padding=1,1,0:1&output_padding=1,0,0")
        expect_sizes(tab, "3x4x5 → 6x7x6")
        control(tab, "padding before and after apart").click()
        control(tab, "each dimension for itself").click()
        expect_sizes(tab, "3x3x3 → 6x6x6")  # what holds for all is what the first dimension had

    def test_a_convolution_has_no_output_padding(self, tab: Any, address: str) -> None:
        visit(tab, address)
        control(tab, "layer").select_option("convolution")
        expect_sizes(tab, "5x5 → 2x2")
        control(tab, "output_padding").wait_for(state="hidden")
        tab.get_by_text("Pictures go through transposed layers of 2 dimensions; this is a Conv2d.").wait_for()

    def test_a_picture_goes_through_three_kinds_of_weights(self, tab: Any, address: str, tmp_path: Path) -> None:
        visit(tab, address, "?size=4,4&kernel=4&stride=2&padding=1")
        place = tmp_path / "step.png"
        pixels = np.zeros((10, 14, 3), np.uint8)
        pixels[:, 7:] = (255, 128, 0)
        Image.fromarray(pixels).save(place)
        tab.locator("input[type=file]").set_input_files(place)
        tab.get_by_alt_text("the input, 14 x 10").wait_for()
        shown = tab.get_by_alt_text("the output with bilinear weights, 28 x 20")
        shown.wait_for()
        tab.get_by_alt_text("the output with random weights, 28 x 20").wait_for()
        tab.get_by_alt_text("the output with ICNR weights, 28 x 20").wait_for()
        data = shown.get_attribute("src").partition("base64,")[2]
        got = np.asarray(Image.open(BytesIO(b64decode(data))), np.float64)
        triangle = np.outer(*[np.array([0.25, 0.75, 0.75, 0.25])] * 2)[None, None]
        x = pixels.astype(np.float64).transpose(2, 0, 1)[:, None]
        expected = conv_transpose(x, triangle, stride=2, padding=1)[:, 0].transpose(1, 2, 0)
        assert np.abs(got - expected).max() <= 0.51
        tab.get_by_text("checkerboard: constant clean").nth(1).wait_for()
        assert tab.get_by_text("checkerboard: constant clean").count() == 2

    def test_a_file_that_is_no_picture_says_so(self, tab: Any, address: str, tmp_path: Path) -> None:
        visit(tab, address)
        place = tmp_path / "not.png"
        place.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
        tab.locator("input[type=file]").set_input_files(place)
        tab.get_by_role("alert").get_by_text("this file cannot be read as a PNG or JPEG picture").wait_for()

    def test_the_code_and_the_page_can_be_taken_away(self, tab: Any, address: str, tmp_path: Path) -> None:
        visit(tab, address)
        tab.get_by_text("Code to copy", exact=True).click()
        tab.get_by_role("tab", name="Keras").click()
        tab.get_by_role("tabpanel").get_by_text("keras.layers.Conv2DTranspose(1, (4, 4)").filter(visible=True).first.wait_for()
        tab.get_by_text("Keep it", exact=True).click()
        with tab.expect_download() as caught:
            tab.get_by_text("Save this layer as layer.html").click()
        place = tmp_path / "layer.html"
        caught.value.save_as(place)
        spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=(4, 4), stride=2, padding=1)
        assert place.read_text(encoding="utf-8") == explain.explain(spec, (5, 5)).html()

    def test_a_wrong_address_is_said_as_text(self, tab: Any, address: str) -> None:
        visit(tab, address, "?size=<img src=x onerror=document.title='taken'>")
        tab.get_by_role("alert").get_by_text(
            "size is \"<img src=x onerror=document.title='taken'>\": give a whole number"
        ).wait_for()
        assert tab.title() == "upconv explore"

    def test_nothing_else_was_asked_of_any_network(self, tab: Any, address: str) -> None:
        assert tab.asked
        assert [url for url in tab.asked if not url.startswith((address, "data:", "blob:", "about:"))] == []


class TestAnExplanationInTheBrowser:
    """What a notebook shows (`_repr_html_`, its scripts run as notebooks run them) and the exported file."""

    @pytest.fixture
    def blank(self, tab: Any) -> Iterator[Any]:
        opened = tab.context.new_page()
        tab.context.set_offline(True)
        yield opened
        tab.context.set_offline(False)
        opened.close()

    def test_in_a_notebook_every_display_answers_for_itself(self, blank: Any) -> None:
        blank.set_content("<div id=one></div><div id=two></div>")
        shown = [explain.explain(dict(kernel_size=4, stride=2, padding=1), n)._repr_html_() for n in (3, (3, 3))]
        # As Jupyter puts an output into its page: the HTML, then its scripts made anew so that they run.
        place = """([id, html]) => { const at = document.getElementById(id); at.innerHTML = html;
          for (const old of at.querySelectorAll("script")) { const made = document.createElement("script");
            made.textContent = old.textContent; old.replaceWith(made); } }"""
        for name, html in zip(("one", "two"), shown, strict=True):
            blank.evaluate(place, [name, html])
        blank.locator("#one .y[data-at='4']").hover()
        blank.locator("#two .y[data-at='0,1']").hover()
        assert blank.locator("#one .told").inner_text() == "Output 4: y[4] = x[1]*w[3] + x[2]*w[1]"
        assert blank.locator("#two .told").inner_text() == "Output 0,1: y[0,1] = x[0,0]*w[1,2] + x[0,1]*w[1,0]"
        assert blank.locator("#one .x.on").count() == 2

    def test_the_exported_file_needs_nothing_else(self, blank: Any, tmp_path: Path) -> None:
        place = tmp_path / "layer.html"
        assert main(["explore", "size=6&kernel=3&stride=2&padding=1&output_padding=1", "--export", str(place)]) == 0
        blank.goto(place.as_uri())
        blank.locator(".x[data-at='5']").focus()
        blank.keyboard.press("ArrowLeft")
        told = "Input 4 reaches y[7] through w[0], y[8] through w[1], y[9] through w[2]"
        assert blank.locator(".told").inner_text() == told
        blank.get_by_text("Code for PyTorch").click()
        assert "output_padding=(1,)" in blank.locator("pre").first.inner_text()


numbers = st.integers(0, 9)


@given(st.data())
def test_settings_survive_the_address(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    row = st.tuples(*[numbers] * rank)
    settings = Settings(
        *(data.draw(row) for _ in range(3)),
        padding=data.draw(st.tuples(*[st.tuples(numbers, numbers)] * rank)),
        output_padding=data.draw(row),
        dilation=data.draw(row),
        transposed=data.draw(st.booleans()),
        in_channels=data.draw(numbers),
        groups=data.draw(numbers),
        padding_mode=data.draw(st.sampled_from(("zeros", "circular"))),
    )
    from urllib.parse import parse_qsl

    assert Settings.read(dict(parse_qsl(settings.query()))) == settings


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"size": "3,4,5,6"}, "4 spatial dimensions: layers have 1, 2 or 3"),
        ({"size": "3,4", "kernel": "1,2,3"}, "size '3,4' has 2 values: give one, or 3 for 3 dimensions"),
        ({"padding": "1:x"}, "padding is 'x': give a whole number"),
        (
            {"strides": "2"},
            "'strides' is no setting: use size, kernel, stride, padding, output_padding, dilation, transposed, "
            "in_channels, out_channels, groups, padding_mode",
        ),
    ],
)
def test_a_wrong_query(query: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        Settings.read(query)
    assert str(caught.value) == words


def test_an_emptied_field_is_told() -> None:
    with pytest.raises(SpecError, match=r"^kernel_size\[1\] is None: give a whole number of at least 1$"):
        Settings(kernel=(3, None)).spec()


class TestThePicture:
    layer = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=(4, 4), stride=2, padding=1)

    def test_random_weights_make_a_checkerboard_and_icnr_none(self) -> None:
        flat = np.full((8, 8, 3), 0.5, np.float32)
        inner = {kind: picture.enlarge(flat, self.layer, kind, 3).pixels[2:-2, 2:-2] for kind in picture.WEIGHTS}
        assert np.ptp(inner["bilinear"]) == np.ptp(inner["ICNR"]) == 0
        assert np.ptp(inner["random"]) > 0.05
        assert abs(inner["ICNR"].mean() - 0.5) < 1e-6

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            (
                dict(kernel_size=(3, 3)),
                "kernel 3x3 is not a multiple of stride 2x2: icnr gives every phase the same taps; use kernel 4x4",
            ),
            (dict(kernel_size=3), "ConvTranspose1d takes no picture here: choose a transposed layer of 2 dimensions"),
            (dict(stride=900), "the output would have 42302x56702 pixels: use a smaller stride or kernel"),
        ],
    )
    def test_what_a_layer_cannot_do_is_told(self, changed: dict[str, Any], words: str) -> None:
        arguments = dict(transposed=True, in_channels=1, out_channels=1, kernel_size=(4, 4), stride=2, padding=1) | changed
        with pytest.raises(SpecError) as caught:
            picture.enlarge(picture.sample(), ConvSpec.make(**arguments), "ICNR")
        assert str(caught.value) == words

    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
    def test_every_kind_of_png_is_read(self, mode: str) -> None:
        file = BytesIO()
        Image.new(mode, (30, 20)).save(file, "PNG")
        assert picture.read(file.getvalue()).shape == (20, 30, 3)

    def test_large_pictures_are_shrunk_and_larger_ones_refused(self) -> None:
        file = BytesIO()
        Image.new("RGB", (1000, 500)).save(file, "JPEG")
        assert max(picture.read(file.getvalue()).shape) <= picture.LONGEST
        file = BytesIO()
        Image.new("1", (10_000, 6000)).save(file, "PNG")
        with pytest.raises(SpecError, match=r"^the picture has 10000x6000 pixels: give one of at most 50000000$"):
            picture.read(file.getvalue())


def test_a_larger_field_for_each_dimension() -> None:
    typed = {f"{name} {d}": d + 1 for name in ("size", "kernel", "stride", "padding", "dilation") for d in range(2)}
    found = page.values(typed | {"padding after 1": 7}, 2, transposed=False)
    assert found["padding"] == ((1, 1), (2, 7))
    assert found["output_padding"] == (0, 0)


class TestTheServer:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
    def test_other_interfaces_are_refused(self, host: str, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("marimo")
        assert main(["explore", "--host", host, "--no-browser"]) == 2
        told = f"upconv: host is {host!r}: the explorer answers to this machine only; use one of 127.0.0.1, localhost, ::1\n"
        assert capsys.readouterr().err == told

    def test_a_port_in_use_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("marimo")
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            port = held.getsockname()[1]
            assert main(["explore", "--port", str(port), "--no-browser"]) == 2
        told = f"upconv: port {port} cannot be used (Address already in use): choose another, or 0 for any that is free\n"
        assert capsys.readouterr().err == told

    def test_other_pages_are_turned_away(self, address: str) -> None:
        from urllib.error import HTTPError

        assert urlopen(Request(address), timeout=60).status == 200
        for headers in ({"Host": "elsewhere.example"}, {"Origin": "http://elsewhere.example"}, {"Origin": "null"}):
            with pytest.raises(HTTPError) as caught:
                urlopen(Request(address, headers=headers), timeout=60)
            assert caught.value.code == 403
            caught.value.close()

    def test_a_foreign_socket_is_closed(self) -> None:
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        async def never(*_: Any) -> None:
            raise AssertionError("the request went through")

        headers = [(b"host", b"127.0.0.1:8741"), (b"origin", b"https://elsewhere.example")]
        coroutine = server.Guard(never)({"type": "websocket", "headers": headers}, receive, send)
        with pytest.raises(StopIteration):
            coroutine.send(None)
        assert said == [{"type": "websocket.close", "code": 1008}]

    def test_it_stops_when_asked(self) -> None:
        with served() as (process, address):
            urlopen(address, timeout=60).close()  # from now on it listens to signals, even where its parent ignores them
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0


def test_without_marimo_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "marimo", None)
    assert main(["explore", "--no-browser"]) == 2
    assert capsys.readouterr().err == "upconv: the explorer needs marimo: install it with `pip install 'upconv[explore]'`\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernel"], "settings are 'kernel': write them as in size=6,6&kernel=4&stride=2"),
        (["size=3&kernel=9&padding=8", "--export", "a.html"],
         "ConvTranspose1d 1 -> 1, kernel 9, padding 8 on input 3 gives output (-5,): every size must be at least 1; "
         "use less padding, a larger kernel or a larger input"),
        (["size=3", "--export", "a.pdf"], "'a.pdf' ends in '.pdf': the export is one .html file"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_a_line(arguments: list[str], words: str, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explore", *arguments]) == 2
    assert capsys.readouterr().err == f"upconv: {words}\n"
    assert list(tmp_path.iterdir()) == []
