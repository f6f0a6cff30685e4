"""Rank by a short training with the final recipe, on the weights' half of the training images, judged on the other half."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import torch

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory
from mobilenas.search.rankers.base import Evidence, Ranker, Ranking, sum_of_ranks
from mobilenas.search.retrain import Trainer

RUNGS, RUNG = "rungs", "rung.json"
"""Folder of all short trainings in a run directory, and result file of each."""


class Rung(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of a short training, as ``rung.json`` keeps it."""

    fingerprint: str
    steps: Annotated[int, msgspec.Meta(ge=1)]
    images: Annotated[int, msgspec.Meta(ge=0)]
    """Images that passed through the network, validation included."""
    train_cross_entropy: Annotated[float, msgspec.Meta(ge=0)]
    """Mean over the last epoch."""
    valid_accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)]


class ShortTraining(Ranker):
    """Sum of the ranks by validation accuracy and by the training's cross entropy in its last epoch."""

    name: ClassVar[str] = "training"
    is_cheap: ClassVar[bool] = False

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(evidence)
        batch = min(evidence.recipe.batch_size, len(evidence.data.train))
        self.epochs, steps = epochs_of(evidence.steps, len(evidence.data.train) // batch)
        self.steps = self.epochs * steps
        self.settings = msgspec.structs.replace(evidence.recipe, epochs=self.epochs, batch_size=batch)
        self.data = evidence.data.reduced_to(steps * batch, evidence.seed)
        recipe = documents.dump_json({"steps": self.steps, **msgspec.to_builtins(self.settings)})
        self.folder = evidence.directory.path / RUNGS / hashlib.sha256(recipe.encode()).hexdigest()[:8]

    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        rungs = []
        for index, architecture in enumerate(networks):
            self.evidence.progress("training candidates", index, len(networks))
            rungs.append(self._rung(architecture))
        losses = np.array([rung.train_cross_entropy for rung in rungs])
        accuracies = np.array([rung.valid_accuracy for rung in rungs])
        return Ranking(sum_of_ranks(accuracies, -losses), sum(rung.images for rung in rungs))

    def _rung(self, architecture: Architecture) -> Rung:
        """Train a network unless its result is stored; resume an interrupted training."""
        directory = RunDirectory(self.folder / architecture.fingerprint)
        if (directory.path / RUNG).exists():
            return documents.convert(directory.read_document(RUNG), Rung, str(directory.path / RUNG))
        torch.manual_seed(self.settings.seed)
        trainer = Trainer(
            network=self.evidence.space.build(architecture, auxiliary=self.settings.auxiliary_weight > 0),
            data=self.data,
            task=self.evidence.task,
            settings=self.settings,
            fabric=self.evidence.fabric,
            directory=directory,
        )
        report = trainer.run()
        images = self.epochs * (len(self.data.train) + len(self.data.test))
        rung = Rung(architecture.fingerprint, self.steps, images, report.train_cross_entropy, report.test_accuracy)
        directory.write_document(RUNG, rung)
        shutil.rmtree(directory.checkpoints)
        return rung


def epochs_of(steps: int, per_epoch: int) -> tuple[int, int]:
    """Return the fewest epochs, and the steps of each, that make at least ``steps`` with at most ``per_epoch`` an epoch."""
    epochs = -(-steps // per_epoch)
    return epochs, -(-steps // epochs)
