"""The choice by evidence: what is measured, what is believed, and what is delivered."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from mobilenas.core.architecture import Architecture
from mobilenas.errors import BudgetError
from mobilenas.latency.budget import candidates_of
from mobilenas.latency.proposal import Proposal, propose
from mobilenas.search.ranked import Rules, select_ranked
from mobilenas.search.rankers.base import Ranker, Ranking
from tests.search.test_selection import MODEL, SCORES, SPACE, budget, measurement


def by_hash(architecture: Architecture) -> float:
    return random.Random(architecture.fingerprint).random()


class Cheap(Ranker):
    """Scores by a hash of the network; as good as the training, or its contrary."""

    name: ClassVar[str] = "cheap"
    sign = 1.0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        self.asked.append(len(networks))
        return Ranking(self.sign * np.array([by_hash(a) for a in networks]), len(networks))


class Misleading(Cheap):
    name: ClassVar[str] = "misleading"
    sign = -1.0


class Dear(Cheap):
    name: ClassVar[str] = "dear"
    is_cheap: ClassVar[bool] = False


def proposed(asked, without=()):
    generator = np.random.default_rng(len(without))
    return propose(SPACE, SCORES, asked, 24, generator, without=without)


def choose(rankers, *, measure=None, keep=8, rounds=3, said=lambda text: None, propose=proposed):
    rules = Rules(keep, rounds)
    return select_ranked(propose, budget(), rankers, rules, measure=measure, generator=np.random.default_rng(0), on_note=said)


def device(factor: float = 1.0, verdicts: Sequence[float] = ()):
    """Takes ``factor`` times the table; a verdict in turn what ``verdicts`` say of the budget."""
    left = list(verdicts)

    def measure(architectures, label):
        if label.startswith("verdict") and left:
            return [measurement(left.pop(0) * budget().target_ms, 0.001, True)]
        return [measurement(factor * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    return measure


def test_the_best_sum_of_ranks_is_delivered() -> None:
    cheap, dear = Cheap(), Dear()
    found = choose([cheap, dear])
    assert cheap.asked == [24, 8]
    assert dear.asked == [8]
    assert [c.ranks["dear"] for c in found.candidates] == sorted(c.ranks["dear"] for c in found.candidates)
    assert found.architecture.fingerprint == found.candidates[0].fingerprint
    assert found.candidates[0].ranks == {"cheap": 1.0, "dear": 1.0}
    assert found.correlations == {"cheap": pytest.approx(1.0)}
    assert found.images == 24 + 8 + 8
    best = max(proposed(budget()).candidates, key=lambda c: by_hash(c.architecture))
    assert found.architecture == best.architecture, "the cheap ranker saw the whole pool"
    assert found.verdict is None
    assert 0.95 <= found.share_used <= 1.0


def test_a_cheap_ranker_that_trainings_contradict_is_dropped() -> None:
    said: list[str] = []
    found = choose([Misleading(), Dear()], said=said.append)
    assert found.correlations == {"misleading": pytest.approx(-1.0)}
    assert "dropped: misleading, which does not order 8 candidates as dear does" in said[0]
    assert len(found.candidates) == 16, "as many are drawn anew"
    assert set(found.candidates[0].ranks) == {"dear"}
    assert found.architecture.fingerprint == found.candidates[0].fingerprint
    assert found.candidates[0].ranks["dear"] == 1.0
    assert found.images == 24 + 8 + 16, "a candidate that was ranked before costs nothing again"


def ids(found) -> set[str]:
    return {candidate.fingerprint for candidate in found.candidates}


def test_a_device_that_is_slower_than_its_table_gets_networks_that_use_the_budget_there() -> None:
    found = choose([Dear()], measure=device(1.2))
    assert len(found.rounds) > 1
    assert found.rounds[1].derivation_target_ms == pytest.approx(budget().target_ms / 1.2, rel=1e-3)
    assert 0.95 <= found.share_used <= 1.0
    assert found.share_used == found.verdict.value_ms / budget().target_ms
    assert found.rounds[-1].verdict == found.verdict
    assert all(c.measured_ms is not None for c in found.candidates)


def test_a_device_that_is_faster_than_its_table_is_used_up_too() -> None:
    found = choose([Dear()], measure=device(0.8))
    assert 0.95 <= found.share_used <= 1.0


def test_a_verdict_over_the_budget_makes_way_for_the_next_network() -> None:
    found = choose([Dear()], measure=device(1.0, verdicts=[1.2, 0.97]))
    assert found.architecture.fingerprint == found.candidates[1].fingerprint
    assert found.share_used == pytest.approx(0.97, rel=2e-3)


def test_what_leaves_some_of_the_budget_is_delivered_where_all_that_use_it_prove_to_be_over() -> None:
    """Two of three candidates are measured far below the budget, the third within the band, but not again."""
    seen: list[str] = []

    def measure(architectures, label):
        seen.append(label)
        if label == "verdict0":
            return [measurement(1.2 * budget().target_ms, 0.001, True)]
        shares = [0.97, 0.5, 0.6] if label.startswith("round") else [0.6]
        return [measurement(share * budget().target_ms, 0.001, True) for share, _ in zip(shares, architectures, strict=False)]

    found = choose([Dear()], measure=measure, keep=3, rounds=1)
    assert seen == ["round0", "verdict0", "verdict1"]
    assert found.share_used == pytest.approx(0.6, rel=2e-3)
    assert found.rounds[0].candidates[2].fingerprint == found.architecture.fingerprint, "the slowest of those below"


def test_networks_that_are_all_over_the_budget_end_the_search() -> None:
    with pytest.raises(BudgetError, match="after 2 rounds no network was measured within"):
        choose([Dear()], measure=lambda networks, label: [measurement(0.25, 0.001, True) for _ in networks], rounds=2)
    with pytest.raises(BudgetError, match=r"the one chosen took .* ms when it was measured again"):
        choose([Dear()], measure=device(1.0, verdicts=[1.2] * 40))


def test_verdicts_that_are_all_over_correct_the_target_once_more() -> None:
    said: list[str] = []
    found = choose([Dear()], measure=device(1.0, verdicts=[1.1] * 8), said=said.append)
    assert said == [
        "none of the candidates was within the budget when it was measured again: the target is corrected once more"
    ]
    assert found.rounds[1].derivation_target_ms < found.rounds[0].derivation_target_ms
    assert found.share_used <= 1
    assert found.architecture.fingerprint in ids(found)


def test_where_the_band_is_empty_the_best_below_it_is_delivered() -> None:
    """A pool of networks that use about four fifths of the budget."""
    lower = replace(budget(), target_ms=0.8 * budget().target_ms)
    said: list[str] = []

    def propose_lower(asked, without=()):
        return replace(proposed(lower, without), least_fraction=0.0)

    found = choose([Dear()], measure=device(), propose=propose_lower, said=said.append)
    assert "no network was found that uses 95%" in said[0]
    assert 0.75 <= found.share_used <= 0.8
    assert found.candidates[0].ranks["dear"] == 1.0


def test_nothing_within_the_budget_is_an_error_before_anything_is_measured() -> None:
    with pytest.raises(BudgetError, match="no network was found within"):
        choose([Dear()], propose=lambda asked, without: Proposal((), 0.0))


def test_without_a_cheap_ranker_those_kept_are_drawn_from_the_pool() -> None:
    dear = Dear()
    found = choose([dear], keep=5)
    assert dear.asked == [5]
    assert found.correlations == {}
    first = [c.architecture.fingerprint for c in proposed(budget()).candidates[:5]]
    assert ids(found) != set(first), "not the first of them, whatever they are"


def test_candidates_come_with_their_predictions() -> None:
    program = SPACE.derivation_program(SCORES, [MODEL.option_costs])
    some = [SPACE.random_architecture(random.Random(seed)) for seed in range(3)]
    assert [c.table.ms for c in candidates_of(some, program, MODEL)] == [MODEL.latency(a).ms for a in some]
