"""The conformance kits on every link and every registered runtime."""

import pytest

from mobilenas.devices.links import Link, LocalLink
from mobilenas.runtimes import RUNTIMES
from mobilenas.runtimes.base import RunSettings, Runtime
from mobilenas.runtimes.mnn import Mnn
from mobilenas.runtimes.ncnn import Ncnn
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.testing.device_contracts import LinkContract, RuntimeContract
from mobilenas.testing.fake_devices import FakeLink


class TestLocalLink(LinkContract):
    def make(self) -> Link:
        return LocalLink()


class TestFakeLink(LinkContract):
    def make(self) -> Link:
        return FakeLink()


@pytest.mark.serial
class TestOnnxRuntime(RuntimeContract):
    def make(self) -> Runtime:
        return OnnxRuntime()


class TestNcnn(RuntimeContract):
    settings = RunSettings(provider="CPU")

    def make(self) -> Runtime:
        return Ncnn()


class TestMnn(RuntimeContract):
    settings = RunSettings(provider="CPU")

    def make(self) -> Runtime:
        return Mnn()


def test_every_registered_runtime_is_tested_here() -> None:
    assert set(RUNTIMES) == {"onnxruntime", "ncnn", "mnn", "tensorrt"}, "tensorrt: tests/runtimes/test_tensorrt.py"
