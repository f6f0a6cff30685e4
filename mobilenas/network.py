"""Blueprint -> trainable network: every derived network of every space is built here, from the operator catalogue."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.workload import Blueprint


class Network(nn.Module):
    """Executes a blueprint's layers in order: ``(B, C, H, W)`` images -> ``(B, classes)`` logits.

    ``layers`` maps a layer's name to its module. ``drop_path_fraction`` (0 to 1) is set by the trainer; in training mode
    each droppable layer's output is zeroed per sample with that probability and scaled up otherwise
    (DARTS, arXiv 1806.09055, appendix A.2).
    """

    def __init__(self, blueprint: Blueprint, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.layers = nn.ModuleDict({layer.name: ops.build_operator(layer.workload) for layer in blueprint.layers})
        self.auxiliary = auxiliary
        self.drop_path_fraction = 0.0
        self._last_reader = {name: layer.name for layer in blueprint.layers for name in layer.inputs}

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)[0]

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the network and of its auxiliary head (``None`` without one); called by the trainer only."""
        return self._run(images)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        values = {"images": images}
        auxiliary = None
        for layer in self.blueprint.layers:
            module = self.layers[layer.name]
            value = module(*(values[name] for name in layer.inputs))
            if layer.may_drop and self.training and self.drop_path_fraction > 0:
                if not isinstance(module, nn.Identity):
                    value = drop_path(value, self.drop_path_fraction)
            values[layer.name] = value
            if layer.name == self.blueprint.auxiliary_after and self.training and self.auxiliary is not None:
                auxiliary = self.auxiliary(value)
            for name in set(layer.inputs):
                if self._last_reader[name] == layer.name:
                    del values[name]
        return values[self.blueprint.layers[-1].name], auxiliary


def drop_path(x: Tensor, fraction: float) -> Tensor:
    """Zero whole samples of ``x`` with probability ``fraction`` and scale the others to keep the expectation."""
    keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - fraction)
    return x * keep / (1 - fraction)


def initialise_for_timing(network: nn.Module, image_shape: tuple[int, int, int, int], seed: int = 0) -> nn.Module:
    """Give an untrained network the value range of a trained one, in place, and return it in eval mode.

    One pass over noise sets the BatchNorm statistics. Without it the activations of a deep untrained network shrink to
    denormal numbers, on which a CPU is many times slower than on any trained network.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(torch.randn((_samples(image_shape), *image_shape[1:]), generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _samples(image_shape: tuple[int, int, int, int]) -> int:
    """Images that are enough for statistics: fewer of large ones, of which each tells much."""
    return min(8, max(2, 8 * 32 * 32 // (image_shape[2] * image_shape[3])))


def count_params(module: nn.Module) -> int:
    """Learned scalars of ``module``, its auxiliary head left out."""
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith("auxiliary"))


def count_madds(network: nn.Module, image_shape: tuple[int, int, int, int]) -> int:
    """Multiply-adds of one inference at batch 1, counted by hooks on every convolution and linear layer."""
    total: Counter[str] = Counter()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            weight = module.weight.shape
            total["madds"] += output[0].numel() * weight[1] * weight[2] * weight[3]
        elif isinstance(module, nn.Linear):
            total["madds"] += module.in_features * module.out_features

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros((1, *image_shape[1:]), device=next(network.parameters()).device))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return total["madds"]
