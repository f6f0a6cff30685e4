import numpy as np
import pytest
from scipy.stats import spearmanr

from mobilenas.errors import DocumentError, UsageError
from mobilenas.latency.predictors.transfer import DeviceTransfer, choose_networks

COLUMNS, PROXIES, POOL, TEST = 8, 6, 200, 100


def devices(seed: int, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encodings ``(N, F)``, proxies ``(N, P)`` and a new device ``(N,)``: sums of operator costs."""
    generator = np.random.default_rng(seed)
    encodings = generator.poisson(2.0, (POOL + TEST, COLUMNS)).astype(float)
    costs = generator.gamma(4.0, 0.25, (COLUMNS, 1)) * generator.lognormal(0.0, 0.6, (COLUMNS, PROXIES + 1))
    ms = (3 + encodings @ costs) * generator.lognormal(0.0, noise, (POOL + TEST, PROXIES + 1))
    return encodings, ms[:, :PROXIES], ms[:, PROXIES]


def predicted(encodings: np.ndarray, proxies: np.ndarray, new: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return DeviceTransfer().fit(encodings[:POOL], proxies[:POOL], rows, new[rows]).predict(encodings[POOL:], proxies[POOL:])


def random_rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).choice(POOL, count, replace=False)


@pytest.mark.parametrize(("offset", "slope"), [(0.0, 3.0), (2.0, 0.5)])
def test_a_device_that_is_a_line_of_one_proxy_is_recovered(offset: float, slope: float) -> None:
    """The encodings know nothing of the proxies here, so only the proxies as measured can carry the answer."""
    encodings, _, _ = devices(0)
    proxies = np.random.default_rng(1).uniform(5.0, 15.0, (POOL + TEST, PROXIES))
    new = offset + slope * proxies[:, 2]
    rows = choose_networks(encodings[:POOL], proxies[:POOL], 5)
    model = DeviceTransfer().fit(encodings[:POOL], proxies[:POOL], rows, new[rows])
    assert model.proxy_weights_.sum() == pytest.approx(1.0)
    assert model.proxy_weights_.argmax() == 2
    assert model.predict(encodings[POOL:], proxies[POOL:]) == pytest.approx(new[POOL:], rel=0.001)


def test_a_device_that_is_a_power_of_one_proxy_is_found_nearly() -> None:
    encodings, proxies, _ = devices(0, noise=0.0)
    new = 0.5 * proxies[:, 2] ** 1.2
    rows = choose_networks(encodings[:POOL], proxies[:POOL], 10)
    result = predicted(encodings, proxies, new, rows)
    assert spearmanr(result, new[POOL:]).statistic > 0.99
    assert (np.abs(result / new[POOL:] - 1) < 0.05).mean() > 0.95


def test_it_beats_the_mean_of_the_proxies_and_a_fit_of_them() -> None:
    for seed in range(4):
        encodings, proxies, new = devices(seed)
        rows = random_rows(seed, 10)
        logs = np.column_stack([np.ones(POOL + TEST), np.log(proxies)])
        line = logs[POOL:] @ np.linalg.lstsq(logs[rows], np.log(new[rows]), rcond=None)[0]
        others = [spearmanr(of, new[POOL:]).statistic for of in (proxies[POOL:].mean(axis=1), line)]
        assert spearmanr(predicted(encodings, proxies, new, rows), new[POOL:]).statistic > max(others)


def test_chosen_networks_beat_random_ones() -> None:
    chosen_error, random_error = 0.0, 0.0
    for seed in range(6):
        encodings, proxies, new = devices(seed)
        rows = choose_networks(encodings[:POOL], proxies[:POOL], 6)
        chosen_error += np.abs(predicted(encodings, proxies, new, rows) / new[POOL:] - 1).mean()
        random_error += np.abs(predicted(encodings, proxies, new, random_rows(seed, 6)) / new[POOL:] - 1).mean()
    assert chosen_error < 0.9 * random_error


def test_one_wrong_measurement_does_little() -> None:
    encodings, proxies, new = devices(3)
    rows = choose_networks(encodings[:POOL], proxies[:POOL], 15)
    spoilt = new.copy()
    spoilt[rows[4]] *= 3
    error = np.abs(predicted(encodings, proxies, spoilt, rows) / new[POOL:] - 1)
    assert np.median(error) < 0.05


def test_the_same_input_gives_the_same_output() -> None:
    encodings, proxies, new = devices(5)
    rows = choose_networks(encodings[:POOL], proxies[:POOL], 8)
    assert len(set(rows.tolist())) == 8
    assert (rows == choose_networks(encodings[:POOL], proxies[:POOL], 8)).all()
    assert (rows[:5] == choose_networks(encodings[:POOL], proxies[:POOL], 5)).all(), "more networks only add to those before"
    assert (predicted(encodings, proxies, new, rows) == predicted(encodings, proxies, new, rows)).all()


def test_units_do_not_matter() -> None:
    encodings, proxies, new = devices(6)
    scaled = proxies * np.array([1000.0, 1.0, 0.001, 1.0, 1.0, 7.0])
    rows = choose_networks(encodings[:POOL], proxies[:POOL], 8)
    assert (rows == choose_networks(3 * encodings[:POOL] + 1, scaled[:POOL], 8)).all()
    plain = predicted(encodings, proxies, new, rows)
    assert predicted(encodings, scaled, new, rows) == pytest.approx(plain, rel=1e-6)
    assert predicted(encodings, proxies, 1000 * new, rows) == pytest.approx(1000 * plain, rel=1e-6)


def test_one_proxy_and_columns_that_never_vary_are_enough() -> None:
    encodings, proxies, _ = devices(7)
    constant = np.ones((POOL + TEST, 2))
    rows = choose_networks(constant[:POOL], proxies[:POOL, :1], 3)
    result = predicted(constant, proxies[:, :1], 2 * proxies[:, 0], rows)
    assert result == pytest.approx(2 * proxies[POOL:, 0], rel=0.2)
    assert np.isfinite(predicted(encodings, proxies[:, :1], 2 * proxies[:, 0], rows)).all()


def test_predictions_are_positive_far_outside() -> None:
    encodings, proxies, new = devices(8)
    model = DeviceTransfer().fit(encodings[:POOL], proxies[:POOL], random_rows(0, 5), new[random_rows(0, 5)])
    assert (model.predict(-100 * encodings, 0.001 * proxies) > 0).all()


def spoilt(values: np.ndarray, value: float) -> np.ndarray:
    copy = np.array(values, dtype=float)
    copy.flat[3] = value
    return copy


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_latencies_that_are_not_positive_numbers_are_refused(value: float) -> None:
    encodings, proxies, new = devices(9)
    rows = np.arange(5)
    with pytest.raises(DocumentError, match="proxy latencies"):
        DeviceTransfer().fit(encodings, spoilt(proxies, value), rows, new[rows])
    with pytest.raises(DocumentError, match="proxy latencies"):
        choose_networks(encodings, spoilt(proxies, value), 5)
    with pytest.raises(DocumentError, match="measured latencies"):
        DeviceTransfer().fit(encodings, proxies, rows, spoilt(new[rows], value))


def test_shapes_that_do_not_fit_are_refused() -> None:
    encodings, proxies, new = devices(10)
    rows = np.arange(5)
    for bad in (
        (encodings[1:], proxies, rows, new[rows]),
        (encodings[:, 0], proxies, rows, new[rows]),
        (encodings, proxies[:, :0], rows, new[rows]),
        (spoilt(encodings, np.nan), proxies, rows, new[rows]),
        (encodings, proxies, rows, new[:4]),
        (encodings, proxies, rows[:2], new[:2]),
        (encodings, proxies, rows + len(new), new[rows]),
        (encodings, proxies, rows - 1, new[rows]),
        (encodings, proxies, rows + 0.5, new[rows]),
    ):
        with pytest.raises(UsageError):
            DeviceTransfer().fit(*bad)
    with pytest.raises(UsageError, match="tail"):
        DeviceTransfer(tail=2.0).fit(encodings, proxies, rows, new[rows])
    for count in (2, len(encodings) + 1):
        with pytest.raises(UsageError, match="networks to choose"):
            choose_networks(encodings, proxies, count)
    model = DeviceTransfer().fit(encodings, proxies, rows, new[rows])
    for wrong in ((encodings[:, 1:], proxies), (encodings, proxies[:, 1:])):
        with pytest.raises(UsageError, match="fitted with"):
            model.predict(*wrong)
