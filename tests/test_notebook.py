"""The notebooks in examples/: every cell runs, from the top, and prints what the file shows."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def run_cell(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """The cell's outputs as a notebook stores them: what it printed, and the value of a last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines(printed.getvalue())})
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        outputs.append({"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"})
    return outputs


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def shown(outputs: list[dict[str, Any]]) -> list[str]:
    """The text of outputs, whatever made them."""
    return ["".join(o["text"] if o["output_type"] == "stream" else o["data"]["text/plain"]) for o in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_shows_what_it_does(path: Path, update: bool) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    for number, cell in enumerate(cells, start=1):
        outputs = run_cell("".join(cell["source"]), names)
        if update:
            for output in outputs:
                if "execution_count" in output:
                    output["execution_count"] = number
            cell["outputs"], cell["execution_count"] = outputs, number
        assert shown(cell["outputs"]) == shown(outputs), "".join(cell["source"])
    if update:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def test_there_is_a_notebook() -> None:
    assert "transposed_convolution" in [path.stem for path in NOTEBOOKS]
