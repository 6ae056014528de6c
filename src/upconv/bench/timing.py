"""Fair timing: contenders in turn, in bursts, medians.

A contender's worker threads go on spinning for a while after its call and would be charged to the next one, so each burst
starts with a pause, until the process is idle, and one call that is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

PAUSE, LONGEST = 0.02, 0.3
"""Seconds of a pause, and of the longest: PyTorch's threads spin for 10 ms, ONNX Runtime's for 50 and more. Measured."""
IDLE = 0.1
"""Processors' worth of time that a process uses at most when it is taken to be idle."""
COUNTED = 3


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one contender: the median, the best, and how many calls were counted."""

    median: float
    best: float
    count: int


def settled(several: Sequence[Times]) -> Times:
    """What several races of one contender say together: a neighbour's work of seconds spoils one of them, and not their median.

    >>> settled([Times(2.0, 1.5, 12), Times(9.0, 2.0, 12), Times(2.5, 1.0, 12)])
    Times(median=2.5, best=1.0, count=36)
    """
    return Times(median(t.median for t in several), min(t.best for t in several), sum(t.count for t in several))


def rest() -> None:
    """Waits until no thread of the process spins on, but not for ever."""
    end = time.perf_counter() + LONGEST
    while True:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - used < IDLE * (time.perf_counter() - start) or time.perf_counter() > end:
            return


def race(calls: Mapping[str, Callable[[], Any]], seconds: float = 1.0, rounds: tuple[int, int] = (4, 40)) -> dict[str, Times]:
    """Times of every contender; rounds go on for about `seconds`, within the given least and most.

    Each round begins with another one: none is always the first after a contender that leaves much in the caches.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    turns = list(calls.items())
    begun, done = time.perf_counter(), 0
    while done < rounds[0] or (done < rounds[1] and time.perf_counter() - begun < seconds):
        first = done % len(turns)
        for name, call in turns[first:] + turns[:first]:
            rest()
            call()
            for _ in range(COUNTED):
                start = time.perf_counter()
                call()
                found[name].append(time.perf_counter() - start)
        done += 1
    return {name: Times(median(t), min(t), len(t)) for name, t in found.items()}
