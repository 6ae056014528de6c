"""The object cache: whatever is wrong with it, one warning is given, nothing doubtful is run, and results are right."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import HERE, child, said
from upconv.codegen import cache

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
OBJECT = b"machine code " * 50
WINDOWS = sys.platform == "win32"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache directory, and a process that has not warned yet."""
    where = tmp_path / "objects"
    monkeypatch.setenv("UPCONV_CACHE_DIR", str(where))
    monkeypatch.delenv("UPCONV_CACHE", raising=False)
    monkeypatch.setattr(cache, "_warned", False)
    cache._directory.cache_clear()
    yield where
    cache._directory.cache_clear()


def stored_file(where: Path, key: bytes = KEY) -> Path:
    return where / f"{key.hex()}.o"


def warned_once(act: Callable[[], object], reason: str) -> None:
    """`act`, done twice, gives one warning that names the reason."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
        act()
    assert [w.category for w in seen] == [RuntimeWarning]
    text = str(seen[0].message)
    assert text.startswith("upconv object cache ignored: ")
    assert text.endswith("; kernels are compiled anew")
    assert reason in text


def test_what_is_saved_is_loaded_and_counted_and_cleared(place: Path) -> None:
    assert cache.load(KEY) is None
    cache.save(KEY, OBJECT)
    cache.save(OTHER, OBJECT[:-1])
    assert (cache.load(KEY), cache.load(OTHER)) == (OBJECT, OBJECT[:-1])
    assert cache.info() == cache.Info(place, 2, sum(p.stat().st_size for p in place.iterdir()))
    assert cache.clear() == 2
    assert cache.info() == cache.Info(place, 0, 0)
    assert cache.load(KEY) is None


def test_the_directory_and_its_files_are_private(place: Path) -> None:
    cache.save(KEY, OBJECT)
    if not WINDOWS:
        assert place.stat().st_mode & 0o777 == 0o700
        assert stored_file(place).stat().st_mode & 0o777 == 0o600
    assert [p.suffix for p in place.iterdir()] == [".o"]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "only a header": lambda data: data[: cache._HEADER],
    "half a header": lambda data: data[:40],
    "longer": lambda data: data + b"\0",
    "a flipped bit of the code": lambda data: flipped(data, len(data) - 5),
    "a flipped bit of the checksum": lambda data: flipped(data, cache._HEADER - 1),
    "another version's": lambda data: data.replace(b"object 1", b"object 0"),
    "another key's": lambda data: data.replace(KEY, OTHER),
    "something else": lambda data: b"\x7fELF" + b"\xcc" * 4000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_or_foreign_file_is_ignored_with_one_warning_and_replaced(place: Path, damage: Callable[[bytes], bytes]) -> None:
    cache.save(KEY, OBJECT)
    file = stored_file(place)
    file.write_bytes(damage(file.read_bytes()))
    warned_once(lambda: cache.load(KEY), f"{file.name} is damaged or not this user's")
    assert cache.load(KEY) is None
    cache.save(KEY, OBJECT)
    assert cache.load(KEY) == OBJECT


def test_every_single_cut_and_every_changed_byte_is_noticed(place: Path) -> None:
    cache.save(KEY, OBJECT)
    file = stored_file(place)
    whole = file.read_bytes()
    cache._warned = True  # one warning is tested above
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        assert cache.load(KEY) is None, f"cut at {at}"
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        assert cache.load(KEY) is None, f"changed at {at}"


@pytest.mark.skipif(WINDOWS, reason="POSIX owners, modes and links")
class TestOwnersAndLinks:
    def test_another_user_s_directory_is_not_used(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache.save(KEY, OBJECT)
        cache._directory.cache_clear()
        monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
        warned_once(lambda: cache.load(KEY), f"{place} belongs to, or can be written by, another user")
        assert cache.load(KEY) is None
        assert cache.info() == cache.Info(None, 0, 0)

    def test_another_user_s_file_is_not_used(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache.save(KEY, OBJECT)
        monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)  # the directory is known to be ours already
        warned_once(lambda: cache.load(KEY), "is damaged or not this user's")
        assert cache.load(KEY) is None

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
    def test_a_directory_that_others_can_write_is_not_used(self, place: Path, mode: int) -> None:
        place.mkdir()
        place.chmod(mode)
        warned_once(lambda: cache.save(KEY, OBJECT), "can be written by, another user")
        assert list(place.iterdir()) == []

    @pytest.mark.parametrize("mode", [0o620, 0o602])
    def test_a_file_that_others_can_write_is_not_used(self, place: Path, mode: int) -> None:
        cache.save(KEY, OBJECT)
        stored_file(place).chmod(mode)
        warned_once(lambda: cache.load(KEY), "is damaged or not this user's")
        assert cache.load(KEY) is None

    def test_a_link_is_not_followed(self, place: Path, tmp_path: Path) -> None:
        cache.save(KEY, OBJECT)
        file = stored_file(place)
        elsewhere = tmp_path / "elsewhere"
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
        warned_once(lambda: cache.load(KEY), f"{file.name} cannot be read")
        before = elsewhere.read_bytes()
        cache.save(KEY, OBJECT[::-1])  # takes the link's place, and leaves what it pointed to
        assert cache.load(KEY) == OBJECT[::-1]
        assert elsewhere.read_bytes() == before

    def test_a_directory_where_a_file_should_be(self, place: Path) -> None:
        place.mkdir(mode=0o700)
        stored_file(place).mkdir()
        warned_once(lambda: cache.load(KEY), "cannot be read")


def test_a_missing_directory_is_made_with_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "a" / "b" / "c"
    monkeypatch.setenv("UPCONV_CACHE_DIR", str(deep))
    cache.save(KEY, OBJECT)
    assert cache.load(KEY) == OBJECT
    assert cache.info().path == deep


def test_a_directory_removed_meanwhile_costs_a_warning(place: Path) -> None:
    cache.save(KEY, OBJECT)
    cache.clear()
    place.rmdir()
    assert cache.load(KEY) is None
    warned_once(lambda: cache.save(KEY, OBJECT), f"{place} cannot be written")
    assert cache.info().entries == 0


def test_a_place_that_cannot_be_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("UPCONV_CACHE_DIR", str(tmp_path / "file" / "objects"))
    warned_once(lambda: (cache.save(KEY, OBJECT), cache.load(KEY)), "cannot be used")
    assert cache.info() == cache.Info(None, 0, 0)
    assert cache.clear() == 0


def test_a_directory_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.tempfile, "mkstemp", refuse)
    warned_once(lambda: cache.save(KEY, OBJECT), f"{place} cannot be written (Permission denied)")


@pytest.mark.skipif(WINDOWS or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="modes do not bind root")
def test_a_read_only_directory_still_serves_what_it_holds(place: Path) -> None:
    cache.save(KEY, OBJECT)
    place.chmod(0o500)
    assert cache.load(KEY) == OBJECT
    warned_once(lambda: cache.save(OTHER, OBJECT), "cannot be written")


def test_a_full_disk_leaves_no_half_written_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(KEY, OBJECT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    warned_once(lambda: cache.save(OTHER, OBJECT), "cannot be written (No space left on device)")
    assert [p.name for p in place.iterdir()] == [stored_file(place).name]


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_a_cache_that_is_off_reads_and_writes_nothing(place: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(KEY, OBJECT)
    monkeypatch.setenv("UPCONV_CACHE", value)
    assert cache.load(KEY) is None
    cache.save(OTHER, OBJECT)
    assert cache.info() == cache.Info(None, 0, 0)
    assert cache.clear() == 0
    assert [p.name for p in place.iterdir()] == [stored_file(place).name]


def test_the_oldest_objects_give_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_ENTRIES", 3)
    keys = [bytes([i]) * 32 for i in range(5)]
    for age, key in enumerate(keys):
        cache.save(key, OBJECT)
        if stored_file(place, key).exists():
            os.utime(stored_file(place, key), (1000 + age, 1000 + age))
    assert cache.info().entries == 3
    assert cache.load(keys[0]) is None
    assert cache.load(keys[-1]) == OBJECT


def test_objects_that_others_drop_meanwhile_are_not_missed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that prunes lists the files first and looks at each afterwards; between the two another one may prune."""
    monkeypatch.setattr(cache, "MOST_ENTRIES", 3)
    keys = [bytes([i]) * 32 for i in range(5)]
    listed = Path.glob

    def and_one_gone(self: Path, pattern: str) -> list[Path]:
        return [*listed(self, pattern), self / "gone.o"]

    monkeypatch.setattr(Path, "glob", and_one_gone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for key in keys:
            cache.save(key, OBJECT)
        assert cache.info() == cache.Info(place, 3, 3 * stored_file(place, keys[-1]).stat().st_size)
        assert cache.load(keys[-1]) == OBJECT
        assert cache.clear() == 3


def test_processes_at_once_never_see_half_a_file(place: Path) -> None:
    """Four processes write and read the same keys; each load gives a whole object or none, without a warning."""
    code = """
import sys
from upconv.codegen import cache
seed = int(sys.argv[1])
seen = 0
for turn in range(150):
    key = bytes([turn % 5]) * 32
    got = cache.load(key)
    assert got is None or got == bytes([turn % 5]) * 20000, len(got)
    seen += got is not None
    cache.save(key, bytes([turn % 5]) * 20000)
print(seen)
"""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda seed: child("-W", "error", "-c", code, str(seed)), range(4)))
    assert [d.stderr for d in done] == [""] * 4
    assert min(int(d.stdout) for d in done) >= 145
    assert sorted(p.suffix for p in place.iterdir()) == [".o"] * 5


# -- from end to end --------------------------------------------------------------------------------------------------------------

CALL = """
import warnings
import numpy as np
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import upconv
    from upconv.codegen import jit
    compiled = []
    compile_object = jit.compile_object
    jit.compile_object = lambda *a: compiled.append(1) or compile_object(*a)
    y = upconv.conv_transpose(np.ones((2, 3, 9), "f4"), np.ones((3, 5, 4), "f4"), stride=2, padding=1)
    right = y.sum() == 2 * 5 * 3 * (9 * 4 - 2)
    z = upconv.conv_transpose(np.ones((2, 3, 9)), np.ones((3, 5, 3)), stride=3)  # another kernel, another object
    right = right and (z == 3).all()
print(bool(right), len(compiled) > 0, [w.category.__name__ for w in seen])
"""


def test_a_second_process_compiles_nothing(place: Path) -> None:
    assert said(CALL) == "True True []"
    assert said(CALL) == "True False []"


def test_a_wrecked_cache_is_never_executed(place: Path) -> None:
    """Every object replaced by bytes that would trap: the calls warn once, compile anew, are right, and mend the cache."""
    said(CALL)
    files = list(place.glob("*.o"))
    assert files
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: cache._HEADER] + b"\xcc" * (len(whole) - cache._HEADER))
    assert said(CALL) == "True True ['RuntimeWarning']"
    assert said(CALL) == "True False []"


def test_objects_under_each_other_s_names_are_never_executed(place: Path) -> None:
    said(CALL)
    files = sorted(place.glob("*.o"))
    contents = [file.read_bytes() for file in files]
    assert len(files) > 1
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)
    assert said(CALL) == "True True ['RuntimeWarning']"


def test_calls_are_right_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert said(CALL, UPCONV_CACHE="off") == "True True []"
    assert said(CALL, UPCONV_CACHE_DIR=str(tmp_path / "file" / "x")) == "True True ['RuntimeWarning']"


def test_the_key_tells_apart_all_that_changes_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from upconv.codegen import jit
    from upconv.codegen.target import host

    here = host()
    first = jit.key_of("a", here)
    assert first == jit.key_of("a", here)
    changes = [replace(here, cpu="other"), replace(here, features="+x"), replace(here, triple="riscv64"), replace(here, l2=1)]
    others = [jit.key_of("b", here), *(jit.key_of("a", t) for t in changes)]
    for name, value in (("OPTIMISATION", "O0"), ("_sources", lambda: b"edited")):
        with monkeypatch.context() as m:
            m.setattr(jit, name, value)
            others.append(jit.key_of("a", here))
    with monkeypatch.context() as m:
        m.setattr(jit.llvmlite, "__version__", "0.0")
        others.append(jit.key_of("a", here))
    with monkeypatch.context() as m:
        m.setattr(jit.llvm, "llvm_version_info", (1, 2, 3))
        others.append(jit.key_of("a", here))
    assert len({first, *others}) == 1 + len(others)


def test_the_tests_run_on_the_source_tree() -> None:
    assert (HERE.parent / "src" / "upconv" / "codegen" / "cache.py").samefile(cache.__file__)
