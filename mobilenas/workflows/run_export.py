"""``mobilenas export``: a network becomes a folder that a device can run, and its prediction is put to the test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from mobilenas import onnx_model
from mobilenas.config import DescribeConfig, DeviceConfig, ExportConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.data import ImageData
from mobilenas.devices.device import LOCAL
from mobilenas.errors import MissingDataError, UsageError
from mobilenas.export.bundle import write_bundle
from mobilenas.export.kits import kit_files, kit_named
from mobilenas.export.verify import Agreement, compare, logits_of, onnx_logits_of
from mobilenas.results import EngineExport, ExportResult
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

TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference of any logit, relative to the largest logit, by precision."""
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

    The ONNX model is there whatever is asked for. Each engine's own form of it is checked against torch by that engine on the
    device, or on this host without one. A run that was made without a data set is compared on noise. Raises
    ``VerificationError`` for a model that disagrees, once all are written, it under a name that says so.
    """
    told = listener or Silent()
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    search_cfg = search_config_of(run)
    data = data_from_config(search_cfg.data, search_cfg.seed) if search_cfg.data.name else None
    if data is not None:
        check_data_fits(space, data)
    kits = {name: kit_named(name) for name in cfg.kits}
    targets = _targets(search_cfg.device, cfg, [kit.runtime for kit in kits.values()])
    plan = targets[0].plan(cfg.plan) if cfg.device else None
    budget = budget_of(run)
    network, trained = network_of(run, space, architecture)
    told.progress("exporting", 0, 1 + len(targets))
    exported = onnx_model.slim(onnx_model.onnx_from_module(network, [torch.zeros(space.image_shape)]))
    onnx_model.set_metadata(exported, _metadata(architecture, data))
    model = exported.SerializeToString()
    images, batch = _images(space, data), space.image_shape[0]
    expected = logits_of(network, images, batch)
    agreement = compare(expected, onnx_logits_of(model, images, batch), cfg.tolerance or TOLERANCES["fp32"])
    files = {_name(".onnx", agreement): model}
    engines, models = [], {}
    for number, target in enumerate(targets, 1):
        told.progress("exporting", number, 1 + len(targets))
        prepared = target.runtime.prepare(model, target.settings)
        engine_version, found = target.compute(prepared, images.numpy().reshape(-1, *space.image_shape))
        precision = target.settings.precision
        agrees = compare(expected, found.reshape(expected.shape), cfg.tolerance or TOLERANCES[precision])
        models[target.runtime.name] = prepared
        names = [_name(suffix, agrees) for suffix in target.runtime.suffixes[: len(prepared.files)]]
        files.update(zip(names, prepared.files, strict=True))
        stage = f"measuring the exported model by {target.runtime.name}"
        measured = target.measure(architecture.fingerprint, prepared, plan, told, stage) if plan else None
        measured = measured.of_statistic(budget.statistic) if measured and budget else measured
        paths = tuple(str(run / "export" / name) for name in names)
        engines.append(EngineExport(target.runtime.name, engine_version, precision, paths, agrees, measured))
    measured = engines[0].measured
    folder = run / "export"
    result = ExportResult(
        folder=str(folder),
        model=str(folder / _name(".onnx", agreement)),
        fingerprint=architecture.fingerprint,
        params=space.params(architecture),
        madds=space.madds(architecture),
        trained=trained is not None,
        test_accuracy=trained,
        agreement=agreement,
        engines=tuple(engines),
        kits=tuple(str(folder / "kits" / name) for name in kits),
        budget=budget,
        measured=measured,
        budget_met=measured.is_within(budget.target_ms) if budget and measured else None,
        device=msgspec.to_builtins(targets[0].device.card) if cfg.device else None,
    )
    report = documents.dump_json({"schema": "mobilenas/export-report@1", **msgspec.to_builtins(result)})
    write_bundle(folder, {**files, ARCHITECTURE: architecture.to_json(), "report.json": report})
    agreement.check("the ONNX model")
    for engine in engines:
        engine.agreement.check(f"{engine.runtime} {engine.precision}")
    for name, kit in kits.items():
        [target] = [target for target in targets if target.runtime.name == kit.runtime]
        facts = _kit_facts(result, space, data, kit.runtime)
        filled = kit_files(name, target.runtime, models[kit.runtime], target.settings, target.plan(cfg.plan), facts)
        write_bundle(folder / "kits" / name, filled)
    return result


def _kit_facts(result: ExportResult, space: SearchSpace, data: ImageData | None, runtime: str) -> dict[str, Any]:
    """What an engineer who has the kit only wants to know of its network; TOML has no word for what is not known."""
    [engine] = [engine for engine in result.engines if engine.runtime == runtime]
    facts = {
        "made_by": f"mobilenas {version('mobilenas')}",
        "fingerprint": result.fingerprint,
        "parameters": result.params,
        "madds": result.madds,
        "input_shape": space.image_shape,
        "test_accuracy": result.test_accuracy,
        "precision": engine.precision,
        "largest_difference_from_torch": engine.agreement.relative_difference,
        "measured_ms": engine.measured.value_ms if engine.measured else None,
        "measured_on": result.device["name"] if result.device and engine.measured else None,
        "engine_version": engine.engine_version,
        "budget_ms": result.budget.target_ms if result.budget else None,
        "predicted_ms": result.budget.table_ms if result.budget and engine is result.engines[0] else None,
        **({} if data is None else {"data": data.name, "preprocessing": data.preprocessing, "class_names": data.class_names}),
    }
    return {key: value for key, value in msgspec.to_builtins(facts).items() if value is not None}


def _targets(device: DeviceConfig, cfg: ExportConfig, more: Sequence[str]) -> list[Target]:
    """The search's engine and those asked for, on the device that measures; on this host where nothing is measured."""
    changed = msgspec.structs.replace(device, name=cfg.device or LOCAL, precision=cfg.precision or device.precision)
    names = [name for name in dict.fromkeys([*cfg.runtimes, *more]) if name != device.runtime]
    own = [msgspec.structs.replace(changed, runtime=name, provider=None) for name in names]
    return [Target.from_config(each) for each in (changed, *own)]


def _name(suffix: str, agreement: Agreement) -> str:
    return f"model{'' if agreement.is_within else '.unverified'}{suffix}"


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
