"""Oracle of the merged supernet: every edge and operator by itself, as the papers draw it, in NCHW.

It runs on the parameters of a ``CellSupernet``, so that outputs and gradients can be compared. Shapes: ``B`` batch, ``C``
channels, ``H``, ``W``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilenas.spaces.cell_supernet import CellSupernet, SearchedCell
from mobilenas.supernet import Mixture


class PlainCells(nn.Module):
    """``supernet``'s function, computed the plain way."""

    def __init__(self, supernet: CellSupernet) -> None:
        super().__init__()
        self.supernet = supernet.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        states = [images]
        for stem in self.supernet.stems.values():
            states.append(stem(states[-1]))
        before, last = states[1], states[-1]
        for cell in self.supernet.cells:
            output = searched(cell, before, last, mixture) if isinstance(cell, SearchedCell) else cell(before, last, None)
            before, last = last, output
        return self.supernet.head(last)


def searched(cell: SearchedCell, before: Tensor, last: Tensor, mixture: Mixture) -> Tensor:
    """One cell, node by node and edge by edge."""
    states = [cell.preprocess[0](before), cell.preprocess[1](last)]
    for node in range(2, 2 + cell.nodes):
        total = None
        for source in range(node):
            name = f"{cell.kind}.{source}-{node}"
            position = cell.edges[source].index(name)
            edges = cell.sources[source]
            edge = partial_edge(
                cell.parts, edges, position, states[source], mixture.weights[name], mixture.active.get(name), mixture
            )
            inputs = mixture.weights.get(f"{cell.kind}.node{node}")
            edge = edge if inputs is None else inputs[source] * edge
            total = edge if total is None else total + edge
        states.append(total)
    return torch.cat(states[2:], dim=1)


def partial_edge(parts, edges, position, x, weights, active, mixture) -> Tensor:
    """PC-DARTS: the first channels through the mixture, the others past it, then the shuffle."""
    channels = x.shape[1] // parts
    mixed = mixed_op(edges, position, x[:, :channels], weights, active, mixture)
    if parts == 1:
        return mixed
    bypass = x[:, channels:]
    if edges.stride == 2:
        bypass = functional.max_pool2d(bypass, 2, 2, ceil_mode=True)
    b, c, h, w = x.shape[0], x.shape[1], mixed.shape[2], mixed.shape[3]
    return torch.cat([mixed, bypass], dim=1).view(b, parts, c // parts, h, w).transpose(1, 2).reshape(b, c, h, w)


def mixed_op(edges, position, x, weights, active, mixture) -> Tensor:
    """DARTS equation 2: the weighted sum of the candidates."""
    total = torch.zeros_like(x[:, :, :: edges.stride, :: edges.stride])
    for index, name in enumerate(edges.operators):
        if name not in edges.options[position] or name == "none" or (active is not None and index not in active):
            continue
        total = total + weights[index] * operator(edges, position, name, x, mixture)
    return total


def operator(edges, position, name, x, mixture) -> Tensor:
    """One candidate; pools with the BatchNorm that they have while searching."""
    if name == "max_pool_3x3":
        return edges.pool_norm(functional.max_pool2d(x, 3, edges.stride, 1))
    if name == "avg_pool_3x3":
        return edges.pool_norm(functional.avg_pool2d(x, 3, edges.stride, 1, count_include_pad=False))
    if name == "skip_connect" and edges.stride == 1:
        return functional.dropout(x, mixture.skip_dropout)
    return edges.candidates[position][name](x)
