"""Text that others wrote (devices, engines, files, paths) made safe to show, and commands made safe to paste."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_MARKDOWN = re.compile(r"([\\`*\[\]<>|]|(?<![^\W_])_|_(?![^\W_]))")


def printable(text: str) -> str:
    """Write what is no visible character (control characters, ends of lines, reversed directions) as its escape sequence."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def paragraph(text: str) -> str:
    """Make lines safe to show; each but the first is indented, so that none looks like a message of its own."""
    first, *others = map(printable, text.split("\n"))
    return "\n".join([first, *(f"  {line.lstrip(' ')}" for line in others)])


def markdown(text: str) -> str:
    """Write text so that Markdown shows it as it is, in one line: no markup, no HTML, no link."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def shell_command(words: Iterable[str]) -> str:
    """Quote ``words`` as a command line; words with invisible characters are written as bash's ``$'...'``."""
    return " ".join(shlex.quote(word) if word.isprintable() else _ansi_quoted(word) for word in words)


def _ansi_quoted(word: str) -> str:
    inside = "".join(
        f"\\{letter}"
        if letter in "\\'"
        else letter
        if letter.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in _bytes(letter))
        for letter in word
    )
    # \x takes at most two digits in bash, so that what follows is never part of it
    return f"$'{inside}'"


def _bytes(letter: str) -> bytes:
    return letter.encode("utf-8", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace")


def _escaped(letter: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    number = ord(letter)
    width, kind = (2, "x") if number < 0x100 else (4, "u") if number < 0x10000 else (8, "U")
    return known.get(letter, f"\\{kind}{number:0{width}x}")
