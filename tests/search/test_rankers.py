"""What each ranker looks at, what it spends, and how short trainings go on."""

import json
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from mobilenas.data import Images, InMemory
from mobilenas.search.rankers.base import ranks_of, sum_of_ranks
from mobilenas.search.rankers.capacity import Capacity
from mobilenas.search.rankers.short_training import RUNGS, ShortTraining, epochs_of
from mobilenas.search.retrain import Trainer
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.ranker_contracts import CLASSES, IMAGES, evidence_of

SPACE = CellSpace(channels=4, layers=3, nodes=2, image_size=8, image_channels=1, classes=CLASSES)
NETWORKS = [SPACE.random_architecture(random.Random(seed)) for seed in range(3)]


def test_ranks_add_up_and_ties_share_theirs() -> None:
    assert ranks_of(np.array([0.5, 0.9, 0.5])).tolist() == [2.5, 1.0, 2.5]
    assert sum_of_ranks(np.array([0.5, 0.9, 0.5]), np.array([3.0, 1.0, 2.0])).tolist() == [-3.5, -4.0, -4.5]


@pytest.mark.parametrize(
    ("steps", "per_epoch", "expected"),
    [(450, 15, (30, 15)), (450, 312, (2, 225)), (450, 8000, (1, 450)), (1, 15, (1, 1)), (10, 3, (4, 3))],
)
def test_a_short_training_has_the_steps_that_were_asked_for(steps: int, per_epoch: int, expected: tuple[int, int]) -> None:
    assert epochs_of(steps, per_epoch) == expected
    epochs, each = expected
    assert steps <= epochs * each < steps + epochs


def units_that_are_on(network: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(1) > 0))
    with torch.no_grad():
        network(images)
    return seen


def test_capacity_counts_units_that_are_on_or_off_together(tmp_path: Path) -> None:
    """By the matrix of the paper, computed image pair by image pair."""
    evidence = evidence_of(SPACE, tmp_path)
    ranker, images = Capacity(evidence), torch.stack([evidence.data.test[index][0] for index in range(IMAGES)])
    responses = []
    for architecture in NETWORKS:
        torch.manual_seed(evidence.seed)
        codes = torch.cat(units_that_are_on(SPACE.build(architecture).train(), images), dim=1)
        alike = np.array([[float((a == b).sum()) for b in codes] for a in codes])
        responses.append(np.linalg.slogdet(alike)[1])
    params = [float(SPACE.params(a)) for a in NETWORKS]
    expected = sum_of_ranks(np.array(responses), np.array(params))
    found = ranker.rank(NETWORKS)
    assert found.scores.tolist() == expected.tolist()
    assert found.images == len(NETWORKS) * IMAGES


def test_more_capacity_is_seen_in_wider_networks(tmp_path: Path) -> None:
    """Of one shape of network, the widths in order: the response alone sees it, without the number of parameters."""
    found = []
    for channels in (2, 4, 8, 16):
        space = CellSpace(channels=channels, layers=3, nodes=2, image_size=8, image_channels=1, classes=CLASSES)
        evidence = evidence_of(space, tmp_path)
        ranker = Capacity(evidence)
        found.append(ranker._response(space.random_architecture(random.Random(0)), ranker._images()))
    assert kendalltau(found, range(4)).statistic > 0.9


def test_short_trainings_read_no_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a data set whose test images cannot be read at all."""
    evidence = evidence_of(SPACE, tmp_path)
    train, test = evidence.data.read()

    class Untouchable(InMemory):
        def read(self, index: int):
            raise AssertionError("a test image is read")

    whole = replace(evidence.data, read=lambda: (train, Untouchable(test.pixels, test.labels)))
    seen: list[int] = []
    read = Images.__getitem__
    monkeypatch.setattr(Images, "__getitem__", lambda self, index: seen.append(int(self.indices[index])) or read(self, index))
    halved = replace(evidence, data=whole.halved(seed=0))
    found = ShortTraining(halved).rank(NETWORKS[:1])
    Capacity(halved).rank(NETWORKS[:1])
    assert found.images > 0
    assert seen
    with pytest.raises(AssertionError, match="a test image is read"):
        whole.test[0]


def test_the_halves_of_a_search_are_what_is_trained_on_and_judged_by(tmp_path: Path) -> None:
    data = evidence_of(SPACE, tmp_path).data
    first, second = data.halves(7, 0.25)
    halved = data.halved(7, 0.25, most=4)
    assert halved.train.source.indices.tolist() == first.indices.tolist()
    assert halved.test.source.indices.tolist() == second.indices[:4].tolist()
    assert not {*first.indices.tolist()} & {*second.indices.tolist()}


def test_a_short_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ShortTraining(evidence_of(SPACE, tmp_path / "whole")).rank(NETWORKS)
    ends: list[int] = []
    epoch = Trainer._epoch

    def interrupted(self, saver):
        if len(ends) == 3:
            ends.append(-1)
            raise KeyboardInterrupt
        ends.append(self.epoch)
        return epoch(self, saver)

    monkeypatch.setattr(Trainer, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ShortTraining(evidence_of(SPACE, tmp_path / "halved")).rank(NETWORKS)
    again = ShortTraining(evidence_of(SPACE, tmp_path / "halved")).rank(NETWORKS)
    assert np.array_equal(whole.scores, again.scores)
    assert whole.images == again.images
    rungs = [sorted((tmp_path / name / RUNGS).rglob("rung.json")) for name in ("whole", "halved")]
    assert len(rungs[0]) == len(rungs[1]) == 3
    for one, other in zip(*rungs, strict=True):
        assert json.loads(one.read_text()) == json.loads(other.read_text())
    assert not list((tmp_path / "halved").rglob("checkpoints")), "nothing is left of what is done"
    before = len(ends)
    ShortTraining(evidence_of(SPACE, tmp_path / "halved")).rank(NETWORKS)
    assert len(ends) == before, "what is done is not trained again"


def test_another_recipe_is_another_training(tmp_path: Path) -> None:
    evidence = evidence_of(SPACE, tmp_path)
    ShortTraining(evidence).rank(NETWORKS[:1])
    other = replace(evidence, recipe=msgspec.structs.replace(evidence.recipe, drop_path_fraction=0.3))
    ShortTraining(other).rank(NETWORKS[:1])
    ShortTraining(replace(evidence, steps=2 * evidence.steps)).rank(NETWORKS[:1])
    assert len(list((tmp_path / RUNGS).iterdir())) == 3


def test_a_batch_larger_than_the_half_is_all_of_it(tmp_path: Path) -> None:
    evidence = evidence_of(SPACE, tmp_path)
    large = replace(evidence, recipe=msgspec.structs.replace(evidence.recipe, batch_size=1000))
    ranker = ShortTraining(large)
    assert ranker.settings.batch_size == IMAGES
    assert ranker.steps == evidence.steps
