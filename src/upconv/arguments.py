"""Arguments as they are looked up: a call like one that has been checked before is found by them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def hashable(value: Any) -> Any:
    """Lists as tuples, so that arguments can be looked up.

    >>> hashable((2, [1, [0, 1]]))
    (2, (1, (0, 1)))
    """
    return tuple(hashable(v) for v in value) if type(value) in (list, tuple) else value


def kinds(values: Sequence[Any]) -> tuple[Any, ...]:
    """The types of arguments, and of what lists and tuples among them hold: 2.0 is found where 2 was kept, and is not allowed.

    >>> kinds((2, [1, 2.0]))
    (<class 'int'>, (<class 'list'>, (<class 'int'>, <class 'float'>)))
    """
    found = tuple(map(type, values))
    if tuple in found or list in found:
        return tuple([(k, kinds(v)) if k is tuple or k is list else k for k, v in zip(found, values, strict=True)])
    return found


def found(known: dict[Any, T], key: Any) -> T | None:
    """What is known by a key, its lists taken as tuples; None where something in it has no hash.

    >>> found({(2, (1, 1)): "this"}, (2, [1, 1]))
    'this'
    """
    try:
        return known.get(key)
    except TypeError:
        with suppress(TypeError):
            return known.get(hashable(key))
    return None


def keep(known: dict[Any, T], key: Any, value: T, most: int) -> None:
    """Lets a value be found, unless something in the key has no hash; where `most` are known they make room."""
    with suppress(TypeError):
        if len(known) >= most:
            known.clear()
        known[hashable(key)] = value
