"""What mkdocs does to these pages while it builds the site: draws their pictures with upconv itself, and fences doctests.

Pictures that a page names as `pictures/NAME.svg`, and that no file holds, are drawn by the functions below.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from upconv.explain import explain
from upconv.explain.animate import animated_svg
from upconv.explain.scene import PITCH, Item, Mark, Scene, Stroke, Words, legend
from upconv.explain.svg import render
from upconv.kernels import geometry, strassen_products, winograd_tiles
from upconv.spec import ConvSpec, Problem

K4S2 = dict(kernel_size=4, stride=2, padding=1)
K3S2 = dict(kernel_size=3, stride=2, padding=1)


def _scene(items: list[Item], width: float, height: float, title: str) -> str:
    kinds = tuple(dict.fromkeys(item.kind for item in items if isinstance(item, Mark)))
    return render(Scene(width, height, tuple(items), title=title, told=title, kinds=kinds).below(legend(kinds, width)))


def band() -> str:
    """The band of a 3 x 4 input under k4 s2 p1: which flat positions hold inputs, and where the taps of each phase read."""
    spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=(4, 4), stride=2, padding=1)
    made = geometry.band(Problem(spec, 1, (3, 4), spec.output_size((3, 4))), True)
    _, h, w = made.axes
    phases = [[(tap.kernel[1:], tap.read.flat) for tap in taps or ()] for taps in made.taps()]
    reach = [flat for taps in phases for _, flat in taps]
    last = (h.positions - 1) * w.pitch + w.positions - 1
    items: list[Item] = [Words(16, 20, "the band", 12, bold=True)]
    rows = range(min(reach) // w.pitch, (last + max(reach)) // w.pitch + 1)
    for index in range(min(reach), last + max(reach) + 1):
        r, c = divmod(index, w.pitch)
        inside = r in range(3) and c in range(4)
        where = 30 + PITCH * (c + 0.5), 34 + PITCH * (r - rows[0] + 0.5)
        items.append(Mark("input" if inside else "padded", *where, 28 if inside else 24, str(index)))
    left = 30 + PITCH * w.pitch + 70
    items.append(Words(left, 20, "each phase's taps: kernel index, and distance from the output's position", 12, bold=True))
    for number, taps in enumerate(phases):
        y = 54 + 38.0 * number
        items.append(Words(left, y + 4, f"phase {number // 2},{number % 2}", 11, bold=True))
        for n, (kernel, flat) in enumerate(taps):
            x = left + 96 + 84 * n
            items += [Mark("used", x, y, 30, f"{kernel[0]},{kernel[1]}"), Words(x + 19, y + 4, f"{flat:+d}", 11)]
    return _scene(items, left + 520, 34 + PITCH * len(rows) + 12, "The band of a layer, and the taps of its phases")


def gemm() -> str:
    """The product that a block of positions becomes."""
    items: list[Item] = [Words(16, 20, "one small product a group of phases that read the same inputs", 12, bold=True)]

    def matrix(x: float, kind: str, rows: int, columns: int, above: str, beside: str, name: str) -> None:
        items.append(Words(x + 12 * columns, 48, above, 10, "middle"))
        items.append(Words(x - 8, 56 + 12 * rows, beside, 10, "end"))
        for r in range(rows):
            for c in range(columns):
                items.append(Mark(kind, x + 24 * (c + 0.5), 54 + 24 * (r + 0.5), 20))
        items.append(Words(x + 12 * columns, 54 + 24 * rows + 18, name, 11, "middle", bold=True))

    matrix(130, "output", 4, 8, "positions q of the band", "channel, phase", "scratch block")
    items.append(Words(342, 110, "+=", 18, "middle"))
    matrix(450, "used", 4, 4, "tap, channel", "channel, phase", "packed weights")
    items.append(Words(574, 110, "x", 18, "middle"))
    matrix(670, "input", 4, 8, "positions q + offset(tap)", "tap, channel", "band")
    return _scene(items, 890, 190, "Scratch block += packed weights x band")


def winograd_window() -> str:
    """Both phases of k4 s2 read one window of four inputs for three outputs each."""
    window = winograd_tiles.NARROW.window
    outputs = window - 1
    items: list[Item] = [
        Words(16, 20, "k4 s2, uncropped: one window of 4 inputs serves a tile of 3 outputs of either phase", 12, bold=True)
    ]
    step = 78.0
    xs = [190 + step * n for n in range(window)]
    where = {(q, a): 190 + step * (q + 0.5) + (a - 0.5) * step / 2 for q in range(outputs) for a in range(2)}
    for (q, a), x in where.items():
        for offset in (0, 1):
            items.append(Stroke(xs[q + offset], 73, x, 187, strong=False, dash=bool(a)))
    items += [Mark("input", x, 60, 30, f"i+{n}" if n else "i") for n, x in enumerate(xs)]
    items += [Mark("output" if a == 0 else "extra", x, 200, 30, f"{q},{a}") for (q, a), x in where.items()]
    items += [
        Words(16, 64, "input window", 12, bold=True),
        Words(16, 204, "outputs q, phase a", 12, bold=True),
        Words(
            16,
            236,
            "4 multiplications for each phase's 3 outputs, where the direct sum takes 6; the window is transformed once for both",
            11,
        ),
    ]
    plain = Scene(760, 250, tuple(items), title="One window for all phases", told="One window for all phases")
    return render(plain)


def winograd_apart() -> str:
    """Four inputs of k4 s2 p1: each phase's four outputs, and the window of five that they read."""
    outputs, step = winograd_tiles.MIDDLE.window - 1, 78.0
    title = "k4 s2 p1: 4 inputs have 4 outputs of either phase, and each phase has its own window of 5"
    items: list[Item] = [Words(16, 20, title, 12, bold=True)]
    xs = {n: 190 + step * (n + 1) for n in range(-1, outputs + 1)}
    where = {(q, a): 190 + step * (q + 1) + (a - 0.5) * step / 2 for q in range(outputs) for a in range(2)}
    for (q, a), x in where.items():
        for n in (q + a - 1, q + a):
            items.append(Stroke(xs[n], 73, x, 187, strong=False, dash=bool(a)))
    items += [Mark("input" if n in range(outputs) else "padded", x, 60, 30, str(n)) for n, x in xs.items()]
    items += [Mark("output" if a == 0 else "extra", x, 200, 30, str(2 * q + a)) for (q, a), x in where.items()]
    items += [
        Words(16, 64, "input x", 12, bold=True),
        Words(16, 204, "output y", 12, bold=True),
        Words(16, 236, "even outputs read x[-1] to x[3], odd ones x[0] to x[4]: 5 multiplications for each phase's 4 outputs", 11),
    ]
    return render(Scene(760, 250, tuple(items), title="Windows of phases apart", told="Windows of phases apart"))


def seven_products() -> str:
    """The halves of the three matrices, and which quadrants each of the seven products and of the results takes."""
    items: list[Item] = [Words(16, 20, "every matrix in halves: what each of the seven products takes", 12, bold=True)]
    places = [(n // 2, n % 2) for n in range(4)]
    sizes = (
        ("used", "A", "weights", "channels in", "channel out, phase"),
        ("input", "B", "columns", "positions or tiles", "channels in"),
        ("output", "C", "sums", "positions or tiles", "channel out, phase"),
    )
    for n, (kind, letter, name, above, beside) in enumerate(sizes):
        x = 130 + 210.0 * n
        items += [Mark(kind, x + 46 * j, 80 + 46 * i, 42, f"{letter}{i}{j}") for i, j in places]
        items += [Words(x + 23, 48, above, 10, "middle"), Words(x - 28, 106, beside, 10, "end")]
        items.append(Words(x + 23, 172, name, 11, "middle", bold=True))

    def total(signs: Any, names: list[str]) -> str:
        text = "".join(f" {'+' if s > 0 else '-'} {name}" for s, name in zip(signs, names, strict=True) if s)
        return text[3:] if text.startswith(" + ") else text[1:]

    a, b = ([f"{letter}{i}{j}" for i, j in places] for letter in "AB")
    for p, (left, right) in enumerate(zip(strassen_products.LEFT, strassen_products.RIGHT, strict=True)):
        items.append(Words(16 + 320 * (p % 2), 206 + 22 * (p // 2), f"M{p} = ({total(left, a)}) x ({total(right, b)})", 11))
    products = [f"M{p}" for p in range(len(strassen_products.LEFT))]
    for n, (i, j) in enumerate(places):
        items.append(Words(16 + 320 * (n % 2), 304 + 22 * (n // 2), f"C{i}{j} = {total(strassen_products.SUM[n], products)}", 11))
    return _scene(items, 720, 340, "Seven products of halves in place of eight")


def weight_gradient() -> str:
    """For each tap the same walk: grad_output times the inputs that the tap met."""
    axis = explain({**K3S2, "transposed": False}, 9).axes[0]
    items: list[Item] = [Words(16, 20, "Conv1d, kernel 3, stride 2, padding 1: what is summed into w[2]", 12, bold=True)]
    xs = [150 + PITCH * (i + 0.5) for i in range(axis.input)]
    gs = [150 + PITCH * (2 * o + 0.5) for o in range(axis.output)]
    for o in range(axis.output):
        for link in axis.sources(o):
            items.append(Stroke(xs[link.input], 73, gs[o], 157, strong=link.tap == 2))
    lit = {link.input for o in range(axis.output) for link in axis.sources(o) if link.tap == 2}
    items += [Mark("input", x, 60, 28, str(i), strong=i in lit) for i, x in enumerate(xs)]
    items += [Mark("output", x, 170, 28, str(o)) for o, x in enumerate(gs)]
    items += [Words(16, 64, "input x", 12, bold=True), Words(16, 174, "grad_output g", 12, bold=True)]
    total = " + ".join(f"g[{o}]*x[{link.input}]" for o in range(axis.output) for link in axis.sources(o) if link.tap == 2)
    items.append(Words(16, 212, f"grad w[2] = {total}", 12))
    return _scene(items, 620, 222, "The weight gradient of one tap")


PICTURES: dict[str, Callable[[], str]] = {
    "phases.svg": lambda: explain(K4S2, 5).svg(),
    "uneven.svg": lambda: explain(K3S2, (4, 4)).svg(),
    "even.svg": lambda: explain(K4S2, (4, 4)).svg(),
    "round-trip.svg": lambda: explain({**K3S2, "transposed": False}, 12).svg(),
    "overlap-add.svg": lambda: animated_svg(explain(dict(kernel_size=3, stride=2), 4)),
    "band.svg": band,
    "gemm.svg": gemm,
    "winograd.svg": winograd_window,
    "winograd_apart.svg": winograd_apart,
    "strassen.svg": seven_products,
    "depthwise.svg": lambda: explain(K4S2, 9).svg(),
    "weight-gradient.svg": weight_gradient,
}


def on_config(config: Any) -> None:
    """Pages that the navigation does not name go to the end of "How to"."""
    named = set(re.findall(r"[\w.-]+\.md", str(config["nav"])))
    guides = next(section["How to"] for section in config["nav"] if "How to" in section)
    guides.extend(page.name for page in sorted(Path(__file__).parent.glob("*.md")) if page.name not in named)


def on_files(files: Files, *, config: Any) -> Files:
    for name, draw in PICTURES.items():
        files.append(File.generated(config, f"pictures/{name}", content=draw()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Directives to doctest concern nobody who reads."""
    return re.sub(r" +# doctest: .*", "", markdown)


EXAMPLE = re.compile(r"(?:^|(?<=\n\n))((?:>>> .*)(?:\n(?!\n).+)*)")


def fenced(text: str) -> str:
    """A docstring as Markdown: its examples, which are plain lines, become code.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2\\n\\nMore.").splitlines()
    ['Adds.', '', '```pycon', '>>> 1 + 1', '2', '```', '', 'More.']
    """
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[1]}\n```", textwrap.dedent(text))
