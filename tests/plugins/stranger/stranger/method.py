"""Single path: one operator runs on each edge; every weight is trained alike, and two draws tell which way the logits go."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mobilenas.methods.base import Progress, SearchMethod, Step
from mobilenas.supernet import ArchitectureParameters, Mixture


class SinglePath(SearchMethod):
    """Weights as Guo et al. train them (arXiv 1904.00420, section 3.2); logits by REINFORCE, each of two draws the other's
    baseline, so that no architecture step needs the memory of more than one path, nor a backward pass through it.
    """

    name: ClassVar[str] = "single-path"

    def relax_weights(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        """A path drawn uniformly."""
        return drawn({name: torch.full_like(row, 1 / len(row)) for name, row in parameters.softmax().items()})

    def architecture_gradient(self, step: Step) -> None:
        probabilities = step.parameters.softmax()
        one, other = drawn(probabilities), drawn(probabilities)
        with torch.no_grad():
            worse_by = step.loss(step.valid, one) - step.loss(step.valid, other)
        likelier_by = log_likelihood(one) - log_likelihood(other)
        step.backward(worse_by * likelier_by / 2 + step.constraint(one))


def drawn(chances: Mapping[str, Tensor]) -> Mixture:
    """One option of each decision, as likely as its entry ``(O,)`` says."""
    active = {name: (int(torch.multinomial(row.detach(), 1)),) for name, row in chances.items()}
    weights = {name: functional.one_hot(torch.tensor(active[name][0]), len(row)).to(row) for name, row in chances.items()}
    return Mixture(weights=weights, probabilities=chances, active=active)


def log_likelihood(mixture: Mixture) -> Tensor:
    """How likely it was that these options were drawn, ``()``."""
    return torch.stack([mixture.probabilities[name][index].log() for name, (index,) in mixture.active.items()]).sum()
