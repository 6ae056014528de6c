"""The site: it builds strictly and offline, its pictures are drawn, its examples run, and it reads in a browser."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from browser import chromium

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails the build, and so does any connection."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is absent")
    made = tmp_path_factory.mktemp("site")
    offline = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('the site must build offline')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "sys.argv = ['mkdocs', 'build', '--strict', '--quiet', '--site-dir', sys.argv[1]]\n"
        "from mkdocs.__main__ import cli\ncli()\n"
    )
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, "-c", offline, str(made)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if "import torch" in text or ("upconv.torch" in text and ">>>" in text):
        pytest.importorskip("torch")
    parser = doctest.DocTestParser()
    example = parser.get_doctest(text, {"__name__": "__main__"}, page.name, str(page), 0)
    found = doctest.DocTestRunner(optionflags=OPTIONS).run(example)
    assert found.failed == 0
    assert found.attempted == text.count(">>> ")


def test_both_tutorials_show_the_same_examples() -> None:
    english, korean = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("tutorial.md", "tutorial.ko.md"))
    fences = [re.findall(r"```pycon\n.*?```", text, re.DOTALL) for text in (english, korean)]
    assert fences[0] == fences[1]
    assert len(re.findall(r"^## ", english, re.MULTILINE)) == len(re.findall(r"^## ", korean, re.MULTILINE))
    words = re.sub(r"```.*?```|`[^`]*`|\(.*?\)", "", korean, flags=re.DOTALL)
    assert len(re.findall(r"[가-힣]", words)) > 3 * len(re.findall(r"[A-Za-z]", words))


def test_every_page_is_in_the_site_with_its_pictures(site: Path) -> None:
    for page in PAGES:
        html = (site / ("" if page.stem == "index" else page.stem) / "index.html").read_text(encoding="utf-8")
        for picture in re.findall(r"\]\(pictures/([\w-]+\.svg)\)", page.read_text(encoding="utf-8")):
            assert f"pictures/{picture}" in html
            assert (site / "pictures" / picture).read_text(encoding="utf-8").startswith("<svg")


def test_each_algorithm_has_a_page_with_a_picture() -> None:
    pages = {"weight_grad": "weight_gradient", "indirect_first": "direct", "direct_rows": "direct"}
    kernels = ("direct", "indirect_first", "winograd", "strassen", "overlap_add", "depthwise", "weight_grad")
    for kernel, page in ((kernel, pages.get(kernel, kernel)) for kernel in kernels):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert f"upconv/kernels/{kernel}.py" in text
        assert "](pictures/" in text
    from upconv import planner

    families = {re.sub("_(middle|wide|widest|streamed|rows|twice)$", "", kernel.NAME) for kernel in planner.CANDIDATES}
    assert families <= set(kernels)


def test_the_reference_shows_signatures_and_examples(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "reference" / "index.html").read_text(encoding="utf-8"))
    for words in ("output_size", "padding_mode", "Raises SpecError", "&gt;&gt;&gt; "):
        assert words in text
    assert "```" not in text
    assert "_rank" not in text
    html = (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in html  # what a doctest becomes that was taken for a quotation


def test_it_reads_in_a_browser(site: Path) -> None:
    asked, failed = [], []
    with chromium(viewport={"width": 1200, "height": 900}) as tab:
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("requestfailed", lambda request: failed.append(request.url))
        for name in ("index.html", "direct/index.html", "tutorial.ko/index.html"):
            tab.goto((site / name).as_uri())
            tab.locator("h1").wait_for()
            widths = tab.locator("article img").evaluate_all("all => all.map(e => e.naturalWidth)")
            assert widths
            assert min(widths) > 100
        tab.get_by_role("heading", name="크게 만들기").wait_for()
    assert failed == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
