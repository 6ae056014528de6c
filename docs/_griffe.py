"""For mkdocstrings: examples in docstrings become code (see `_build.fenced`), and private parameters stay private."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from _build import fenced


class Public(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        func.parameters = griffe.Parameters(*(p for p in func.parameters if not p.name.startswith("_")))
