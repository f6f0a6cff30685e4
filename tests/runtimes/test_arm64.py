"""The runners on an emulated 64-bit ARM: numbers against ONNX Runtime on this host. No time says anything there."""

import random
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

from mobilenas.core.measurement import PLANS, SweepRecord
from mobilenas.devices.catalogue import DeviceCard, ask
from mobilenas.devices.device import find_device
from mobilenas.devices.links import LocalLink
from mobilenas.errors import RunnerError
from mobilenas.latency.predictors.kernel_features import features_of, work_of
from mobilenas.profiling.networks import network_for_timing
from mobilenas.runtimes.base import RunSettings, Runtime
from mobilenas.runtimes.mnn import Mnn
from mobilenas.runtimes.ncnn import Ncnn
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.cells import CellSpace

PYTHON = Path(__file__).parents[2] / ".arm64" / "python"
pytestmark = [pytest.mark.arm64, pytest.mark.skipif(not PYTHON.exists(), reason="no emulated arm64: make arm64")]

SPACE = CellSpace(channels=8, layers=3, image_size=16)
PLAN = msgspec.structs.replace(
    PLANS["quick"], samples=3, maximum_samples=10, maximum_s=0.01, warmup_runs=1, warmup_s=0.001, warmup_maximum_s=0.001
)
"""Emulated, a run takes a hundred times as long."""
WITHOUT_HALVES, WITH_HALVES = "cortex-a72", "cortex-a76"
"""Processors of a Raspberry Pi 4 and 5: the first keeps halves in memory and computes none."""
ENGINES = {engine.name: engine for engine in (OnnxRuntime(), Ncnn(), Mnn())}
of_all = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


class EmulatedLink(LocalLink):
    """This host, its interpreter an emulated one."""

    @property
    def python(self) -> str:
        return str(PYTHON)


@pytest.fixture
def link() -> EmulatedLink:
    return EmulatedLink()


@pytest.fixture(autouse=True, params=[WITHOUT_HALVES])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QEMU_CPU", request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def network() -> bytes:
    torch.manual_seed(0)
    return network_for_timing(SPACE, SPACE.random_architecture(random.Random(0)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, *SPACE.image_shape)).astype(np.float32)


def settings_of(engine: Runtime, precision: str = "fp32") -> RunSettings:
    return RunSettings(precision=precision, provider=engine.providers[0])


def difference(link: LocalLink, engine: Runtime, precision: str, network: bytes, images: np.ndarray) -> float:
    """Mean difference of a logit from that of ONNX Runtime on this host, relative to the mean logit."""
    session = onnxruntime.InferenceSession(network)
    expected = np.concatenate([session.run(None, {"images": image})[0] for image in images])
    settings = settings_of(engine, precision)
    with link:
        found = engine.compute(engine.prepare(network, settings, images), images, link, settings)
    return float(np.abs(found - expected).mean() / np.abs(expected).mean())


def test_an_arm_says_what_it_is(link: EmulatedLink) -> None:
    with link:
        card = ask(link, DeviceCard("arm", "local"))
    assert card.machine == "aarch64"
    assert card.cpu_model.startswith("ARMv8")
    assert card.engines.keys() == {"onnxruntime", "ncnn", "MNN"}


@of_all
@pytest.mark.parametrize("processor", [WITHOUT_HALVES, WITH_HALVES], indirect=True)
def test_a_network_computes_the_same_on_arm(link: EmulatedLink, engine: Runtime, network: bytes, images: np.ndarray) -> None:
    assert difference(link, engine, "fp32", network, images) < 1e-4


@of_all
@pytest.mark.parametrize("processor", [WITH_HALVES], indirect=True)
def test_halves_compute_nearly_the_same_on_arm(link: EmulatedLink, engine: Runtime, network: bytes, images: np.ndarray) -> None:
    assert 1e-3 < difference(link, engine, "fp16", network, images) < 0.03, "below, they were none"


def test_integers_compute_nearly_the_same_on_arm(link: EmulatedLink, network: bytes, images: np.ndarray) -> None:
    assert 1e-3 < difference(link, OnnxRuntime(), "int8", network, images) < 0.1


def test_mnn_refuses_halves_on_an_arm_without_them(link: EmulatedLink, network: bytes, images: np.ndarray) -> None:
    with pytest.raises(RunnerError, match="halves"):
        difference(link, Mnn(), "fp16", network, images)


@pytest.mark.parametrize("engine", [Ncnn(), Mnn()], ids=["ncnn", "mnn"])
def test_kernels_on_arm_are_those_of_this_host(link: EmulatedLink, engine: Runtime, network: bytes) -> None:
    settings = settings_of(engine)
    with link, find_device("local").open() as here:
        assert engine.kernels([network], link, settings) == engine.kernels([network], here, settings)


@pytest.mark.parametrize(
    ("engine", "precision", "processor"),
    [
        *((engine, "fp32", WITHOUT_HALVES) for engine in ENGINES.values()),
        (OnnxRuntime(), "fp16", WITH_HALVES),
    ],
    ids=[*ENGINES, "onnxruntime-fp16"],
    indirect=["processor"],
)
def test_a_network_and_each_of_its_kernels_are_timed_on_arm(
    link: EmulatedLink, engine: Runtime, precision: str, network: bytes
) -> None:
    settings = settings_of(engine, precision)
    hellos: list[dict[str, object]] = []
    seen: dict[str, SweepRecord] = {}
    with link:
        [kernels] = engine.kernels([network], link, settings, on_hello=hellos.append)
        models = {kernel.identifier: engine.kernel_model(kernel, engine.copies(kernel)[0]) for kernel in kernels}
        models |= {"network": engine.prepare(network, settings), "session": engine.session_model()}
        engine.time_models(models, link, settings, PLAN, seen.__setitem__, hellos.append)
    assert seen.keys() == models.keys()
    assert [(hello["runner"], hello["state"]["machine"]) for hello in hellos] == 2 * [(engine.name, "aarch64")]
    assert all(np.isfinite(features_of(kernel)).all() for kernel in kernels)


@pytest.mark.parametrize("processor", [WITH_HALVES], indirect=True)
def test_multiply_adds_of_halves_on_arm_are_those_of_the_network(link: EmulatedLink, network: bytes) -> None:
    """ncnn pads no channels."""
    with link:
        halves, fractions = (
            engine.kernels([network], link, settings_of(engine, precision))[0]
            for engine, precision in ((OnnxRuntime(), "fp16"), (Ncnn(), "fp32"))
        )
    assert sum(n * work_of(kernel).madds for kernel, n in halves.items()) == sum(
        n * work_of(kernel).madds for kernel, n in fractions.items()
    )
