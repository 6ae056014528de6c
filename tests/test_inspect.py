"""`upconv inspect`: what it finds in real files, and one line for whatever else it is given."""

from __future__ import annotations

import json
import struct
import zipfile

import numpy as np
import pytest

from upconv import artifacts
from upconv.cli import main
from upconv.cli.models import ModelError, read
from upconv.spec import ConvSpec

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def weight(*shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph_of(nodes, weights, size=(1, 8, 6, 5), extra=()):
    return helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, size)],
        [helper.make_tensor_value_info("y", 1, [None] * len(size))],
        [numpy_helper.from_array(w, name) for name, w in weights.items()] + list(extra),
    )


def save(path, nodes, weights, size=(1, 8, 6, 5), extra=()):
    model = helper.make_model(graph_of(nodes, weights, size, extra), opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def up(x="x", w="w", y="y", name="up", **attributes):
    return helper.make_node("ConvTranspose", [x, w], [y], name=name, **attributes)


@pytest.fixture
def decoder(tmp_path):
    nodes = [up(y="a", name="up1", strides=[2, 2], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["a"], ["b"])]
    nodes.append(up("b", "v", name="up2", strides=[2, 2], pads=[0, 1, 1, 0], group=2))
    return save(tmp_path / "decoder.onnx", nodes, {"w": weight(8, 4, 4, 4), "v": weight(4, 3, 3, 3)})


def test_onnx_layers(decoder):
    one, two = read(decoder)
    assert one.spec == ConvSpec.make(transposed=True, in_channels=8, out_channels=4, kernel_size=(4, 4), stride=2, padding=1)
    assert str(two.spec) == "ConvTranspose2d 4 -> 6, kernel 3x3, stride 2x2, padding ((0, 1), (1, 0)), groups 2"
    assert (one.input_size, two.input_size, one.batch) == ((6, 5), (12, 10), 1)
    np.testing.assert_array_equal(one.weight, weight(8, 4, 4, 4))


def test_what_is_printed(decoder, capsys):
    assert main(["inspect", str(decoder)]) == 0
    text = capsys.readouterr().out
    one = read(decoder)[0]
    score = artifacts.report((one.spec, one.weight)).layers[0].score
    assert text.splitlines()[:3] == [
        "up1: ConvTranspose2d 8 -> 4, kernel 4x4, stride 2x2, padding 1x1",
        "    6x5 -> 12x10, 12.7 k multiply-adds",
        f"    checkerboard: {score}, 4 taps an output",
    ]
    assert "- kernel 3x3 is not divisible by stride 2x2" in text
    assert text.splitlines()[-1].startswith("2 transposed layers, ")


def test_json(decoder, capsys):
    assert main(["inspect", str(decoder), "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert one["input_size"] == [6, 5]
    assert one["output_size"] == [12, 10]
    assert one["multiply_adds"] == 8 * 4 * (6 * 4 - 2) * (5 * 4 - 2)  # a row less at each border
    assert two["name"] == "up2"


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_onnx_auto_pad(tmp_path, auto_pad):
    path = save(tmp_path / "m.onnx", [up(strides=[2, 2], auto_pad=auto_pad)], {"w": weight(8, 4, 3, 3)})
    expected = {"SAME_UPPER": ((0, 1),) * 2, "SAME_LOWER": ((1, 0),) * 2, "VALID": ((0, 0),) * 2}[auto_pad]
    assert read(path)[0].spec.padding == expected


def test_onnx_output_shape(tmp_path):
    path = save(tmp_path / "m.onnx", [up(strides=[2, 2], output_shape=[12, 10])], {"w": weight(8, 4, 3, 3)})
    [found] = read(path)
    assert found.spec.output_size(found.input_size) == (12, 10)


def test_onnx_inside_control_flow(tmp_path):
    inner = helper.make_graph(
        [up(name="inner", y="z", strides=[2, 2])], "then", [], [helper.make_tensor_value_info("z", 1, [None] * 4)],
        [numpy_helper.from_array(weight(8, 4, 2, 2), "w")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z2"])], "else", [], [helper.make_tensor_value_info("z2", 1, [None] * 4)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    [found] = read(save(tmp_path / "m.onnx", [condition, node], {}))
    assert found.name == "inner"


def test_a_weight_made_as_the_model_runs(tmp_path, capsys):
    w = weight(8, 4, 4, 4)
    scaled = helper.make_node("Mul", ["w", "w"], ["w2"])
    path = save(tmp_path / "m.onnx", [scaled, up(w="w2", strides=[2, 2])], {"w": w})
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "note: its weight is computed as the model runs" in text
    assert "clean, noise" in text
    assert "for equal weights" in text


def external(path, location, offset="0", length=None):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[8, 4, 4, 4], data_location=1)
    for key, value in (("location", location), ("offset", offset)):
        tensor.external_data.add(key=key, value=value)
    return save(path, [up(strides=[2, 2])], {}, extra=[tensor])


def test_external_weights_beside_the_model(tmp_path):
    w = weight(8, 4, 4, 4)
    (tmp_path / "w.bin").write_bytes(b"1234" + w.tobytes())
    np.testing.assert_array_equal(read(external(tmp_path / "m.onnx", "w.bin", "4"))[0].weight, w)


@pytest.mark.parametrize(
    ("location", "offset", "note"),
    [
        ("../secret.bin", "0", "its weight is said to lie outside the model's folder, which is not read"),
        ("/etc/passwd", "0", "its weight is said to lie outside the model's folder, which is not read"),
        ("link.bin", "0", "its weight is said to lie outside the model's folder, which is not read"),
        ("", "0", "its weight is said to lie outside the model's folder, which is not read"),
        ("gone.bin", "0", "its weight's file 'gone.bin' is not there"),
        ("short.bin", "0", "its weight's file 'short.bin' is cut short"),
        ("short.bin", "-8", "its weight's file 'short.bin' is cut short"),
        ("short.bin", "x", "its weight's place is no number"),
    ],
)
def test_external_weights_elsewhere_are_not_read(tmp_path, location, offset, note):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(weight(8, 4, 4, 4).tobytes())
    (folder / "short.bin").write_bytes(b"1234")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    [found] = read(external(folder / "m.onnx", location, offset))
    assert (found.weight, found.note) == (None, note)


def raw(path, data):
    path.write_bytes(data)
    return path


def big(name="w", dims=(1 << 40, 1 << 40, 3, 3)):
    return onnx.TensorProto(name=name, data_type=1, dims=dims, raw_data=b"1234")


HOSTILE = {
    "empty": (lambda p: raw(p, b""), "m.onnx is no ONNX model: it has no graph, or an empty one"),
    "noise": (lambda p: raw(p, bytes(range(256)) * 8), "m.onnx is no ONNX model: it cannot be parsed, it may be cut short"),
    "cut short": (
        lambda p: raw(p, save(p, [up()], {"w": weight(8, 4, 4, 4)}).read_bytes()[:-700]),
        "m.onnx is no ONNX model: it cannot be parsed, it may be cut short",
    ),
    "circle": (
        lambda p: save(p, [helper.make_node("Relu", ["b"], ["a"], name="r"), up("a", y="b")], {"w": weight(8, 4, 4, 4)}),
        "m.onnx runs in a circle: node 'r' waits for its own output",
    ),
    "itself": (
        lambda p: save(p, [up("y")], {"w": weight(8, 4, 4, 4)}),
        "m.onnx runs in a circle: node 'up' waits for its own output",
    ),
    "missing weight": (
        lambda p: save(p, [up()], {}),
        "m.onnx: layer up: its weight 'w' is missing from the file",
    ),
    "one input": (
        lambda p: save(p, [helper.make_node("ConvTranspose", ["x"], ["y"], name="up")], {}),
        "m.onnx: layer up: it has 1 inputs; the operator takes x and a weight",
    ),
    "stride 0": (
        lambda p: save(p, [up(strides=[0, 2])], {"w": weight(8, 4, 4, 4)}),
        "m.onnx: layer up: stride[0] is 0: it must be at least 1",
    ),
    "strides of another rank": (
        lambda p: save(p, [up(strides=[2])], {"w": weight(8, 4, 4, 4)}),
        "m.onnx: layer up: strides (2,) has 1 values: 2 fit its weight",
    ),
    "strides of another type": (
        lambda p: save(p, [up(strides="two")], {"w": weight(8, 4, 4, 4)}),
        "m.onnx: layer up: attribute strides has a type that the operator does not know",
    ),
    "negative pads": (
        lambda p: save(p, [up(pads=[-1, 0, 0, 0])], {"w": weight(8, 4, 4, 4)}),
        "m.onnx: layer up: this padding puts (1, 0) zeros before the first output, which no torch layer does: use "
        "padding 0 there and pad the result",
    ),
    "kernel of another size": (
        lambda p: save(p, [up(kernel_shape=[3, 3])], {"w": weight(8, 4, 4, 4)}),
        "m.onnx: layer up: kernel_shape (3, 3) is not its weight's, (4, 4)",
    ),
    "groups": (
        lambda p: save(p, [up(group=3)], {"w": weight(8, 4, 4, 4)}),
        "m.onnx: layer up: in_channels 8 is not divisible by groups 3",
    ),
    "channels": (
        lambda p: save(p, [up()], {"w": weight(6, 4, 4, 4)}),
        "m.onnx: layer up: its input has 8 channels and its weight takes 6",
    ),
    "a flat weight": (
        lambda p: save(p, [up()], {"w": weight(8, 4)}),
        "m.onnx: layer up: weight (8, 4) with groups 1 is no weight of a transposed layer",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_onnx_gives_one_line(name, tmp_path, capsys):
    make, text = HOSTILE[name]
    path = make(tmp_path / "m.onnx")
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"upconv: {text}\n")
    with pytest.raises(ModelError):
        read(path)


def test_huge_sizes_are_told_and_not_allocated(tmp_path, capsys):
    huge = save(tmp_path / "m.onnx", [up(strides=[2, 2])], {}, size=(1, 1 << 40, 1 << 30, 1 << 30), extra=[big()])
    assert main(["inspect", str(huge)]) == 0
    text = capsys.readouterr().out
    assert "ConvTranspose2d 1099511627776 -> 1099511627776, kernel 3x3" in text
    assert "note: its weight is larger than 536870912 bytes" in text
    kernel = save(tmp_path / "k.onnx", [up(strides=[1 << 33] * 2)], {}, (1, 1, 1 << 31, 4), [big(dims=(1, 1, 1 << 31, 2))])
    assert main(["inspect", str(kernel)]) == 0
    assert "not scored: the kernel or stride is too large" in capsys.readouterr().out


def test_a_size_that_leaves_nothing_is_a_note(tmp_path, capsys):
    path = save(tmp_path / "m.onnx", [up(pads=[9, 9, 9, 9])], {"w": weight(8, 4, 4, 4)})
    assert main(["inspect", str(path)]) == 0
    assert "every size must be at least 1" in capsys.readouterr().out


def test_names_cannot_move_the_cursor(tmp_path, capsys):
    path = save(tmp_path / "m.onnx", [up(name="a\x1b[2Jb\n" + "n" * 500)], {"w": weight(8, 4, 4, 4)})
    assert main(["inspect", str(path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("a?[2Jb?nnn")
    assert len(first) < 220


def test_a_model_without_such_layers(tmp_path, capsys):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {})
    assert main(["inspect", str(path)]) == 1
    assert capsys.readouterr() == ("", "upconv: m.onnx has no transposed convolution\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gone.onnx", "{path} is not there: give a .pt2 or .onnx file"),
        ("model.pth", "model.pth ends in '.pth': give a .pt2 file (torch.export.save) or an .onnx file"),
        ("model", "model ends in 'nothing': give a .pt2 file (torch.export.save) or an .onnx file"),
        ("folder.onnx", "{path} is no file: give a .pt2 or .onnx file"),
    ],
)
def test_files_that_are_none(tmp_path, capsys, name, text):
    (tmp_path / "folder.onnx").mkdir()
    path = tmp_path / name
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == f"upconv: {text.format(path=path)}\n"


# torch.export archives


def exported(path, model, *inputs, **options):
    torch = pytest.importorskip("torch")
    program = torch.export.export(model.eval(), inputs, **options)
    torch.export.save(program, path)
    return path


def test_pt2_layers(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential()
    model.add_module("up", torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1))
    model.add_module("down", torch.nn.Conv2d(4, 4, 3))
    model.add_module("last", torch.nn.ConvTranspose2d(4, 6, (3, 5), stride=(2, 1), groups=2, output_padding=(1, 0)).double())
    model[2].float()
    one, two = read(exported(tmp_path / "m.pt2", model, torch.zeros(2, 8, 6, 5)))
    assert (one.name, two.name) == ("up", "last")
    assert str(one.spec) == "ConvTranspose2d 8 -> 4, kernel 4x4, stride 2x2, padding 1x1"
    assert str(two.spec) == "ConvTranspose2d 4 -> 6, kernel 3x5, stride 2x1, output_padding 1x0, groups 2"
    assert (one.batch, one.input_size, two.input_size) == (2, (6, 5), (10, 8))
    np.testing.assert_array_equal(one.weight, model.up.weight.detach().numpy())
    np.testing.assert_array_equal(two.weight, model.last.weight.detach().numpy())


def test_pt2_with_an_open_size_and_unbatched(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.ConvTranspose1d(3, 3, 4, 2, 1, dtype=torch.float64))
    shapes = ({1: torch.export.Dim("time", min=2)},)
    path = exported(tmp_path / "m.pt2", model, torch.zeros(3, 8, dtype=torch.float64), dynamic_shapes=shapes)
    [found] = read(path)
    assert (found.batch, found.input_size) == (1, (8,))
    np.testing.assert_array_equal(found.weight, model[0].weight.detach().numpy())


def test_pt2_with_a_computed_weight(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(3, 3, 4, 2, 1))
    [found] = read(exported(tmp_path / "m.pt2", torch.nn.Sequential(layer), torch.zeros(1, 3, 8)))
    assert found.weight is None
    assert found.note == "its weight is computed as the model runs"


def test_pt2_is_read_without_torch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = exported(tmp_path / "m.pt2", torch.nn.Sequential(torch.nn.ConvTranspose1d(3, 3, 4, 2)), torch.zeros(1, 3, 8))

    def refuse(*_args, **_kwargs):
        raise AssertionError("a model file was unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.export, "load", refuse)
    assert len(read(path)) == 1


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for name, data in files.items():
            held.writestr(name, data)
    return path


PT2 = {
    "no zip": (
        lambda p: raw(p, b"hello"),
        "m.pt2 is no torch.export archive: write it with torch.export.save(program, 'm.pt2')",
    ),
    "no graph": (
        lambda p: zipped(p, {"m/data.pkl": b""}),
        "m.pt2 holds no exported graph (TorchScript or a state_dict?): write it with "
        "torch.export.save(torch.export.export(model, inputs), 'm.pt2')",
    ),
    "no json": (
        lambda p: zipped(p, {"m/models/model.json": b"{"}),
        "m.pt2 cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
    "deep": (
        lambda p: zipped(p, {"m/models/model.json": b"[" * 200000}),
        "m.pt2 cannot be read: it is nested too deeply",
    ),
    "other json": (lambda p: zipped(p, {"m/models/model.json": b"{}"}), "m.pt2 cannot be read: 'graph_module'"),
}


@pytest.mark.parametrize("name", PT2)
def test_hostile_pt2_gives_one_line(name, tmp_path, capsys):
    make, text = PT2[name]
    assert main(["inspect", str(make(tmp_path / "m.pt2"))]) == 2
    assert capsys.readouterr() == ("", f"upconv: {text}\n")


def test_a_zip_bomb_stops_at_its_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("upconv.cli.models_pt2.JSON_BYTES", 1 << 16)
    path = zipped(tmp_path / "m.pt2", {"m/models/model.json": b" " * (1 << 20)})
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == "upconv: m.pt2: models/model.json unpacks to more than 65536 bytes\n"


def test_a_damaged_zip(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = exported(tmp_path / "m.pt2", torch.nn.Sequential(torch.nn.ConvTranspose1d(3, 3, 4, 2)), torch.zeros(1, 3, 8))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as held:
        info = next(i for i in held.infolist() if i.filename.endswith("model.json"))
    name, extra = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
    start = info.header_offset + 30 + name + extra
    data[start + 40 : start + 60] = b"\x00" * 20
    path.write_bytes(data)
    assert main(["inspect", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("upconv: m.pt2 cannot be read: ")
    assert err.count("\n") == 1
