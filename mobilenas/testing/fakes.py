"""Synthetic stand-ins: a latency table for a space, made without any device, and the lowering that goes with it.

Every workload becomes exactly one kernel, and costs are a function of the workload alone, so that all sums agree:
``table_ms`` of a network is the scaled sum of its workload costs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec

from mobilenas import ops
from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import plan_named
from mobilenas.core.workload import Kernel, TensorSpec, Workload
from mobilenas.latency.models import Lower, TableModel
from mobilenas.latency.table import (
    ErrorReport,
    LatencyTable,
    ModelFlags,
    NetworkContext,
    NetworkRole,
    NetworkRow,
    NetworkScale,
    SpaceCard,
    StatisticFit,
    TableCard,
    TableKey,
    TableRow,
    WorkloadCosts,
)
from mobilenas.spaces.base import SearchSpace

SESSION_MS = 0.002
"""What one call of the fake runtime costs."""
CURVATURE, REFERENCE_MS = 0.02, 0.05
SENTINEL_MS = 0.1


def workload_ms(workload: Workload) -> float:
    """A made-up latency: a constant, the elements written and the multiply-adds, in milliseconds."""
    elements = workload.batch * workload.out_channels * workload.out_height * workload.out_width
    return 1e-3 + 1e-6 * elements + 1e-6 * ops.madds(workload)


def kernel_of(workload: Workload) -> Kernel:
    """The one kernel that the fake runtime makes of a workload."""
    read = TensorSpec((workload.batch, workload.in_channels, workload.height, workload.width), "float32")
    written = TensorSpec((workload.batch, workload.out_channels, workload.out_height, workload.out_width), "float32")
    return Kernel(
        operator=f"fake::{workload.operator}",
        attributes=msgspec.json.encode({"stride": workload.stride, **dict(workload.attributes)}, order="sorted").decode(),
        inputs=(read,) * workload.inputs,
        outputs=(written,),
        provider="FakeProvider",
    )


def make_lower(space: SearchSpace) -> Lower:
    """What lowers networks of ``space`` on the fake runtime."""

    def lower(architectures: Sequence[Architecture]) -> list[Counter[Kernel]]:
        lowered = []
        for architecture in architectures:
            kernels: Counter[Kernel] = Counter()
            for workload, count in space.workloads_of(architecture).items():
                kernels[kernel_of(workload)] += count
            lowered.append(kernels)
        return lowered

    return lower


def make_table(space: SearchSpace, scale: float = 1.1, networks: int = 3, seed: int = 0) -> LatencyTable:
    """A table that covers ``space`` with synthetic rows; its ``networks`` scale and ``networks`` test networks agree with it.

    The card says ``"estimated"``: nothing was measured.
    """
    costs_ms = {workload: workload_ms(workload) for workload in sorted(space.workloads())}
    rows = {kernel_of(w): _row(w) for w in costs_ms}
    return LatencyTable(
        card=_card(space, scale, len(rows)),
        rows=rows,
        workload_costs={space.key: WorkloadCosts(costs_ms, _exact(networks))},
        networks=_networks(space, scale, networks, seed),
    )


def make_model(space: SearchSpace, scale: float = 1.1) -> TableModel:
    """The latency model of ``make_table``."""
    return TableModel(make_table(space, scale), space, make_lower(space))


def _row(workload: Workload) -> TableRow:
    value = workload_ms(workload)
    return TableRow(
        kernel=kernel_of(workload),
        value_ms=value,
        low_ms=0.99 * value,
        high_ms=1.01 * value,
        few_ms=SESSION_MS + 2 * value,
        many_ms=SESSION_MS + 8 * value,
        sweeps=4,
        converged=True,
    )


def fake_scale(factor: float) -> NetworkScale:
    """That of the synthetic tables."""
    return NetworkScale(factor, CURVATURE, REFERENCE_MS)


def _networks(space: SearchSpace, scale: float, count: int, seed: int) -> tuple[NetworkRow, ...]:
    generator = random.Random(seed)
    rows = []
    for index in range(2 * count):
        role: NetworkRole = "scale" if index < count else "test"
        architecture = space.random_architecture(generator)
        kernel_sum = SESSION_MS + sum(n * workload_ms(w) for w, n in space.workloads_of(architecture).items())
        network_ms = float(fake_scale(scale).network_ms(kernel_sum))
        rows.append(
            NetworkRow(
                architecture=architecture,
                role=role,
                measured_ms=network_ms,
                low_ms=network_ms,
                high_ms=1.01 * network_ms,
                kernel_sum_ms=kernel_sum,
                madds=space.madds(architecture),
                sweeps=4,
                converged=True,
                median_ms=1.1 * network_ms,
                p90_ms=1.25 * network_ms,
            )
        )
    return tuple(rows)


def _exact(networks: int) -> ErrorReport:
    return ErrorReport(
        networks=networks,
        mape_fraction=0.0,
        bias_fraction=0.0,
        p90_fraction=0.02,
        worst_fraction=0.02,
        within_5_fraction=1.0,
        within_10_fraction=1.0,
        spearman=1.0,
    )


def _card(space: SearchSpace, scale: float, rows: int) -> TableCard:
    exact = _exact(3)
    nowhere = Environment("fake", "fake", "fake", 1, None, (), (), (0.0, 0.0, 0.0), {})
    return TableCard(
        origin="estimated",
        created="2000-01-01T00:00:00+00:00",
        key=TableKey("fake-device", "fake", "0", "FakeProvider", "fp32", 1, 1),
        plan=plan_named("quick"),
        protocol=1,
        environment=nowhere,
        environment_after=nowhere,
        doubts=(),
        slow_down=None,
        session_ms=SESSION_MS,
        context=NetworkContext(),
        rows=rows,
        rows_not_converged=0,
        flags=ModelFlags(2 * rows, 0, 0, 0, 0),
        sentinel_ms=SENTINEL_MS,
        spaces={
            space.key: SpaceCard(
                space=space.name,
                options=space.options,
                scale=fake_scale(scale),
                scale_spread_fraction=0.01,
                interval_factor=1.02,
                table_error=exact,
                workload_error=exact,
                madds_baseline_error=exact,
                repeatability_fraction=0.01,
                statistics={"median": StatisticFit(1.1, 1.02, exact), "p90": StatisticFit(1.25, 1.02, exact)},
            )
        },
    )
