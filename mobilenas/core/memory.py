"""Memory that this host has free now."""

from __future__ import annotations

import contextlib
import re

_MEMINFO = "/proc/meminfo"
_CGROUP = "/sys/fs/cgroup/memory."


def free_memory_bytes() -> int | None:
    """Return how much memory a process may still take, in bytes: of the machine or of its control group, the lesser.

    ``None`` where the system does not say.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(_MEMINFO), re.MULTILINE)
    found = [1024 * int(available[1])] if available else []
    limit, used = _read(f"{_CGROUP}max").strip(), _read(f"{_CGROUP}current").strip()
    if limit.isdigit() and used.isdigit():
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        return file.read()
    return ""
