"""From IR text to callable code: optimise, emit an object, keep it, load it.

A kernel is asked for by its parameters; the IR is written only if neither this process nor the object cache has the code.
The key holds everything that can change the code: the parameters, a hash of the generating sources, the target, and the
versions of llvmlite and LLVM.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from upconv.codegen import cache
from upconv.codegen.target import LLVM, Target

try:
    import llvmlite
    import llvmlite.binding as llvm
except (ImportError, OSError):  # not installed, or built for another machine: the reference kernel runs everything
    llvmlite = llvm = None

AVAILABLE = llvm is not None
"""Whether machine code can be made here."""

OPTIMISATION = "O1, no vectorisers, no unrolling"
"""What runs over the IR, as part of the key. Kernels are as fast as with O2, which takes a third longer."""


@dataclass(frozen=True, slots=True)
class Code:
    """Loaded machine code: symbol -> address. It lives as long as the process."""

    name: str
    addresses: dict[str, int]

    def __getitem__(self, symbol: str) -> int:
        return self.addresses[symbol]


_loaded: dict[bytes, Code] = {}
_keep: list[Any] = []


@lru_cache(maxsize=1)
def _sources() -> bytes:
    """A hash of every source that writes code."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted([*root.glob("codegen/*.py"), *root.glob("kernels/**/*.py"), root / "spec.py"]):
        digest.update(path.read_bytes())
    return digest.digest()


@lru_cache(maxsize=8)
def _machine(target: Target) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # for `system.shuffled`
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
    )


@lru_cache(maxsize=8)
def _linker(target: Target) -> Any:
    return llvm.create_lljit_compiler(_machine(target))


def debug(stage: str, text: Callable[[], str]) -> None:
    """UPCONV_DEBUG=spec,plan,ir,asm prints the stages named, on standard error."""
    if stage in os.environ.get("UPCONV_DEBUG", "").replace("|", ",").split(","):
        print(f"; ---- upconv {stage}\n{text()}", file=sys.stderr, flush=True)


def key_of(parameters: str, target: Target) -> bytes:
    """The 32-byte key of a kernel for a target."""
    digest = hashlib.sha256(_sources())
    for part in (parameters, repr(target), OPTIMISATION, llvmlite.__version__, str(llvm.llvm_version_info)):
        digest.update(part.encode() + b"\0")
    return digest.digest()


def compile_object(text: str, target: Target) -> bytes:
    """IR text to the bytes of a relocatable object."""
    machine = _machine(target)
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    debug("asm", lambda: machine.emit_assembly(module))
    return machine.emit_object(module)  # type: ignore[no-any-return]


def _link(name: str, key: bytes, stored: bytes, symbols: tuple[str, ...], target: Target) -> Code:
    library = llvm.JITLibraryBuilder().add_object_img(stored).add_current_process()
    for symbol in symbols:
        library.export_symbol(symbol)
    tracker = library.link(_linker(target), f"{name}.{key.hex()[:16]}")
    _keep.append(tracker)
    return Code(name, {symbol: tracker[symbol] for symbol in symbols})


def get(name: str, parameters: str, symbols: tuple[str, ...], write: Callable[[], str], target: Target) -> Code:
    """The loaded code of a kernel: from this process, from the cache, or written by `write` and compiled."""
    key = key_of(f"{name} {parameters}", target)
    found = _loaded.get(key)
    if found is not None:
        return found
    with LLVM:
        if key in _loaded:
            return _loaded[key]
        stored = cache.load(key)
        if stored is None or os.environ.get("UPCONV_DEBUG"):
            text = write()
            debug("ir", lambda: text)
            stored = compile_object(text, target)
            cache.save(key, stored)
        code = _loaded[key] = _link(name, key, stored, symbols, target)
        return code
