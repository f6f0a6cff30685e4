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
from mobilenas.latency.table import ColdWeights, ErrorReport, NetworkContext, NetworkScale, TableRow
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
    row = fit.row_from_measurements(KERNEL, measured(0.5, 0.56, 6), measured(1.1, 1.22, 4), (2, 8))
    assert row.kernel == KERNEL
    assert row.value_ms == pytest.approx(0.1)
    assert row.high_ms == pytest.approx(0.1 + 0.12 / 6), "upwards the slower model may, the faster one is known"
    assert row.low_ms == pytest.approx(0.1 - 0.06 / 6)
    assert (row.few_ms, row.many_ms, row.few_copies, row.many_copies, row.sweeps) == (0.5, 1.1, 2, 8, 4)


def test_a_row_is_never_below_zero() -> None:
    row = fit.row_from_measurements(KERNEL, measured(0.5, 0.6), measured(0.49, 0.49), (2, 8))
    assert row.value_ms == row.low_ms == row.high_ms == 0.0
    assert row.many_ms == 0.49, "what was measured is kept"


@pytest.mark.parametrize(("low", "high", "converged"), [(0.49, 1.15, True), (0.49, 1.18, False), (0.4, 1.1, False)])
def test_a_row_converged_only_if_its_slope_is_known_to_within_a_tenth(low: float, high: float, converged: bool) -> None:
    """The two models' errors are independent: 60 us of slope in six copies may be off by 6, up and down together by 12."""
    few = msgspec.structs.replace(measured(0.5, 0.5), low_ms=low, high_ms=1.0 - low)
    many = msgspec.structs.replace(measured(1.1, high), low_ms=2.2 - high)
    row = fit.row_from_measurements(KERNEL, few, many, (2, 8))
    assert row.converged is converged
    assert row.high_ms - row.value_ms == pytest.approx(np.hypot(0.5 - low, high - 1.1) / 6)


def test_a_kernel_that_costs_nothing_converges() -> None:
    assert fit.row_from_measurements(KERNEL, measured(0.5, 0.5), measured(0.4999, 0.4999), (2, 8)).converged


@pytest.mark.parametrize("flags", [(True, False), (False, True), (False, False)])
def test_a_row_converged_only_if_both_did(flags: tuple[bool, bool]) -> None:
    few, many = (measured(value, value, converged=flag) for value, flag in zip((0.5, 1.1), flags, strict=True))
    assert not fit.row_from_measurements(KERNEL, few, many, (2, 8)).converged


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


def sums_only(sums: np.ndarray) -> fit.NetworkTerms:
    """Networks of which nothing is known but what they add up to."""
    return fit.NetworkTerms(sums, np.zeros((len(sums), 0)), np.zeros((len(sums), len(fit.PRICES))), (), np.array([]))


def convolution(channels: int, size: int, window: int, group: int) -> Kernel:
    weights = TensorSpec((channels, channels // group, window, window), "float32", is_constant=True)
    data = TensorSpec((1, channels, size, size), "float32")
    attributes = {"group": group, "kernel_shape": [window, window], "pads": [window // 2] * 4, "strides": [1, 1]}
    return Kernel(
        "Conv", msgspec.json.encode(attributes, order="sorted").decode(), (data, weights), (data,), "FakeProvider", 17
    )


def addition(channels: int, size: int) -> Kernel:
    data = TensorSpec((1, channels, size, size), "float32")
    return Kernel("Add", "{}", (data, data), (data,), "FakeProvider", 17)


def linear(taken: int, made: int) -> Kernel:
    weights = TensorSpec((taken, made), "float32", is_constant=True)
    given, result = TensorSpec((1, taken), "float32"), TensorSpec((1, made), "float32")
    return Kernel("Gemm", "{}", (given, weights), (result,), "FakeProvider", 17)


KERNELS = [
    *(convolution(channels, 14, 1, 1) for channels in range(100, 1000, 50)),
    *(convolution(channels, 14, window, channels) for channels in range(100, 700, 100) for window in (3, 5, 7)),
    *(addition(channels, 28) for channels in range(16, 300, 16)),
    *(linear(taken, 1000) for taken in (200, 4000, 16000)),
]
"""Some of 0.04 to 3.4 MiB, some depthwise, some that only move data; linear layers of 0.8, 15 and 61 MiB."""


SMALL, BIG = convolution(100, 14, 1, 1), convolution(900, 14, 1, 1)


def row(kernel: Kernel, ms: float) -> TableRow:
    return TableRow(kernel, ms, 0.99 * ms, 1.01 * ms, 2 * ms, 8 * ms, 8, True)


ROWS = {k: row(k, float(ms)) for k, ms in zip(KERNELS, np.random.default_rng(0).uniform(0.01, 0.1, len(KERNELS)), strict=True)}


def drawn_networks(seed: int, n: int) -> fit.NetworkTerms:
    """Of 10 to 100 kernels each, some of which they prefer."""
    generator, kernels, counts = np.random.default_rng(seed), list(ROWS), []
    for size in np.exp(generator.uniform(np.log(10), np.log(100), n)).astype(int):
        shares = generator.dirichlet(np.full(len(kernels), 0.3))
        counts.append(Counter({k: int(c) for k, c in zip(kernels, generator.multinomial(size, shares), strict=True) if c}))
    counts.append(Counter(kernels))
    return fit.NetworkTerms.of(counts, ROWS, session_ms=0.01).take(np.arange(n))


def noisy(ms: np.ndarray, seed: int, noise: float = 0.005) -> np.ndarray:
    return ms * np.exp(noise * np.random.default_rng(seed).standard_normal(len(ms)))


def error(fitted: fit.NetworkFit, networks: fit.NetworkTerms, truth: np.ndarray) -> float:
    return float(np.abs(fitted.predict(networks) / truth - 1).mean())


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_most_likely(seed: int) -> None:
    """Oracle: a general minimiser of the negative logarithm of the posterior, written down anew."""
    generator = np.random.default_rng(seed)
    sums = np.exp(generator.uniform(np.log(0.1), np.log(4), 15))
    measured = 1.05 * sums * (1 + 0.06 * np.log(sums)) * np.exp(generator.normal(0, 0.02, 15))

    def improbability(parameters: np.ndarray) -> float:
        scale, bent = parameters
        residuals = (1 - sums * (scale + bent * np.log(sums / np.median(sums))) / measured) / 0.01
        noise = (4 + 1) / 2 * np.log1p(residuals**2 / 4).sum()
        return float(noise + ((scale - 1) / 0.3) ** 2 / 2 + (bent / 0.1) ** 2 / 2)

    found = fit.fit_networks(sums_only(sums), measured).scale
    ours = improbability(np.array([found.factor, found.factor * found.curvature]))
    starts = np.array([found.factor, found.factor * found.curvature]), np.array([1.0, 0.0]), np.array([1.1, 0.1])
    assert ours <= min(minimize(improbability, start, method="Nelder-Mead").fun for start in starts) + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_scale_and_context_are_found_where_networks_tell_them(seed: int) -> None:
    """On networks never seen, to within the noise."""
    networks, others = drawn_networks(seed, 40), drawn_networks(100 + seed, 100)
    cold = ColdWeights(2.0, 0.02, "others"), ColdWeights(None, 0.01, "others")
    context = NetworkContext(cold, depthwise_factor=1.3, moving_factor=0.8)
    truth = fit.NetworkFit(NetworkScale(1.1, 0.08, 1.0), context, np.ones(len(networks.rows)))
    found = fit.fit_networks(networks, noisy(truth.predict(networks), seed))
    assert error(found, others, truth.predict(others)) < 0.006
    assert found.context.depthwise_factor == pytest.approx(1.3, abs=0.06)
    assert found.context.moving_factor == pytest.approx(0.8, abs=0.06)
    assert found.scale.curvature == pytest.approx(0.08, abs=0.02)
    all_mib, small_mib = (sum(cold.ms_per_mib for cold in found.context.cold_weights if cold.is_of(k)) for k in (BIG, SMALL))
    assert (all_mib, small_mib) == (pytest.approx(0.01, abs=0.005), pytest.approx(0.03, abs=0.01))
    assert sum(cold.ms_per_mib for cold in found.context.cold_weights if cold.is_of(linear(4000, 1000))) < 0.0002
    plain = fit.NetworkFit(found.scale, NetworkContext(), np.ones(len(networks.rows)))
    assert error(plain, others, truth.predict(others)) > 0.03


def test_nothing_is_found_to_slow_kernels_where_nothing_does() -> None:
    contexts = []
    for seed in range(10):
        networks = drawn_networks(seed, 30)
        contexts.append(fit.fit_networks(networks, noisy(1.03 * (0.01 + networks.each_ms.sum(axis=1)), seed, 0.01)).context)
    assert np.mean([c.depthwise_factor for c in contexts]) == pytest.approx(1, abs=0.03)
    assert np.mean([c.moving_factor for c in contexts]) == pytest.approx(1, abs=0.03)
    assert np.mean([sum(cold.ms_per_mib for cold in c.cold_weights) for c in contexts]) < 0.005


def test_rows_that_are_off_are_mended_by_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for seed in range(6):
        networks, others = drawn_networks(seed, 40), drawn_networks(100 + seed, 100)
        off = np.exp(np.random.default_rng(seed).normal(0, 0.1, len(networks.rows)))
        truth = fit.NetworkFit(NetworkScale(1.05), NetworkContext(), off)
        measured = noisy(truth.predict(networks), seed)
        mended = error(fit.fit_networks(networks, measured), others, truth.predict(others))
        with monkeypatch.context() as patch:
            patch.setattr(fit, "ROW_SPREAD", 1e-6)
            believed = error(fit.fit_networks(networks, measured), others, truth.predict(others))
        errors.append((mended, believed))
    mended, believed = np.mean(errors, axis=0)
    assert mended < 0.75 * believed


def test_a_row_is_moved_as_far_as_its_interval_allows() -> None:
    """Two rows in equal shares, networks take a fifth longer for them: the one that is little known moves further."""
    sure, unsure = list(ROWS.values())[:2]
    sure = msgspec.structs.replace(sure, value_ms=0.1, low_ms=0.1, high_ms=0.1)
    unsure = msgspec.structs.replace(unsure, value_ms=0.1, low_ms=0.07, high_ms=0.13)
    sums, each = np.linspace(1.0, 3.0, 20), np.zeros((20, 2))
    each[10:] = 0.3 * sums[10:, None]
    terms = fit.NetworkTerms(sums - each.sum(axis=1), each, np.zeros((20, 3)), (sure, unsure), np.array(["computing"] * 2))
    little, much = fit.fit_networks(terms, sums + 0.2 * each.sum(axis=1)).row_factors
    assert 1 < little < much
    assert (much - 1) / (little - 1) == pytest.approx((0.06**2 + 0.3**2) / 0.06**2, rel=1e-3)


def test_rows_that_no_network_has_stay_as_they_are() -> None:
    networks = drawn_networks(7, 30)
    without = replace(networks, each_ms=networks.each_ms * (np.arange(len(networks.rows)) % 2))
    found = fit.fit_networks(without, noisy(1.1 * (without.session_ms + without.each_ms.sum(axis=1)), 8))
    assert (found.row_factors[::2] == 1).all()
    assert (found.row_factors[1::2] != 1).any()


@pytest.mark.parametrize("wrong", [0.1, 3.0, 100.0])
def test_no_single_network_moves_the_others(wrong: float) -> None:
    networks, others = drawn_networks(9, 20), drawn_networks(10, 100)
    truth = fit.NetworkFit(NetworkScale(1.1, 0.05, 1.0), NetworkContext(), np.ones(len(networks.rows)))
    measured = noisy(truth.predict(networks), 11)
    measured[4] *= wrong
    assert error(fit.fit_networks(networks, measured), others, truth.predict(others)) < 0.015


def test_networks_too_alike_tell_no_more_than_their_level() -> None:
    sums = np.array([1.0, 1.05, 1.1])
    found = fit.fit_networks(sums_only(sums), 1.2 * sums)
    assert found.predict(sums_only(sums)) == pytest.approx(1.2 * sums, rel=2e-3)
    assert abs(found.scale.curvature) < 0.01
    assert found.context == NetworkContext()


def test_small_networks_take_half_of_their_kernels_at_least() -> None:
    scale = NetworkScale(1.0, 0.2, 1.0)
    assert scale.network_ms(np.array([1.0, math.e, 1e-4, 0.0])) == pytest.approx([1.0, 1.2 * math.e, 5e-5, 5e-7])
    sums = np.geomspace(1e-3, 1e3, 500)
    assert (np.diff(scale.network_ms(sums)) > 0).all(), "more kernels, more time"


def test_the_tangent_touches_the_scale_at_its_reference_and_stays_below() -> None:
    scale = NetworkScale(1.1, 0.1, 2.0)
    sums = np.geomspace(0.2, 20, 101)
    tangent = scale.slope * sums + scale.offset_ms
    assert tangent[50] == pytest.approx(scale.network_ms(2.0))
    assert (tangent <= scale.network_ms(sums) + 1e-12).all()


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


def test_terms_are_sums_over_the_kernels_of_each_network() -> None:
    table = replace(fakes.make_table(SPACE), rows=ROWS)
    kernels = list(ROWS)
    networks = [Counter({kernels[0]: 2, kernels[1]: 1}), Counter(kernels)]
    terms = fit.NetworkTerms.of(networks, ROWS, session_ms=0.5)
    for index, counts in enumerate(networks):
        each = {kernel: n * ROWS[kernel].value_ms for kernel, n in counts.items()}
        assert terms.session_ms[index] + terms.each_ms[index].sum() == pytest.approx(0.5 + sum(each.values()))
        moving = sum(ms for k, ms in each.items() if context_of(k) == "moving")
        assert terms.of_context_ms("moving")[index] == pytest.approx(moving)
        for column, (name, limit) in enumerate((("Conv", 2.0), ("Conv", math.inf), ("Gemm", math.inf))):
            weights = [n * k.weight_mib for k, n in counts.items() if k.operator == name and k.weight_mib <= limit]
            assert terms.weights_mib[index, column] == pytest.approx(sum(weights))
    assert 0 < terms.weights_mib[1, 0] < terms.weights_mib[1, 1] < terms.weights_mib[1, 2]
    cold = ColdWeights(2.0, 0.1, "others"), ColdWeights(None, 0.05, "others"), ColdWeights(None, 0.02, "products")
    context = NetworkContext(cold, 1.5, 0.7)
    factors = np.random.default_rng(0).uniform(0.8, 1.2, len(terms.rows))
    rows = {r.kernel: msgspec.structs.replace(r, network_factor=float(f)) for r, f in zip(terms.rows, factors, strict=True)}
    table = replace(table, card=msgspec.structs.replace(table.card, session_ms=0.5, context=context), rows=rows)
    summed = [table.kernel_sum_ms(counts) for counts in networks]
    fitted = fit.NetworkFit(NetworkScale(1.0), context, factors)
    assert fitted.kernel_sums_ms(terms) == pytest.approx(summed), "a table sums as it was fitted"


def test_the_spread_is_that_of_fits_to_other_networks() -> None:
    """Oracle: the networks drawn and measured anew, thirty times."""
    generator = np.random.default_rng(7)

    def measured(noise: float) -> tuple[fit.NetworkTerms, np.ndarray]:
        sums = generator.uniform(1.0, 5.0, 15)
        return sums_only(sums), 1.2 * sums * np.exp(noise * generator.standard_normal(15))

    spreads = []
    for noise in (0.0, 0.02, 0.08):
        fits = [fit.fit_networks(*measured(noise)) for _ in range(30)]
        truth = np.std([fitted.scale.network_ms(3.0) for fitted in fits]) / (1.2 * 3.0)
        spreads.append(np.median([fit.scale_spread_fraction(*measured(noise)) for _ in range(5)]))
        assert 0.5 * truth - 1e-3 <= spreads[-1] <= 2.5 * truth + 1e-3
    assert spreads[0] < 1e-3
    assert spreads[2] > 2 * spreads[1]


def test_a_network_that_is_left_out_does_not_help_to_predict_itself() -> None:
    networks = drawn_networks(12, 20)
    measured = noisy(1.1 * (networks.session_ms + networks.each_ms.sum(axis=1)), 13, 0.02)
    found = fit.left_out_ms(networks, measured)
    others = np.arange(20) != 7
    alone = fit.fit_networks(networks.take(others), measured[others]).predict(networks.take(~others))
    assert found[7] == pytest.approx(alone[0], rel=1e-12)
    measured[7] *= 2
    assert fit.left_out_ms(networks, measured)[7] == found[7]
