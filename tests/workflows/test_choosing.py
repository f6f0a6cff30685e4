"""A search under a budget proposes, ranks, and says on what its network was chosen."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenas.data import load_data
from mobilenas.data.images import InMemory
from mobilenas.search.rankers.short_training import RUNGS
from mobilenas.testing import fakes
from mobilenas.workflows import run_search
from tests.conftest import SMALL, Outcome, space

TINY = (
    "search", "--data", "digits", *SMALL, "--set", "supernet.channels=2", "--set", "supernet.layers=3",
    "--set", "data.train_fraction=0.2", "--epochs", "1", "--latency-budget", "60%", "--no-measure", "--json",
    "--set", "selection.pool=12", "--set", "selection.keep=4", "--set", "selection.steps=6",
)  # fmt: skip


@pytest.fixture
def found(command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """The result of a search with these settings besides."""
    monkeypatch.setattr(run_search, "latency_model", lambda cfg, space, target, link: fakes.make_model(space))

    def search(*sets: str) -> dict:
        outcome = command(*TINY, *[word for each in sets for word in ("--set", each)], "-o", "run")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return search


def test_a_result_says_what_its_network_was_chosen_by(found: Callable[..., dict]) -> None:
    result = found()
    selection = result["selection"]
    is_believed = selection["correlations"]["capacity"] >= 0.2
    assert {*selection["candidates"][0]["ranks"]} == ({"capacity", "training"} if is_believed else {"training"})
    assert len(selection["candidates"]) == (4 if is_believed else 8)
    assert selection["candidates"][0]["fingerprint"] == result["fingerprint"]
    summed = [sum(each["ranks"].values()) for each in selection["candidates"]]
    assert summed == sorted(summed)
    assert 0.95 <= selection["share_used"] <= 1.0
    assert selection["share_used"] == pytest.approx(result["budgets"][0]["table_ms"] / result["budgets"][0]["target_ms"])
    assert result["images"] > selection["images"] > 0
    assert len(list(Path("run", RUNGS).rglob("rung.json"))) >= 4


def test_the_papers_choice_draws_nothing(found: Callable[..., dict]) -> None:
    selection = found("selection.rank=['logits']")["selection"]
    assert selection["candidates"] == []
    assert selection["images"] == 0
    assert not Path("run", RUNGS).exists()


@pytest.mark.parametrize("rank", ["inherited", "logits", "capacity"])
def test_rankers_that_train_nothing(found: Callable[..., dict], rank: str) -> None:
    selection = found(f"selection.rank=['{rank}', 'capacity']")["selection"]
    assert len(selection["candidates"]) == 4
    assert selection["correlations"] == {}, "nothing was trained to compare with"
    assert not Path("run", RUNGS).exists()


def test_random_search_is_ranked_too_and_may_be_left_unranked(found: Callable[..., dict]) -> None:
    ranked = found("method=random", "selection.rank=['capacity']")
    ranks = [candidate["ranks"]["capacity"] for candidate in ranked["selection"]["candidates"]]
    assert ranks[0] == min(ranks)


def test_the_most_parameters_that_fit_are_a_baseline(found: Callable[..., dict]) -> None:
    result = found("method=random", "derivation=parameters")
    target_ms, model, here = result["budgets"][0]["target_ms"], fakes.make_model(space()), space()
    generator = random.Random(0)
    drawn = [here.random_architecture(generator) for _ in range(300)]
    within = [here.params(a) for a in drawn if model.latency(a).ms <= target_ms]
    assert result["params"] >= max(within)
    assert result["budgets"][0]["table_ms"] <= target_ms


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [('{"weights": {"lr": 0.5}, "data": {"batch": 32}}', (0.5, 32)), ("'recipe.toml'", (0.25, 16))],
)
def test_short_trainings_follow_the_recipe(
    found: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, expected: tuple[float, int]
) -> None:
    (tmp_path / "recipe.toml").write_text("weights = { lr = 0.25 }\ndata = { batch = 16 }\n")
    seen = set()
    train = run_search.RANKERS.get("training").rank

    def rank(self, networks):
        seen.add((self.settings.weights.lr, self.settings.batch_size))
        return train(self, networks)

    monkeypatch.setattr(run_search.RANKERS.get("training"), "rank", rank)
    text = f"selection.recipe={recipe}" if recipe.startswith("'") else "selection.recipe={weights={lr=0.5}, data={batch=32}}"
    found("selection.rank=['training']", text)
    assert seen == {expected}


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ("selection.rank=['capacitie']", "capacity"),
        ("selection.recipe={epocs=3}", "epochs"),
        ("selection.recipe='dartss'", "preset of train"),
        ("selection.keep=0", "selection.keep"),
        ("selection.rank=[]", "selection.rank"),
        ("selection.least_fraction=1.5", "selection.least_fraction"),
    ],
)
def test_a_setting_that_is_none_is_refused_before_anything_runs(command: Callable[..., Outcome], sets: str, said: str) -> None:
    outcome = command(*TINY, "--set", sets, "-o", "run")
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert not Path("run").exists()


def test_weights_that_no_search_has_trained_rank_nothing(command: Callable[..., Outcome]) -> None:
    outcome = command(*TINY, "--set", "method=random", "--set", "selection.rank=['inherited']", "-o", "run")
    assert outcome.code == 2
    assert "the method random trains no supernet" in outcome.err


def test_no_test_image_is_read_by_a_search(found: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of digits every fifth image is for testing; what a search reads are the others."""
    test = load_data("digits").test.source
    forbidden = {test.read(index)[0].numpy().tobytes() for index in range(len(test))}
    own = load_data("digits").train.source
    allowed = {own.read(index)[0].numpy().tobytes() for index in range(len(own))}
    seen: set[bytes] = set()
    read = InMemory.read

    def reading(self, index):
        pixels, label = read(self, index)
        seen.add(pixels.numpy().tobytes())
        return pixels, label

    monkeypatch.setattr(InMemory, "read", reading)
    found()
    assert seen
    assert not seen & (forbidden - allowed)
