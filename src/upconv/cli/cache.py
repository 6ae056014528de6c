"""`upconv cache`: where compiled kernels are kept, and how to be rid of them."""

from __future__ import annotations

import typer

group = typer.Typer(help="The compiled kernels kept on disk.", rich_markup_mode="markdown")


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="cache")


@group.command("info")
def info() -> None:
    """Print the cache's folder, how many kernels it holds, and their size.

    **Example**

    `upconv cache info`
    """
    from upconv.codegen import cache

    found = cache.info()
    if found.path is None:
        typer.echo("no cache: UPCONV_CACHE is off, or its folder cannot be used; every process compiles its own kernels")
    else:
        typer.echo(f"{found.path}\n{found.entries} kernels, {found.bytes / 1e6:.2f} MB")


@group.command("clear")
def clear() -> None:
    """Remove every kept kernel; the next call of a layer compiles it again.

    **Example**

    `upconv cache clear`
    """
    from upconv.codegen import cache

    typer.echo(f"{cache.clear()} kernels removed")
