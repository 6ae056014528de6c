"""Wisdom: what is measured is kept, plans follow it, and no file can do harm."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upconv
from processes import said
from upconv import advice, cli, execute, nn, planner, wisdom
from upconv.codegen import threads
from upconv.codegen.target import Target
from upconv.planner import Advice
from upconv.spec import ConvSpec, Problem, SpecError

PRETENDED = Target("avx2", "x86_64-unknown-linux-gnu", "haswell", "", 32, 16, 32 << 10, 512 << 10, masks=False)
SPEC = ConvSpec.make(transposed=True, in_channels=64, out_channels=64, kernel_size=4, stride=2, padding=1, rank=2)
SHAPE = (1, 64, 12, 12)
PROBLEM = Problem(SPEC, 1, (12, 12), (24, 24))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for wisdom of its own, with nothing in it."""
    place = tmp_path / "wisdom.json"
    monkeypatch.setenv("UPCONV_WISDOM", str(place))
    execute.forget()
    yield place
    monkeypatch.undo()
    execute.forget()


def able(problem: Problem = PROBLEM, target: Target = PRETENDED) -> list[str]:
    return [kernel.NAME for kernel in planner.CANDIDATES if not kernel.rejects(problem, target)]


def able_last(target: Target = PRETENDED) -> list[str]:
    """What can be chosen for channels-last arrays."""
    return [*(kernel.NAME for kernel in planner.LAST if not kernel.rejects(PROBLEM, target)), planner.AS_FIRST]


def teach(kernel: str, count: int | None = None, last: bool = False) -> None:
    """Keep that `kernel` is the fastest for PROBLEM here."""
    seconds = tuple((name, 1e-3 if name == kernel else 2e-3) for name in (able_last() if last else able()))
    learnt = Advice(kernel, 1, seconds)
    target = execute.target()
    assert target is not None
    advice.keep({advice.processor(target): {advice.key(PROBLEM, count or threads.get_num_threads(), last): learnt}})


# -- plans that follow advice ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", able())
@pytest.mark.parametrize("count", [1, 2])
def test_advice_overrules_estimates(kernel: str, count: int) -> None:
    seconds = tuple((name, 1.0 if name == kernel else 1.5) for name in able())
    plan = planner.make(PROBLEM, PRETENDED, 2, Advice(kernel, count, seconds))
    assert (plan.algorithm, plan.threads) == (kernel, count)
    assert "chosen by wisdom: measured on this processor" in str(plan).splitlines()[1]
    others = {name: reason for name, reason in plan.not_chosen if name in able()}
    assert others == {name: "1.5x the measured time" for name in able() if name != kernel}


def test_a_kernel_that_was_not_measured_keeps_its_estimate() -> None:
    first, *others = able()
    plan = planner.make(PROBLEM, PRETENDED, 2, Advice(first, 2, ((first, 1.0),)))
    reasons = dict(plan.not_chosen)
    assert all(reasons[name].endswith("x the estimated time") for name in others)


def test_advice_for_no_kernel_of_ours_is_passed_over() -> None:
    plain = planner.make(PROBLEM, PRETENDED, 2)
    assert planner.make(PROBLEM, PRETENDED, 2, Advice("of another day", 2, (("of another day", 1.0),))) == plain
    rejecting = next((k.NAME for k in planner.CANDIDATES if k.NAME not in able()), None)
    if rejecting:
        assert planner.make(PROBLEM, PRETENDED, 2, Advice(rejecting, 2, ((rejecting, 1.0),))) == plain


@pytest.mark.parametrize("kernel", able_last())
def test_advice_overrules_estimates_for_channels_last_arrays(kernel: str) -> None:
    seconds = tuple((name, 1.0 if name == kernel else 1.5) for name in able_last())
    plan = planner.make_last(PROBLEM, PRETENDED, 2, Advice(kernel, 2, seconds))
    if kernel == planner.AS_FIRST:
        assert plan is None
        return
    assert plan is not None
    assert plan.algorithm == kernel
    assert plan.note.endswith("; chosen by wisdom: measured on this processor")
    others = dict(plan.not_chosen)
    assert {others[name] for name in able_last() if name not in (kernel, planner.AS_FIRST)} == {"1.5x the measured time"}
    assert others["direct"] == "1.5x the measured time, reordering included"


def test_advice_for_no_kernel_of_ours_is_passed_over_for_channels_last_arrays() -> None:
    other = Advice("of another day", 2, (("of another day", 1.0),))
    assert planner.make_last(PROBLEM, PRETENDED, 2, other) == planner.make_last(PROBLEM, PRETENDED, 2)


# -- measuring -------------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_kept_and_followed(file: Path) -> None:
    plan = wisdom.tune(SPEC, SHAPE, seconds=0.02)
    assert "chosen by wisdom" in plan.note
    data = json.loads(file.read_text())
    ((processor, entries),) = data["processors"].items()
    ((what, entry),) = entries.items()
    assert processor == advice.processor(plan.target)
    assert what == f"{SPEC}; batch to 1; input to 16x16; float32; threads {threads.get_num_threads()}"
    assert entry["kernel"] == plan.algorithm
    assert set(entry["seconds"]) == set(able(PROBLEM, plan.target))
    assert min(entry["seconds"], key=entry["seconds"].__getitem__) == plan.algorithm
    assert upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1) == plan


def test_nothing_is_kept_unless_wanted(file: Path) -> None:
    before = upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1)
    wisdom.tune(SPEC, SHAPE, seconds=0, keep=False)
    assert not file.exists()
    assert upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1) == before


@pytest.mark.parametrize("kernel", able())
def test_calls_of_this_process_follow_at_once(file: Path, kernel: str, rng: np.random.Generator) -> None:
    """Calls that were made, and remembered, before; by NumPy's doors."""
    if kernel not in able(PROBLEM, execute.target()):
        pytest.skip(f"this machine's {kernel} does not take the layer")
    layer = nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1, seed=0)
    x = rng.standard_normal(SHAPE, np.float32)
    doors = (lambda: layer(x), lambda: upconv.conv_transpose(x, layer.weight, layer.bias, 2, 1))
    expected = [door() for door in (*doors, *doors)][-1]
    teach(kernel)
    execute.forget()
    for door in doors:
        np.testing.assert_allclose(door(), expected, atol=1e-5 * np.abs(expected).max())
    used = {prepared.plan.algorithm for prepared in execute._prepared.values() if prepared is not None}
    assert used == {kernel}


def test_tensors_follow_at_once(file: Path) -> None:
    torch = pytest.importorskip("torch")
    import upconv.torch

    layer, x = upconv.torch.ConvTranspose2d(64, 64, 4, stride=2, padding=1), torch.randn(SHAPE)
    with torch.inference_mode():
        before = layer(x), layer(x)
        for kernel in set(able()) & set(able(PROBLEM, execute.target())):
            teach(kernel)
            execute.forget()
            assert torch.allclose(layer(x), before[0], atol=1e-4)
            assert {p.plan.algorithm for p in execute._prepared.values() if p is not None} == {kernel}


def test_what_is_measured_for_channels_last_tensors_is_theirs_alone(file: Path) -> None:
    before = upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1)
    plan = wisdom.tune(SPEC, SHAPE, channels_last=True, seconds=0.02)
    assert plan.note.endswith("chosen by wisdom: measured on this processor")
    ((what, found),) = advice.kept()[advice.processor(execute.target())].items()
    assert what == f"{SPEC}; batch to 1; input to 16x16; float32; threads {threads.get_num_threads()}; channels last"
    times = dict(found.seconds)
    assert set(times) == set(able_last(execute.target()))
    assert found.kernel == min(times, key=times.__getitem__)
    assert (found.kernel == planner.AS_FIRST) == ("reordered and back" in plan.note)
    assert upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1) == before


def test_channels_last_tensors_follow_at_once(file: Path) -> None:
    torch = pytest.importorskip("torch")
    import upconv.torch

    layer = upconv.torch.ConvTranspose2d(64, 64, 4, stride=2, padding=1)
    x = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        before = layer(x), layer(x)
        for kernel in able_last(execute.target()):
            teach(kernel, last=True)
            execute.forget()
            again = layer(x)
            assert torch.allclose(again, before[0], atol=1e-4)
            assert again.is_contiguous(memory_format=torch.channels_last)
            used = {prepared.plan.algorithm for key, prepared in execute._prepared.items() if key[-1] and prepared is not None}
            assert used == {kernel} - {planner.AS_FIRST}


def test_any_layer_can_be_tuned(file: Path) -> None:
    for layer, shape in ((nn.Conv1d(3, 4, 3), (3, 20)), (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 4, 5))):
        assert wisdom.tune(layer, shape, seconds=0, dtype="float64").problem.dtype == "float64"
    around = ConvSpec.make(
        transposed=True, in_channels=2, out_channels=2, kernel_size=3, stride=2, padding=1, padding_mode="circular"
    )
    assert "chosen by wisdom" in wisdom.tune(around, (1, 2, 9), seconds=0).note
    assert "chosen by wisdom" in upconv.plan((1, 2, 9), (2, 2, 3), 2, 1, padding_mode="circular").note
    assert sum(len(entries) for entries in advice.kept().values()) == 3


def test_a_torch_layer_can_be_tuned(file: Path) -> None:
    torch = pytest.importorskip("torch")
    plan = wisdom.tune(torch.nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1), (1, 4, 6, 6), seconds=0)
    assert plan.problem.output_shape == (1, 4, 12, 12)


@pytest.mark.parametrize(
    ("given", "named", "said_"),
    [
        ((SPEC, (1, 3, 4, 4)), {}, f"input_shape is (1, 3, 4, 4): {SPEC} takes (N, 64, *2 sizes)"),
        ((SPEC, (64, 4)), {}, f"input_shape is (64, 4): {SPEC} takes (N, 64, *2 sizes)"),
        ((SPEC, (0, 64, 4, 4)), {}, "input_shape[0] is 0: it must be at least 1"),
        ((SPEC, SHAPE), {"dtype": "float16"}, "dtype is 'float16': use float32 or float64"),
    ],
)
def test_refusals(file: Path, given: Any, named: dict[str, Any], said_: str) -> None:
    with pytest.raises(SpecError) as caught:
        wisdom.tune(*given, **named)
    assert str(caught.value) == said_
    assert not file.exists()


def test_no_layer() -> None:
    with pytest.raises(TypeError, match="int is not a layer"):
        wisdom.tune(3, SHAPE)


# -- what is alike ---------------------------------------------------------------------------------------------------------


def test_like_sizes_share_their_advice(file: Path) -> None:
    target = execute.target()
    teach("direct")
    count = threads.get_num_threads()

    def known(**changes: Any) -> bool:
        return advice.lookup(replace(PROBLEM, **changes), target, count) is not None

    assert known()
    assert known(input_size=(9, 16))
    assert known(spec=replace(SPEC, activation=upconv.spec.Activation("relu")))
    assert not known(input_size=(17, 12))
    assert not known(batch=2)
    assert not known(dtype="float64")
    assert not known(spec=replace(SPEC, output_padding=(1, 0)))
    assert advice.lookup(PROBLEM, target, count + 1) is None
    assert advice.lookup(PROBLEM, PRETENDED, count) is None
    assert advice.lookup(PROBLEM, None, count) is None


def test_the_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach("direct")
    reads = []
    read = advice.read
    monkeypatch.setattr(advice, "read", lambda place: reads.append(place) or read(place))
    for size in range(8, 40):
        upconv.plan((1, 64, size, size), SPEC.weight_shape, stride=2, padding=1)
    assert reads == [file]


# -- files -----------------------------------------------------------------------------------------------------------------

ENTRY = {"kernel": "direct", "threads": 1, "seconds": {"direct": 1e-3}, "upconv": upconv.__version__}


def text_of(**changes: Any) -> str:
    return json.dumps({"format": advice.FORMAT, "processors": {"p": {"layer": {**ENTRY, **changes}}}})


BAD = {
    "nothing": "",
    "half a file": text_of()[:-9],
    "deep": "[" * 100_000,
    "a list": "[]",
    "another file": '{"format": "something"}',
    "no processors": json.dumps({"format": advice.FORMAT}),
    "processors a list": json.dumps({"format": advice.FORMAT, "processors": []}),
    "no kernel": json.dumps({"format": advice.FORMAT, "processors": {"p": {"layer": {"upconv": upconv.__version__}}}}),
    "kernel not measured": text_of(kernel="winograd"),
    "threads a word": text_of(threads="two"),
    "no threads": text_of(threads=0),
    "seconds a word": text_of(seconds={"direct": "fast"}),
    "seconds none": text_of(seconds={"direct": 0}),
    "seconds not a number": text_of(seconds={"direct": float("nan")}),
    "seconds a list": text_of(seconds=[1]),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_ignored_with_one_warning_and_kept_as_it_is(file: Path, text: str) -> None:
    file.write_text(text)
    advice._known.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"^wisdom ignored: .*; plans follow estimates$"):
        plan = upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1)
    assert "wisdom" not in plan.note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upconv.plan((1, 64, 20, 20), SPEC.weight_shape, stride=2, padding=1)
    for change in (lambda: wisdom.tune(SPEC, SHAPE, seconds=0), wisdom.forget, lambda: wisdom.load(file)):
        with pytest.raises(SpecError, match=r"damaged|no wisdom"):
            change()
    assert file.read_text() == text


def test_bytes_that_are_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="damaged"):
        advice.read(file)


def test_a_folder_in_the_file_s_place(file: Path) -> None:
    file.mkdir()
    advice._known.cache_clear()
    with pytest.warns(RuntimeWarning, match="wisdom ignored"):
        upconv.plan(SHAPE, SPEC.weight_shape, stride=2, padding=1)


def test_other_versions_are_left_out(file: Path) -> None:
    file.write_text(text_of(upconv="0.0.1"))
    assert advice.read(file) == {"p": {}}


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPCONV_WISDOM", "off")
    assert wisdom.path() is None
    assert advice.lookup(PROBLEM, execute.target(), 1) is None
    with pytest.raises(SpecError) as caught:
        wisdom.tune(SPEC, SHAPE, seconds=0)
    assert str(caught.value) == "UPCONV_WISDOM is off: unset it, or set it to a file"
    assert wisdom.tune(SPEC, SHAPE, seconds=0, keep=False)


def test_where_it_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPCONV_WISDOM")
    place = wisdom.path()
    assert place is not None
    assert place.name == "wisdom.json"
    assert "upconv" in str(place.parent)


def test_handed_on(file: Path, tmp_path: Path) -> None:
    teach("direct")
    assert wisdom.export(tmp_path / "theirs.json") == 1
    assert wisdom.forget() == 1
    assert advice.kept() == {}
    file.write_text(text_of())
    assert wisdom.load(tmp_path / "theirs.json") == 1
    assert sorted(advice.kept()) == sorted(["p", advice.processor(execute.target())])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs.json", "wisdom.json"]


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach("direct")
    before = file.read_text()

    def fail(*given: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        teach("winograd")
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_another_process_follows(file: Path) -> None:
    teach("direct", 1)
    code = f"import upconv\nprint(upconv.plan({SHAPE}, {SPEC.weight_shape}, stride=2, padding=1).note)"
    assert said(code, UPCONV_WISDOM=str(file), UPCONV_NUM_THREADS="1").endswith("chosen by wisdom: measured on this processor")
    assert "wisdom" not in said(code, UPCONV_WISDOM="off", UPCONV_NUM_THREADS="1")


# -- the command -----------------------------------------------------------------------------------------------------------


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(line.split()) == 0
    out, err = capsys.readouterr()
    assert err in ("", f"upconv {' '.join(line.split()[:2])} ...\n")  # which it says where compiling takes more than a second
    return out


def test_tune_from_the_shell(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tune", capsys) == f"{file}: 0 layers\n"
    assert "; reordered and back; chosen by wisdom" in run("tune 1,1,6,6 -m 1 -k 3 --channels-last --seconds 0", capsys)
    assert "; channels last" in run("tune", capsys)
    assert run("tune --forget", capsys) == "1 layer forgotten\n"
    out = run("tune 1,8,6,6 -m 1 -k 4 -s 2 -p 1 --seconds 0", capsys)
    assert out.startswith("ConvTranspose2d 8 -> 1, kernel 4x4, stride 2x2, padding 1x1 ")
    assert "chosen by wisdom" in out
    assert "chosen by wisdom" in run("plan 1,8,6,6 -m 1 -k 4 -s 2 -p 1", capsys)
    shown = run("tune", capsys)
    assert shown.startswith(f"{file}: 1 layer\n\n{advice.processor(execute.target())}\n  ConvTranspose2d 8 -> 1, ")
    assert run(f"tune --export {tmp_path}/a.json", capsys) == f"{tmp_path}/a.json: 1 layer\n"
    assert run("tune --forget", capsys) == "1 layer forgotten\n"
    assert run(f"tune --import {tmp_path}/a.json", capsys) == f"1 layer from {tmp_path}/a.json\n"


@pytest.mark.parametrize(
    ("line", "said_"),
    [
        ("tune 1,8,6,6", "a layer on 1,8,6,6 needs --out-channels and --kernel"),
        ("tune -m 4 -k 4", "--out-channels and --kernel describe one layer: give its input shape too, as in 1,256,32,24"),
        ("tune --forget --export a.json", "give one of a layer, --export, --import and --forget at a time"),
        ("tune --import /nowhere/a.json", "[Errno 2] No such file or directory: '/nowhere/a.json'"),
    ],
)
def test_the_shell_refuses(file: Path, line: str, said_: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    assert capsys.readouterr() == ("", f"upconv: {said_}\n")
