"""``mobilenas predict``: what any ONNX model takes on a device, from the kernels that its runtime makes of it."""

from __future__ import annotations

from pathlib import Path

from mobilenas import onnx_model
from mobilenas.config import PredictConfig
from mobilenas.core.measurement import MeasurementPlan
from mobilenas.core.resources import user_data_directory
from mobilenas.core.workload import Kernel
from mobilenas.devices.links import Link
from mobilenas.errors import MissingDataError
from mobilenas.latency.kernels import TargetKernels
from mobilenas.latency.store import load_target_table, table_folder, target_tables
from mobilenas.profiling.campaign import add_kernels
from mobilenas.results import PredictResult
from mobilenas.workflows.naming import Listener, Silent, Target, tell_sweep

SINGLE_KERNELS = "kernels"
"""Folder name of the table that keeps what predictions have measured."""


def predict(model: Path, cfg: PredictConfig, listener: Listener | None = None) -> PredictResult:
    """Predict the latency of the ONNX file ``model``. Raises ``MissingKernelError`` for kernels that are neither measured
    nor predictable: none counts as zero.
    """
    told = listener or Silent()
    target = Target.from_config(cfg.device)
    plan = target.plan(cfg.plan)
    content = onnx_model.read_model(model)
    folder = table_folder(target.table_key, SINGLE_KERNELS)
    with target.device.open() as link:
        told.progress("lowering", 0, 1)
        [kernels] = target.runtime.kernels([content], link, target.settings)
        known = _known(cfg, target)
        if known is None or not known.is_calibrated:
            raise MissingDataError(
                f"no latency table of {target.device.card.name}, {target.runtime.name} holds whole networks, without which "
                "nothing tells how far sums of kernels are off: make one for any model with mobilenas profile --kernels 1500"
            )
        missing = known.missing(kernels)
        if missing and cfg.profile_missing:
            told.note(f"{len(missing)} of {len(kernels)} kernels are in no table: measuring them")
            _measure(missing, folder, target, link, plan, told)
            known = _known(cfg, target) or known
    return PredictResult(
        model=str(model),
        device=target.device.card.name,
        runtime=target.runtime.name,
        predicted=known.predict(kernels, cfg.extrapolate),
        newly_measured=len(missing) if cfg.profile_missing else 0,
        table=str(folder) if missing and cfg.profile_missing else None,
        measured=target.measure("model", content, plan, told, "measuring the model") if cfg.measure else None,
    )


def _known(cfg: PredictConfig, target: Target) -> TargetKernels | None:
    """What the target's tables know, or the one named and, where missing kernels are measured, what was kept of them."""
    if cfg.table is None:
        return TargetKernels.of(target_tables(target.table_key))
    kept = table_folder(target.table_key, SINGLE_KERNELS)
    folders = [Path(cfg.table), *([kept] if cfg.profile_missing and (kept / "card.json").exists() else [])]
    return TargetKernels.of([(folder, load_target_table(folder, target.table_key)) for folder in folders])


def _measure(missing: list[Kernel], folder: Path, target: Target, link: Link, plan: MeasurementPlan, told: Listener) -> None:
    add_kernels(
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
