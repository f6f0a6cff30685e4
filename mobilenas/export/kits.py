"""Deployment kits: a folder with a model, the runner that timed it, and what is needed to run both without mobilenas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from mobilenas.core import documents
from mobilenas.core.measurement import MeasurementPlan
from mobilenas.core.resources import shipped
from mobilenas.errors import UnknownNameError
from mobilenas.runtimes.base import RUNNER_LIBRARY, PreparedModel, RunSettings, Runtime

SHARED = ("run.sh", "latency.py")
"""Files that every kit holds as they stand."""
MODEL, SENTINEL = "model", "sentinel"


class Kit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``export/kits/NAME/kit.toml`` says: for which kind of device, by which engine."""

    title: str
    runtime: str
    packages: tuple[str, ...]
    """Python packages that the runner needs on the device."""


def kit_names() -> tuple[str, ...]:
    """Those that are shipped."""
    return tuple(sorted(path.parent.name for path in _folder().glob("*/kit.toml")))


def kit_named(name: str) -> Kit:
    """Raises ``UnknownNameError``."""
    if name not in kit_names():
        raise UnknownNameError("kit", name, kit_names())
    path = _folder() / name / "kit.toml"
    return documents.convert(documents.parse_toml(documents.read_text(path), str(path)), Kit, str(path))


def kit_files(
    name: str,
    runtime: Runtime,
    model: PreparedModel,
    settings: RunSettings,
    plan: MeasurementPlan,
    facts: Mapping[str, Any],
) -> dict[str, str | bytes]:
    """The files of a kit that times ``model`` by ``plan``; ``facts`` on it are added to the kit's own, as TOML."""
    sentinel = runtime.sentinel_model(settings)
    paths = {stem: f"{stem}{runtime.suffixes[0]}" for stem in (MODEL, SENTINEL)}
    job = runtime.timing_job(settings, plan, paths[SENTINEL], [{"id": MODEL, "path": paths[MODEL], "optimise": model.optimise}])
    found: dict[str, str | bytes] = {
        "README.md": documents.read_text(_folder() / name / "README.md"),
        "kit.toml": tomli_w.dumps({"name": name, **msgspec.to_builtins(kit_named(name)), **facts}),
        "job.json": documents.dump_json(job),
        "runner.py": runtime.runner_file.read_bytes(),
        RUNNER_LIBRARY: (shipped("export") / "runners" / RUNNER_LIBRARY).read_bytes(),
        **{shared: (_folder() / shared).read_bytes() for shared in SHARED},
    }
    for stem, prepared in ((MODEL, model), (SENTINEL, sentinel)):
        found.update({f"{stem}{suffix}": content for suffix, content in zip(runtime.suffixes, prepared.files, strict=False)})
    return found


def _folder() -> Path:
    return shipped("export") / "kits"
