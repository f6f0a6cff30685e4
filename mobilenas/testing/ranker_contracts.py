"""Conformance kit of rankers: subclass it, say what is made, and pytest runs the laws.

class TestMyRanker(RankerContract):
def make(self, evidence):
return MyRanker(evidence)
"""

from __future__ import annotations

import random
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import ImageData, ImageSource, InMemory, Preprocessing
from mobilenas.data.images import Shift
from mobilenas.latency.budget import score_of
from mobilenas.search.descent import SgdSettings
from mobilenas.search.rankers.base import Evidence, Ranker, Ranking
from mobilenas.search.retrain import TrainSettings
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace

CLASSES, IMAGES, STEPS = 3, 24, 4


def evidence_of(space: SearchSpace, folder: Path) -> Evidence:
    """What a search of ``space`` on noise would have: logits that decide nothing, and weights that tell nothing."""
    _, channels, size, _ = space.image_shape

    def read() -> tuple[ImageSource, ImageSource]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (2 * IMAGES, channels, size, size), generator=generator, dtype=torch.uint8)
        labels = torch.arange(2 * IMAGES) % CLASSES
        return InMemory(pixels[:IMAGES], labels[:IMAGES]), InMemory(pixels[IMAGES:], labels[IMAGES:])

    facts = Preprocessing(size, channels, (0.5,) * channels, (0.25,) * channels, "grey")
    weights = SgdSettings(lr=0.05, min_lr=0.0, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)
    program = space.derivation_program(space.undecided)
    return Evidence(
        space=space,
        data=ImageData("noise", facts, tuple(map(str, range(CLASSES))), read, Shift(padding=1, flip=False), cutout_size=2),
        recipe=TrainSettings(100, 8, 0, weights, drop_path_fraction=0.1, auxiliary_weight=0.0, cutout=True, seed=0),
        steps=STEPS,
        seed=0,
        fabric=Fabric(accelerator="cpu", devices=1),
        task=Classification(),
        directory=RunDirectory(folder),
        logit_scores=lambda networks: np.array([score_of(program, architecture) for architecture in networks]),
        inherited=lambda networks: Ranking(np.array([random.Random(a.fingerprint).random() for a in networks]), len(networks)),
    )


class RankerContract(ABC):
    """The laws of a ranker. Override ``make``, and ``space`` where it is for others."""

    @abstractmethod
    def make(self, evidence: Evidence) -> Ranker:
        """The ranker under test."""

    def space(self) -> SearchSpace:
        """Small enough to train a network of it in a second."""
        return CellSpace(channels=4, layers=3, nodes=2, image_size=8, image_channels=1, classes=CLASSES)

    def _networks(self, space: SearchSpace) -> list[Architecture]:
        generator = random.Random(0)
        return [space.random_architecture(generator) for _ in range(4)]

    def test_every_network_gets_a_finite_score(self) -> None:
        space = self.space()
        with tempfile.TemporaryDirectory() as folder:
            networks = self._networks(space)
            found = self.make(evidence_of(space, Path(folder))).rank(networks)
        assert found.scores.shape == (len(networks),)
        assert np.isfinite(found.scores).all()
        assert found.images >= 0

    def test_the_same_networks_rank_alike_again_and_in_another_order(self) -> None:
        space = self.space()
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            networks = self._networks(space)
            scores = self.make(evidence_of(space, Path(first))).rank(networks).scores
            torch.manual_seed(99)
            turned = self.make(evidence_of(space, Path(second))).rank(networks[::-1]).scores
        assert np.array_equal(scores, turned[::-1]), "a score depends on what was ranked before it"

    def test_no_weight_and_no_random_number_of_the_search_is_changed(self) -> None:
        space = self.space()
        with tempfile.TemporaryDirectory() as folder:
            ranker = self.make(evidence_of(space, Path(folder)))
            torch.manual_seed(3)
            expected = torch.rand(1)
            torch.manual_seed(3)
            ranker.rank(self._networks(space))
            drawn = torch.rand(1)
        assert ranker.is_cheap is False or torch.equal(drawn, expected), "it draws from the random numbers of the search"
