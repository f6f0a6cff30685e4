"""The command line: options -> configuration -> workflow; renders results and errors, sets exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from mobilenas.cli import jobs, looks
from mobilenas.cli.devices import devices
from mobilenas.cli.measuring import measure
from mobilenas.cli.sweeps import sweep
from mobilenas.console import print_error
from mobilenas.core.documents import is_unicode
from mobilenas.core.signals import catch_terminations
from mobilenas.core.system import resource_error
from mobilenas.errors import MobileNASError, UsageError

app = typer.Typer(
    name="mobilenas",
    help="Find a neural network for a latency budget on a real device, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS: tuple[Callable[..., None], ...] = (
    jobs.profile,
    jobs.search,
    jobs.train,
    jobs.evaluate,
    jobs.export,
    jobs.verify,
    jobs.predict,
    measure,
    sweep,
    looks.describe,
    looks.report,
    looks.env,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(looks.table)
app.add_typer(devices)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("mobilenas"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def with_default_values(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``default`` behind a ``--kernels`` that stands alone."""
    found: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        found.append(argument)
        if argument == "--kernels" and following.startswith("-") and not following[1:].isdecimal():
            found.append("default")
    return found


def main() -> None:
    """Entry point: errors that a user can act on are one paragraph and their own exit code, bugs keep their traceback."""
    catch_terminations()
    try:
        for argument in sys.argv[1:]:
            if not is_unicode(argument):
                raise UsageError(f"{argument!r} is not UTF-8 text, so it could not be written down: rename that file or folder")
        try:
            app(with_default_values(sys.argv[1:]), standalone_mode=True)
        finally:
            sys.stdout.flush()  # what cannot be written shows here, not when the interpreter ends
    except BrokenPipeError:
        _give_up_output()
        sys.exit(1)
    except Exception as error:
        known = error if isinstance(error, MobileNASError) else resource_error(error)
        if known is None:
            raise
        print_error(f"error: {known}")
        _give_up_output()
        sys.exit(known.exit_code)


def _give_up_output() -> None:
    """Send what is still to be printed nowhere: the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
