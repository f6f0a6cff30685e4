"""All candidates on all edges that leave one state of a cell, run together: the same function as edge by edge, faster.

Work without weights is done once for all edges (ReLU, pools with their BatchNorm); operators of one type on several edges
are one operator with as many groups; the mixture's weight is the scale of the operator's last BatchNorm. Each candidate
keeps its own parameters: one that is not evaluated gets no gradient. Everything is computed in channels_last. Operators other
than DARTS's, as plug-ins add them, are computed edge by edge and their outputs scaled.

Shapes: ``B`` batch, ``C`` channels of an edge, ``E`` edges, ``O`` operators, ``H``, ``W``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilenas import ops
from mobilenas.core.workload import Workload
from mobilenas.supernet import NO_OPERATOR, SKIP, Mixture

POOLS = ("max_pool_3x3", "avg_pool_3x3")
SEPARABLE = ("sep_conv_3x3", "sep_conv_5x5")
DILATED = ("dil_conv_3x3", "dil_conv_5x5")


class EdgeWeights:
    """A mixture's weights of all edges of one type of cell, each spread over its channels as a BatchNorm's scale.

    ``nodes`` holds, for each node, the names of the edges that enter it, by source; with edge normalisation an edge's
    weights are multiplied by its input's (PC-DARTS).
    """

    def __init__(self, nodes: Mapping[str, Sequence[str]], mixture: Mixture) -> None:
        rows = torch.stack([mixture.weights[edge] for edges in nodes.values() for edge in edges])
        self.inputs = [mixture.weights[node] for node in nodes if node in mixture.weights]
        """Weight of each edge that enters each node; empty without edge normalisation."""
        by_node = rows * torch.cat(self.inputs)[:, None] if self.inputs else rows
        self.zero = 0 * by_node.sum()
        """0, a function of the weights: where every edge draws ``none`` their gradient is zero, not absent."""
        count = len(nodes)
        ends = [(source, node) for node in range(count) for source in range(node + 2)]
        order = sorted(range(len(ends)), key=ends.__getitem__)
        # contiguous: torch's batch_norm in channels_last gives a wrong input gradient, silently, for a scale that is not
        self._by_source = by_node[torch.tensor(order, device=rows.device)].t().contiguous()
        self._edges_of_source = [sum(end[0] == source for end in ends) for source in range(count + 1)]
        self._spread: dict[int, list[tuple[Tensor, ...]]] = {}

    def of_source(self, source: int, channels: int) -> tuple[Tensor, ...]:
        """Per operator the scale ``(E * C,)`` of the edges that leave ``source``."""
        if channels not in self._spread:
            options, edges = self._by_source.shape
            spread = self._by_source[:, :, None].expand(options, edges, channels).reshape(options, edges * channels)
            parts = torch.split(spread, [n * channels for n in self._edges_of_source], dim=1)
            self._spread[channels] = [part.unbind(0) for part in parts]
        return self._spread[channels][source]


class MergedEdges(nn.Module):
    """The edges that leave one state. ``options`` lists what each edge may be, ``workload`` says it of an operator."""

    def __init__(self, operators: Sequence[str], options: Sequence[Sequence[str]], workload: Callable[[str], Workload]) -> None:
        super().__init__()
        self.operators = tuple(operators)
        self.options = tuple(frozenset(edge) for edge in options)
        any_operator = workload(SKIP)
        self.stride, self.channels = any_operator.stride, any_operator.in_channels
        self.candidates = nn.ModuleList(
            nn.ModuleDict({name: ops.build_operator(workload(name), affine=False) for name in edge if self._has_module(name)})
            for edge in options
        )
        self.pool_norm = ops.norm(self.channels, affine=False)
        """While searching, DARTS normalises a pool by a BatchNorm that the derived network does not have."""

    def _has_module(self, operator: str) -> bool:
        is_shared = operator in (*POOLS, NO_OPERATOR) or (operator == SKIP and self.stride == 1)
        return not is_shared

    def forward(
        self, x: Tensor, scales: Sequence[Tensor], active: Sequence[Sequence[int] | None], skip_dropout: float
    ) -> list[Tensor | None]:
        """``x (B, C, H, W)`` -> the weighted sum of each edge's candidates ``(B, C, H', W')``, ``None`` where all are off.

        ``scales`` are ``EdgeWeights.of_source``; ``active`` restricts an edge to some operators, by index.
        """
        state = _State(x, self.stride)
        together: Tensor | None = None  # what all edges have, side by side
        apart: list[list[Tensor]] = [[] for _ in self.options]
        for members, contribution in self._contributions(state, scales, active, skip_dropout):
            if len(members) == len(self.options):
                together = contribution if together is None else _added(together, contribution)
            else:
                for edge, part in zip(members, contribution.chunk(len(members), dim=1), strict=True):
                    apart[edge].append(part)
        shared = together.chunk(len(self.options), dim=1) if together is not None else [None] * len(self.options)
        return [add_up([part, *parts]) for part, parts in zip(shared, apart, strict=True)]

    def _contributions(
        self, state: _State, scales: Sequence[Tensor], active: Sequence[Sequence[int] | None], skip_dropout: float
    ) -> list[tuple[list[int], Tensor]]:
        """Edges and what they get ``(B, len(edges) * C, H', W')``, per operator; dilated ones of equal edges come as one."""
        found: list[tuple[list[int], Tensor]] = []
        in_phases: dict[tuple[int, ...], Tensor] = {}
        for index, name in enumerate(self.operators):
            members = [
                edge for edge, chosen in enumerate(active) if name in self.options[edge] and (chosen is None or index in chosen)
            ]
            if not members or name == NO_OPERATOR:
                continue
            count, scale = len(members), scales[index]
            if count < len(self.options):
                scale = scale.view(len(self.options), -1)[torch.tensor(members, device=scale.device)].flatten()
            modules = [candidates[name] for candidates in self._candidates(members) if name in candidates]
            if name in POOLS:
                found.append((members, _scaled(self.pool_norm(state.pooled(name)), scale, count)))
            elif name == SKIP and not modules:
                found.append((members, _scaled(dropped(state.x, count, skip_dropout), scale, count)))
            elif name == SKIP:
                found.append((members, _factorized_reduce(state, modules, scale)))
            elif name in DILATED and state.has_phases:
                contribution = _separable(state.phases(count), modules, scale, is_undilated=True)
                key = tuple(members)
                in_phases[key] = _added(in_phases[key], contribution) if key in in_phases else contribution
            elif name in (*SEPARABLE, *DILATED):
                found.append((members, _separable(state.repeated(count), modules, scale)))
            else:
                found.append((members, _scaled(torch.cat([module(state.x) for module in modules], dim=1), scale, count)))
        found += [(list(members), state.from_phases(tensor)) for members, tensor in in_phases.items()]
        return found

    def _candidates(self, members: Sequence[int]) -> list[nn.ModuleDict]:
        return [cast(nn.ModuleDict, self.candidates[edge]) for edge in members]


class _State:
    """One state and what several candidates need of it, computed when first asked for."""

    def __init__(self, x: Tensor, stride: int) -> None:
        self.x, self.stride = x, stride
        self._repeated: dict[int, Tensor] = {}
        self._phases: dict[int, Tensor] = {}

    @cached_property
    def relu(self) -> Tensor:
        return functional.relu(self.x)

    def pooled(self, name: str) -> Tensor:
        if name == "max_pool_3x3":
            return functional.max_pool2d(self.x, 3, self.stride, 1)
        return functional.avg_pool2d(self.x, 3, self.stride, 1, count_include_pad=False)

    def repeated(self, times: int) -> Tensor:
        """``(B, times * C, H, W)``: ReLU of the state, once for each edge."""
        if times not in self._repeated:
            self._repeated[times] = _side_by_side(self.relu, times)
        return self._repeated[times]

    @property
    def has_phases(self) -> bool:
        """Whether a convolution of dilation 2 is done on the pixels of equal parity, where it is an ordinary one.

        Exact, and on a CPU twice as fast: a dilated depthwise convolution has no fast backward there. With stride 2 only
        the even pixels are read. Odd sizes would need padding, which a BatchNorm would count.
        """
        is_even = self.x.shape[-1] % 2 == 0 and self.x.shape[-2] % 2 == 0
        return self.stride == 2 or (self.x.device.type == "cpu" and is_even)

    def phases(self, times: int) -> Tensor:
        """``repeated``, the four phases of each image as four images: ``(4 B, times * C, H / 2, W / 2)``; of stride 2 one."""
        if times not in self._phases:
            if self.stride == 2:
                self._phases[times] = _side_by_side(self.relu[:, :, ::2, ::2], times)
            else:
                b, c, h, w = self.relu.shape
                split = self.relu.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c).permute(2, 4, 0, 1, 3, 5)
                self._phases[times] = _side_by_side(split.reshape(4 * b, h // 2, w // 2, c).permute(0, 3, 1, 2), times)
        return self._phases[times]

    def from_phases(self, y: Tensor) -> Tensor:
        """The images that ``phases`` took apart."""
        if self.stride == 2:
            return y
        b, c, h, w = y.shape
        whole = y.permute(0, 2, 3, 1).reshape(2, 2, b // 4, h, w, c).permute(2, 3, 0, 4, 1, 5)
        return whole.reshape(b // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def channels_last_gradient(x: Tensor) -> Tensor:
    """``x``, whose gradient will be laid out as it is: torch mixes layouts on the way back, and then converts at every step."""
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
    return x


def add_up(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of those that are there."""
    total: Tensor | None = None
    for tensor in tensors:
        if tensor is not None:
            total = tensor if total is None else total + tensor
    return total


def _added(a: Tensor, b: Tensor) -> Tensor:
    """Their sum, in the memory of one that is no view (autograd copies a view's whole base on the way back)."""
    for target, other in ((b, a), (a, b)):
        if target._base is None:
            return target.add_(other)
    return a + b


def _side_by_side(x: Tensor, times: int) -> Tensor:
    """``(B, C, H, W) -> (B, times * C, H, W)``, in channels_last."""
    if times == 1:
        return x
    return torch.cat([x] * times, dim=1)


def dropped(x: Tensor, times: int, fraction: float) -> Tensor:
    """``x`` for ``times`` edges, each with elements of its own dropped (P-DARTS)."""
    return functional.dropout(_side_by_side(x, times), fraction) if fraction > 0 else x


def _scaled(x: Tensor, scale: Tensor, edges: int) -> Tensor:
    """``x``, of all edges ``(B, C, H, W)`` or of each ``(B, E * C, H, W)``, times each edge's scale."""
    if x.shape[1] == len(scale):
        return x * scale.view(1, -1, 1, 1)
    b, c, h, w = x.shape
    product = x.permute(0, 2, 3, 1).unsqueeze(3) * scale.view(edges, c)
    return product.reshape(b, h, w, edges * c).permute(0, 3, 1, 2)


def _normalised(x: Tensor, scale: Tensor | None = None) -> Tensor:
    return functional.batch_norm(x, None, None, scale, training=True)


def _merged_weight(convolutions: Sequence[nn.Conv2d]) -> Tensor:
    weights = [convolution.weight for convolution in convolutions]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


class _GroupedProduct(torch.autograd.Function):
    """``x (P, n * C)`` times each group's ``weight (n, C_out, C)``: ``(P, n * C_out)``, no group copied on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        groups, c_out, _ = weight.shape
        y = x.new_empty(len(x), groups * c_out)
        torch.bmm(_by_group(x, groups), weight.transpose(1, 2), out=_by_group(y, groups))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _GroupedProduct.apply(gradient, weight.transpose(1, 2))
        if ctx.needs_input_grad[1]:
            of_weight = torch.bmm(_by_group(gradient, len(weight)).transpose(1, 2), _by_group(x, len(weight)))
        return of_x, of_weight


def _by_group(x: Tensor, groups: int) -> Tensor:
    return x.view(len(x), groups, -1).transpose(0, 1)


def pointwise_convolution(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """1x1 convolution in groups, as ``conv2d`` does it.

    For small batches on one thread torch's own copies each group to and fro.
    """
    is_slow = x.device.type == "cpu" and len(x) < 16 and torch.get_num_threads() == 1
    if not is_slow or torch.is_autocast_enabled("cpu"):
        return functional.conv2d(x, weight, groups=groups)
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, c)
    product = cast(Tensor, _GroupedProduct.apply(pixels, weight.view(groups, -1, c // groups)))
    return product.view(b, h, w, -1).permute(0, 3, 1, 2)


def _separable(x: Tensor, modules: Sequence[nn.Module], scale: Tensor, is_undilated: bool = False) -> Tensor:
    """Separable or dilated convolutions of several edges as one, after their first ReLU; scaled by the last BatchNorm."""
    stacks = [cast(nn.Sequential, module) for module in modules]
    for start in range(0, len(stacks[0]), 4):  # ReLU, depthwise, pointwise, BatchNorm, once or twice
        depthwise = [cast(nn.Conv2d, stack[start + 1]) for stack in stacks]
        pointwise = [cast(nn.Conv2d, stack[start + 2]) for stack in stacks]
        first = depthwise[0]
        if start:
            x = functional.relu_(_normalised(x))
        stride, dilation = (1, 1) if is_undilated else (first.stride[0], first.dilation[0])
        padding = dilation * (first.kernel_size[0] // 2)
        x = functional.conv2d(x, _merged_weight(depthwise), None, stride, padding, dilation, groups=x.shape[1])
        x = pointwise_convolution(x, _merged_weight(pointwise), len(modules))
    return _normalised(x, scale)


def _factorized_reduce(state: _State, modules: Sequence[nn.Module], scale: Tensor) -> Tensor:
    """Identities of stride 2 of several edges as one."""
    reduces = [cast(ops.FactorizedReduce, module) for module in modules]
    shifted = ops.shifted_by_one(state.relu)
    even = functional.conv2d(state.relu, _merged_weight([module.even for module in reduces]), stride=2)
    odd = functional.conv2d(shifted, _merged_weight([module.odd for module in reduces]), stride=2)
    b, _, h, w = even.shape
    halves = [half.permute(0, 2, 3, 1).reshape(b, h, w, len(modules), -1) for half in (even, odd)]
    both = torch.cat(halves, dim=4).reshape(b, h, w, -1).permute(0, 3, 1, 2)
    return _normalised(both, scale)
