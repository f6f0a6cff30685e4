"""The contract of a ranker: networks in, a score for each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from scipy.stats import rankdata

from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import ImageData
from mobilenas.search.retrain import TrainSettings
from mobilenas.search.task import Task
from mobilenas.spaces.base import SearchSpace


class Ranking(NamedTuple):
    """Scores ``(N,)`` of ``N`` networks, the best one's the highest, and the images passed through networks to find them."""

    scores: np.ndarray
    images: int


@dataclass(frozen=True)
class Evidence:
    """Data that a ranker may look at: everything that a search has but test images."""

    space: SearchSpace
    data: ImageData
    """``train`` is the half of the training images that weights are trained on, ``test`` the half that they are judged on."""
    recipe: TrainSettings
    """Settings of short trainings, whose schedule is cut to ``steps``."""
    steps: int
    seed: int
    fabric: Fabric
    task: Task
    directory: RunDirectory
    """Run directory of the search; long work is kept there, so that an interrupted search resumes."""
    logit_scores: Callable[[Sequence[Architecture]], np.ndarray]
    """Summed log probabilities ``(N,)`` of networks."""
    inherited: Callable[[Sequence[Architecture]], Ranking]
    """Accuracies ``(N,)`` of networks with the weights of the supernet."""
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None


class Ranker(ABC):
    """Scores networks by how accurate they promise to be once they are trained. Made once for a search."""

    name: ClassVar[str]
    is_cheap: ClassVar[bool] = True
    """Whether it is asked about the whole pool; the others are asked about those kept, and check the cheap ones."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    @abstractmethod
    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        """Score ``networks``, in their order; the same ones get the same scores."""


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """Return the ranks ``(N,)`` of ``scores`` ``(N,)``: 1 for the highest, ties share the mean of theirs."""
    found: np.ndarray = rankdata(-scores)
    return found


def sum_of_ranks(*scores: np.ndarray) -> np.ndarray:
    """Return a score ``(N,)`` that is higher the better a network ranks by all of ``scores``."""
    found: np.ndarray = -np.sum([ranks_of(each) for each in scores], axis=0)
    return found
