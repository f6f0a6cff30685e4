"""``mobilenas export``: a network becomes a folder that a device can run, and its prediction is put to the test."""

from __future__ import annotations

import random
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from mobilenas import onnx_model
from mobilenas.config import ExportConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import plan_named
from mobilenas.data import ImageData
from mobilenas.errors import UsageError
from mobilenas.export.bundle import write_bundle
from mobilenas.export.verify import compare
from mobilenas.results import ExportResult
from mobilenas.workflows.naming import (
    ARCHITECTURE,
    Listener,
    Silent,
    Target,
    budget_of,
    check_data_fits,
    data_from_config,
    network_of,
    search_config_of,
    space_of,
)

VERIFIED_INPUTS = 64
"""Test images that an exported model is compared on: as many whole batches of them as this holds, at least one."""


def export(run: Path, cfg: ExportConfig, listener: Listener | None = None) -> ExportResult:
    """Export the architecture of ``run``, trained if ``train`` was run, into ``run/export``: checked and measured."""
    told = listener or Silent()
    if not cfg.onnx:
        raise UsageError("nothing to export: say --onnx")
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    search_cfg = search_config_of(run)
    data = data_from_config(search_cfg.data, search_cfg.seed)
    check_data_fits(space, data)
    plan = plan_named(cfg.plan)
    target = Target.from_config(msgspec.structs.replace(search_cfg.device, name=cfg.device)) if cfg.device else None
    budget = budget_of(run)
    network, trained = network_of(run, space, architecture)
    told.progress("exporting", 0, 1)
    exported = onnx_model.slim(onnx_model.onnx_from_module(network, [torch.zeros(space.image_shape)]))
    onnx_model.set_metadata(exported, _metadata(architecture, data))
    model = exported.SerializeToString()
    generator = random.Random(0)
    batch = space.image_shape[0]
    chosen = generator.sample(range(len(data.test)), batch * max(1, min(VERIFIED_INPUTS, len(data.test)) // batch))
    images = torch.stack([data.test[index][0] for index in chosen])
    agreement = compare(network, model, images, cfg.tolerance, batch)

    stage = "measuring the exported model"
    measured = target.measure(architecture.fingerprint, model, plan, told, stage) if target else None
    folder = run / "export"
    result = ExportResult(
        folder=str(folder),
        model=str(folder / "model.onnx"),
        fingerprint=architecture.fingerprint,
        params=space.params(architecture),
        madds=space.madds(architecture),
        trained=trained is not None,
        test_accuracy=trained,
        agreement=agreement,
        budget=budget,
        measured=measured,
        budget_met=measured.is_within(budget.target_ms) if budget and measured else None,
        device=msgspec.to_builtins(target.device.card) if target else None,
    )
    report = documents.dump_json({"schema": "mobilenas/export-report@1", **msgspec.to_builtins(result)})
    write_bundle(folder, {"model.onnx": model, ARCHITECTURE: architecture.to_json(), "report.json": report})
    return result


def _metadata(architecture: Architecture, data: ImageData) -> dict[str, str]:
    return {
        "mobilenas_version": version("mobilenas"),
        "fingerprint": architecture.fingerprint,
        "data": data.name,
        "preprocessing": msgspec.json.encode(data.preprocessing).decode(),
        "class_names": msgspec.json.encode(data.class_names).decode(),
    }
