"""The exported folder: model, architecture, report, and checksums that anyone can check with ``sha256sum -c``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mobilenas.core import documents
from mobilenas.core.run_directory import write_together
from mobilenas.errors import DocumentError

CHECKSUMS = "SHA256SUMS"


def write_bundle(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write ``files`` and, last, their checksums; what the bundle held before, and holds no longer, is removed."""
    sums = folder / CHECKSUMS
    before = [line.partition("  ")[2] for line in documents.read_text(sums).splitlines()] if sums.exists() else []
    whole = {name: content.encode() if isinstance(content, str) else content for name, content in sorted(files.items())}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in whole.items()]
    write_together(folder, {**whole, CHECKSUMS: "".join(lines)})
    for name in before:
        if name not in files and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)


def read_bundled(path: Path) -> bytes:
    """The content of one file of a bundle; raises ``DocumentError`` if it is not the one that was written."""
    lines = documents.read_text(path.parent / CHECKSUMS).splitlines()
    sums = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    content = documents.read_bytes(path, documents.MAXIMUM_MODEL_BYTES)
    if sums.get(path.name) != hashlib.sha256(content).hexdigest():
        raise DocumentError(f"{path}: changed since it was exported ({CHECKSUMS} says so): export it again")
    return content
