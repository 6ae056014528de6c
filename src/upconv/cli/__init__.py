"""The shell command `upconv`.

Each command is one file here with a function `add_to(app)`, and one line in COMMANDS. Command files import what they
need inside their functions: `upconv shape` answers without NumPy or llvmlite.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

import upconv

COMMANDS = (
    "run",
    "shape",
    "solve",
    "plan",
    "cache",
    "demo",
    "explain",
    "inspect",
    "explore",
    "bench",
    "tune",
)

app = typer.Typer(
    name="upconv",
    help="Transposed convolution: run a layer, size it, see its plan.",
    epilog="`upconv COMMAND --help` shows examples.",
    no_args_is_help=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name in COMMANDS:
    import_module(f"upconv.cli.{_name}").add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"upconv {upconv.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def _complain(message: str, code: int) -> int:
    """One line on standard error, whatever the message holds."""
    print("upconv: " + " ".join(message.split()), file=sys.stderr)
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code. 2: an argument that cannot be; 1: it went wrong outside; 130: interrupted."""
    command = typer.main.get_command(app)
    try:
        result = command.main(arguments, prog_name="upconv", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser
            context = getattr(error, "ctx", None)
            where = context.command_path if context else "upconv"
            return _complain(f"{error.format_message().rstrip('.')}. See `{where} --help`.", 2)
        if isinstance(error, (upconv.SpecError, TypeError, OSError, ImportError)):
            return _complain(str(error), 2)
        raise
