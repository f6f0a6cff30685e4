"""TensorRT-RTX really reads and builds each network; without an NVIDIA driver it runs none, and says so."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mobilenas.core.measurement import PLANS
from mobilenas.core.resources import shipped
from mobilenas.devices.device import find_device
from mobilenas.errors import IncompatibleError, RunnerError, UnavailableError
from mobilenas.profiling.networks import network_for_timing
from mobilenas.runtimes.base import RunSettings
from mobilenas.runtimes.tensorrt import TensorRt
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from tests.conftest import Outcome, has_driver

SPACES = [
    CellSpace(channels=8, layers=3, image_size=16),
    NasBench201Space(channels=4, cells_per_stage=1, image_size=16),
    DenseBlockSpace(image_size=32),
]
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.35}


@pytest.mark.parametrize(
    ("space", "precision"),
    [*((SPACES[0], precision) for precision in TOLERANCES), (SPACES[1], "fp32"), (SPACES[2], "fp32")],
    ids=["cells-fp32", "cells-fp16", "cells-int8", "nas-bench-201-fp32", "dense-blocks-fp32"],
)
def test_every_network_is_read_and_built(space: SearchSpace, precision: str) -> None:
    model = network_for_timing(space, space.random_architecture(random.Random(1)))
    images = np.random.default_rng(0).standard_normal((2, *space.image_shape)).astype(np.float32)
    settings = RunSettings(precision=precision, provider="CUDA")
    prepared = TensorRt().prepare(model, settings, images)
    with find_device("local").open() as link:
        if not has_driver():
            with pytest.raises(UnavailableError, match="tensorrt cannot run here: no NVIDIA driver"):
                TensorRt().compute(prepared, images, link, settings)
            with pytest.raises(UnavailableError, match="no NVIDIA driver"):
                TensorRt().time_models({"network": prepared}, link, settings, PLANS["quick"], lambda name, record: None)
            return
        found = TensorRt().compute(prepared, images, link, settings)
    session = onnxruntime.InferenceSession(model)
    expected = np.concatenate([session.run(None, {"images": call})[0] for call in images])
    assert np.abs(found - expected).max() <= TOLERANCES[precision] * np.abs(expected).max()


def test_an_operator_that_it_lacks_is_named_though_nothing_can_run() -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 4))
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))
    node = helper.make_node("Frobnicate", ["images"], ["y"], name="odd", domain="com.example")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(helper.make_graph([node], "odd", [value], [made]), opset_imports=opsets, ir_version=8)
    settings = RunSettings(provider="CUDA")
    prepared = TensorRt().prepare(model.SerializeToString(), settings)
    with find_device("local").open() as link, pytest.raises(RunnerError, match="Frobnicate") as caught:
        TensorRt().compute(prepared, np.zeros((1, 1, 4), np.float32), link, settings)
    assert not isinstance(caught.value, UnavailableError)


BUILDS = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorrt_runner
tensorrt_runner.BUILT_FOR = sys.argv[2]
tensorrt_runner.built("model.onnx", tensorrt_runner.Log(), has_gpu=False)
"""


@pytest.mark.parametrize(("target", "is_built"), [("SM75", False), ("SM89", True)])
def test_a_gpu_that_lacks_an_operator_says_which(target: str, is_built: bool, tmp_path: Path) -> None:
    """Products of fp32 are not for Turing."""
    (tmp_path / "model.onnx").write_bytes(network_for_timing(SPACES[0], SPACES[0].random_architecture(random.Random(1))))
    argv = [sys.executable, "-c", BUILDS, str(shipped("export") / "runners"), target]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is is_built, done.stderr
    if is_built:
        assert (tmp_path / "model.onnx.engine").stat().st_size > 0
    else:
        assert "Gemm' for Turing (SM75): FP32 GEMM is not supported" in done.stderr
        assert not list(tmp_path.glob("*.engine*"))


def test_its_kernels_cannot_be_measured_alone(command: Callable[..., Outcome]) -> None:
    with find_device("local").open() as link, pytest.raises(IncompatibleError, match="measured whole"):
        TensorRt().kernels([b""], link, RunSettings(provider="CUDA"))
    outcome = command("profile", "--data", "digits", "--channels", "4", "--layers", "3", "--runtime", "tensorrt")
    assert outcome.code == 2
    assert "measured whole" in outcome.err


@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver")
def test_an_export_says_that_it_was_not_run(run: Path, command: Callable[..., Outcome]) -> None:
    outcome = command("export", str(run), "--tensorrt", "--no-device", "--json")
    assert outcome.code == 0, outcome.err
    own, engine = json.loads(outcome.out)["engines"]
    assert own["agreement"]["relative_difference"] < 1e-3
    assert engine["agreement"] is engine["measured"] is None
    assert "no NVIDIA driver" in engine["not_run"]
    assert [Path(file).name for file in engine["files"]] == ["model.unverified.tensorrt.onnx"]
    assert command("export", str(run), "--no-device").code == 0
    assert not list((run / "export").glob("*tensorrt*")), "what an export before left is no part of this one"
    assert "tensorrt" not in (run / "export" / "SHA256SUMS").read_text()
