"""Shows that work goes on when it takes more than a second: a clock on a terminal, one line elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 1.0  # seconds before anything is shown


@contextmanager
def working(text: str, patience: float = PATIENCE) -> Iterator[None]:
    """While the block runs longer than `patience` seconds, say on standard error that `text` is under way."""
    console = Console(stderr=True)
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True)
    bar.add_task(text, total=None)

    def show() -> None:
        if console.is_terminal:
            bar.start()
        else:
            console.print(f"{text} ...", highlight=False, markup=False, soft_wrap=True)

    timer = threading.Timer(patience, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if bar.live.is_started:
            bar.stop()
