"""The explorer's page, a marimo app: controls on the left, what they mean on the right. `upconv explore` serves it."""

import marimo

app = marimo.App(width="full", app_title="upconv explore")


@app.cell
def _():
    import marimo as mo

    from upconv import ConvSpec, SpecError
    from upconv.explain import FRAMEWORKS, code, explain
    from upconv.explain.html import fragment
    from upconv.explain.text import phase_rows, round_trip, verdict
    from upconv.explore import page
    from upconv.explore.settings import DIMENSIONS, PER_DIMENSION, Settings
    from upconv.spec import PADDING_MODES

    return (
        ConvSpec, DIMENSIONS, FRAMEWORKS, PADDING_MODES, PER_DIMENSION, Settings, SpecError,
        code, explain, fragment, mo, page, phase_rows, round_trip, verdict,
    )  # fmt: skip


@app.cell
def _(Settings, SpecError, mo):
    # What the address asks for is where the controls begin; what it asks wrongly is said, and left out.
    try:
        start, wrong_query = Settings.read(mo.query_params().to_dict()), ""
    except SpecError as error:
        start, wrong_query = Settings(), str(error)
    kept = {}  # what has been set so far, so that controls made anew for another rank begin where the old ones were
    return kept, start, wrong_query


@app.cell
def _(PADDING_MODES, mo, start):
    direction = mo.ui.dropdown(
        {"transposed convolution": True, "convolution": False},
        value="transposed convolution" if start.transposed else "convolution",
        label="layer",
        full_width=True,
    )
    rank = mo.ui.dropdown(
        {"1": 1, "2": 2, "3": 3},
        value=str(start.rank),
        label="dimensions",
        full_width=True,
    )
    alike = all(len(set(getattr(start, name))) == 1 for name in ("size", "kernel", "stride", "padding", "dilation"))
    each = mo.ui.checkbox(not alike, label="each dimension for itself")
    ends = mo.ui.checkbox(any(a != b for a, b in start.padding), label="padding before and after apart")
    mode = mo.ui.dropdown(
        PADDING_MODES,
        value=start.padding_mode if start.padding_mode in PADDING_MODES else "zeros",
        label="padding_mode",
        full_width=True,
    )
    channels = {
        name: mo.ui.number(start=0, step=1, value=getattr(start, name), full_width=True)
        for name in ("in_channels", "out_channels", "groups")
    }
    in_channels, out_channels, groups = channels.values()
    return direction, each, ends, groups, in_channels, mode, out_channels, rank


@app.cell
def _(DIMENSIONS, direction, each, ends, kept, mo, page, rank, start):
    names = DIMENSIONS[rank.value] if each.value else ("",)
    fields = page.fields(mo, names, start, kept, direction.value, ends.value)
    return fields, names


@app.cell
def _(direction, each, ends, fields, groups, in_channels, mo, mode, names, out_channels, page, rank):
    mo.sidebar(
        [
            mo.Html('<h1 style="font-size:1.3rem;font-weight:600;margin:0">upconv explore</h1>'),
            direction,
            rank,
            each,
            ends,
            *page.arranged(mo, fields, names),
            mode,
            page.bold(mo, "channels"),
            page.labelled(mo, in_channels, "in_channels"),
            page.labelled(mo, out_channels, "out_channels"),
            page.labelled(mo, groups, "groups"),
        ],
        width="22rem",
    )
    return


@app.cell
def _(Settings, SpecError, direction, explain, fields, groups, in_channels, mo, mode, out_channels, page, rank, wrong_query):
    settings = Settings(
        **page.values(fields.value, rank.value, direction.value),
        transposed=direction.value,
        in_channels=in_channels.value,
        out_channels=out_channels.value,
        groups=groups.value,
        padding_mode=mode.value,
    )
    try:
        found, impossible = explain(settings.spec(), settings.size), ""
    except SpecError as error:
        found, impossible = None, str(error)
    mo.Html(page.headline(found, impossible, wrong_query))
    return found, settings


@app.cell
def _(found, fragment, mo, page):
    mo.stop(found is None)
    mo.iframe(page.framed(fragment(found, tables=False)), height="560px")
    return


@app.cell
def _(FRAMEWORKS, code, found, mo, page, phase_rows, round_trip, settings, verdict):
    mo.stop(found is None)
    phases = mo.Html(page.phase_table(phase_rows(found), found.phase_count, verdict(found)))
    codes = mo.ui.tabs({label: mo.md(f"```python\n{code(found.spec, name)}\n```") for name, label in FRAMEWORKS.items()})
    keep = mo.vstack(
        [
            mo.md("One HTML file that needs nothing else: the picture to point at, the tables, the code."),
            mo.download(found.html().encode(), filename="layer.html", mimetype="text/html", label="Save this layer as layer.html"),
            mo.md(f"The same settings again:\n\n```\nupconv explore '{settings.query()}'\n```"),
        ]
    )
    mo.accordion(
        {"Phases": phases, "Round trip": mo.md(page.plain(round_trip(found))), "Code to copy": codes, "Keep it": keep},
        multiple=True,
    )
    return


@app.cell
def _(found, mo):
    mo.stop(found is None)
    upload = mo.ui.file(filetypes=[".png", ".jpg", ".jpeg"], kind="button", label="Upload a PNG or JPEG", max_size=30_000_000)
    seed = mo.ui.number(start=0, step=1, value=0)
    zoom = mo.ui.slider(1, 8, value=4, step=1, label="zoom", show_value=True)
    return seed, upload, zoom


@app.cell
def _(found, mo, page, seed, upload, zoom):
    mo.stop(found is None)
    mo.vstack(
        [
            mo.md("## A picture through this layer"),
            mo.hstack([upload, zoom, page.labelled(mo, seed, "seed of the random weights")], justify="start", gap=2, wrap=True),
            mo.Html(page.enlargements(upload.contents(), found.spec, int(seed.value or 0), zoom.value)),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
