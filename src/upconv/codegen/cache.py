"""Compiled objects on disk: content-addressed, checksummed, private to the user, never trusted when in doubt.

A file is a magic line, the key it was stored under, the SHA-256 of the object, and the object. Anything that is not exactly
that (truncated, altered, another key's, another user's) is left alone and never executed; one warning says so.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MAGIC = b"upconv object 1\n"
MOST_ENTRIES = 4096
_HEADER = len(MAGIC) + 64
_warned = False


@dataclass(frozen=True, slots=True)
class Info:
    """Where the cache is, and how much it holds. `path` is None where there is no usable directory."""

    path: Path | None
    entries: int
    bytes: int


def _warn(reason: str) -> None:
    """One warning a process: a broken cache costs time, never correctness."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"upconv object cache ignored: {reason}; kernels are compiled anew", RuntimeWarning, stacklevel=3)


def _place() -> Path:
    import platformdirs

    chosen = os.environ.get("UPCONV_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("upconv", appauthor=False)) / "objects"


def _is_private(info: os.stat_result) -> bool:
    if not hasattr(os, "getuid"):
        return True
    return info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@lru_cache(maxsize=4)
def _directory(place: Path) -> Path | None:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_private(place.stat()):
            _warn(f"{place} belongs to, or can be written by, another user")
            return None
        return place
    except OSError as error:
        _warn(f"{place} cannot be used ({error.strerror})")
        return None


def directory() -> Path | None:
    """The cache directory, made if need be; None where it cannot be used or UPCONV_CACHE=off."""
    return None if os.environ.get("UPCONV_CACHE", "").lower() in ("off", "0") else _directory(_place())


def _file(key: bytes) -> Path | None:
    where = directory()
    return where / f"{key.hex()}.o" if where else None


def load(key: bytes) -> bytes | None:
    """The object stored under the 32-byte key, or None."""
    path = _file(key)
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            private = _is_private(os.fstat(file.fileno()))
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(f"{path.name} cannot be read ({error.strerror})")
        return None
    stored = data[_HEADER:]
    expected = MAGIC + key + hashlib.sha256(stored).digest()
    if not private or not stored or data[:_HEADER] != expected:
        _warn(f"{path.name} is damaged or not this user's")
        return None
    return stored


def save(key: bytes, stored: bytes) -> None:
    """Keep an object; written beside its place and renamed, so no reader ever sees half of it."""
    path = _file(key)
    if path is None:
        return
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(MAGIC + key + hashlib.sha256(stored).digest() + stored)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _prune(path.parent)
    except OSError as error:
        _warn(f"{path.parent} cannot be written ({error.strerror})")


def _entries(where: Path) -> list[tuple[Path, os.stat_result]]:
    """Every object there is; another process may drop one between its being listed and being looked at."""
    found = []
    for path in where.glob("*.o"):
        with suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found


def _prune(where: Path) -> None:
    """Drop the oldest objects beyond MOST_ENTRIES, and a few more, so that not every save has to look."""
    if sum(1 for _ in where.glob("*.o")) > MOST_ENTRIES:
        entries = sorted(_entries(where), key=lambda entry: entry[1].st_mtime)
        for path, _ in entries[: len(entries) - MOST_ENTRIES + MOST_ENTRIES // 16]:
            path.unlink(missing_ok=True)


def info() -> Info:
    """What the cache holds."""
    where = directory()
    sizes = [found.st_size for _, found in _entries(where)] if where else []
    return Info(where, len(sizes), sum(sizes))


def clear() -> int:
    """Remove every object; returns how many there were."""
    where = directory()
    entries = _entries(where) if where else []
    for path, _ in entries:
        path.unlink(missing_ok=True)
    return len(entries)
