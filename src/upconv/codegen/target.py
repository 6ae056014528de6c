"""What the machine can do: vector width, registers, cache sizes. A plain value, so plans can be made for pretend targets."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

LINE = 64
"""Bytes of a cache line."""

LLVM = threading.RLock()
"""Held around every call of LLVM. A fork waits for it: llvmlite has a lock of its own that it does not let go in a child,
so a child forked while another thread is compiling could never compile."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LLVM.acquire, after_in_parent=LLVM.release, after_in_child=LLVM.release)


@dataclass(frozen=True, slots=True)
class Target:
    """A processor as the kernels see it. `name` stands in kernel names; sizes in bytes."""

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    l1: int
    l2: int
    masks: bool
    """Whether masked loads and stores cost about what plain ones do."""
    fma: bool = True
    fmas: int = 2
    """Multiply-adds of whole vectors that start in a cycle."""
    stalls: bool = False
    """Whether a store of a sum holds back the multiply-adds beside it: see STALLED."""
    hertz: float = 3e9
    """A nominal clock, for estimates that are compared with each other only."""

    @property
    def many_registers(self) -> bool:
        """Whether a tile's sums leave registers to spare, as 32 do and 16 do not."""
        return self.registers > 16

    @property
    def kind(self) -> int:
        """Which of the figures that were measured on three kinds of processors holds: with 16 registers (0), with 32 (1), and
        Intel's servers (2).

        Those start two multiply-adds of 64 bytes a cycle: sums are done in half the cycles, shuffles are not, and what comes from
        beyond the second-level cache takes twice as many.
        """
        if not self.many_registers:
            return 0
        return 2 if self.vector_bytes == 64 and self.fmas > 1 and not self.cpu.startswith("znver") else 1

    def lanes(self, itemsize: int) -> int:
        return self.vector_bytes // itemsize

    def vectors(self, itemsize: int) -> tuple[tuple[int, float], ...]:
        """(lanes, cycles of a multiply-add) of the vectors that tiles are made of: whole ones, and halves of those of 64 bytes.

        Halves waste fewer lanes of few columns, and where a multiply-add of whole ones takes a cycle they are little slower.
        """
        whole = (self.lanes(itemsize), 1 / self.fmas)
        return (whole, (whole[0] // 2, HALF)) if self.vector_bytes == 64 else (whole,)

    def peak_flops(self, itemsize: int) -> float:
        """Nominal flops a second of one thread."""
        return 2 * self.fmas * self.lanes(itemsize) * self.hertz


X86_LEVELS = {  # name -> (LLVM cpu, vector bytes, vector registers)
    "avx512": ("x86-64-v4", 64, 32),
    "avx2": ("x86-64-v3", 32, 16),
    "sse2": ("x86-64", 16, 16),
}

HALF = 0.53
"""Cycles of a multiply-add of 32 bytes beside vectors of 64: two start in a cycle, but a tile of 14 x 16 takes longer for as much
as one of 14 x 32 (1.17 for overlap-add of 512 and 1024 channels). Measured."""

STALLED = ("znver3",)
"""Processors, in LLVM's names, on which a vector's store keeps multiply-adds waiting for two cycles, unless what it stores comes
from a shuffle (`system.shuffled`). Of 25 to 35 cycles that a tile of 12 vectors takes besides its steps this saves 12 to 20, in the
caches; Winograd with sums in several parts is 1.01 to 1.04 times as fast, and 1.009 over 78 layers. Measured."""

HALVED = ("znver4", "cannonlake", "icelake-client", "tigerlake", "rocketlake")
"""Processors, in LLVM's names, that take vectors of 64 bytes in two halves, or on two units at once: one multiply-add a cycle."""


def _cache_size(index: int, default: int) -> int:
    """A data cache's size in bytes as Linux tells it, or the default."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().strip()
        return int(text.rstrip("KM")) * {"K": 1024, "M": 1 << 20}.get(text[-1], 1)
    except (OSError, ValueError):
        return default


def _host() -> tuple[str, str, dict[str, bool]]:
    import llvmlite.binding as llvm

    with LLVM:
        return llvm.get_default_triple(), llvm.get_host_cpu_name(), dict(llvm.get_host_cpu_features())


@lru_cache(maxsize=8)
def host(level: str | None = None) -> Target:
    """The machine this runs on; `level` (or UPCONV_TARGET) asks for less than it has: avx2 or sse2 on x86-64.

    Raises ValueError for a level the machine does not have.
    """
    triple, cpu, features = _host()
    flags = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()))
    level = level or os.environ.get("UPCONV_TARGET") or None
    l1, l2 = _cache_size(0, 32 << 10), _cache_size(2, 512 << 10)
    arch = triple.split("-")[0]
    if arch in ("x86_64", "amd64"):
        has = {
            "avx512": all(features.get(f) for f in ("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma")),
            "avx2": bool(features.get("avx2") and features.get("fma")),
            "sse2": True,
        }
        best = next(name for name in X86_LEVELS if has[name])
        chosen = level or best
        if not has.get(chosen, False):
            known = ", ".join(name for name in X86_LEVELS if has[name])
            raise ValueError(f"UPCONV_TARGET is {chosen!r}: this machine offers {known}")
        generic, width, registers = X86_LEVELS[chosen]
        if chosen != best:
            cpu, flags = generic, ""
        long, fmas = chosen == "avx512", 1 if chosen == "avx512" and cpu in HALVED else 2
        short, stalls = chosen == "sse2", chosen == "avx2" and cpu in STALLED
        return Target(chosen, triple, cpu, flags, width, registers, l1, l2, masks=long, fma=not short, fmas=fmas, stalls=stalls)
    if level:
        raise ValueError(f"UPCONV_TARGET is {level!r}: it is for x86-64, this machine is {arch}")
    if arch in ("aarch64", "arm64"):
        return Target("neon", triple, cpu, flags, 16, 32, l1, l2, masks=False)
    return Target("generic", triple, cpu, flags, 16, 16, l1, l2, masks=False)
