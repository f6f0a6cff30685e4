"""``mobilenas export``: a network becomes a folder that a device can run, and its prediction is put to the test."""

from __future__ import annotations

import random
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from mobilenas import onnx_model
from mobilenas.config import DescribeConfig, ExportConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.data import ImageData
from mobilenas.errors import MissingDataError, UsageError
from mobilenas.export.bundle import write_bundle
from mobilenas.export.verify import compare
from mobilenas.results import ExportResult
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.published import PUBLISHED
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
from mobilenas.workflows.run_describe import find_network, make_run

VERIFIED_INPUTS = 64
"""Images that an exported model is compared on: as many whole batches of them as this holds, at least one."""


def run_of(target: str) -> Path:
    """The run directory that ``target`` names; that of a published network is made in ``runs`` if there is none.

    Raises ``MissingDataError`` if there is neither.
    """
    if Path(target).exists():
        return Path(target)
    if target not in PUBLISHED:
        raise MissingDataError(f"{target}: no run directory, and no published network has that name ({', '.join(PUBLISHED)})")
    run = Path("runs") / target
    if not run.exists():
        make_run(target, DescribeConfig(), run)
    wanted = find_network(target, DescribeConfig()).architecture.fingerprint
    if not (run / ARCHITECTURE).exists() or Architecture.load(run / ARCHITECTURE).fingerprint != wanted:
        raise UsageError(f"{run} is there already and does not hold {target} as published: move it, or export it by path")
    return run


def export(run: Path, cfg: ExportConfig, listener: Listener | None = None) -> ExportResult:
    """Export the architecture of ``run``, trained if ``train`` was run, into ``run/export``: checked and measured.

    A run that was made without a data set is compared on noise.
    """
    told = listener or Silent()
    if not cfg.onnx:
        raise UsageError("nothing to export: say --onnx")
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    search_cfg = search_config_of(run)
    data = data_from_config(search_cfg.data, search_cfg.seed) if search_cfg.data.name else None
    if data is not None:
        check_data_fits(space, data)
    target = Target.from_config(msgspec.structs.replace(search_cfg.device, name=cfg.device)) if cfg.device else None
    plan = target.plan(cfg.plan) if target else None
    budget = budget_of(run)
    network, trained = network_of(run, space, architecture)
    told.progress("exporting", 0, 1)
    exported = onnx_model.slim(onnx_model.onnx_from_module(network, [torch.zeros(space.image_shape)]))
    onnx_model.set_metadata(exported, _metadata(architecture, data))
    model = exported.SerializeToString()
    agreement = compare(network, model, _images(space, data), cfg.tolerance, space.image_shape[0])

    measured = None
    if target is not None and plan is not None:
        measured = target.measure(architecture.fingerprint, model, plan, told, "measuring the exported model")
        measured = measured.of_statistic(budget.statistic) if budget else measured
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


def _images(space: SearchSpace, data: ImageData | None) -> torch.Tensor:
    """Test images, or standard normal noise without a data set: whole batches ``(N, C, H, W)``."""
    batch = space.image_shape[0]
    if data is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn((batch * max(1, VERIFIED_INPUTS // batch), *space.image_shape[1:]), generator=generator)
    count = batch * max(1, min(VERIFIED_INPUTS, len(data.test)) // batch)
    return torch.stack([data.test[index][0] for index in random.Random(0).sample(range(len(data.test)), count)])


def _metadata(architecture: Architecture, data: ImageData | None) -> dict[str, str]:
    made = {"mobilenas_version": version("mobilenas"), "fingerprint": architecture.fingerprint}
    if data is None:
        return made
    return {
        **made,
        "data": data.name,
        "preprocessing": msgspec.json.encode(data.preprocessing).decode(),
        "class_names": msgspec.json.encode(data.class_names).decode(),
    }
