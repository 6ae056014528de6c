"""Code generation: typed LLVM IR helpers, the JIT, its object cache, the target, and native threads."""
