"""Timing contenders against each other in one process, in turn and in bursts.

A contender's worker threads spin on for a while after its call and would be charged to the next one: so each burst
begins with a pause and a call that is not counted. Compare only what was measured in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter, sleep
from typing import Any

PAUSE = 0.003


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int = 3, budget: float = 2.0) -> dict[str, float]:
    """The median seconds of each contender: `rounds` bursts of three counted calls, of one where calls are long.

    `budget` is the time a contender may take in all before its bursts are cut to one call.
    """
    once = {name: _seconds(call) for name, call in contenders.items()}  # also makes whatever is made on first use
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            sleep(PAUSE)
            call()
            counted = 3 if once[name] * 4 * rounds < budget else 1
            times[name] += [_seconds(call) for _ in range(counted)]
    return {name: median(values) for name, values in times.items()}
