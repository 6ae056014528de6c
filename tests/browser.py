"""A real browser for the tests: Debian's chromium, driven by Playwright.

Where there is none, a test skips with the reason; in CI it fails instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _executable() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") == "true":  # elsewhere, nobody's system is changed by a test
        subprocess.run([Path(__file__).parents[1] / "scripts" / "install-browser"], check=False)
        found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        _missing("no Chromium here: scripts/install-browser installs it")
    return str(found)


@contextmanager
def chromium(**context: Any) -> Iterator[Any]:
    """A browser's page that may reach nothing but this machine; closed at the end."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("Playwright is absent: pip install playwright")
    executable = _executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(30_000)
        try:
            yield page
        finally:
            browser.close()
