from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import onnx
import pytest

from mobilenas.core.measurement import PLANS, MeasurementPlan, SweepRecord
from mobilenas.devices.links import Link
from mobilenas.runtimes.base import PreparedModel, RunSettings
from mobilenas.runtimes.measure import measure
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.testing.fake_devices import FakeLink, FakeRuntime

PLAN = msgspec.structs.replace(PLANS["quick"], sweeps=2, maximum_sweeps=5, spread_s=0.0)


class Restless(FakeRuntime):
    """Each sweep of the model ``restless`` takes less than the one before."""

    def time_models(
        self,
        models: Mapping[str, PreparedModel],
        link: Link,
        settings: RunSettings,
        plan: MeasurementPlan,
        on_record: Callable[[str, SweepRecord], None],
        on_hello: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        faster = 0.8**self.sweeps

        def pass_on(name: str, record: SweepRecord) -> None:
            times = tuple((faster if name == "restless" else 1.0) * ms for ms in record.wall_ms)
            on_record(name, msgspec.structs.replace(record, wall_ms=times, cpu_ms=times))

        super().time_models(models, link, settings, plan, pass_on, on_hello)


def sweeps_of(settled: int, compared: bool) -> tuple[int, set[int]]:
    """Of the model that never settles, and of the others."""
    runtime = Restless()
    models = {name: runtime.session_model() for name in (*map(str, range(settled)), "restless")}
    with FakeLink() as link:
        found, log = measure(models, link, runtime, RunSettings(), PLAN, compared=models if compared else ())
    assert not found["restless"].converged
    assert all(found[str(n)].converged for n in range(settled))
    return len(log.records["restless"]), {len(log.records[str(n)]) for n in range(settled)}


@pytest.mark.parametrize(
    ("settled", "compared", "expected"),
    [(2, False, {2}), (2, True, {5}), (20, True, {2})],
    ids=["alone", "compared", "few stragglers"],
)
def test_models_that_are_compared_share_their_sweeps(settled: int, compared: bool, expected: set[int]) -> None:
    assert sweeps_of(settled, compared) == (5, expected)


def test_the_sentinel_is_the_model_that_tables_were_measured_beside() -> None:
    """Its times stand in tables and are compared with those of today: another model would be another speed."""
    model = onnx.load_from_string(OnnxRuntime().sentinel_model(RunSettings()).content)
    [image] = [value for value in model.graph.input if value.name not in {tensor.name for tensor in model.graph.initializer}]
    assert [dimension.dim_value for dimension in image.type.tensor_type.shape.dim] == [1, 3, 32, 32]
    assert [list(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 4] == [[48, 3, 3, 3]]
