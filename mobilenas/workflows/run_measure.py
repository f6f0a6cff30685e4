"""``mobilenas measure``: what ONNX models take on a device, by one engine or several; needs no table."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import helper

from mobilenas import onnx_model
from mobilenas.config import MeasureConfig
from mobilenas.core import documents
from mobilenas.core.measurement import Measurement
from mobilenas.core.units import parse_latency_target
from mobilenas.devices.links import Link
from mobilenas.errors import DocumentError, MobileNASError, RunnerError, UsageError
from mobilenas.onnx_model import ModelFile
from mobilenas.results import Failure, KernelTime, MeasuredTimes, MeasureResult
from mobilenas.runtimes.base import Lowered, PreparedModel
from mobilenas.runtimes.measure import measure as measure_models
from mobilenas.workflows.naming import Listener, Silent, Target, tell_data_dependent, tell_sweep

PROFILED_RUNS = 30
"""Of a model, at most, in the profile that tells how long each of its kernels takes."""
CPU = "CPUExecutionProvider"
"""The provider whose profile tells what a kernel takes; of a GPU's kernels it tells when they were handed over."""


def measure(
    models: Sequence[Path], cfg: MeasureConfig | None = None, listener: Listener | None = None
) -> tuple[MeasureResult, ...]:
    """Measure ONNX files on a device: a result for each model and engine, in this order.

    A model that fails has a result with a ``failure`` and costs the others nothing. Raises ``UsageError`` kinds for what is
    wrong with the configuration, and ``DeviceError`` kinds where the device cannot be reached.
    """
    cfg, told = cfg or MeasureConfig(), listener or Silent()
    if not models:
        raise UsageError("nothing to measure: name at least one ONNX file")
    budget_ms = _budget_ms(cfg.budget)
    names = cfg.runtimes or (cfg.device.runtime,)
    targets = [Target.from_config(msgspec.structs.replace(cfg.device, runtime=name)) for name in dict.fromkeys(names)]
    found = [_measure_by(target, models, cfg, budget_ms, told) for target in targets]
    return tuple(result for of_model in zip(*found, strict=True) for result in of_model)


def _budget_ms(text: str | None) -> float | None:
    if text is None:
        return None
    target = parse_latency_target(text, "--budget")
    if target.ms is None:
        raise UsageError(f"--budget is {text!r}: a share of a space's range; say a time with its unit, as 5ms or 800us")
    return target.ms


def _measure_by(
    target: Target, models: Sequence[Path], cfg: MeasureConfig, budget_ms: float | None, told: Listener
) -> list[MeasureResult]:
    """Measure every model by one engine."""
    plan = target.plan(cfg.plan)
    failures: dict[str, Failure] = {}
    prepared: dict[str, PreparedModel] = {}
    names = [str(index) for index in range(len(models))]
    for name, path in zip(names, models, strict=True):
        try:
            prepared[name] = target.runtime.prepare_file(_read(path, cfg), target.settings)
        except MobileNASError as error:
            failures[name] = _failure(path, error)
    measured: dict[str, Measurement] = {}
    studied: dict[str, Lowered | None] = {}
    hello: dict[str, Any] = {}
    if prepared:
        with target.device.open() as link:
            refused: dict[str, str] = {}
            stage = f"measuring by {target.runtime.name}"
            found_by_name, log = measure_models(
                prepared,
                link,
                target.runtime,
                target.settings,
                plan,
                refused=refused,
                progress=lambda p: tell_sweep(told, stage, p),
            )
            hello = log.hello
            measured = {name: found.lasting() for name, found in found_by_name.items()}
            for name, complaint in refused.items():
                error = DocumentError(f"{models[int(name)]}: {target.runtime.name} refuses it: {complaint}")
                failures[name] = _failure(models[int(name)], error)
            told.progress("profiling kernels", 0, len(measured))
            studied = {name: _study(models[int(name)], prepared[name], target, link, told) for name in measured}
    results = []
    for name, path in zip(names, models, strict=True):
        found, lowered = measured.get(name), studied.get(name)
        results.append(
            MeasureResult(
                model=str(path),
                device=target.device.card.name,
                runtime=target.runtime.name,
                engine_version=hello.get("engine_version"),
                settings=target.settings,
                measured=MeasuredTimes.of(found) if found else None,
                kernels=_kernel_times(lowered) if lowered else (),
                data_dependent=lowered.data_dependent if lowered else (),
                budget_ms=budget_ms,
                budget_met=found.is_within(budget_ms) if found and budget_ms is not None else None,
                environment=log.environment if found else None,
                failure=failures.get(name),
            )
        )
    return results


def _failure(path: Path, error: MobileNASError) -> Failure:
    said = str(error)
    return Failure(error.exit_code, said if str(path) in said else f"{path}: {said}")


def _study(path: Path, model: PreparedModel, target: Target, link: Link, told: Listener) -> Lowered | None:
    """Profile the nodes of a model in runs of their own; ``None`` where the engine has no profile."""
    if not target.runtime.tells_node_times or target.settings.provider != CPU:
        return None
    try:
        lowered = target.runtime.study(msgspec.structs.replace(model, profiled_runs=PROFILED_RUNS), link, target.settings)
    except RunnerError as error:
        told.note(f"{path}: its kernels are not known: {error}")
        return None
    tell_data_dependent(lowered.data_dependent, told, path)
    return lowered


def _kernel_times(lowered: Lowered) -> tuple[KernelTime, ...]:
    """Sum the times of nodes of one kind, the dearest first."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node in lowered.nodes:
        if node.ms is not None:
            times[node.operator, node.kernel.key if node.kernel else f"{node.operator} {node.name}"].append(node.ms)
    whole_ms = sum(map(sum, times.values())) or 1.0
    found = [KernelTime(key, op, len(each), sum(each), sum(each) / whole_ms) for (op, key), each in times.items()]
    return tuple(sorted(found, key=lambda kernel: -kernel.ms))


# ---- inputs ------------------------------------------------------------------------------------------------------------


def _read(path: Path, cfg: MeasureConfig) -> ModelFile:
    """Read a model with the values that are given for its inputs, which fill open dimensions too."""
    arrays = {name: _array(name, Path(file)) for name, file in cfg.inputs.items()}
    shapes: dict[str, Sequence[int]] = {name: array.shape for name, array in arrays.items()}
    file = onnx_model.read_model(path, {**shapes, **cfg.shapes})
    if not arrays:
        return file
    parsed = onnx_model.parse_model(file.content, str(path))
    values = {value.name: value for value in onnx_model.inputs_of(parsed)}
    for name, array in arrays.items():
        _check_values(name, array, values[name], path)
    return msgspec.structs.replace(file, inputs=tuple((name, _npy(array)) for name, array in arrays.items()))


def _array(name: str, path: Path) -> np.ndarray:
    try:
        with documents.opened(path, documents.MAXIMUM_TENSORS_BYTES) as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except DocumentError:
        raise
    except (ValueError, EOFError) as error:
        raise DocumentError(f"--input {name}={path}: no file of one array, as numpy.save writes it: {error}") from error


def _check_values(name: str, array: np.ndarray, value: Any, path: Path) -> None:
    """Raise ``UsageError`` for an array of another type or shape than the input has."""
    element = value.type.tensor_type.elem_type
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(element))
    is_foreign = wanted.kind == "V" or wanted.name not in np.sctypeDict
    allowed = {wanted, np.dtype(f"u{wanted.itemsize}")} if is_foreign else {wanted}
    if wanted.kind == "O":
        is_right = array.dtype.kind in "US"
    else:
        is_right = array.dtype in allowed
    if not is_right:
        raise UsageError(
            f"--input {name}: the array is {array.dtype}, {path} takes {onnx_model.type_name(value)}: save it as "
            f"{'text' if wanted.kind == 'O' else sorted(map(str, allowed))[0]}"
        )
    if array.shape != onnx_model.shape_of(value):
        raise UsageError(f"--input {name}: the array is {array.shape}, {path} takes {onnx_model.shape_of(value)}")


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
