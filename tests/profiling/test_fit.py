import math
import random
from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy.optimize import minimize

from mobilenas.core.estimators import measurement_from_records
from mobilenas.core.measurement import Measurement, SweepRecord
from mobilenas.core.workload import Kernel, TensorSpec, Workload
from mobilenas.latency.predictors.kernel_features import context_of
from mobilenas.latency.table import ColdWeights, ErrorReport, NetworkContext
from mobilenas.profiling import fit
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing import fakes

SPACE = CellSpace(channels=4, layers=3, image_size=8, nodes=2)
KERNEL = fakes.kernel_of(Workload("sep_conv_3x3", 4, 4, 8, 8))
WORKLOADS = sorted(SPACE.workloads())
TRUTH = {w: random.Random(w.key).uniform(0.01, 1.0) for w in WORKLOADS}


def measured(value: float, high: float, sweeps: int = 4, converged: bool = True) -> Measurement:
    record = SweepRecord((value,), (value,), (0.1,), 1.0, 1.0, None)
    found = measurement_from_records([record] * sweeps, 0.02)
    return msgspec.structs.replace(found, high_ms=high, converged=converged)


def networks(count: int, seed: int) -> list[Counter[Workload]]:
    generator = random.Random(seed)
    return [SPACE.workloads_of(SPACE.random_architecture(generator)) for _ in range(count)]


def sums_of(counts: list[Counter[Workload]], cost: dict[Workload, float]) -> np.ndarray:
    return np.array([sum(n * cost[w] for w, n in network.items()) for network in counts])


def test_a_row_is_the_slope_between_the_two_models() -> None:
    row = fit.row_from_measurements(KERNEL, measured(0.5, 0.56, 6), measured(1.1, 1.22, 4))
    assert row.kernel == KERNEL
    assert row.value_ms == pytest.approx(0.1)
    assert row.high_ms == pytest.approx(0.1 + 0.12 / 6), "upwards the slower model may, the faster one is known"
    assert row.low_ms == pytest.approx(0.1 - 0.06 / 6)
    assert (row.t2_ms, row.t8_ms, row.sweeps) == (0.5, 1.1, 4)


def test_a_row_is_never_below_zero() -> None:
    row = fit.row_from_measurements(KERNEL, measured(0.5, 0.6), measured(0.49, 0.49))
    assert row.value_ms == row.low_ms == row.high_ms == 0.0
    assert row.t8_ms == 0.49, "what was measured is kept"


@pytest.mark.parametrize(("low", "high", "converged"), [(0.49, 1.15, True), (0.49, 1.18, False), (0.4, 1.1, False)])
def test_a_row_converged_only_if_its_slope_is_known_to_within_a_tenth(low: float, high: float, converged: bool) -> None:
    """The two models' errors are independent: 60 us of slope in six copies may be off by 6, up and down together by 12."""
    few = msgspec.structs.replace(measured(0.5, 0.5), low_ms=low, high_ms=1.0 - low)
    many = msgspec.structs.replace(measured(1.1, high), low_ms=2.2 - high)
    row = fit.row_from_measurements(KERNEL, few, many)
    assert row.converged is converged
    assert row.high_ms - row.value_ms == pytest.approx(np.hypot(0.5 - low, high - 1.1) / 6)


def test_a_kernel_that_costs_nothing_converges() -> None:
    assert fit.row_from_measurements(KERNEL, measured(0.5, 0.5), measured(0.4999, 0.4999)).converged


@pytest.mark.parametrize("flags", [(True, False), (False, True), (False, False)])
def test_a_row_converged_only_if_both_did(flags: tuple[bool, bool]) -> None:
    few, many = (measured(value, value, converged=flag) for value, flag in zip((0.5, 1.1), flags, strict=True))
    assert not fit.row_from_measurements(KERNEL, few, many).converged


def test_additive_networks_are_recovered() -> None:
    """Oracle: the costs that the sums were made of. Networks never seen cost what they must, within a hundredth."""
    seen, unseen = networks(250, 1), networks(50, 2)
    found = fit.fit_workload_costs(seen, sums_of(seen, TRUTH), WORKLOADS)
    assert list(found.costs_ms) == WORKLOADS
    assert min(found.costs_ms.values()) >= 0
    assert sums_of(unseen, found.costs_ms) == pytest.approx(sums_of(unseen, TRUTH), rel=0.01)
    assert found.error.networks == 250
    assert found.error.mape_fraction < 0.005
    assert found.error.spearman > 0.99


def test_options_of_a_decision_are_told_apart() -> None:
    """What the loss needs. A workload alone may be out of reach: one option can always bring the same two of them."""
    seen = networks(250, 1)
    found = SPACE.option_costs(fit.fit_workload_costs(seen, sums_of(seen, TRUTH), WORKLOADS).costs_ms).options
    truth = SPACE.option_costs(TRUTH).options
    for name, row in truth.items():
        ours, exact = found[name][1:], row[1:]
        assert np.ptp(exact) > 0.3, "the options cost about the same"
        assert ours - ours.mean() == pytest.approx(exact - exact.mean(), abs=0.02 * np.ptp(exact)), name


def test_the_error_is_that_of_networks_which_were_not_fitted_on() -> None:
    """A network whose sum is doubled is predicted at half of it, as if it had not been seen; in-sample it would be nearer."""
    counts = networks(100, 3)
    sums = sums_of(counts, TRUTH)
    clean = fit.fit_workload_costs(counts, sums, WORKLOADS).error
    assert clean.networks == 100
    assert clean.worst_fraction < 0.02
    sums[7] *= 2
    assert fit.fit_workload_costs(counts, sums, WORKLOADS).error.worst_fraction == pytest.approx(0.5, abs=0.02)


def terms_of(
    sums: np.ndarray, weights: np.ndarray | None = None, depthwise: np.ndarray | None = None, moving: np.ndarray | None = None
) -> fit.NetworkTerms:
    """``weights`` are ``(n, 2)``: those of kernels with at most 2 MiB, and all."""
    none = np.zeros(len(sums))
    assert fit.WEIGHT_LIMITS_MIB == (2.0, None)
    weights = np.zeros((len(sums), 2)) if weights is None else weights
    return fit.NetworkTerms(sums, *(none if column is None else column for column in (depthwise, moving)), weights)


def line_of(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    line = fit.fit_networks(terms_of(sums), measured)
    assert line.context == NetworkContext()
    return line.scale, line.offset_ms


def test_networks_are_a_line_over_kernel_sums_that_no_single_network_can_move() -> None:
    sums = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0])
    assert line_of(sums, 1.2 * sums - 0.3) == pytest.approx((1.2, -0.3))
    assert line_of(sums, np.array([0.9, 2.1, 3.3, 400.0, 5.7, 5.7])) == pytest.approx((1.2, -0.3))


@pytest.mark.parametrize("seed", range(5))
def test_no_line_has_a_smaller_relative_error(seed: int) -> None:
    """Oracle: a general minimiser. Networks of a tenth and of four milliseconds count alike."""
    generator = np.random.default_rng(seed)
    sums = np.exp(generator.uniform(np.log(0.1), np.log(4), 15))
    measured = (1.05 * sums - 0.01) * np.exp(generator.normal(0, 0.02, 15))

    def error(line: np.ndarray) -> float:
        return float(np.abs((line[0] * sums + line[1]) / measured - 1).mean())

    found = np.array(line_of(sums, measured))
    best = min(error(minimize(error, start, method="Nelder-Mead").x) for start in (found, np.array([1.0, 0.0])))
    assert error(found) <= best + 1e-9


def test_networks_too_alike_for_a_line_get_a_median_ratio() -> None:
    sums = np.array([1.0, 1.05, 1.1])
    line = fit.fit_networks(terms_of(sums, np.stack([sums, sums], axis=1), depthwise=sums / 2), np.array([1.2, 1.26, 9.0]))
    assert (line.scale, line.offset_ms) == pytest.approx((1.2, 0.0))
    assert line.context == NetworkContext()


def test_the_baseline_recovers_a_line() -> None:
    madds = np.array([1e6, 2e6, 5e6, 9e6])
    a, b = fit.fit_madds_baseline(madds, 3e-6 * madds + 0.5)
    assert a == pytest.approx(3e-6)
    assert b == pytest.approx(0.5)


def test_error_report_by_hand() -> None:
    truth = np.array([1.0, 2.0, 4.0, 10.0])
    report = ErrorReport.of(np.array([1.04, 1.78, 4.0, 13.0]), truth)
    assert report.networks == 4
    assert report.mape_fraction == pytest.approx((0.04 + 0.11 + 0 + 0.3) / 4)
    assert report.bias_fraction == pytest.approx((0.04 - 0.11 + 0 + 0.3) / 4)
    assert report.worst_fraction == pytest.approx(0.3)
    assert (report.within_5_fraction, report.within_10_fraction) == (0.5, 0.5)
    assert report.p90_fraction == pytest.approx(np.quantile([0.04, 0.11, 0, 0.3], 0.9))
    assert report.spearman == pytest.approx(1.0)
    assert ErrorReport.of(truth[::-1].copy(), truth).spearman == pytest.approx(-1.0)
    assert ErrorReport.of(truth[:2], truth[:2]).spearman == 0.0, "two points have no rank correlation worth a name"


def drawn_networks(seed: int, n: int = 15) -> fit.NetworkTerms:
    generator = np.random.default_rng(seed)
    sums = generator.uniform(0.5, 10, n)
    weights = generator.uniform(0.1, 20, n)
    small = weights * generator.uniform(0.2, 1, n)
    return terms_of(sums, np.stack([small, weights], axis=1), *(sums * generator.uniform(0.05, 0.4, (2, n))))


@pytest.mark.parametrize("limit", [2.0, None])
def test_what_slows_kernels_in_a_network_is_found_where_networks_tell_it(limit: float | None) -> None:
    networks = drawn_networks(0, 30)
    context = NetworkContext((ColdWeights(limit, 0.03),), depthwise_factor=1.4, moving_factor=0.8)
    noise = 1 + 0.01 * np.random.default_rng(1).standard_normal(30)
    measured = fit.NetworkLine(1.03, -0.01, context).predict(networks) * noise
    found = fit.fit_networks(networks, measured).context
    assert {cold.up_to_mib: cold.ms_per_mib for cold in found.cold_weights}[limit] == pytest.approx(0.03, abs=0.01)
    assert sum(cold.ms_per_mib for cold in found.cold_weights) == pytest.approx(0.03, abs=0.01)
    assert found.depthwise_factor == pytest.approx(1.4, abs=0.1)
    assert found.moving_factor == pytest.approx(0.8, abs=0.1)


def test_nothing_is_found_to_slow_kernels_where_nothing_tells_it() -> None:
    """No effect; or weights in proportion to the time: then the scale takes it up."""
    sums = drawn_networks(1).kernels_ms
    noise = 1 + 0.02 * np.random.default_rng(1).standard_normal(15)
    weights = np.stack([2 * sums, 2 * sums], axis=1)
    alike = fit.fit_networks(terms_of(sums, weights), 1.03 * (sums + 0.02 * 2 * sums) * noise)
    assert alike.context.cold_weights == ()
    errors = []
    for seed in range(20):
        networks = drawn_networks(seed)
        noise = 1 + 0.02 * np.random.default_rng(seed).standard_normal(15)
        line, others = fit.fit_networks(networks, 1.03 * networks.kernels_ms * noise), drawn_networks(100 + seed, 200)
        errors.append(np.abs(line.predict(others) / (1.03 * others.kernels_ms) - 1).mean())
    assert np.mean(errors) < 0.02, "what noise is taken for costs less than the noise"


def test_terms_are_sums_over_the_kernels_of_each_network() -> None:
    table = fakes.make_table(SPACE)

    def with_weights(kernel: Kernel, mib: int) -> Kernel:
        weights = TensorSpec((mib * 2**18,), "float32", is_constant=True)
        return msgspec.structs.replace(kernel, inputs=(*kernel.inputs, weights))

    rows = {with_weights(kernel, 1 + index % 3): row for index, (kernel, row) in enumerate(table.rows.items())}
    kernels, table = list(rows), replace(table, rows=rows)
    networks = [Counter({kernels[0]: 2, kernels[1]: 1}), Counter(kernels)]
    terms = fit.NetworkTerms.of(networks, table.rows, session_ms=0.5)
    for index, counts in enumerate(networks):
        each = {kernel: n * table.rows[kernel].value_ms for kernel, n in counts.items()}
        assert terms.kernels_ms[index] == pytest.approx(0.5 + sum(each.values()))
        assert terms.moving_ms[index] == pytest.approx(sum(ms for k, ms in each.items() if context_of(k) == "moving"))
        for column, limit in enumerate((2.0, math.inf)):
            weights = [n * k.weight_mib for k, n in counts.items() if k.weight_mib <= limit]
            assert terms.weights_mib[index, column] == pytest.approx(sum(weights))
    assert 0 < terms.weights_mib[1, 0] < terms.weights_mib[1, 1]
    line = fit.NetworkLine(1.0, 0.0, NetworkContext((ColdWeights(2.0, 0.1), ColdWeights(None, 0.05)), 1.5, 0.7))
    card = msgspec.structs.replace(table.card, session_ms=0.5, context=line.context)
    summed = [replace(table, card=card).kernel_sum_ms(counts) for counts in networks]
    assert line.kernel_sums_ms(terms) == pytest.approx(summed), "a table sums as the line was fitted"


def test_the_spread_of_a_line_is_that_of_lines_from_other_networks() -> None:
    """Oracle: the networks drawn and measured anew, thirty times."""
    generator = np.random.default_rng(7)

    def measured(noise: float) -> tuple[fit.NetworkTerms, np.ndarray]:
        sums = generator.uniform(1.0, 5.0, 15)
        return terms_of(sums), (1.2 * sums - 0.1) * np.exp(noise * generator.standard_normal(15))

    spreads = []
    for noise in (0.0, 0.02, 0.08):
        lines = [fit.fit_networks(*measured(noise)) for _ in range(30)]
        truth = np.std([line.scale * 3.0 + line.offset_ms for line in lines]) / (1.2 * 3.0 - 0.1)
        spreads.append(np.median([fit.line_spread_fraction(*measured(noise)) for _ in range(5)]))
        assert 0.5 * truth - 1e-9 <= spreads[-1] <= 2.5 * truth + 1e-9
    assert spreads[0] < 1e-9
    assert spreads[2] > 2 * spreads[1]
