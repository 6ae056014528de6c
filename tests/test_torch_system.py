"""upconv.torch inside torch's machinery: compile, export, checkpoint, autocast, parametrisations, workers, DDP."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import upconv  # noqa: E402
import upconv.torch as nn  # noqa: E402
from upconv.torch import ops  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # torch's own machinery warns of itself
SOURCE = str(Path(upconv.__file__).parents[1])


def small() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, activation="relu"),
        torch.nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1, activation=("leaky_relu", 0.2)),
    )


def run(script: str, tmp_path: Path, timeout: int = 120) -> str:
    """The output of a script run by an interpreter of its own; it must end well."""
    path = tmp_path / "script.py"
    path.write_text(script)
    env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_operators_pass_torchs_own_checks() -> None:
    x, w, b = torch.randn(2, 4, 5), torch.randn(4, 3, 3), torch.randn(6)
    arguments = (True, [2], [1, 0], [1], [1], 2, "zeros")
    y = ops.conv(x, w, b, *arguments, None, 0.0)
    for tensors in ((x, w, b), tuple(t.clone().requires_grad_() for t in (x, w, b))):
        torch.library.opcheck(ops.conv, (*tensors, *arguments, None, 0.0))
    g = torch.randn_like(y).requires_grad_()
    torch.library.opcheck(ops.input_gradient, (g, w.requires_grad_(), [5], *arguments))
    torch.library.opcheck(ops.weight_gradient, (x.requires_grad_(), g, [4, 3, 3], *arguments))


def test_fake_results_have_the_real_ones_shape_and_layout() -> None:
    from torch._subclasses import FakeTensorMode

    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    model = small()
    real = model(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = model(mode.from_tensor(x))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_in_one_graph_forward_and_backward(dynamic: bool) -> None:
    model = small()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (8, 10, 14):
        x = torch.randn(2, 3, size, size, requires_grad=True)
        y, z = model(x), compiled(x)
        torch.testing.assert_close(y, z)
        a, b = (torch.autograd.grad(t.square().sum(), x)[0] for t in (y, z))
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_compile_by_inductor() -> None:
    model = torch.nn.Sequential(nn.ConvTranspose2d(3, 4, 4, stride=2), torch.nn.GELU()).eval()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_compile_with_output_size() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(compiled(x, output_size=[12, 11]), layer(x, output_size=[12, 11]))


def test_export_with_a_dynamic_batch_and_length_saved_and_loaded() -> None:
    model = torch.nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConvTranspose1d(4, 2, 8, stride=4)).eval()
    sizes = ({0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("length", min=4, max=4096)},)
    program = torch.export.export(model, (torch.randn(2, 2, 20),), dynamic_shapes=sizes)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("upconv.conv.default") == 2
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, length in ((1, 33), (5, 20)):
        x = torch.randn(batch, 2, length)
        torch.testing.assert_close(loaded(x), model(x))


def test_functional_call() -> None:
    model = small().eval()
    other = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    other["1.running_var"] = other["1.running_var"].abs() + 0.5
    twin = small().eval()
    twin.load_state_dict(other)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(torch.func.functional_call(model, other, (x,)), twin(x))


def test_function_transforms_go_to_torch_and_agree() -> None:
    layer, x = nn.Conv1d(2, 3, 3), torch.randn(4, 2, 9)
    plain = torch.nn.Conv1d(2, 3, 3)
    plain.load_state_dict(layer.state_dict())

    def gradients(m: Any) -> Any:
        def loss(parameters: Any, one: Any) -> Any:
            return torch.func.functional_call(m, parameters, (one,)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(m.named_parameters()), x)

    ours, theirs = gradients(layer), gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])
    tangent = torch.randn_like(x)
    for a, b in zip(torch.func.jvp(layer, (x,), (tangent,)), torch.func.jvp(plain, (x,), (tangent,)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        a, b = (torch.autograd.forward_ad.unpack_dual(m(dual)).tangent for m in (layer, plain))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    model = small()
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    y = checkpoint(model, x, use_reentrant=reentrant)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_autocast_is_torchs() -> None:
    model = small()
    plain = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    plain.load_state_dict(model[0].state_dict())
    x = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0](x), torch.relu(plain(x)))
        assert model[0](x).dtype is torch.bfloat16
        loss = model(x).float().square().sum()
    loss.backward()
    assert model[0].weight.grad.dtype is torch.float32
    with torch.autocast("cpu", enabled=False):
        assert model[0](x).dtype is torch.float32


def test_jit_trace() -> None:
    model, x = small().eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), model(x))


def test_onnx_export_holds_the_standard_operators(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import onnx

    model, path = torch.nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=2, activation="relu")).eval(), tmp_path / "m.onnx"
    torch.onnx.export(model, (torch.randn(1, 2, 8),), path, dynamo=False)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["ConvTranspose", "Relu"]


@pytest.mark.parametrize("name", ["ConvTranspose2d", "Conv2d"])
@pytest.mark.parametrize("which", ["weight_norm", "spectral_norm"])
def test_parametrisations_through_training(name: str, which: str) -> None:
    def make(kind: Any) -> Any:
        torch.manual_seed(2)
        return getattr(torch.nn.utils.parametrizations, which)(getattr(kind, name)(3, 3, 3, padding=1))

    ours, theirs = make(nn), make(torch.nn)
    x = torch.randn(2, 3, 6, 6)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (ours, theirs)]
    for _ in range(3):
        for layer, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            layer(x).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    torch.nn.utils.parametrize.remove_parametrizations(ours, "weight")
    assert type(ours) is getattr(nn, name)


def test_old_weight_norm() -> None:
    layer = torch.nn.utils.weight_norm(nn.ConvTranspose1d(3, 2, 4, stride=2))
    x = torch.randn(1, 3, 9)
    with torch.inference_mode():
        before = layer(x)
        layer.weight_g.mul_(2)
        torch.testing.assert_close(layer(x) - layer.bias[:, None], 2 * (before - layer.bias[:, None]))


def test_flop_counters_see_the_layer() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(1, 4, 9, requires_grad=True)
    counts = []
    for kind in (nn, torch.nn):
        with FlopCounterMode(display=False) as counter:
            kind.ConvTranspose1d(4, 6, 4, stride=2)(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


LOADER = """
import sys, torch
import upconv.torch as nn
class Items(torch.utils.data.Dataset):
    layer = nn.ConvTranspose1d(1, 1, 4, stride=2, bias=False)
    torch.nn.init.ones_(layer.weight)
    def __len__(self): return 6
    def __getitem__(self, i):
        with torch.no_grad():
            return self.layer(torch.full((1, 3), float(i)))
if __name__ == "__main__":
    items = Items()
    items[0]
    items.layer(torch.ones(8, 1, 3000)).sum().backward()  # the parent has used threads before it forks
    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(items, batch_size=3, num_workers=2, multiprocessing_context=method)
        print(method, [batch.sum().item() for batch in loader])
"""


def test_data_loader_workers_by_fork_and_spawn(tmp_path: Path) -> None:
    assert run(LOADER, tmp_path).split("\n")[:2] == ["fork [36.0, 144.0]", "spawn [36.0, 144.0]"]


DDP = """
import torch, torch.distributed as dist, torch.multiprocessing as mp
import upconv.torch as nn
def work(rank, where):
    dist.init_process_group("gloo", init_method="file://" + where, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.Conv1d(2, 4, 3), torch.nn.ReLU(), nn.ConvTranspose1d(4, 2, 4, stride=2))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    x = torch.randn(4, 2, 12)
    parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    alone = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU(), torch.nn.ConvTranspose1d(4, 2, 4, stride=2))
    alone.load_state_dict(model.state_dict())
    alone(x).square().mean().backward()
    for p, q in zip(model.parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    dist.destroy_process_group()
if __name__ == "__main__":
    import sys, tempfile, os
    with tempfile.TemporaryDirectory() as d:
        mp.spawn(work, args=(os.path.join(d, "meet"),), nprocs=2)
    print("same gradients")
"""


def test_distributed_data_parallel_over_gloo_with_two_processes(tmp_path: Path) -> None:
    assert "same gradients" in run(DDP, tmp_path)


ABSENT = """
import sys
sys.modules["torch"] = None  # every import of it fails as if it were not installed
import numpy as np, upconv
assert upconv.conv_transpose(np.ones((1, 1, 3), np.float32), np.ones((1, 1, 4), np.float32), stride=2).shape == (1, 1, 8)
assert upconv.shapes.conv_transpose_size((6, 6), 3, stride=2) == (13, 13)
import upconv.gradients, upconv.nn
try:
    import upconv.torch
except ImportError as error:
    print(error)
"""


def test_without_torch_the_rest_works_and_the_front_end_says_what_to_install(tmp_path: Path) -> None:
    assert run(ABSENT, tmp_path).strip() == (
        "upconv.torch needs PyTorch, which is not installed: pip install 'upconv[torch]' (pytorch.org has smaller, "
        "CPU-only builds). The rest of upconv works on NumPy arrays without it."
    )
