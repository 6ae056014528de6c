"""The bench: what it measures is right, what it writes is whole, and what is missing is said. Runs are the shortest there are."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

import upconv
from processes import child
from upconv import cli
from upconv.bench import cold, contest, machine, overhead, report, rivals, run, suite, timing
from upconv.bench.machine import Machine
from upconv.bench.report import Report
from upconv.bench.timing import Times
from upconv.codegen import jit, threads
from upconv.spec import ConvSpec, Problem, SpecError

ROOT = Path(__file__).parents[1]
SMALL = "1,4,6,6 -m 3 -k 4 -s 2 -p 1"


def layer(name: str = "a", **given: object) -> suite.Layer:
    arguments = {"transposed": True, "in_channels": 4, "out_channels": 3, "kernel_size": 4, "stride": 2, "padding": 1, "rank": 2}
    spec = ConvSpec.make(**(arguments | given))  # type: ignore[arg-type]
    size = (6,) * spec.rank
    return suite.Layer(name, Problem(spec, 2, size, spec.output_size(size)))


def outcome(name: str, seconds: dict[str, float]) -> contest.Outcome:
    times = {who: Times(t, t / 2, 12) for who, t in seconds.items()}
    return contest.Outcome(layer(name), "a_kernel", "a note", times, dict(seconds), {}, "torch", 1e-7, cold.Cold(0.1, 0.01))


def a_report(*outcomes: contest.Outcome, waiting: int = 0) -> Report:
    machines = [Machine("a processor", "avx2", 2, flops, 1e9) for flops in (1e9, 4e9, 2e9)]
    versions = {"upconv": "1"}
    return Report("upconv bench", "today", 0.5, versions, machines, outcomes, {"big": "9 GFLOP"}, {"OpenVINO": "gone"}, waiting)


TWO = a_report(outcome("a", {"upconv": 1e-3, "torch": 4e-3, "ONNX Runtime": 2e-3}), outcome("b", {"upconv": 2e-3, "torch": 1e-3}))


# -- what it times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [True, False])
def test_every_layer_of_the_tables_is_read(transposed: bool) -> None:
    path = suite.table(transposed)
    entries = json.loads(path.read_text())["layers"]
    layers = suite.read(path, transposed)
    assert [found.name for found in layers] == [entry["id"] for entry in entries]
    for found, entry in zip(layers, entries, strict=True):
        assert found.problem.spec.transposed == transposed
        assert list(found.problem.output_size) == entry["output_spatial"]
        assert found.problem.flops == 2 * entry["macs"]


def test_layers_too_large_are_named() -> None:
    layers = suite.read(suite.table(True), True)
    fitting = [found for found in layers if found.too_large() is None]
    assert len(fitting) == 108
    assert all(f.problem.flops <= 8.5e9 and f.problem.bytes <= 140 << 20 for f in fitting)
    assert layer().too_large(most_flops=1) == "2.76e-05 GFLOP"
    assert layer().too_large(most_bytes=1) == "0.00513 MiB"


def test_a_pattern_chooses_by_name_or_description() -> None:
    layers = [layer("one"), layer("two", kernel_size=3)]
    assert suite.matching(layers, "^one") == layers[:1]
    assert suite.matching(layers, "kernel 3x3") == layers[1:]
    with pytest.raises(SpecError, match=r"^none of 2 layers matches 'three'; names are like one$"):
        suite.matching(layers, "three")
    with pytest.raises(SpecError, match=r"^'\(' is no regular expression: "):
        suite.matching(layers, "(")


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    for text in ("[]", '{"layers": [{}]}', "not json"):
        path.write_text(text)
        with pytest.raises(SpecError, match="holds no table of layers"):
            suite.read(path, True)
    with pytest.raises(FileNotFoundError, match="give a file with --layers"):
        suite.table(True, tmp_path / "absent.json")


# -- how it times ----------------------------------------------------------------------------------------------------------


def test_the_machine_is_measured_within_reason() -> None:
    found = machine.Gauge(1).best(2)
    nominal = upconv.plan((1, 4, 6, 6), (4, 4, 3, 3)).target.peak_flops(4)
    assert 0.05 * nominal < found.flops < 3 * nominal
    assert 1e8 < found.bytes < 1e12
    assert found.processor
    assert found.threads == 1


def test_no_multiply_add_of_the_peak_is_folded_away(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    target = upconv.plan((1, 4, 6, 6), (4, 4, 3, 3)).target
    monkeypatch.setenv("UPCONV_DEBUG", "asm")
    jit.compile_object(machine._emit_multiply(target), target)
    lines = capfd.readouterr().err.splitlines()
    done = [line for line in lines if re.match(r"\s+(v?fmadd\w+ps|fmla|mulps|vmulps)\s", line)]
    assert len(done) == machine.SUMS, done


def test_the_copy_copies() -> None:
    target = upconv.plan((1, 4, 6, 6), (4, 4, 3, 3)).target
    for streaming in (False, True):
        work = machine._copier(target, 1, streaming)
        source, to = work.arrays[1:]
        source[:] = np.arange(source.size, dtype=np.uint8)
        work.best(1)
        start, end = (machine._aligned(a) - a.ctypes.data for a in (source, to))
        size = int(work.amount) // 2
        assert size > 0.99 * machine.COPIED
        np.testing.assert_array_equal(to[end : end + size], source[start : start + size])


def test_the_limit_is_the_larger_of_the_two() -> None:
    found = Machine("a processor", "avx2", 2, flops=1e9, bytes=1e8)
    assert found.limit(2e9, 1e8) == 2
    assert found.limit(1e9, 3e8) == 3


def test_a_race_counts_every_contender_alike() -> None:
    calls = dict.fromkeys("ab", 0)

    def call(name: str) -> None:
        calls[name] += 1

    times = timing.race({"a": lambda: call("a"), "b": lambda: call("b")}, seconds=0, rounds=(2, 3))
    assert calls == {"a": 8, "b": 8}
    assert all(t.count == 6 and t.best <= t.median for t in times.values())


def test_a_contest_of_all_that_is_installed() -> None:
    there = {name: rival for name, rival in rivals.RIVALS.items() if rival.missing is None}
    for rival in there.values():
        for need in rival.needs:
            import_module(need)
    before = threads.get_num_threads()
    with contest.using(1):
        found = contest.play(layer(), there, 1, seconds=0.01, with_cold=True)
    assert threads.get_num_threads() == before
    assert found.refused == {}
    ours = {"upconv", "upconv channels-last"} if "torch channels-last" in there else {"upconv"}
    assert set(found.times) == {*ours, *there}
    assert found.better == min(found.times[name].median for name in ours)
    assert found.fastest is None or found.ratio_better == found.times[found.fastest].median / found.better
    assert found.cold is not None
    assert 0 < found.cold.cached < found.cold.compiling < 10
    if there:
        assert found.difference is not None
        assert found.difference < 1e-5


def test_a_rival_that_fails_or_is_wrong_is_not_timed() -> None:
    pytest.importorskip("torch")

    def fails(case: rivals.Case) -> rivals.Call:
        raise RuntimeError("no such layer\nand more")

    def wrong(case: rivals.Case) -> rivals.Call:
        call = rivals.torch_first(case)
        return lambda: call() * 1.1

    made = {"torch": rivals.RIVALS["torch"], "broken": rivals.Rival(fails, ()), "wrong": rivals.Rival(wrong, ())}
    with contest.using(1):
        found = contest.play(layer(), made, 1, seconds=0, with_cold=False)
    assert found.refused == {"broken": "no such layer", "wrong": "its result is not torch's"}
    assert set(found.times) == {"upconv", "torch"}
    assert found.cold is None


def test_the_machine_takes_part_where_it_is_asked_to() -> None:
    gauge = machine.Gauge(1)
    with contest.using(1):
        found = contest.play(layer(), {}, 1, seconds=0, with_cold=False, gauge=gauge)
    assert set(found.times) == {"upconv"}  # it is no rival
    assert found.machine is not None
    best = gauge.best(2)
    assert 0.02 * best.flops < found.machine.flops < 2 * best.flops
    assert 0.02 * best.bytes < found.machine.bytes < 2 * best.bytes


def test_rivals_by_name() -> None:
    assert list(rivals.chosen(None)) == list(rivals.RIVALS)
    assert rivals.chosen("") == {}
    assert list(rivals.chosen("openvino, Torch-Channels-Last")) == ["torch channels-last", "OpenVINO"]
    with pytest.raises(SpecError) as caught:
        rivals.chosen("tensorflow")
    assert str(caught.value) == ("no rival is called 'tensorflow': there are torch, torch channels-last, ONNX Runtime, OpenVINO")


def test_a_missing_rival_says_what_to_install() -> None:
    absent = rivals.Rival(rivals.torch_first, ("no_such_package_of_ours", "json"))
    assert absent.missing == "not installed: pip install no_such_package_of_ours"
    done = run.run([layer()], {"ghost": absent}, 1, 0, cold=False)
    assert done.missing == {"ghost": absent.missing}
    assert "ghost is missing (not installed: pip install no_such_package_of_ours)." in report.markdown(done)
    assert report.summary(done)["fastest_rival"] is None


def test_interrupted_keeps_what_was_measured() -> None:
    def before(found: suite.Layer) -> None:
        if found.name == "c":
            raise KeyboardInterrupt

    done = run.run([layer(name) for name in "abcd"], {}, 1, 0, cold=False, before=before)
    assert [o.layer.name for o in done.outcomes] == ["a", "b"]
    assert done.waiting == 2
    assert report.as_json(done)["complete"] is False
    assert "**Interrupted: 2 layers were not measured.**" in report.markdown(done)


@pytest.mark.alone
def test_a_burst_waits_for_the_threads_of_the_one_before_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONGEST", 0.5)
    stop = Event()

    def spin(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and not stop.is_set():
            pass

    for seconds, least, most in ((0.15, 0.15, 0.45), (60.0, 0.5, 2.0)):
        thread = Thread(target=spin, args=(seconds,))
        start = time.perf_counter()
        thread.start()
        timing.rest()
        waited = time.perf_counter() - start
        stop.set()
        thread.join()
        stop.clear()
        assert least <= waited <= most


def test_passes_go_over_all_layers_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    seconds = iter([5.0, 1.0, 2.0, 3.0, 3.0, 2.0])

    def race(calls: dict[str, Any], *_: Any) -> dict[str, timing.Times]:
        taken = next(seconds)
        return {name: timing.Times(taken, taken / 2, 4) for name in calls}

    monkeypatch.setattr(contest, "race", race)
    done = run.run([layer("a"), layer("b")], {}, 1, 0, passes=3, cold=False, before=lambda found: order.append(found.name))
    assert order == ["a", "b"] * 3
    assert [o.times["upconv"] for o in done.outcomes] == [timing.Times(3.0, 1.0, 12), timing.Times(2.0, 0.5, 12)]
    assert report.as_json(done)["passes"] == done.passes == 3
    assert "Of 3 passes over all layers each contender's median counts." in report.markdown(done)


def test_passes_that_are_interrupted_leave_a_whole_report_of_those_before() -> None:
    left = [1] * 5

    def before(found: suite.Layer) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()

    done = run.run([layer(name) for name in "abc"], {}, 1, 0, passes=4, cold=False, before=before)
    assert [o.layer.name for o in done.outcomes] == ["a", "b", "c"]
    assert (done.waiting, done.passes) == (0, 1)


def test_overhead_is_what_a_call_adds_to_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "BATCHES", 3)
    monkeypatch.setattr(overhead, "CALLS", 20)
    monkeypatch.setattr(overhead, "SINGLE", 5)
    found = overhead.measure()
    assert 0 < found.kernel < 1e-3
    assert all(0 < seconds < 1e-2 for seconds in found.doors.values())
    for name, seconds in found.calls.items():
        assert found.doors[name] == seconds - found.kernel
        assert str(found).count(name) == 2
    assert found.afterwards.keys() == {*found.calls, *found.others}
    assert all(0 < seconds < 1e-1 for seconds in found.afterwards.values())
    assert "after 16 MB of other data" in str(found)


def test_the_job_alone_computes_the_layer() -> None:
    """What overhead takes for the kernel's time is the kernel's work: the job that is timed fills the output."""
    spec = ConvSpec.make(**overhead.LAYER)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(overhead.SHAPE, np.float32), rng.standard_normal(spec.weight_shape, np.float32)
    w.flags.writeable = False
    y = upconv.conv_transpose(x, w, stride=2, padding=1)
    right = y.copy()
    work, nothing = overhead._native(spec)
    y[:] = 0
    nothing()
    assert not y.any()
    work()
    np.testing.assert_array_equal(y, right)


# -- what it says ----------------------------------------------------------------------------------------------------------


def test_summary() -> None:
    found = report.summary(TWO)
    assert found["fastest_rival"] == {
        "layers": 2, "geometric_mean": pytest.approx(1.0), "least": 0.5, "least_layer": "b", "below_1.0": 1, "below_1.1": 1,
    }  # fmt: skip
    assert found["torch_default"]["geometric_mean"] == pytest.approx(2**0.5)
    assert found["fastest_rival_is"] == {"ONNX Runtime": 1, "torch": 1}
    assert TWO.machine.flops == 2e9
    assert TWO.fraction(TWO.outcomes[0]) == pytest.approx(TWO.outcomes[0].layer.problem.flops / 2e9 / 1e-3)


def test_the_limit_in_turn_is_what_the_machine_did_beside_the_layer() -> None:
    slow, fast = (Machine("a processor", "avx2", 2, flops, 1e15) for flops in (1e9, 3e9))
    a, b = TWO.outcomes
    assert report.fraction_in_turn(a) is None
    found = a_report(replace(a, machine=slow), replace(b, machine=fast))
    flops = a.layer.problem.flops
    assert report.summary(TWO)["limit_in_turn"] is None
    assert report.summary(found)["limit_in_turn"]["geometric_mean"] == pytest.approx(flops / 1e9 / 1e-3 * (1 / 3 / 2) ** 0.5)
    assert [entry["in_turn"] for entry in report.as_json(found)["layers"]] == [{"flops": f, "bytes": 1e15} for f in (1e9, 3e9)]
    text = report.markdown(found)
    assert "timed in turn with each layer, 2 and 1000000.0 in the median" in text
    assert "Of it at the rates measured in turn with each layer: geometric mean **" in text
    assert "in turn with each layer" not in report.markdown(TWO)
    both = contest.settled([found.outcomes[0], replace(found.outcomes[1], layer=a.layer)])
    assert both.machine is not None
    assert both.machine.flops == 2e9


def test_json_can_be_read_back() -> None:
    found = json.loads(json.dumps(report.as_json(TWO)))
    assert found["complete"] is True
    assert [entry["ratio"] for entry in found["layers"]] == [2, 0.5]
    assert found["layers"][0]["times"]["torch"] == {"median": 4e-3, "best": 2e-3, "count": 12}
    assert found["layers"][0]["input_shape"] == [2, 4, 6, 6]
    assert found["left_out"] == {"big": "9 GFLOP"}


def test_markdown_is_a_whole_table() -> None:
    text = report.markdown(TWO, "plot.svg")
    assert "geometric mean **1.00x**, least 0.50x (b); 1 of 2 layers below 1.0, 1 below 1.1." in text
    assert "Left out as too large (1): big (9 GFLOP)." in text
    assert "](plot.svg)" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].split("|")[5].strip() == "-"  # ONNX Runtime did not run b


def test_written_round_what_stands_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n\nwords\n")
    report.save(TWO, tmp_path, ("plot.svg", b"<svg/>"))
    first = (tmp_path / "README.md").read_text()
    assert first.startswith("# Mine\n\nwords\n\n" + report.BEGIN)
    (tmp_path / "README.md").write_text(first + "\nafter\n")
    report.save(a_report(waiting=3), tmp_path)
    second = (tmp_path / "README.md").read_text()
    assert second.startswith("# Mine\n\nwords\n\n" + report.BEGIN)
    assert second.endswith(report.END + "\nafter\n")
    assert second.count(report.BEGIN) == 1
    assert "Interrupted: 3 layers" in second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "plot.svg", "report.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*given: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("form", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_plot(form: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    from upconv.bench import plot

    alone = outcome("alone", {"upconv": 1e-3})
    picture = plot.draw(a_report(*TWO.outcomes, alone), form)
    assert picture.startswith(magic)
    if form == "svg":
        assert all(word in picture.decode() for word in ("alone", "the fastest rival", "fraction of the direct-sum limit"))
        assert picture == plot.draw(a_report(*TWO.outcomes, alone), form)


# -- the command -----------------------------------------------------------------------------------------------------------


def test_bench_of_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(f"bench {SMALL} --seconds 0.01 --threads 1 --no-cold --plot none -o {tmp_path}".split())
    out, err = capsys.readouterr()
    assert code == 0
    assert err.startswith("ConvTranspose2d 4 -> 3, kernel 4x4, stride 2x2, padding 1x1: ")
    assert "Of the machine's direct-sum limit: geometric mean" in out
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["layers"][0]["layer"] == "ConvTranspose2d 4 -> 3, kernel 4x4, stride 2x2, padding 1x1"
    assert data["machine"]["threads"] == 1
    assert (tmp_path / "README.md").read_text().startswith(report.BEGIN)


def test_bench_of_the_suite_with_ordinary_convolutions(capsys: pytest.CaptureFixture[str]) -> None:
    names = "^hifigan_v1/conv_pre$"
    code = cli.main(["bench", "--conv", "--only", names, "--seconds", "0.01", "--rivals", "torch", "--no-cold", "--threads", "1"])
    out, err = capsys.readouterr()
    assert code == 0
    assert err.startswith("hifigan_v1/conv_pre: ")
    assert re.search(r"^hifigan_v1/conv_pre +0\.0493 ", out, re.MULTILINE)


def test_interrupted_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    played, done = contest.play, []

    def once(found: suite.Layer, *given: object) -> contest.Outcome:
        if done:
            raise KeyboardInterrupt
        done.append(found)
        return played(found, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(contest, "play", once)
    line = f"bench --only hifigan_v2_train --seconds 0 --rivals= --no-cold --threads 1 --plot none -o {tmp_path}"
    assert cli.main(line.split()) == 130
    assert "Interrupted: 3 layers were not measured." in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["not_measured"] == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench 1,4,6,6", "a layer on 1,4,6,6 needs --out-channels and --kernel; leave the shape out for the whole suite"),
        ("bench -m 3 -k 2", "--out-channels and --kernel describe one layer: give its input shape too, as in 1,256,32,24"),
        ("bench 0,4,6,6 -m 3 -k 2", "input shape 0,4,6,6 has a batch of 0, and there is nothing to time"),
        ("bench --plot a.gif", "--plot is 'a.gif': give a name that ends in .svg or .png, or none"),
        ("bench --only dcgan64 --max-gflop 1e-9", "all 5 layers are too large: raise --max-gflop and --max-mib"),
        ("bench --rivals tvm", "no rival is called 'tvm': there are torch, torch channels-last, ONNX Runtime, OpenVINO"),
    ],
)
def test_refusals(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    assert capsys.readouterr() == ("", f"upconv: {said}\n")


def test_without_rivals_the_bench_still_runs() -> None:
    """With NumPy and llvmlite alone."""
    hide = "import sys\nfor name in ('torch', 'onnxruntime', 'openvino', 'onnx', 'matplotlib'): sys.modules[name] = None\n"
    line = f"bench {SMALL} --seconds 0 --no-cold --rivals=".split()
    done = child("-c", hide + f"import upconv.cli\nsys.exit(upconv.cli.main({line!r}))")
    assert done.returncode == 0, done.stderr
    assert "Against the fastest rival of each layer: nothing to compare with." in done.stdout
