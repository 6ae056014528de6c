"""`upconv explore`: the page on which a layer is turned, pointed at and tried on a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("explore")(explore)


def explore(
    settings: Annotated[
        str, typer.Argument(metavar="[SETTINGS]", help="Where to begin: 'size=6,6&kernel=4&stride=2&padding=1'")
    ] = "",
    port: Annotated[int, typer.Option("--port", metavar="N", help="0 takes any that is free")] = 8741,
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="127.0.0.1, localhost or ::1, no other")] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, and open nothing")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE.html", help="Write the layer as one HTML file, and serve nothing")
    ] = None,
) -> None:
    """Open a page in the browser: set a layer's arguments, see its size, connections and phases, try it on a picture.

    Needs marimo: `pip install 'upconv[explore]'`. The page is served on this machine only, until Ctrl+C.

    **Examples**

    `upconv explore`

    `upconv explore 'size=5,7&kernel=3&stride=2&padding=1&output_padding=1' --port 0 --no-browser`

    `upconv explore 'size=6&kernel=4&stride=2' --export layer.html`
    """
    from urllib.parse import parse_qsl

    from upconv.explore import Settings, serve
    from upconv.spec import SpecError

    try:
        asked = Settings.read(dict(parse_qsl(settings, strict_parsing=bool(settings))))
    except ValueError as error:
        known = isinstance(error, SpecError)
        raise error if known else SpecError(f"settings are {settings!r}: write them as in size=6,6&kernel=4&stride=2") from None
    if export is None:
        serve(host, port, browser=not no_browser, query=asked.query() if settings else "")
        return
    from upconv.explain import explain

    if export.suffix.lower() != ".html":
        raise SpecError(f"{export.name!r} ends in {export.suffix or 'nothing'!r}: the export is one .html file")
    explain(asked.spec(), asked.size).save(export)
    typer.echo(f"{export}: {asked.spec()} on {','.join(map(str, asked.size))}", err=True)
