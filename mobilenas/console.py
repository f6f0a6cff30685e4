"""What a person sees: progress with an estimate of the time left, notes, and tables; all of it on stderr but results."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mobilenas.core.text import paragraph, printable

HEARTBEAT_S = 10.0


class ConsoleListener:
    """Draws a bar on a terminal; elsewhere prints a plain line when a stage begins and then at most every 10 s."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None)
        self._stage, self._said, self._began = "", 0.0, 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done in ``stage``."""
        if self._quiet:
            return
        stage = printable(stage)
        name = stage.partition(",")[0]
        now = time.monotonic()
        if name != self._stage:
            self._stage, self._began, self._said = name, now, 0.0
        if self._bar:
            self._bar.update(self._task, description=stage, completed=done, total=total)
        elif now - self._said >= HEARTBEAT_S:
            self._said = now
            left = f", about {(now - self._began) / done * (total - done):.0f} s left" if done else ""
            print(f"{stage}: {done}/{total}{left}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            self._console.print(paragraph(text))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values on stdout: a drawn table on a terminal, aligned plain lines elsewhere.

    Each is one line, whatever a device, a table or a path holds.
    """
    title, rows = printable(title), [(printable(name), printable(value)) for name, value in rows]
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(title=Text(title), show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(table)
        return
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def print_error(text: str) -> None:
    """Print what went wrong on stderr."""
    print(paragraph(text), file=sys.stderr)


def percent(fraction: float) -> str:
    """A fraction as ``1.2 %``, two digits or, from a hundred on, whole."""
    value = 100 * fraction
    return f"{value:.0f} %" if abs(value) >= 99.5 else f"{value:.2g} %"


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header on stdout: a drawn table on a terminal, aligned plain columns elsewhere."""
    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(*header)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
