"""What an earlier export measured: kept where its model is the same, set aside where no later report has it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mobilenas.core import documents
from mobilenas.core.run_directory import write_atomic
from mobilenas.errors import DocumentError
from mobilenas.results import EngineExport, ExportResult
from mobilenas.workflows.naming import Listener

REPORT, EARLIER = "report.json", "earlier"
"""The report of an export, and the folder of those whose measurements no later one has."""
SCHEMA, VERSION = "export-report", 1


def now() -> str:
    """Return the time in UTC, to the second, as ``2026-01-31T12:00:00Z``."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def report_of(folder: Path, told: Listener) -> ExportResult | None:
    """Read the report in an exported folder; ``None`` without one, or with a note where it cannot be read."""
    path = folder / REPORT
    if not path.exists():
        return None
    try:
        document = documents.check_schema(
            documents.parse_json(documents.read_text(path), str(path)), SCHEMA, VERSION, str(path)
        )
        return documents.convert(document, ExportResult, str(path))
    except DocumentError as error:
        told.note(f"note: the report of an earlier export is not taken into account: {error}")
        return None


def with_earlier(
    engines: Sequence[EngineExport], before: ExportResult | None, told: Listener
) -> tuple[tuple[EngineExport, ...], dict[str, Any] | None]:
    """Return ``engines``; those not measured now keep what ``before`` measured of the same files at the same settings.

    The device of those measurements comes with them, ``None`` if there are none. What is not kept of an engine is said.
    """
    if before is None:
        return tuple(engines), None
    measured = {(engine.runtime, engine.settings): engine for engine in before.engines if engine.measured}
    found, is_any = [], False
    for engine in engines:
        earlier = measured.get((engine.runtime, engine.settings))
        if engine.measured is None and earlier is not None:
            name = f"{engine.runtime} {engine.settings.precision}"
            when = earlier.measured_at or "before times were noted"
            if engine.sha256 and engine.sha256 == earlier.sha256:
                told.note(f"{name}: not measured now; the model is the one that was measured at {when}, which is kept")
                engine, is_any = _with_measurement(engine, earlier), True
            else:
                told.note(f"{name}: not measured now; what was measured at {when} was another model: see {EARLIER}/")
        found.append(engine)
    return tuple(found), before.device if is_any else None


def set_aside(folder: Path, before: ExportResult | None, engines: Sequence[EngineExport]) -> None:
    """Copy the report in ``folder`` to where nothing overwrites it, if it holds a measurement that ``engines`` do not."""
    kept = [engine.measured for engine in engines]
    lost = [engine for engine in before.engines if engine.measured and engine.measured not in kept] if before else []
    if lost:
        content = documents.read_bytes(folder / REPORT, documents.MAXIMUM_BYTES)
        stamp = (lost[0].measured_at or now()).replace(":", "").replace("-", "")
        path, number = folder / EARLIER / f"{stamp}.json", 1
        while path.exists() and documents.read_bytes(path, documents.MAXIMUM_BYTES) != content:
            path, number = folder / EARLIER / f"{stamp}-{number}.json", number + 1
        write_atomic(path, content)


def _with_measurement(engine: EngineExport, earlier: EngineExport) -> EngineExport:
    return msgspec.structs.replace(
        engine, measured=earlier.measured, environment=earlier.environment, measured_at=earlier.measured_at
    )
