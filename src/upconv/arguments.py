"""Arguments as they are looked up: a call like one that has been checked before is found by them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from operator import is_
from typing import Any, Generic, TypeVar

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


class _Like:
    """Calls whose keys are equal: the arguments of one of them, with what is known of it, and that by the types of arguments."""

    __slots__ = ("arguments", "by_kinds", "value")

    def __init__(self, arguments: tuple[Any, ...], value: Any):
        self.arguments, self.value, self.by_kinds = arguments, value, {kinds(arguments): value}


class Calls(Generic[T]):
    """What is known of calls, by keys whose last part are the arguments, a tuple; at most so many, which then make room.

    >>> calls = Calls(most=2)
    >>> calls.keep(("x", (2, (1, 1))), "this")
    >>> calls.find(("x", (2, (1, 1)))), calls.find(("x", (2.0, (1, 1)))), calls.find(("x", (2, [1, 1])))
    ('this', None, None)
    """

    def __init__(self, most: int):
        self._most, self._known = most, dict[Any, _Like]()

    def find(self, key: tuple[Any, ...]) -> T | None:
        """What is kept of a call with equal arguments of the same types; None where something in the key has no hash."""
        arguments = key[-1]
        try:
            like = self._known.get(key)
            if like is not None and all(map(is_, arguments, like.arguments)):  # nothing that has a hash changes its type
                return like.value  # type: ignore[no-any-return]
        except TypeError:
            try:
                like = self._known.get(hashable(key))
            except TypeError:
                return None
        return None if like is None else like.by_kinds.get(kinds(arguments))

    def keep(self, key: tuple[Any, ...], value: T) -> None:
        """Lets a value be found, unless something in the key has no hash."""
        with suppress(TypeError):
            whole, arguments = hashable(key), key[-1]
            like = self._known.get(whole)
            if like is not None:
                like.by_kinds[kinds(arguments)] = value
                return
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[whole] = _Like(arguments, value)

    def clear(self) -> None:
        """Forgets all."""
        self._known.clear()

    def __len__(self) -> int:
        return sum(len(like.by_kinds) for like in self._known.values())
