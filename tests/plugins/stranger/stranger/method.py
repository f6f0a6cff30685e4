"""DARTS with a growing penalty on the entropy of the operators' probabilities, so that the search ends decided."""

from typing import ClassVar

from mobilenas.methods.base import SearchMethod, Step, frozen

WEIGHT = 0.01


class EntropyDarts(SearchMethod):
    """First-order DARTS in all but the loss of its architecture step."""

    name: ClassVar[str] = "entropy-darts"

    def architecture_gradient(self, step: Step) -> None:
        with frozen(step.weights):
            mixture = self.relax_architecture(step.parameters, step.progress)
            entropy = -sum((p * p.clamp_min(1e-12).log()).sum() for p in mixture.probabilities.values())
            penalty = WEIGHT * step.progress.fraction * entropy
            step.backward(step.loss(step.valid, mixture) + step.constraint(mixture) + penalty)
