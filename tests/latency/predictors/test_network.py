"""The network predictor on networks whose times follow a known law, and the model's documents."""

import dataclasses
import json
import math
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from sklearn.base import clone

from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import SlowDown
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError
from mobilenas.latency import LATENCY_MODELS, network_model
from mobilenas.latency.models import Sought
from mobilenas.latency.network_card import TENSORS, load_card
from mobilenas.latency.network_model import NetworkModel, uses_of
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.store import NETWORK_CARD
from mobilenas.latency.table import LatencyTable
from mobilenas.profiling import fit
from mobilenas.profiling.learn import learn_network_model
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_lower, make_table, workload_ms

SPACE = CellSpace(channels=4, layers=3, image_size=8, nodes=3)


def overlapping_ms(architecture: Architecture) -> float:
    """Two streams: each cell takes what its dearer half takes, so that nothing adds up."""
    layers = SPACE.blueprint(architecture).layers
    halves = [sum(workload_ms(layer.workload) for layer in layers[start::2]) for start in (0, 1)]
    return 1.3 * max(halves) + 0.2 * min(halves)


def added_ms(architecture: Architecture) -> float:
    return sum(n * workload_ms(w) for w, n in SPACE.workloads_of(architecture).items())


def networks(count: int, seed: int) -> list[Architecture]:
    generator = random.Random(seed)
    return list({SPACE.random_architecture(generator): None for _ in range(count)})


def table_of(law, count: int = 80) -> LatencyTable:  # type: ignore[no-untyped-def]
    """A table whose measured networks take what ``law`` says."""
    table = make_table(SPACE)
    row = table.networks[0]
    rows = [
        msgspec.structs.replace(row, architecture=a, measured_ms=law(a), low_ms=law(a), high_ms=law(a), role="learn")
        for a in networks(count, 1)
    ]
    return dataclasses.replace(table, networks=tuple(rows))


def test_what_adds_up_is_learnt_from_few() -> None:
    seen, unseen = networks(60, 1), networks(50, 2)
    predictor = NetworkPredictor(SPACE.workloads_of_options()).fit(uses_of(SPACE, seen), np.array([added_ms(a) for a in seen]))
    truth = np.array([added_ms(a) for a in unseen])
    assert np.abs(predictor.predict(uses_of(SPACE, unseen)) / truth - 1).max() < 0.01


def test_options_that_share_workloads_need_fewer_networks() -> None:
    seen, unseen = networks(25, 1), networks(50, 2)
    times, truth = (np.array([added_ms(a) for a in part]) for part in (seen, unseen))
    errors = [
        np.abs(NetworkPredictor(shared).fit(uses_of(SPACE, seen), times).predict(uses_of(SPACE, unseen)) / truth - 1).mean()
        for shared in (SPACE.workloads_of_options(), None)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_what_does_not_add_up_is_learnt_too() -> None:
    """Six edges whose times overlap pairwise: a sum of any costs is far off, the smooth rest is not."""
    generator = np.random.default_rng(0)
    uses = np.eye(3)[generator.integers(0, 3, (400, 6))].reshape(400, 18)
    cost = np.tile([0.0, 1.0, 3.0], 6)
    each = (uses * cost).reshape(400, 6, 3).sum(axis=2)
    times = 1 + np.maximum(each[:, ::2], each[:, 1::2]).sum(axis=1)
    design = np.column_stack([uses, np.ones(400)])
    line = design[200:] @ np.linalg.lstsq(design[:200], times[:200], rcond=None)[0]
    learnt = NetworkPredictor().fit(uses[:200], times[:200]).predict(uses[200:])
    assert np.abs(learnt / times[200:] - 1).mean() < 0.5 * np.abs(line / times[200:] - 1).mean()


def test_it_is_an_estimator_as_scikit_learn_knows_them() -> None:
    predictor = NetworkPredictor(np.ones((2, 1)), iterations=3)
    copied = clone(predictor)
    assert copied.get_params()["iterations"] == 3
    assert not [name for name in vars(copied) if name.endswith("_")]


def test_one_time_for_all_is_that_time_everywhere() -> None:
    seen = networks(10, 1)
    predictor = NetworkPredictor().fit(uses_of(SPACE, seen), np.full(len(seen), 2.5))
    assert np.allclose(predictor.predict(uses_of(SPACE, networks(5, 2))), 2.5)


def test_nothing_is_predicted_below_what_could_be() -> None:
    predictor = NetworkPredictor.linear(np.array([-1.0, 0.5]), 1.0, 0.25)
    assert predictor.predict(np.array([[0.0, 1.0], [3.0, 0.0]])).tolist() == [1.5, 0.25]


def test_its_answer_is_differentiable_in_the_probabilities_through_the_decode_rule() -> None:
    model = learn_network_model(SPACE, table_of(overlapping_ms))
    generator = torch.Generator().manual_seed(0)
    rows = {
        d.name: torch.randn(len(d.options), generator=generator, dtype=torch.float64).requires_grad_() for d in SPACE.decisions
    }
    names = list(rows)
    assert torch.autograd.gradcheck(
        lambda *logits: model.expected_ms({n: row.softmax(0) for n, row in zip(names, logits, strict=True)}, 0.5),
        [rows[name] for name in names],
        eps=1e-6,
        atol=1e-6,
    )


def test_the_error_is_that_of_networks_held_out() -> None:
    """Times that no network tells of another: learnt by heart they would be right."""
    noisy = learn_network_model(SPACE, table_of(lambda a: math.exp(random.Random(a.fingerprint).gauss(0, 0.3))))
    assert noisy.error.mape_fraction > 0.15
    assert noisy.card.interval_factor > 1.3
    exact = learn_network_model(SPACE, table_of(added_ms))
    assert exact.error.mape_fraction < 0.01
    unseen = networks(50, 2)
    covered = [p.low_ms <= added_ms(a) <= p.high_ms for a, p in zip(unseen, exact.latencies(unseen), strict=True)]
    assert np.mean(covered) > 0.8


def test_the_linear_stand_in_is_as_far_off_as_it_says() -> None:
    model = learn_network_model(SPACE, table_of(overlapping_ms))
    unseen = networks(100, 3)
    off = [abs(model.workload_ms(a) / p.ms - 1) for a, p in zip(unseen, model.latencies(unseen), strict=True)]
    assert 0.3 * model.workload_error.mape_fraction < np.mean(off) < 3 * model.workload_error.mape_fraction


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
    return tmp_path


def saved(folder: Path, law=added_ms) -> NetworkModel:  # type: ignore[no-untyped-def]
    table = table_of(law)
    model = learn_network_model(SPACE, table)
    table.save(folder)
    model.save(folder)
    return model


def sought(model: NetworkModel, folder: Path | None = None) -> Sought:
    key = msgspec.structs.replace(model.card.key, runtime_version="")
    return Sought(SPACE, key, folder, make_lower(SPACE), "mobilenas profile --space cells")


def test_the_files_answer_the_same_and_are_found(home: Path) -> None:
    model = saved(home / "latency_tables" / "a")
    for folder in (None, home / "latency_tables" / "a"):
        again = LATENCY_MODELS.get("network")(sought(model, folder))
        assert isinstance(again, NetworkModel)
        assert again.digest == model.digest
        assert again.latencies(networks(10, 2)) == model.latencies(networks(10, 2))
    assert json.loads((home / "latency_tables" / "a" / NETWORK_CARD).read_text())["origin"] == "measured"


def test_none_says_how_to_make_one_and_another_target_is_refused(home: Path) -> None:
    model = saved(home / "elsewhere")
    with pytest.raises(MissingDataError, match="--measure-networks"):
        NetworkModel.find(sought(model))
    other = dataclasses.replace(sought(model, home / "elsewhere"), key=msgspec.structs.replace(model.card.key, threads=7))
    with pytest.raises(IncompatibleError, match="elsewhere"):
        NetworkModel.find(other)


@pytest.mark.parametrize("name", [NETWORK_CARD, TENSORS])
@pytest.mark.parametrize("damage", ["missing", "cut", "edited"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    saved(tmp_path)
    content = (tmp_path / name).read_bytes()
    if damage == "missing":
        (tmp_path / name).unlink()
    elif damage == "cut":
        (tmp_path / name).write_bytes(content[:-9])
    else:
        spoilt = content.replace(b'"networks": 80', b'"networks": 81') if name == NETWORK_CARD else content[::-1]
        (tmp_path / name).write_bytes(spoilt)
    with pytest.raises(DocumentError, match=name):
        NetworkModel.load(tmp_path, SPACE)


def test_a_predictor_of_another_table_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    table_of(overlapping_ms).save(tmp_path)
    with pytest.raises(DocumentError, match="another table"):
        NetworkModel.load(tmp_path, SPACE)


def test_a_newer_schema_says_upgrade(tmp_path: Path) -> None:
    saved(tmp_path)
    card = tmp_path / NETWORK_CARD
    card.write_text(card.read_text().replace("network-predictor@2", "network-predictor@3"))
    with pytest.raises(DocumentError, match="upgrade"):
        load_card(tmp_path)
    card.write_text(card.read_text().replace("network-predictor@3", "network-predictor@1"))
    with pytest.raises(DocumentError, match="profile the space again"):
        load_card(tmp_path)


def test_the_user_s_own_predictor_comes_before_a_newer_shipped_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = saved(home / "latency_tables" / "mine")
    shipped = saved(home / "shipped" / "theirs", overlapping_ms)
    later = dataclasses.replace(shipped, card=msgspec.structs.replace(shipped.card, created="2999-01-01T00:00:00+00:00"))
    later.save(home / "shipped" / "theirs")
    monkeypatch.setattr(network_model, "table_roots", lambda: (home / "latency_tables", home / "shipped"))
    assert NetworkModel.find(sought(mine)).digest == mine.digest


def test_a_predictor_says_at_which_speed_of_the_device_it_holds() -> None:
    """What a search compares a verdict's speed with, as with a table's."""
    table = table_of(added_ms)
    throttled = SlowDown(1e9, 0.4)
    card = msgspec.structs.replace(table.card, slow_down=throttled, sentinel_ms=0.123)
    model = learn_network_model(SPACE, dataclasses.replace(table, card=card))
    assert model.card.slow_down == throttled
    assert model.describe()["sentinel_ms"] == 0.123


def test_other_statistics_are_tested_with_the_multiple_of_the_other_networks() -> None:
    """Each p90 is off by its own factor, so that no network tells of another; by hand, leaving each out."""
    networks = [
        msgspec.structs.replace(row, measured_ms=1.0, p90_ms=p90)
        for row, p90 in zip(table_of(added_ms, 5).networks, (1.0, 2.0, 4.0, 8.0), strict=False)
    ]
    fitted = fit.fit_statistics(networks, networks, np.ones(4), "floor")["p90"]
    assert fitted.factor == 3.0
    assert fitted.error.mape_fraction == pytest.approx(np.mean([4 / 1 - 1, 4 / 2 - 1, 1 - 2 / 4, 1 - 2 / 8]))
