"""Packing weights: the emitted code against the same table walked by NumPy, for every kernel that takes a drawn layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from kernel_runs import KERNELS, problems
from upconv import execute, planner
from upconv.codegen import target as targets
from upconv.kernels import weights


@pytest.mark.parametrize("kernel", [*KERNELS, *planner.LAST], ids=lambda k: k.NAME)
@settings(max_examples=25)
@given(problem=problems())
def test_emitted_packing_is_the_tables(kernel, problem):
    target = targets.host()
    if problem.batch == 0 or kernel.rejects(problem, target):
        return
    how = kernel.blocking(problem, target, 2)
    plan = planner.Plan(problem, target, 2, kernel.NAME, "pack", "", how, ())
    weight = np.random.default_rng(0).integers(-8, 9, problem.spec.weight_shape).astype(problem.dtype)
    layout = kernel.weight_layout(problem, how)
    if layout.point_size == 0:  # every tap meets only padding: nothing is packed or read
        return
    expected = weights.reference(layout, weight).reshape(-1)
    assert np.array_equal(execute.Packer(plan)(weight)[: expected.size], expected)
