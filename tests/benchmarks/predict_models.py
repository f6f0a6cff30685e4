"""How well ``mobilenas predict`` does on networks that nobody here wrote: torchvision's mobile families, the onnx wheel's zoo.

``OMP_NUM_THREADS=1 python tests/benchmarks/predict_models.py --output runs/predict`` exports the models, predicts each from
learnt kernels alone (``mobilenas profile --kernels 1500`` must have run), measures all kernels that are lacking in one campaign
and all models in another, predicts each from rows, and prints the tables of docs/benchmarks/predict.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
import torchvision

from mobilenas import MobileNASError, onnx_model, workflows
from mobilenas.config import DeviceConfig, PredictConfig
from mobilenas.core.measurement import Measurement, MeasurementPlan, plan_named
from mobilenas.core.run_directory import Journal
from mobilenas.devices.links import Link
from mobilenas.latency.kernels import TargetKernels
from mobilenas.latency.store import single_kernels_folder, table_folder, target_tables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, TableKey
from mobilenas.network import initialise_for_timing
from mobilenas.profiling.kernels import keep_kernels
from mobilenas.runtimes.measure import measure
from mobilenas.workflows import Target

MOBILE = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "efficientnet_b0",
    "efficientnet_b1",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_y_400mf",
    "regnet_y_800mf",
)
ZOO = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plan", default="standard")
    parser.add_argument("--models", nargs="+", help="Only these.")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    models = [path for path in _models(arguments.output) if not arguments.models or path.stem in arguments.models]
    target, plan = Target.from_config(DeviceConfig()), plan_named(arguments.plan)
    mobile_table = table_folder(target.table_key, MOBILE_NETWORKS)
    learnt = [_predicted(model, PredictConfig(extrapolate=True, table=str(mobile_table))) for model in models]
    measured = _measured(models, target, plan, arguments.output)
    rows = [_predicted(model, PredictConfig(profile_missing=True, plan=arguments.plan)) for model in models]
    slower = np.median([m.sentinel_ms for m in measured]) / LatencyTable.load(mobile_table).card.sentinel_ms
    print(f"the sentinel took {slower:.3f} times as long beside these models as beside the table's networks\n")
    columns = "model | measured ms | repeatable within | from rows ms | off | from learnt kernels ms | off | share learnt"
    print(f"| {columns} |\n|{'---|' * 8}")
    for model, m, row, guess in zip(models, measured, rows, learnt, strict=True):
        repeats = f"{m.repeatability_fraction:.1%}{'' if m.converged else ', not converged'}"
        print(
            f"| {model.stem} | {m.value_ms:.3f} | {repeats} | {_cells(row, m.value_ms)} | {_cells(guess, m.value_ms)} "
            f"| {_share(guess)} |"
        )
    for name, found in (("rows", rows), ("learnt kernels", learnt)):
        known = [(p.prediction, m.value_ms) for p, m in zip(found, measured, strict=True) if p is not None]
        inside = sum(p.low_ms <= ms <= p.high_ms for p, ms in known)
        for speed, factor in (("as measured", 1.0), ("at the speed of the table", slower)):
            errors = np.array([abs(p.ms * factor / ms - 1) for p, ms in known])
            within = ", ".join(f"{(errors <= limit).sum()} within {limit:.0%}" for limit in (0.05, 0.1))
            spread = f"median {np.median(errors):.1%}, worst {errors.max():.1%}"
            print(f"\n{name}, {speed}: {within} of {len(models)}, {spread}")
        print(f"{inside} of {len(known)} inside their intervals")


def _measured(models: list[Path], target: Target, plan: MeasurementPlan, folder: Path) -> list[Measurement]:
    """All models whole, after the kernels of all that no table has, which ``predict`` then finds."""
    contents = {model.stem: onnx_model.read_model(model).content for model in models}
    with target.device.open() as link:
        key = _key(target, link)
        kernels = sum(target.runtime.kernels(list(contents.values()), link, target.settings), Counter())
        missing = TargetKernels.of(target_tables(key)).missing(kernels)
        if missing:
            print(f"measuring {len(missing)} of {len(kernels)} kernels", flush=True)
            place = single_kernels_folder(key)
            refused = keep_kernels(missing, place, folder, target.device, link, target.runtime, target.settings, plan)
            print(f"the engine refuses to run {len(refused)} of them alone", flush=True)
        print(f"measuring {len(models)} models", flush=True)
        prepared = {name: target.runtime.prepare(content, target.settings) for name, content in contents.items()}
        journal = Journal(folder / "models.jsonl")
        measurements, _ = measure(prepared, link, target.runtime, target.settings, plan, journal=journal)
    return [measurements[model.stem] for model in models]


def _key(target: Target, link: Link) -> TableKey:
    version = str(target.runtime.hello(link, target.settings)["engine_version"])
    return msgspec.structs.replace(target.table_key, runtime_version=version)


def _models(folder: Path) -> list[Path]:
    found = []
    for name in MOBILE:
        path = folder / f"{name}.onnx"
        if not path.exists():
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = torchvision.models.get_model(name, weights=None)
            initialise_for_timing(module, (1, 3, 224, 224))
            exported = onnx_model.slim(onnx_model.onnx_from_module(module, [torch.zeros(1, 3, 224, 224)]))
            path.write_bytes(exported.SerializeToString())
        found.append(path)
    return [*found, *sorted(ZOO.glob("*.onnx"))]


def _predicted(model: Path, cfg: PredictConfig):
    try:
        return workflows.predict(model, cfg).predicted
    except MobileNASError as error:
        print(f"{model.stem}: {error}", flush=True)
        return None


def _cells(found, measured_ms: float) -> str:
    if found is None:
        return "- | -"
    ms = found.prediction
    return f"{ms.ms:.3f} ({ms.low_ms:.3f} to {ms.high_ms:.3f}) | {ms.ms / measured_ms - 1:+.1%}"


def _share(found) -> str:
    return "-" if found is None else f"{found.predicted_share_fraction:.0%}"


if __name__ == "__main__":
    main()
