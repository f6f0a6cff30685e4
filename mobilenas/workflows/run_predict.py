"""``mobilenas predict``: what any ONNX model takes on a device, from the kernels that its runtime makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from mobilenas import onnx_model
from mobilenas.config import DEFAULT_CAMPAIGN, PredictConfig, ProfileConfig, command_line
from mobilenas.core.resources import user_data_directory
from mobilenas.core.workload import Kernel
from mobilenas.devices.links import Link
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError, RunnerError
from mobilenas.latency.kernels import TargetKernels
from mobilenas.latency.store import FoundTables, load_target_table, single_kernels_folder, target_tables
from mobilenas.latency.table import TableKey
from mobilenas.onnx_model import ModelFile
from mobilenas.profiling.kernels import keep_kernels
from mobilenas.results import PredictResult
from mobilenas.runtimes.base import Lowered
from mobilenas.workflows.naming import Listener, Silent, Target, tell_data_dependent, tell_sweep


def predict(model: Path, cfg: PredictConfig, listener: Listener | None = None) -> PredictResult:
    """Predict the latency of the ONNX file ``model``. Raises ``MissingKernelError`` where too much of it is unlike all that was
    measured: no kernel counts as zero.
    """
    told = listener or Silent()
    target = Target.from_config(cfg.device)
    plan = target.plan(cfg.plan)
    file = onnx_model.read_model(model, cfg.shapes)
    tell_batch(file, target, told)
    with target.device.open() as link:
        if cfg.extrapolate:
            told.note("--extrapolate has no effect any more: kernels beyond the learnt shapes are always estimated")
        told.progress("lowering", 0, 1)
        lowered, key = _lower(model, file, target, link)
        kernels = lowered.kernels
        tell_data_dependent(lowered.data_dependent, told)
        known = _known(cfg, key, kernels)
        folder = single_kernels_folder(key)
        tried: dict[Kernel, str] = {}
        missing = known.missing(kernels) if cfg.profile_missing else []
        if missing:
            told.note(f"{len(missing)} of {len(kernels)} kernels are in no table: measuring them")
            refused = keep_kernels(
                missing,
                folder,
                user_data_directory() / "campaigns",
                target.device,
                link,
                target.runtime,
                target.settings,
                plan,
                lambda p: tell_sweep(told, "measuring kernels", p),
            )
            if refused:
                told.note(f"{target.runtime.name} refuses to run {len(refused)} of them alone")
            tried = dict.fromkeys(missing, "") | refused
            known = _known(cfg, key, kernels)
    predicted = known.predict(kernels, tried=tried)
    interval = predicted.prediction.low_ms, predicted.prediction.high_ms
    measured = target.measure("model", file, plan, told, "measuring the model")[0] if cfg.measure else None
    newly_measured = sum(not complaint for complaint in tried.values())
    return PredictResult(
        model=str(model),
        device=target.device.card.name,
        runtime=target.runtime.name,
        predicted=predicted,
        newly_measured=newly_measured,
        table=str(folder) if newly_measured else None,
        measured=measured,
        agrees=measured.agrees_with(*interval) if measured else None,
        data_dependent=lowered.data_dependent,
    )


def tell_batch(file: ModelFile, target: Target, told: Listener) -> None:
    """Say where the tables that are used are those of another batch than the model seems to have."""
    if file.batch not in (None, target.settings.batch):
        told.note(
            f"the first dimension of the model's inputs is {file.batch}: its kernels are looked up as they are, in the tables "
            f"of batch {target.settings.batch} (device.batch)"
        )


def _lower(model: Path, file: ModelFile, target: Target, link: Link) -> tuple[Lowered, TableKey]:
    """Lower a model, and return it with the key of its tables: the engine's version is that of the runner.

    Raises ``DocumentError`` for a model that the engine refuses, or that is made of more than kernels on tensors.
    """
    said: dict[str, Any] = {}
    target.runtime.check_kernels(target.settings)
    try:
        prepared = target.runtime.prepare_file(file, target.settings)
        lowered = target.runtime.study(prepared, link, target.settings, said.update)
    except (DocumentError, IncompatibleError) as error:
        raise DocumentError(f"{model}: {error}") from error
    except RunnerError as error:
        if not error.refused:
            raise
        [complaint] = error.refused.values()
        raise DocumentError(f"{model}: {target.runtime.name} refuses it: {complaint}") from error
    if lowered.complaint is not None:
        raise DocumentError(f"{model}: {lowered.complaint}")
    version = str(said.get("engine_version", "unknown"))
    return lowered, msgspec.structs.replace(target.table_key, runtime_version=version)


def _known(cfg: PredictConfig, key: TableKey, kernels: Counter[Kernel]) -> TargetKernels:
    """What the target's tables know, or the one named and, where missing kernels are measured, what was kept of them.

    Raises ``MissingDataError`` where no whole network was measured with the engine that the device has.
    """
    found = target_tables(key)
    if cfg.table is not None:
        kept = single_kernels_folder(key)
        named = (Path(cfg.table), load_target_table(Path(cfg.table), key))
        others = [t for t in found.tables if cfg.profile_missing and t[0].parent == kept]
        found = FoundTables((named, *others))
    known = TargetKernels.nearest(found, kernels)
    if not known.is_calibrated:
        command = command_line("profile", ProfileConfig(device=cfg.device, kernels=DEFAULT_CAMPAIGN))
        unused = f" Not used: {'; '.join(found.left_out)}." if found.left_out else ""
        raise MissingDataError(
            f"no latency table of {key.device}, {key.runtime} {key.runtime_version} holds whole networks, without which "
            f"nothing tells how far sums of kernels are off.{unused} Make one for any model: {command}. "
            "To time one model only, mobilenas measure needs no table"
        )
    return known
