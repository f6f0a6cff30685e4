"""How well ``mobilenas predict`` does on networks that nobody here wrote: torchvision's mobile families, the onnx wheel's zoo.

``OMP_NUM_THREADS=1 python tests/benchmarks/predict_models.py --output runs/predict`` exports the models, predicts each from
learnt kernels alone (``mobilenas profile --kernels 1500`` must have run), then with ``--profile-missing``, measures each whole,
and prints a table for docs/benchmarks/predict.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision

from mobilenas import MobileNASError, onnx_model, workflows
from mobilenas.config import DeviceConfig, PredictConfig
from mobilenas.core.measurement import plan_named
from mobilenas.latency.store import table_folder
from mobilenas.latency.table import MOBILE_NETWORKS
from mobilenas.network import initialise_for_timing
from mobilenas.workflows import Silent, Target

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
    target = Target.from_config(DeviceConfig())
    only = PredictConfig(extrapolate=True, table=str(table_folder(target.table_key, MOBILE_NETWORKS)))
    learnt = [_predicted(model, only) for model in models]
    rows = [_predicted(model, PredictConfig(profile_missing=True, plan=arguments.plan)) for model in models]
    measured = [
        target.measure(model.stem, model.read_bytes(), plan_named(arguments.plan), Silent(), "measuring").value_ms
        for model in models
    ]
    columns = "model | measured ms | from rows ms | off | from learnt kernels ms | off | share learnt"
    print(f"| {columns} |\n|{'---|' * 7}")
    for model, ms, row, guess in zip(models, measured, rows, learnt, strict=True):
        print(f"| {model.stem} | {ms:.3f} | {_cells(row, ms)} | {_cells(guess, ms)} | {_share(guess)} |")
    for name, found in (("rows", rows), ("learnt kernels", learnt)):
        errors = [abs(ms.prediction.ms / m - 1) for ms, m in zip(found, measured, strict=True) if ms is not None]
        inside = [
            p.prediction.low_ms <= m <= p.prediction.high_ms for p, m in zip(found, measured, strict=True) if p is not None
        ]
        within = [sum(e <= limit for e in errors) for limit in (0.05, 0.1)]
        print(
            f"\n{name}: {within[0]} within 5 %, {within[1]} within 10 % of {len(models)}, {sum(inside)} inside their intervals"
        )
        print(f"median {np.median(errors):.1%}, worst {max(errors):.1%}")


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
