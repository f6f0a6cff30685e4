"""Estimates of kernels from the speed of a device, on families whose times follow a known law."""

import json
import math

import numpy as np
import pytest

from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.latency.predictors.kernel_features import work_of
from mobilenas.latency.predictors.roofline import FACTOR_WITHOUT_EVIDENCE, LEAST_FACTOR, DeviceRoofline
from mobilenas.latency.table import TableRow

MOVING = ("Relu", "Softmax", "Resize", "Transpose", "Pad", "Concat")


def moving(operator: str, size: int) -> Kernel:
    spec = TensorSpec((1, 8, size, size), "float32")
    return Kernel(operator, "{}", (spec,), (spec,), "Fake")


def product(operator: str, rows: int, read: int, out: int) -> Kernel:
    return Kernel(
        operator,
        json.dumps({}),
        (TensorSpec((rows, read), "float32"), TensorSpec((read, out), "float32", is_constant=True)),
        (TensorSpec((rows, out), "float32"),),
        "Fake",
    )


def law_ms(kernel: Kernel, slowness: float = 1.0) -> float:
    work = work_of(kernel)
    return slowness * (1e-3 + 2e-7 * work.madds + 1e-6 * (work.read + work.written) + 5e-7 * work.weights)


def row(kernel: Kernel, slowness: float = 1.0) -> TableRow:
    ms = law_ms(kernel, slowness)
    return TableRow(kernel, ms, 0.99 * ms, 1.01 * ms, 1e-2 + 2 * ms, 1e-2 + 8 * ms, 4, True)


def rows(slowness_of: dict[str, float]) -> list[TableRow]:
    found = [row(moving(name, size), slowness_of.get(name, 1.0)) for name in MOVING for size in (4, 8, 16, 32, 64)]
    for index in range(6):
        name = f"domain{index}::Gemm"
        found += [row(product(name, 1, n, 4 * n), slowness_of.get(name, 1.0)) for n in (8, 32, 128)]
        found += [row(product(name, 16, n, 24), slowness_of.get(name, 1.0)) for n in (8, 32, 128)]
    return found


@pytest.mark.parametrize("unseen", [moving("TopK", 24), product("MatMul", 16, 64, 64), moving("Gather", 300)])
def test_a_law_that_all_families_share_is_found(unseen: Kernel) -> None:
    [found] = DeviceRoofline().fit(rows({})).predict([unseen])
    assert found.ms == pytest.approx(law_ms(unseen), rel=0.05)
    assert found.high_ms / found.ms == pytest.approx(LEAST_FACTOR)


def test_families_that_differ_widen_the_interval() -> None:
    slow = {"Softmax": 20.0, "Resize": 5.0}
    fitted = DeviceRoofline().fit(rows(slow))
    moved, computed = fitted.predict([moving("TopK", 24), product("MatMul", 16, 64, 64)])
    assert moved.high_ms / moved.ms > 4.0
    assert computed.high_ms / computed.ms == pytest.approx(LEAST_FACTOR), "of kernels that compute nothing was said"
    assert moved.low_ms < law_ms(moving("TopK", 24)) < moved.high_ms, "one family that is slow moves no other much"


def test_few_families_promise_little() -> None:
    [found] = DeviceRoofline().fit([row(moving("Relu", size)) for size in (4, 8, 16)]).predict([moving("TopK", 8)])
    assert found.high_ms / found.ms == pytest.approx(FACTOR_WITHOUT_EVIDENCE)


def test_times_of_nothing_do_not_spoil_the_fit() -> None:
    empty = [TableRow(moving("Identity", size), 0.0, 0.0, 1e-4, 0.01, 0.01, 4, True) for size in (4, 8, 16)]
    [found] = DeviceRoofline().fit([*rows({}), *empty]).predict([moving("TopK", 24)])
    assert math.isfinite(found.ms)
    assert np.log(found.ms / law_ms(moving("TopK", 24))) == pytest.approx(0.0, abs=0.3)
