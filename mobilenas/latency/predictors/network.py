"""Latency of whole networks, learnt from networks of one space that were measured: for runtimes where sums of kernels fail.

A Gaussian process (Rasmussen and Williams, Gaussian Processes for Machine Learning, MIT Press 2006) over how often each option
is used: linear in the workloads that options share, linear in the options themselves, and a smooth rest for what does not add
up, as work that overlaps. Their shares, the rest's length and the noise are those of the highest evidence (section 5.4).
Measured against a multi-layer perceptron in docs/decisions/0014.

Shapes: `N` networks, `F` options, `W` workloads.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from torch import Tensor

from mobilenas.errors import DocumentError

SHARED, SINGLE, REST, NOISE, LENGTH = range(5)
"""Positions of the logarithms of the hyper-parameters that the evidence chooses."""
TYPICAL = (1.0, 0.3, 0.1, 0.03, 1.0)
"""Of each; variances in units of the latencies' own, the length in units of how far networks are apart."""
SPREAD = 3.0
"""Standard deviation of their logarithms before anything is measured."""
LEAST_NOISE = 1e-4
LEAST_SHARE_OF_FASTEST = 0.5
"""Of the fastest network measured: nothing is predicted below."""


class NetworkPredictor(RegressorMixin, BaseEstimator):
    """``X`` ``(N, F)`` uses of options, ``y`` milliseconds. ``shared`` ``(F, W)``: how often each option runs each workload.

    After ``fit`` the mean is ``bias_ + x @ weights_`` and a sum of bumps around ``centres_`` ``(N, F)``, ``heights_`` high and
    ``length_`` wide.
    """

    def __init__(self, shared: np.ndarray | None = None, iterations: int = 40) -> None:
        self.shared = shared
        self.iterations = iterations

    def fit(self, X: np.ndarray, y: np.ndarray) -> NetworkPredictor:
        """Learn from at least two networks; no randomness."""
        unit, level = float(np.std(y)) or float(np.mean(y)), float(np.mean(y))
        x, target = torch.as_tensor(X, dtype=torch.float64), torch.as_tensor((y - level) / unit, dtype=torch.float64)
        apart = x - x.mean(dim=0)
        counts = apart if self.shared is None else apart @ torch.as_tensor(self.shared, dtype=torch.float64)
        size, counts_size = _mean_square(apart), _mean_square(counts)
        parts = (counts @ counts.T / counts_size, apart @ apart.T / size, torch.cdist(x, x) ** 2 / size)
        found = _most_evident(parts, target, self.iterations)
        dual = torch.cholesky_solve(target[:, None], torch.linalg.cholesky(_covariance(parts, found)))[:, 0]
        amplitude = unit * found.exp()
        weights = amplitude[SINGLE] / size * (apart.T @ dual)
        through = counts.T @ dual
        lifted = through if self.shared is None else torch.as_tensor(self.shared, dtype=torch.float64) @ through
        weights = weights + amplitude[SHARED] / counts_size * lifted
        self.weights_ = weights
        self.bias_ = torch.tensor(level, dtype=torch.float64) - x.mean(dim=0) @ weights
        self.centres_, self.heights_ = x, amplitude[REST] * dual
        self.length_ = (found[LENGTH].exp() * size).sqrt()
        self.least_ms_ = torch.tensor(LEAST_SHARE_OF_FASTEST * float(np.min(y)), dtype=torch.float64)
        return self

    @classmethod
    def linear(cls, weights: np.ndarray, bias_ms: float, least_ms: float) -> NetworkPredictor:
        """One that adds up ``weights`` ``(F,)`` and ``bias_ms``, never below ``least_ms``."""
        made = cls()
        made.weights_, made.bias_, made.least_ms_ = (
            torch.as_tensor(v, dtype=torch.float64) for v in (weights, bias_ms, least_ms)
        )
        made.centres_, made.heights_ = torch.zeros((0, len(weights)), dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        made.length_ = torch.tensor(1.0, dtype=torch.float64)
        return made

    def expected_ms(self, uses: Tensor) -> Tensor:
        """Milliseconds of ``uses`` ``(..., F)``, differentiable in them."""
        state = {name: value.to(uses.device) for name, value in self.state().items()}
        apart = (uses.double()[..., None, :] - state["centres"]).square().sum(dim=-1)
        bumps = torch.exp(-apart / (2 * state["length"] ** 2)) @ state["heights"]
        return torch.maximum(state["bias"] + uses.double() @ state["weights"] + bumps, state["least_ms"])

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Milliseconds, ``(N,)``."""
        return np.asarray(self.expected_ms(torch.as_tensor(X, dtype=torch.float64)).numpy())

    def state(self) -> dict[str, Tensor]:
        """All that was learnt, by names without their underscore."""
        return {name: getattr(self, f"{name}_") for name in ("weights", "bias", "centres", "heights", "length", "least_ms")}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> NetworkPredictor:
        """Invert ``state``; raises ``DocumentError`` for tensors that are no predictor's, by names, types, shapes and
        numbers.
        """
        _check_state(state)
        made = cls()
        for name, tensor in state.items():
            setattr(made, f"{name}_", tensor)
        return made


_SHAPES = {"weights": "F", "bias": "", "centres": "NF", "heights": "N", "length": "", "least_ms": ""}
"""Of each tensor that was learnt."""
LARGEST = 1e9
"""Of any number in them."""
SHORTEST = 1e-9
"""Of the bumps' width."""


def _check_state(state: dict[str, Tensor]) -> None:
    if state.keys() != _SHAPES.keys():
        differing = ", ".join(sorted(state.keys() ^ _SHAPES.keys()))
        raise DocumentError(f"the tensors of a network predictor are {', '.join(_SHAPES)}; missing or strange: {differing}")
    sizes: dict[str, int] = {}
    for name, axes in _SHAPES.items():
        tensor = state[name]
        if tensor.dtype != torch.float64:
            raise DocumentError(f"{name} is of {tensor.dtype}; a network predictor's tensors are of torch.float64")
        shape = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, tensor.shape, strict=False))
        if tensor.dim() != len(axes) or tuple(tensor.shape) != shape:
            raise DocumentError(f"{name} has the shape {tuple(tensor.shape)}, which the others do not fit")
        if not bool((tensor.abs() <= LARGEST).all()):
            raise DocumentError(f"{name} holds numbers that are not finite or larger than {LARGEST:g}")
    if not float(state["length"]) >= SHORTEST or not float(state["least_ms"]) >= 0:
        raise DocumentError(f"length is {float(state['length'])}, least_ms {float(state['least_ms'])}: both are above nothing")


def _mean_square(rows: Tensor) -> float:
    return max(float(rows.square().sum(dim=1).mean()), 1e-12)


def _covariance(parts: tuple[Tensor, Tensor, Tensor], log: Tensor) -> Tensor:
    shared, single, apart = parts
    amplitude = log.exp()
    rest = torch.exp(-apart / (2 * amplitude[LENGTH]))
    return (
        amplitude[SHARED] * shared
        + amplitude[SINGLE] * single
        + amplitude[REST] * rest
        + (amplitude[NOISE] + LEAST_NOISE) * torch.eye(len(apart), dtype=torch.float64)
    )


def _most_evident(parts: tuple[Tensor, Tensor, Tensor], target: Tensor, iterations: int) -> Tensor:
    """Logarithms of the hyper-parameters, by the evidence and what is typical."""
    typical = torch.tensor(TYPICAL, dtype=torch.float64).log()
    log = typical.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([log], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        lower = torch.linalg.cholesky(_covariance(parts, log))
        fit = (torch.linalg.solve_triangular(lower, target[:, None], upper=False) ** 2).sum() / 2
        prior = ((log - typical) / SPREAD).square().sum() / 2
        total: Tensor = fit + lower.diagonal().log().sum() + prior
        torch.autograd.backward(total)
        return total

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return log.detach()
