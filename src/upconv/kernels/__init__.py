"""Kernels: each module is one algorithm. See docs/architecture.md."""
