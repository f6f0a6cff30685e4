"""Rank by capacity, without training: how differently a network responds to different images, and how many parameters it has.

NWOT is from Mellor, Turner, Storkey, Crowley, Neural Architecture Search without Training, ICML 2021, arXiv 2006.04647: the log
determinant of the matrix that counts, for each pair of images, the units that are on for both or off for both. It is a
default on cells only: a search compares it with its short trainings, and drops it where they disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mobilenas.core.architecture import Architecture
from mobilenas.search.rankers.base import Ranker, Ranking, sum_of_ranks

IMAGES = 64
"""Images in the one batch."""
GATES = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU)
"""Activations that are on above zero."""
LOWEST = -1e12
"""Stands for the logarithm of zero: two images that no unit tells apart."""


class Capacity(Ranker):
    """Sum of the ranks by NWOT and by the number of parameters."""

    name: ClassVar[str] = "capacity"

    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        images = self._images()
        responses = np.empty(len(networks))
        for index, architecture in enumerate(networks):
            self.evidence.progress("ranking by capacity", index, len(networks))
            responses[index] = self._response(architecture, images)
        params = np.array([float(self.evidence.space.params(architecture)) for architecture in networks])
        return Ranking(sum_of_ranks(responses, params), len(images) * len(networks))

    def _images(self) -> Tensor:
        """Return the first images of the validation half, not augmented."""
        images = self.evidence.data.test
        return torch.stack([images[index][0] for index in range(min(IMAGES, len(images)))])

    def _response(self, architecture: Architecture, images: Tensor) -> float:
        fabric = self.evidence.fabric
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.evidence.seed)
            network = fabric.to_device(self.evidence.space.build(architecture))
        alike = torch.zeros(len(images), len(images), device=fabric.device)

        def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            on = (inputs[0].flatten(1) > 0).float()
            off = 1 - on
            alike.add_(on @ on.T + off @ off.T)

        for module in network.modules():
            if isinstance(module, GATES):
                module.register_forward_pre_hook(count)
        network.train()
        with torch.no_grad():
            network(fabric.to_device(images))
        sign, log_determinant = np.linalg.slogdet(alike.double().cpu().numpy())
        return float(log_determinant) if sign > 0 and np.isfinite(log_determinant) else LOWEST
