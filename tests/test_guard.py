"""No kernel reads or writes outside its buffers: each is run between forbidden pages (see fences.py), in a process of its own."""

from __future__ import annotations

import signal
import sys

import pytest

import kernel_runs as runs
from processes import HERE, child

BEST, *OTHERS = runs.levels()
SOME = [(BEST, 2), *((level, 8) for level in OTHERS[-1:])]
ALL = [(BEST, 1), *((level, 8) for level in OTHERS[:-1])]


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect through libc")
@pytest.mark.parametrize(("level", "thin"), [*SOME, *(pytest.param(*case, marks=pytest.mark.long) for case in ALL)])
def test_every_buffer_between_forbidden_pages(level: str, thin: int) -> None:
    """Every `thin`-th layer on a target."""
    done = child(str(HERE / "fences.py"), level, str(thin))
    assert done.returncode == 0, f"died or strayed at\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    runs_done, _, rest = done.stdout.splitlines()[-1].partition(" runs, ")
    assert int(runs_done) > 100
    assert rest == "0 wrong"


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect through libc")
@pytest.mark.parametrize(
    "act",
    [
        "Fenced(True).hold(a).ctypes.data + a.nbytes).value",
        "Fenced(False).hold(a).ctypes.data - 1).value",
        "Fenced(True).room((5,), 'f4').ctypes.data + 20).value",
        "Fenced(True).hold(a).ctypes.data).value = 1",
    ],
    ids=["read behind", "read before", "read behind room", "write what is only read"],
)
def test_the_fences_hold(act: str) -> None:
    """The test above can fail: one byte outside, or one written where nothing may be, ends the process."""
    done = child(
        "-c", f"import ctypes, numpy as np\nfrom fences import Fenced\na = np.ones(5, 'f4')\nctypes.c_char.from_address({act}"
    )
    assert done.returncode == -signal.SIGSEGV, done.stderr
