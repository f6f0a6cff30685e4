"""``mobilenas verify``: the network of a run is measured on a device again."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import msgspec

from mobilenas.config import VerifyConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import write_atomic
from mobilenas.export.bundle import read_bundled
from mobilenas.profiling.networks import network_for_timing
from mobilenas.results import VerifyResult
from mobilenas.workflows.naming import (
    ARCHITECTURE,
    Listener,
    Silent,
    Target,
    budget_of,
    search_config_of,
    space_of,
)


def verify(run: Path, cfg: VerifyConfig, listener: Listener | None = None) -> VerifyResult:
    """Measure the exported model of ``run``, or its architecture where nothing was exported, by the path of all numbers.

    The record is kept in ``run/verified``.
    """
    told = listener or Silent()
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    budget = budget_of(run)
    target = Target.from_config(msgspec.structs.replace(search_config_of(run).device, name=cfg.device))
    plan = target.plan(cfg.plan)
    exported = run / "export" / "model.onnx"
    model = read_bundled(exported) if exported.exists() else network_for_timing(space, architecture)
    measured, environment = target.measure(architecture.fingerprint, model, plan, told, "measuring")
    measured = measured.of_statistic(budget.statistic) if budget else measured
    record = run / "verified" / f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}.json"
    result = VerifyResult(
        run=str(run),
        record=str(record),
        fingerprint=architecture.fingerprint,
        exported=exported.exists(),
        device=target.device.card.name,
        budget=budget,
        measured=measured,
        environment=environment,
        within_interval=budget.table_low_ms <= measured.value_ms <= budget.table_high_ms if budget else None,
        budget_met=measured.is_within(budget.target_ms) if budget else None,
        agrees=measured.agrees_with(budget.table_low_ms, budget.table_high_ms) if budget else None,
    )
    write_atomic(record, documents.dump_json({"schema": "mobilenas/verification@1", **msgspec.to_builtins(result)}))
    return result
