"""How well ``mobilenas predict`` does on networks that nobody here wrote (tests/benchmarks/foreign_models.py).

``OMP_NUM_THREADS=1 python tests/benchmarks/predict_models.py --output runs/predict [--wheels DIR]`` measures all models whole,
then the kernels that the default campaign lacks (``mobilenas profile --kernels --plan quick`` must have run), and predicts each

(a) from the quickstart's table (``mobilenas profile --data digits --plan quick``) with ``--profile-missing``: rows of all
    kernels; those of the default campaign count as measured for this, without what its networks tell;
(b) from the default campaign only, without measuring anything.

It prints the tables of docs/benchmarks/predict.md; with ``--json FILE`` one object for each model and arm.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from foreign_models import PUBLISHED_NETWORKS, foreign_models

from mobilenas import MobileNASError, onnx_model
from mobilenas.config import DataSetConfig, DeviceConfig, SpaceConfig
from mobilenas.core.measurement import Measurement, MeasurementPlan, plan_named
from mobilenas.core.run_directory import Journal
from mobilenas.core.workload import Kernel
from mobilenas.devices.links import Link
from mobilenas.latency.kernels import NetworkPrediction, TargetKernels
from mobilenas.latency.store import FoundTables, single_kernels_folder, table_folder, target_tables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, TableKey
from mobilenas.profiling.kernels import keep_kernels
from mobilenas.runtimes.measure import measure
from mobilenas.workflows import Target
from mobilenas.workflows.naming import data_set_from_config, space_from_config

ARMS = {
    "b": "(b) the default campaign only",
    "a": "(a) the quickstart's table and rows of all kernels",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--plan", default="quick")
    parser.add_argument("--models", nargs="+", help="Only these.")
    parser.add_argument("--arms", default="ba", choices=("b", "a", "ba"), help="b measures no kernels.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    models = foreign_models(arguments.output / "models", arguments.wheels)
    models = [path for path in models if not arguments.models or path.stem in arguments.models]
    target, plan = Target.from_config(DeviceConfig()), plan_named(arguments.plan)
    with target.device.open() as link:
        key = _key(target, link)
        kernels, refused = _lowered(models, target, link)
        for path, words in refused.items():
            print(f"{path.stem}: not lowered: {words}")
        models = [path for path in models if path not in refused]
        measured = _measured(models, target, link, plan, arguments.output)
        records = []
        for arm in arguments.arms:
            if arm == "a":
                _measure_missing(kernels, target, link, plan, key, arguments.output)
            predictions = [_predicted(path, kernels[path], _tables(arm, key)) for path in models]
            _print(ARMS[arm], models, measured, predictions)
            records += [_record(arm, *one) for one in zip(models, measured, predictions, strict=True)]
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))


def _tables(arm: str, key: TableKey) -> FoundTables:
    found = target_tables(key).tables
    default = [t for t in found if MOBILE_NETWORKS in t[1].card.spaces][:1]
    if arm == "b":
        return FoundTables(tuple(default))
    quickstart = table_folder(key, _quickstart_space_key())
    kept = [t for t in found if t[0] == quickstart or t[0].parent == single_kernels_folder(key)]
    return FoundTables((*kept, *map(_rows_only, default)))


def _quickstart_space_key() -> str:
    return space_from_config(SpaceConfig(), data_set_from_config(DataSetConfig(name="digits")), 1).key


def _rows_only(found: tuple[Path, LatencyTable]) -> tuple[Path, LatencyTable]:
    """The table as if its kernels had been measured one by one."""
    path, table = found
    rows = {kernel: msgspec.structs.replace(row, network_factor=1.0) for kernel, row in table.rows.items()}
    return path / "rows", replace(table, card=msgspec.structs.replace(table.card, spaces={}), rows=rows, networks=())


def _lowered(models: Sequence[Path], target: Target, link: Link) -> tuple[dict[Path, Counter[Kernel]], dict[Path, str]]:
    found, refused = {}, {}
    for path in models:
        try:
            [found[path]] = target.runtime.kernels([onnx_model.read_model(path).content], link, target.settings)
        except MobileNASError as error:
            refused[path] = str(error)
    return found, refused


def _measured(models: Sequence[Path], target: Target, link: Link, plan: MeasurementPlan, folder: Path) -> list[Measurement]:
    print(f"measuring {len(models)} models", flush=True)
    prepared = {path.stem: target.runtime.prepare(onnx_model.read_model(path).content, target.settings) for path in models}
    journal = Journal(folder / "models.jsonl")
    measurements, _ = measure(prepared, link, target.runtime, target.settings, plan, journal=journal)
    return [measurements[path.stem] for path in models]


def _measure_missing(
    networks: dict[Path, Counter[Kernel]], target: Target, link: Link, plan: MeasurementPlan, key: TableKey, folder: Path
) -> None:
    """All kernels that no table has, which ``predict --profile-missing`` would measure model by model."""
    kernels = sum(networks.values(), Counter[Kernel]())
    missing = TargetKernels.of(target_tables(key)).missing(kernels)
    print(f"measuring {len(missing)} of {len(kernels)} kernels", flush=True)
    if missing:
        place = single_kernels_folder(key)
        refused = keep_kernels(missing, place, folder, target.device, link, target.runtime, target.settings, plan)
        print(f"the engine refuses to run {len(refused)} of them alone", flush=True)


def _key(target: Target, link: Link) -> TableKey:
    version = str(target.runtime.hello(link, target.settings)["engine_version"])
    return msgspec.structs.replace(target.table_key, runtime_version=version)


def _predicted(path: Path, kernels: Counter[Kernel], found: FoundTables) -> NetworkPrediction | None:
    try:
        return TargetKernels.nearest(found, kernels).predict(kernels)
    except MobileNASError as error:
        print(f"{path.stem}: {error}", flush=True)
        return None


def _print(
    arm: str, models: Sequence[Path], measured: Sequence[Measurement], predictions: Sequence[NetworkPrediction | None]
) -> None:
    print(f"\n{arm}\n")
    columns = ("model", "measured ms", "repeats within", "predicted ms", "off", "inside", "sum ms", "measured, estimated share")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    errors, widths, inside, measured_ones = [], [], 0, []
    for path, m, found in zip(models, measured, predictions, strict=True):
        repeats = f"{m.repeatability_fraction:.1%}{'' if m.converged else ', not converged'}"
        if found is None:
            print(f"| {path.stem} | {m.value_ms:.3f} | {repeats} | refused | | | | |")
            continue
        ms, off = found.prediction, found.prediction.ms / m.value_ms - 1
        is_inside = ms.low_ms <= m.value_ms <= ms.high_ms
        inside += is_inside
        errors.append(abs(off))
        widths.append(ms.high_ms / ms.low_ms)
        measured_ones += [abs(off)] if path.stem in PUBLISHED_NETWORKS else []
        shares = f"{1 - found.predicted_share_fraction:.0%}, {found.estimated_share_fraction:.0%}"
        print(
            f"| {path.stem} | {m.value_ms:.3f} | {repeats} | {ms.ms:.3f} ({ms.low_ms:.3f} to {ms.high_ms:.3f}) | {off:+.1%} "
            f"| {'yes' if is_inside else 'no'} | {found.kernel_sum_ms:.3f} | {shares} |"
        )
    print(
        f"\n{inside} of {len(models)} inside their intervals, {len(models) - len(errors)} refused; high over low: median "
        f"{np.median(widths):.2f}, largest {max(widths):.2f}; off by {np.median(errors):.1%} at the median, "
        f"{(np.array(errors) <= 0.1).sum()} within 10 %, worst {max(errors):.1%}; of the {len(measured_ones)} networks that "
        f"the campaign measures {sum(e <= 0.1 for e in measured_ones)} within 10 %"
    )


def _record(arm: str, path: Path, m: Measurement, found: NetworkPrediction | None) -> dict[str, object]:
    prediction = None if found is None else msgspec.to_builtins(found.prediction)
    extra = {} if found is None else {"kernel_sum_ms": found.kernel_sum_ms, "rests_on": found.rests_on}
    return {"arm": arm, "model": path.stem, "measured_ms": m.value_ms, "prediction": prediction, **extra}


if __name__ == "__main__":
    main()
