"""What every test runs under: the same hypothesis examples each time, and a cache of compiled kernels of its own."""

import os

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("upconv", deadline=None, derandomize=True, max_examples=50, print_blob=True)
settings.load_profile("upconv")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    cache = getattr(config, "cache", None)
    if cache is not None:
        os.environ.setdefault("UPCONV_CACHE_DIR", str(cache.mkdir("upconv") / "objects"))
        os.environ.setdefault("UPCONV_WISDOM", str(cache.mkdir("upconv") / "wisdom.json"))


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten (`pytest --update`)."""
    return bool(request.config.getoption("--update"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260)
