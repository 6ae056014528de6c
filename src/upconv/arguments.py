"""Arguments as they are looked up: a call like one that has been checked before is found by them."""

from __future__ import annotations

from typing import Any


def hashable(value: Any) -> Any:
    """Lists as tuples, so that arguments can be looked up.

    >>> hashable((2, [1, [0, 1]]))
    (2, (1, (0, 1)))
    """
    return tuple(hashable(v) for v in value) if type(value) in (list, tuple) else value


def kinds(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of arguments, and of what lists and tuples among them hold: 2.0 is found where 2 was kept, and is not allowed.

    >>> kinds((2, [1, 2.0]))
    (<class 'int'>, (<class 'list'>, <class 'int'>, <class 'float'>))
    """
    found = tuple(map(type, values))
    if tuple in found or list in found:
        return tuple((k, *kinds(tuple(v))) if k in (list, tuple) else k for k, v in zip(found, values, strict=True))
    return found
