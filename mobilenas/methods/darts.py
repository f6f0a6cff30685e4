"""DARTS: Differentiable Architecture Search. Liu, Simonyan, Yang, ICLR 2019, arXiv 1806.09055.

Bilevel problem (equations 3 and 4): ``min over alpha of L_val(w*(alpha), alpha)`` with ``w*(alpha)`` minimising
``L_train(w, alpha)``. Every edge computes ``sum over o of softmax(alpha)_o * o(x)`` (equation 2). In each step alpha
descends on a validation batch, then w on a training batch.

The first-order method takes the current ``w`` for ``w*`` (section 2.3, ``xi = 0``). The second-order one takes one step of
the weight optimiser, ``w' = w - xi (momentum + grad_w L_train + decay w)``, and differentiates through it (equation 7):
``grad_alpha L_val(w', alpha) - xi * (d/dalpha grad_w L_train(w, alpha)) . grad_w' L_val(w', alpha)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from mobilenas.errors import IncompatibleError, UsageError
from mobilenas.methods.base import SearchMethod, Step, frozen
from mobilenas.spaces.base import SearchSpace
from mobilenas.supernet import Mixture

EPSILON = 0.01
"""Length of the finite difference's step in weight space."""


class Darts(SearchMethod):
    """``order`` is 1 or 2. ``hessian`` says how the second order's product is taken: ``"difference"``, as published
    (equation 8), or ``"exact"``, by a second backward pass. The difference can be far off on networks with kinks.
    """

    name: ClassVar[str] = "darts"
    needs: ClassVar[frozenset[str]] = frozenset({"cells"})

    def __init__(self, order: int = 1, hessian: str = "difference") -> None:
        if isinstance(order, bool) or order not in (1, 2):
            raise UsageError(f"method_options.order is {order!r}; darts has order 1 and 2")
        if hessian not in ("difference", "exact"):
            raise UsageError(f"method_options.hessian is {hessian!r}; available: difference, exact")
        self.order, self.hessian = order, hessian
        if order == 2:  # weights that a step would make, of gradients as they are
            self.precisions = ("32-true",) if hessian == "exact" else ("32-true", "bf16-mixed")
            self.may_be_in_parts = hessian != "exact"

    def check(self, space: SearchSpace) -> None:
        super().check(space)
        if self.order == 2 and self.switches.skip_dropout > 0:
            raise IncompatibleError(
                "switches.skip_dropout with method_options.order = 2: the passes that the second order subtracts would drop "
                "different elements; use order 1"
            )

    def architecture_gradient(self, step: Step) -> None:
        if self.order == 1:
            super().architecture_gradient(step)
            return
        alpha, before = list(step.parameters.parameters()), [weight.detach().clone() for weight in step.weights]
        with torch.no_grad():
            constant = self.relax_architecture(step.parameters, step.progress)
        virtual = step.weights_after(_gradients(step, step.loss(step.train, constant), step.weights))
        with _put_back(step.weights, before):
            _assign(step.weights, virtual)
            mixture = self._relax(step)
            loss = step.loss(step.valid, mixture) + step.constraint(mixture)
            both = _gradients(step, loss, [*alpha, *step.weights])
        direct, v = both[: len(alpha)], both[len(alpha) :]
        product = self._exact(step, alpha, v) if self.hessian == "exact" else self._difference(step, alpha, before, v)
        for row, gradient, correction in zip(alpha, direct, product, strict=True):
            row.grad = gradient - step.weights_lr * correction
        for weight in step.weights:
            weight.grad = None

    def _difference(self, step: Step, alpha: Sequence[Tensor], before: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
        """Equation 8: ``(grad_alpha L_train(w + R v) - grad_alpha L_train(w - R v)) / 2R`` with ``R = 0.01 / |v|``."""
        radius = EPSILON / torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in v]))
        ends = []
        with _put_back(step.weights, before), frozen(step.weights):
            for sign in (1.0, -1.0):
                _assign(step.weights, [w + sign * radius * part for w, part in zip(before, v, strict=True)])
                ends.append(_gradients(step, step.loss(step.train, self._relax(step)), alpha))
        return [(plus - minus) / (2 * radius) for plus, minus in zip(*ends, strict=True)]

    def _exact(self, step: Step, alpha: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
        """``d/dalpha (grad_w L_train(w, alpha) . v)`` by differentiating twice."""
        loss = step.loss(step.train, self._relax(step))
        first = torch.autograd.grad(loss, list(step.weights), create_graph=True, allow_unused=True)
        along = torch.stack([(g * part).sum() for g, part in zip(first, v, strict=True) if g is not None]).sum()
        second = torch.autograd.grad(along, list(alpha), allow_unused=True)
        return [torch.zeros_like(row) if g is None else g for row, g in zip(alpha, second, strict=True)]

    def _relax(self, step: Step) -> Mixture:
        return self.relax_architecture(step.parameters, step.progress)


def _gradients(step: Step, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``loss`` in ``tensors``, zero where it does not depend on one; ``.grad`` of them is used up."""
    for tensor in tensors:
        tensor.grad = None
    step.backward(loss)
    step.average(tensors)
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
    for tensor in tensors:
        tensor.grad = None
    return gradients


@contextmanager
def _put_back(weights: Sequence[nn.Parameter], before: Sequence[Tensor]) -> Iterator[None]:
    """Whatever happens inside, ``weights`` are as ``before`` in the end."""
    try:
        yield
    finally:
        _assign(weights, before)


def _assign(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
