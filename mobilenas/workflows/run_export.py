"""``mobilenas export``: a network becomes a folder that a device can run, and its prediction is put to the test."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from mobilenas import onnx_model
from mobilenas.config import DeviceConfig, ExportConfig, SearchConfig, overridden
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import MeasurementPlan
from mobilenas.core.run_directory import locked
from mobilenas.data import ImageData
from mobilenas.data.images import Images
from mobilenas.devices.device import LOCAL
from mobilenas.errors import (
    IncompatibleError,
    MobileNASError,
    RunnerError,
    UnavailableError,
)
from mobilenas.export.bundle import write_bundle
from mobilenas.export.kits import Kit, kit_files, kit_named
from mobilenas.export.verify import Agreement, compare, logits_of, onnx_logits_of
from mobilenas.network import Network
from mobilenas.results import BudgetOutcome, DataFacts, EngineExport, ExportResult
from mobilenas.runtimes.base import PreparedModel
from mobilenas.spaces.base import SearchSpace
from mobilenas.workflows.earlier_export import REPORT, SCHEMA, VERSION, now, report_of, set_aside, with_earlier
from mobilenas.workflows.model_card import MODEL_CARD, model_card
from mobilenas.workflows.naming import (
    ARCHITECTURE,
    Listener,
    Silent,
    Target,
    budget_of,
    check_data_fits,
    data_from_config,
    facts_of,
    network_of,
    search_config_of,
    seed_of_test_images,
    space_of,
)

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.35}
"""Largest difference of any logit, relative to the largest logit, by precision: more than rounding makes of untrained networks,
which show it most, and less than the faults that were met (docs/benchmarks/engines.md).
"""
COMPARED_NUMBERS, COMPARED_IMAGES, NOISE_IMAGES = 2**24, 1000, 64
"""Images that an exported model is compared on: as many whole batches as hold so many numbers, at least one; of noise fewer."""
CALIBRATION_IMAGES = 128
"""Training images that tell the range of activations."""


class _Compared(NamedTuple):
    """Images ``(N, C, H, W)``, their classes where these are known, and what torch makes of them."""

    images: torch.Tensor
    labels: np.ndarray | None
    logits: np.ndarray


def export(run: Path, cfg: ExportConfig, listener: Listener | None = None) -> ExportResult:
    """Export the architecture of ``run``, trained if ``train`` was run, into ``run/export``: checked and measured.

    The ONNX model is there whatever is asked for. Each engine's own form of it is checked against torch by that engine on the
    device, or on this host without one. A run that was made without a data set is compared on noise. Raises
    ``VerificationError`` for a model that disagrees, once all are written, it under a name that says so; ``UsageError`` where
    another process exports the run.
    """
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    search_cfg, told = search_config_of(run), listener or Silent()
    data, facts = None, None
    if search_cfg.data.name:
        data = data_from_config(overridden(search_cfg.data, cfg.data), seed_of_test_images(run, search_cfg))
        check_data_fits(space, data)
        facts = facts_of(data, told)
    kits = {name: kit_named(name) for name in cfg.kits}
    targets = _targets(search_cfg.device, cfg, [kit.runtime for kit in kits.values()])
    budget = budget_of(run)
    if budget is not None and targets[0].settings.precision != search_cfg.device.precision:
        budget = msgspec.structs.replace(budget, table_sentinel_ms=None)  # the sentinel is one of its precision
    network, trained = network_of(run, space, architecture)
    job = _Export(run, cfg, search_cfg, architecture, space, data, facts, kits, targets, budget, told)
    plans = [target.plan(cfg.plan) for target in targets] if cfg.device else None
    with locked(run):
        return job.run(network, trained, plans)


@dataclass(frozen=True)
class _Export:
    """What was asked for, with its names resolved; of the targets the first is the search's own."""

    source: Path
    cfg: ExportConfig
    search_cfg: SearchConfig
    architecture: Architecture
    space: SearchSpace
    data: ImageData | None
    facts: DataFacts | None
    kits: Mapping[str, Kit]
    targets: Sequence[Target]
    budget: BudgetOutcome | None
    told: Listener

    @property
    def folder(self) -> Path:
        return self.source / "export"

    def run(self, network: Network, trained: float | None, plans: Sequence[MeasurementPlan] | None) -> ExportResult:
        """``plans`` say how each target measures, if any does."""
        space, tolerance = self.space, self.cfg.tolerance
        self.told.progress("exporting", 0, 1 + len(self.targets))
        exported = onnx_model.slim(onnx_model.onnx_from_module(network, [torch.zeros(space.image_shape)]))
        onnx_model.set_metadata(exported, _metadata(self.architecture, self.data))
        model = exported.SerializeToString()
        images, labels = _images(space, self.data.test if self.data else None, COMPARED_IMAGES if self.data else NOISE_IMAGES)
        calibration = _images(space, self.data.train, CALIBRATION_IMAGES)[0] if self.data else images
        logits = logits_of(network, images, space.image_shape[0])
        compared = _Compared(images, labels if trained is not None else None, logits)
        found = onnx_logits_of(model, images, space.image_shape[0])
        agreement = compare(logits, found, TOLERANCES["fp32"] if tolerance is None else tolerance, compared.labels)
        files: dict[str, str | bytes] = {_name("fp32", ".onnx", agreement): model}
        engines, models = [], {}
        failed: list[MobileNASError] = []
        for number, target in enumerate(self.targets, 1):
            self.told.progress("exporting", number, 1 + len(self.targets))
            try:
                calls = calibration.numpy().reshape(-1, *space.image_shape)
                prepared = target.runtime.prepare(model, target.settings, calls)
                engine, named = _engine_export(target, prepared, compared, tolerance, self.folder)
                if plans is not None and engine.agreement is not None:
                    engine = self._measured(engine, target, prepared, plans[number - 1])
            except (IncompatibleError, RunnerError) as error:  # of this engine; the others' models are written all the same
                failed.append(error)
                name, settings = target.runtime.name, target.settings
                engines.append(EngineExport(name, "unknown", settings, (), None, None, not_run=str(error)))
                continue
            models[target.runtime.name] = prepared
            files.update(named)
            engines.append(engine)
        before = report_of(self.folder, self.told)
        kept, device = with_earlier(engines, before, self.told)
        result = self._result(trained, agreement, kept, device)
        set_aside(self.folder, before, kept)
        self._write(result, files)
        agreement.check("the ONNX model")
        for engine in engines:
            if engine.agreement is not None:
                engine.agreement.check(f"{engine.runtime} {engine.settings.precision}")
        if failed:
            raise failed[0]
        self._fill_kits(result, models)
        return result

    def _measured(self, engine: EngineExport, target: Target, prepared: PreparedModel, plan: MeasurementPlan) -> EngineExport:
        stage = f"measuring the exported model by {target.runtime.name}"
        timed, environment = target.measure(self.architecture.fingerprint, prepared, plan, self.told, stage)
        timed = timed.of_statistic(self.budget.statistic) if self.budget else timed
        return msgspec.structs.replace(engine, measured=timed, environment=environment, measured_at=now())

    def _result(
        self,
        trained: float | None,
        agreement: Agreement,
        engines: Sequence[EngineExport],
        earlier_device: dict[str, Any] | None,
    ) -> ExportResult:
        measured, budget = engines[0].measured, self.budget
        checked = [agreement, *(engine.agreement for engine in engines)]
        is_right = all(engine.files for engine in engines) and all(each.is_within for each in checked if each is not None)
        return ExportResult(
            folder=str(self.folder),
            model=str(self.folder / _name("fp32", ".onnx", agreement)),
            fingerprint=self.architecture.fingerprint,
            params=self.space.params(self.architecture),
            madds=self.space.madds(self.architecture),
            trained=trained is not None,
            test_accuracy=trained,
            agreement=agreement,
            engines=tuple(engines),
            kits=tuple(str(self.folder / "kits" / name) for name in self.kits) if is_right else (),
            budget=budget,
            measured=measured,
            budget_met=measured.is_within(budget.target_ms) if budget and measured else None,
            agrees=measured.agrees_with(budget.table_low_ms, budget.table_high_ms) if budget and measured else None,
            device=msgspec.to_builtins(self.targets[0].device.card) if self.cfg.device else earlier_device,
            data=self.facts,
        )

    def _write(self, result: ExportResult, files: Mapping[str, str | bytes]) -> None:
        report = documents.dump_json({"schema": f"mobilenas/{SCHEMA}@{VERSION}", **msgspec.to_builtins(result)})
        card = model_card(self.source, result, self.space, self.architecture, self.data, self.search_cfg, self.cfg)
        shutil.rmtree(self.folder / "kits", ignore_errors=True)  # they hold what an export before this one made
        texts = {ARCHITECTURE: self.architecture.to_json(), REPORT: report, MODEL_CARD: card}
        write_bundle(self.folder, {**files, **texts})

    def _fill_kits(self, result: ExportResult, models: Mapping[str, PreparedModel]) -> None:
        for name, kit in self.kits.items():
            [target] = [target for target in self.targets if target.runtime.name == kit.runtime]
            facts = _kit_facts(self, result, kit.runtime)
            plan = target.plan(self.cfg.plan)
            filled = kit_files(name, target.runtime, models[kit.runtime], target.settings, plan, facts)
            write_bundle(self.folder / "kits" / name, filled)


def _kit_facts(job: _Export, result: ExportResult, runtime: str) -> dict[str, Any]:
    """What an engineer who has the kit only wants to know of its network; TOML has no word for what is not known."""
    space, data, searched = job.space, job.data, job.search_cfg.device
    [engine] = [engine for engine in result.engines if engine.runtime == runtime]
    is_predicted = (
        engine is result.engines[0]
        and engine.settings.precision == searched.precision
        and job.cfg.device in (None, searched.name)
    )
    facts = {
        "made_by": f"mobilenas {version('mobilenas')}",
        "fingerprint": result.fingerprint,
        "parameters": result.params,
        "madds": result.madds,
        "input_shape": space.image_shape,
        "test_accuracy": result.test_accuracy,
        "precision": engine.settings.precision,
        "checked_against_torch": "yes" if engine.agreement else f"no: {engine.not_run}",
        "accuracy_of_this_model": engine.agreement.accuracy if engine.agreement else None,
        "accuracy_of_torch_on_the_same_images": engine.agreement.torch_accuracy if engine.agreement else None,
        "largest_difference_from_torch": engine.agreement.relative_difference if engine.agreement else None,
        "measured_ms": engine.measured.value_ms if engine.measured else None,
        "measured_on": result.device["name"] if result.device and engine.measured else None,
        "engine_version": engine.engine_version,
        "budget_ms": result.budget.target_ms if result.budget else None,
        "predicted_ms": result.budget.table_ms if result.budget and is_predicted else None,
        **({} if data is None else {"data": data.name, "preprocessing": data.preprocessing, "class_names": data.class_names}),
    }
    return {key: value for key, value in msgspec.to_builtins(facts).items() if value is not None}


def _targets(device: DeviceConfig, cfg: ExportConfig, more: Sequence[str]) -> list[Target]:
    """The search's engine and those asked for, on the device that measures; on this host where nothing is measured."""
    changed = msgspec.structs.replace(device, name=cfg.device or LOCAL, precision=cfg.precision or device.precision)
    names = [name for name in dict.fromkeys([*cfg.runtimes, *more]) if name != device.runtime]
    own = [msgspec.structs.replace(changed, runtime=name, provider=None) for name in names]
    return [Target.from_config(each) for each in (changed, *own)]


def _engine_export(
    target: Target, prepared: PreparedModel, compared: _Compared, tolerance: float | None, folder: Path
) -> tuple[EngineExport, dict[str, bytes]]:
    """What the engine on the device makes of the images, not yet timed, and the files of its model by name."""
    shape = (-1, target.settings.batch, *compared.images.shape[1:])
    precision, agreement, not_run = target.settings.precision, None, None
    engine_version = target.engine_version()
    try:
        found = target.compute(prepared, compared.images.numpy().reshape(shape))
        allowed = TOLERANCES[precision] if tolerance is None else tolerance
        agreement = compare(compared.logits, found.reshape(compared.logits.shape), allowed, compared.labels)
    except UnavailableError as error:
        not_run = str(error)
    files = {
        _name(precision, suffix, agreement): content
        for suffix, content in zip(target.runtime.suffixes, prepared.files, strict=False)
    }
    paths = tuple(str(folder / name) for name in files)
    digests = tuple(hashlib.sha256(content).hexdigest() for content in prepared.files)
    made = EngineExport(target.runtime.name, engine_version, target.settings, paths, agreement, None, None, not_run, digests)
    return made, files


def _name(precision: str, suffix: str, agreement: Agreement | None) -> str:
    bits = "" if precision == "fp32" else f".{precision}"
    return f"model{bits}{'' if agreement and agreement.is_within else '.unverified'}{suffix}"


def _images(space: SearchSpace, images: Images | None, most: int) -> tuple[torch.Tensor, np.ndarray | None]:
    """Some images ``(N, C, H, W)`` and their classes ``(N,)``, whole batches; standard normal noise without a data set."""
    batch, numbers = space.image_shape[0], math.prod(space.image_shape[1:])
    count = min(most, max(1, COMPARED_NUMBERS // numbers), most if images is None else len(images))
    count = batch * max(1, count // batch)
    if images is None:
        return torch.randn((count, *space.image_shape[1:]), generator=torch.Generator().manual_seed(0)), None
    chosen = [images[index] for index in random.Random(0).sample(range(len(images)), count)]
    return torch.stack([image for image, _ in chosen]), np.array([int(label) for _, label in chosen])


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
