"""What measuring has shown, kept in a readable file: which kernel runs a layer fastest on which processor.

The file is looked into once a process, when a layer is planned. It holds names and numbers only; a name that no kernel here
has is passed over. `upconv.wisdom` measures and writes it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from upconv import __version__
from upconv.codegen.target import Target
from upconv.planner import Advice
from upconv.spec import Problem, SpecError, times

FORMAT = "upconv wisdom 1"
Book = dict[str, dict[str, Advice]]
"""Processor -> (layer, sizes, dtype and threads in words) -> advice."""


def path() -> Path | None:
    """The file: UPCONV_WISDOM, or one in the user's data folder; None where UPCONV_WISDOM is off."""
    chosen = os.environ.get("UPCONV_WISDOM", "")
    if chosen.lower() in ("off", "0"):
        return None
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_data_dir("upconv", appauthor=False)) / "wisdom.json"


def processor(target: Target) -> str:
    """What of a processor decides which kernel is fastest."""
    return f"{target.cpu}, {target.name}, L1 {target.l1 >> 10} kB, L2 {target.l2 >> 10} kB"


def _upwards(size: int) -> int:
    """The power of two at or above: layers of like sizes share their advice.

    >>> [_upwards(n) for n in (1, 24, 32, 33)]
    [1, 32, 32, 64]
    """
    return 1 << (size - 1).bit_length()


def key(problem: Problem, threads: int, last: bool = False) -> str:
    """A problem in words, of arrays with their channels `last` or not. Activations do not matter, nor do sizes between two
    powers of two.
    """
    sizes = times([_upwards(n) for n in problem.input_size])
    layer = replace(problem.spec, activation=None)
    order = "; channels last" if last else ""
    return f"{layer}; batch to {_upwards(problem.batch)}; input to {sizes}; {problem.dtype}; threads {threads}{order}"


def lookup(problem: Problem, target: Target | None, threads: int, last: bool = False) -> Advice | None:
    """What measuring has shown about a problem, or one of like sizes; None where nothing."""
    if target is None:
        return None
    place = path()
    book = {} if place is None else _known(place)
    return book.get(processor(target), {}).get(key(problem, threads, last)) if book and problem.batch else None


@lru_cache(maxsize=4)
def _known(place: Path) -> Book:
    """The file's content as this process found it first; a file that cannot be read counts as empty, with one warning."""
    try:
        return read(place)
    except FileNotFoundError:
        return {}
    except (OSError, SpecError) as error:
        warnings.warn(f"wisdom ignored: {error}; plans follow estimates", RuntimeWarning, stacklevel=2)
        return {}


# -- files -----------------------------------------------------------------------------------------------------------------


def read(place: Path) -> Book:
    """The advice in a file, that of other versions of upconv left out: kernels change. Raises SpecError for another file."""
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise SpecError(f"{place} is damaged: it is no JSON") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SpecError(f'{place} is no wisdom of this library: its "format" is not "{FORMAT}"')
    try:
        return {
            str(name): {str(what): _advice(entry) for what, entry in entries.items() if entry["upconv"] == __version__}
            for name, entries in data["processors"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SpecError(
            f"{place} is damaged: an entry is not a kernel, its threads, and the seconds of the kernels measured"
        ) from None


def _advice(entry: Mapping[str, Any]) -> Advice:
    seconds = tuple((str(name), float(value)) for name, value in entry["seconds"].items())
    found = Advice(entry["kernel"], entry["threads"], seconds)
    if found.kernel not in dict(seconds) or not all(0 < value < math.inf for _, value in seconds):
        raise ValueError
    if not isinstance(found.threads, int) or found.threads < 1:
        raise ValueError
    return found


def write(place: Path, book: Book) -> None:
    """The advice as a file, written beside its place and renamed: no reader ever sees half of it."""
    entries = {
        name: {
            what: {"kernel": a.kernel, "threads": a.threads, "seconds": dict(a.seconds), "upconv": __version__}
            for what, a in sorted(advices.items())
        }
        for name, advices in sorted(book.items())
    }
    text = json.dumps({"format": FORMAT, "processors": entries}, indent=1) + "\n"
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def kept() -> Book:
    """What the user's file holds now. Raises SpecError where there can be none, or where another file is in its place."""
    place = path()
    if place is None:
        raise SpecError("UPCONV_WISDOM is off: unset it, or set it to a file")
    try:
        return read(place)
    except FileNotFoundError:
        return {}


def keep(book: Book) -> None:
    """Add advice to the user's file, in place of what it says about the same; plans made from now on follow it."""
    whole = kept()
    for name, entries in book.items():
        whole.setdefault(name, {}).update(entries)
    replace_all(whole)


def replace_all(book: Book) -> None:
    """Make this the whole of the user's file."""
    place = path()
    assert place is not None
    write(place, book)
    _known.cache_clear()
