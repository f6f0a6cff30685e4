"""Errors of the operating system as one line each, and which process is which."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mobilenas.errors import MobileNASError, ResourceError

NO_MEMORY = (
    "CUDA out of memory",
    "DefaultCPUAllocator: can't allocate",
    "DefaultCPUAllocator: not enough",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Parts of the messages of libraries that found no memory."""
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place that can be read and written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close what holds so many files open on this machine",
    errno.ENOMEM: "use less memory, or a larger machine",
}
"""What to do about an error number."""
_SYSTEM = re.compile("|".join(re.escape(os.strerror(number)) for number in REMEDIES if number != errno.EACCES))
_LONGEST = 300


def resource_error(error: BaseException) -> ResourceError | None:
    """Translate what the system refused (disk, memory, files) into one line; ``None`` for any other error.

    A library may wrap the system's message in an error type of its own. A pipe that nobody reads is no lack of anything.
    """
    if isinstance(error, MobileNASError | BrokenPipeError):
        return None
    words = " ".join(str(error).split())[:_LONGEST]
    if isinstance(error, MemoryError) or any(part in words for part in NO_MEMORY):
        return ResourceError(f"out of memory{f': {words}' if words else ''}; {REMEDIES[errno.ENOMEM]}")
    if isinstance(error, OSError) and error.errno is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        said = f"{': '.join([' -> '.join(names)] if names else [])}{': ' if names else ''}{error.strerror}"
        return ResourceError(f"{said}{_remedy(error.errno)}")
    if isinstance(error, Exception) and _SYSTEM.search(words):
        return ResourceError(words)
    return None


def _remedy(number: int) -> str:
    return f"; {REMEDIES[number]}" if number in REMEDIES else ""


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise ``ResourceError`` in place of what the system refused inside."""
    try:
        yield
    except Exception as error:
        refused = resource_error(error)
        if refused is None:
            raise
        raise refused from error


class Process(NamedTuple):
    """Which process: a number is given again after its end, and after a boot of the machine."""

    number: int
    boot: str
    """Identifier of the machine's boot; ``unknown`` where the system has none."""
    started: str
    """Start time in clock ticks after the boot; ``unknown`` likewise."""

    @classmethod
    def of(cls, number: int) -> Process | None:
        """Return the process that has this number now, ``None`` if there is none (or none that the system shows)."""
        try:
            with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
                started = file.read().rpartition(")")[2].split()[19]
            with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
                return cls(number, file.read().strip(), started)
        except (OSError, IndexError):
            return None

    @classmethod
    def own(cls) -> Process:
        """Return this process."""
        return cls.of(os.getpid()) or cls(os.getpid(), "unknown", "unknown")
