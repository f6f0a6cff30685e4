"""Scale from kernel sums to networks beyond the networks that it was fitted on, on synthetic tables."""

import math
from dataclasses import replace

import msgspec
import pytest

from mobilenas.latency.calibration import Calibration, nearest
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, NetworkScale
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_table

SPACE = CellSpace(channels=4, layers=3, image_size=8)


def table_of(sums_ms: list[float], kind: str = MOBILE_NETWORKS, created: str = "2026-01-01") -> LatencyTable:
    table = make_table(SPACE, networks=len(sums_ms))
    scale = NetworkScale(factor=1.1, curvature=0.1, reference_ms=2.0)
    space = msgspec.structs.replace(table.space_card(SPACE.key), space=kind, scale=scale, interval_factor=1.05)
    card = msgspec.structs.replace(table.card, spaces={SPACE.key: space}, created=created)
    networks = tuple(msgspec.structs.replace(row, kernel_sum_ms=ms) for row, ms in zip(table.networks, sums_ms, strict=False))
    return replace(table, card=card, networks=networks)


CALIBRATION = Calibration.of_table(table_of([1.0, 2.0, 4.0]))


@pytest.mark.parametrize("sum_ms", [1.0, 1.7, 4.0])
def test_within_its_range_the_fitted_scale_counts(sum_ms: float) -> None:
    assert CALIBRATION.network_ms(sum_ms) == pytest.approx(float(CALIBRATION.card.scale.network_ms(sum_ms)))
    assert CALIBRATION.half_width(sum_ms, 0.5 * sum_ms) == pytest.approx(math.log(1.05))


@pytest.mark.parametrize(("sum_ms", "edge_ms"), [(0.01, 1.0), (40.0, 4.0), (4000.0, 4.0)])
def test_beyond_its_range_the_scale_is_that_of_the_edge(sum_ms: float, edge_ms: float) -> None:
    edge = float(CALIBRATION.card.scale.network_ms(edge_ms)) / edge_ms
    as_share_ms, as_time_ms = sum_ms * edge, sum_ms + (edge - 1) * edge_ms
    if sum_ms < edge_ms:
        assert CALIBRATION.network_ms(sum_ms) == pytest.approx(as_share_ms)
    else:
        assert CALIBRATION.network_ms(sum_ms) == pytest.approx(math.sqrt(as_share_ms * as_time_ms))
        reach = math.exp(CALIBRATION.half_width(sum_ms, sum_ms))
        assert CALIBRATION.network_ms(sum_ms) / reach <= as_time_ms < as_share_ms <= CALIBRATION.network_ms(sum_ms) * reach


def test_the_interval_grows_with_the_distance() -> None:
    widths = [CALIBRATION.half_width(sum_ms, sum_ms) for sum_ms in (4.0, 8.0, 80.0, 8000.0)]
    assert widths == sorted(set(widths))
    below = [CALIBRATION.half_width(sum_ms, sum_ms) for sum_ms in (1.0, 0.5, 0.05)]
    assert below == sorted(set(below))


def test_networks_of_another_kind_need_a_wider_interval() -> None:
    other = Calibration.of_table(table_of([1.0, 2.0, 4.0], SPACE.name))
    assert not other.is_within(2.0)
    assert other.half_width(2.0, 2.0) > CALIBRATION.half_width(2.0, 2.0)
    assert other.half_width(2.0, 1.0) >= math.log(2.0), "as far as the context moves the sum"


def test_tables_are_chosen_by_range_then_kind_then_date() -> None:
    small, large = table_of([0.1, 0.2], SPACE.name, "2026-03-01"), table_of([1.0, 9.0], created="2026-02-01")
    alike = table_of([1.0, 9.0], SPACE.name, "2026-04-01")
    assert nearest([small, large], 0.15) is small
    assert nearest([small, large], 30.0) is large
    assert nearest([alike, small, large], 3.0) is large, "of all kinds"
    newer = table_of([1.0, 9.0], created="2026-05-01")
    assert nearest([newer, large], 3.0) is newer
    assert nearest([replace(small, networks=())], 1.0) is None
