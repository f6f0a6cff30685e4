"""The exported folder: model, architecture, report, and checksums that anyone can check with ``sha256sum -c``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mobilenas.core.run_directory import write_atomic

CHECKSUMS = "SHA256SUMS"


def write_bundle(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write ``files`` and, last, their checksums."""
    lines = []
    for name, content in sorted(files.items()):
        data = content.encode() if isinstance(content, str) else content
        write_atomic(folder / name, data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    write_atomic(folder / CHECKSUMS, "".join(lines))
