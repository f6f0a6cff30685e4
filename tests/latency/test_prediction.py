"""Conformal intervals: exact on synthetic data."""

import math

import numpy as np
import pytest

from mobilenas.errors import MeasurementError
from mobilenas.latency.prediction import Prediction, conformal_factor, conformal_quantile, network_interval, promised_coverage


def test_the_rank_is_the_one_that_the_theorem_asks_for() -> None:
    errors = np.arange(1, 20) / 100  # 19 networks: the ceil(20 * 0.9) = 18th smallest
    predicted = np.ones(19)
    assert conformal_factor(predicted, np.exp(errors)) == pytest.approx(math.exp(0.18), rel=1e-12)
    assert conformal_factor(predicted, np.exp(-errors)) == pytest.approx(math.exp(0.18), rel=1e-12)
    assert conformal_factor(predicted, np.exp(errors), coverage=0.5) == pytest.approx(math.exp(0.10), rel=1e-12)


def test_too_few_networks_promise_by_the_worst() -> None:
    assert conformal_factor(np.ones(3), np.array([1.1, 1.0, 0.8])) == pytest.approx(1.25)


@pytest.mark.parametrize("calibrated_on", [9, 10, 25, 100])
def test_coverage_is_what_was_promised(calibrated_on: int) -> None:
    """The chance to cover is ``ceil((n + 1) c) / (n + 1)`` exactly; over 20,000 draws it lies within 1 % of that."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(20_000):
        measured = np.exp(generator.standard_t(2, calibrated_on + 1) / 50)  # heavy tails: no distribution is assumed
        factor = conformal_factor(np.ones(calibrated_on), measured[:-1])
        covered += 1 / factor <= measured[-1] <= factor
    exact = math.ceil((calibrated_on + 1) * 0.9 - 1e-9) / (calibrated_on + 1)
    assert covered / 20_000 == pytest.approx(exact, abs=0.01)


def test_no_network_promises_nothing() -> None:
    with pytest.raises(MeasurementError, match="at least one network must be measured"):
        conformal_factor(np.array([]), np.array([]))


def test_widths_add_in_quadrature_and_the_common_part_by_its_share() -> None:
    assert network_interval(0.3, [], 0.0, 9.0) == pytest.approx((0.3, 0.3))
    down, up = network_interval(0.2, [(0.1, 1.0)], 0.5, 0.8)
    assert down == pytest.approx(math.sqrt(0.04 + math.log(0.9) ** 2 + 0.16))
    assert up == pytest.approx(math.sqrt(0.04 + math.log(2.0) ** 2 + 0.16))


def test_a_sum_that_may_be_nothing_stays_above_zero() -> None:
    down, _ = network_interval(0.0, [(1.0, 0.0)], 0.0, 0.0)
    assert math.isfinite(down)


def test_a_prediction_carries_its_factor_both_ways() -> None:
    assert Prediction.within(2.0, 1.25) == Prediction(2.0, 1.6, 2.5)


def test_quantiles_are_those_of_a_log_normal_error_whose_interval_is_known() -> None:
    """Oracle: 200,000 drawn errors, of which nine in ten lie within the interval."""
    deviation = 0.05
    prediction = Prediction.within(2.0, math.exp(deviation * 1.6448536))
    measured = 2.0 * np.exp(np.random.default_rng(0).normal(0, deviation, 200_000))
    assert np.mean((prediction.low_ms < measured) & (measured < prediction.high_ms)) == pytest.approx(0.9, abs=0.003)
    assert prediction.at_quantile(0.5) == 2.0
    assert prediction.at_quantile(0.95) == pytest.approx(prediction.high_ms, rel=1e-9)
    for quantile in (0.6, 0.9, 0.99):
        assert np.mean(measured < prediction.at_quantile(quantile)) == pytest.approx(quantile, abs=0.003)


@pytest.mark.parametrize("networks", [1, 5, 8, 9, 30])
def test_an_interval_promises_what_its_networks_can(networks: int) -> None:
    """Oracle: how often the next draw lies within the conformal quantile of the ones before, over many draws."""
    scores = np.random.default_rng(networks).random((20_000, networks + 1))
    held = np.mean([row[-1] <= conformal_quantile(row[:-1]) for row in scores])
    assert promised_coverage(networks) - 0.01 <= held
    assert networks > 8 or held <= promised_coverage(networks) + 0.01
