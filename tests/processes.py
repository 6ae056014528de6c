"""Python processes of their own for tests whose failure would be a fault or a hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def child(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process with the tests and the package on its path, ended when `timeout` seconds are over."""
    path = os.pathsep.join([str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=env, check=False)


def said(code: str, timeout: float = 60, **environment: str) -> str:
    """What a program prints; it must end well, in time, and without a word on standard error."""
    done = child("-W", "error", "-c", code, timeout=timeout, **environment)
    assert (done.returncode, done.stderr) == (0, ""), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
