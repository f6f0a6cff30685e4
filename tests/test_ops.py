"""The whole operator catalogue: counted multiply-adds, parameters and shapes equal what the catalogue says."""

import pytest
import torch
from torch import nn

from mobilenas import ops
from mobilenas.core.workload import Workload
from mobilenas.errors import UnknownNameError
from mobilenas.network import count_params
from mobilenas.spaces import cells
from mobilenas.supernet import NO_OPERATOR

SAME_CHANNELS = tuple(name for name in cells.OPERATORS if name != NO_OPERATOR)
STRIDED = {"factorized_reduce": 2, "stem_imagenet": 4, "stem_imagenet_second": 2, "residual_reduction": 2}
HEADS = ("head", "bn_relu_head")
READS_TWO = {"sum": 1, "concat": 2}
SIZES = ((8, 8), (7, 7), (9, 6), (33, 12))


def workloads() -> list[Workload]:
    found = []
    for name in ops.OPERATORS:
        for height, width in SIZES:
            if name == "zeros":
                found.append(Workload(name, 4, 4, height, width))
            elif name in SAME_CHANNELS:
                found += [Workload(name, c, c, height, width, stride) for c in (4, 5) for stride in (1, 2)]
            elif name in READS_TWO:
                found.append(Workload(name, 4, 4 * READS_TWO[name], height, width, attributes=(("inputs", 2),)))
            elif name.startswith("fixed_reduce"):
                found += [Workload(name, c, c, height, width, 2) for c in (8, 24)]
            elif name.startswith("mbconv") or name in ("basic_block", "bottleneck"):
                found += [Workload(name, c_in, 8, height, width, stride) for c_in in (6, 8) for stride in (1, 2)]
            elif name in HEADS:
                found.append(Workload(name, 6, 3, height, width))
            else:
                found += [Workload(name, 3, c, height, width, STRIDED.get(name, 1)) for c in (6, 7)]
    return found


def count(module: nn.Module, inputs: list[torch.Tensor]) -> tuple[int, torch.Tensor]:
    """Multiply-adds counted here, from each layer's own output and weight, and what the module returns."""
    total = []

    def hook(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        total.append(output[0].numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        output = module.eval()(*inputs)
    return sum(total), output


@pytest.mark.parametrize("workload", workloads(), ids=lambda w: w.key)
def test_counts_and_shape(workload: Workload) -> None:
    module = ops.build_operator(workload)
    madds, output = count(module, list(ops.example_inputs(workload)))
    assert ops.madds(workload) == madds
    assert ops.params(workload) == count_params(module)
    if workload.operator in HEADS:
        assert output.shape == (1, workload.out_channels)
    else:
        assert output.shape == (1, workload.out_channels, workload.out_height, workload.out_width)


def test_every_operator_of_the_catalogue_is_counted() -> None:
    assert {w.operator for w in workloads()} == set(ops.OPERATORS)
    with pytest.raises(UnknownNameError, match="sep_conv_3x3"):
        ops.build_operator(Workload("sep_conv_3", 4, 4, 8, 8))


@pytest.mark.parametrize("name", [n for n in ops.OPERATORS if not n.startswith("stem")])
def test_without_affine_only_the_batchnorms_lose_parameters(name: str) -> None:
    workload = next(w for w in workloads() if w.operator == name)
    affine, plain = (ops.build_operator(workload, affine=flag) for flag in (True, False))
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d) and not m.affine]
    assert count_params(affine) - count_params(plain) == sum(2 * m.num_features for m in norms)
    kept = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    assert len(kept) == (1 if name.startswith("mbconv") and name.endswith("e1") else 0)


@pytest.mark.parametrize("batch", [1, 3])
def test_counts_are_those_of_a_batch_of_one(batch: int) -> None:
    workload = Workload("sep_conv_3x3", 4, 4, 8, 8, batch=batch)
    assert ops.madds(workload) == 2 * 64 * 4 * (9 + 4)
    assert ops.params(workload) == 2 * 4 * (9 + 4 + 2)
    assert ops.example_inputs(workload)[0].shape[0] == batch


def test_factorized_reduce_reads_even_and_odd_pixels() -> None:
    """Oracle: by hand. Convolutions of weight 1 pick pixel (0, 0) and, one further, pixel (1, 1); past the edge is 0."""
    reduce = ops.FactorizedReduce(1, 2, affine=True).eval()
    for conv in (reduce.even, reduce.odd):
        nn.init.ones_(conv.weight)
    images = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    with torch.no_grad():
        even, odd = reduce(images)[0] * (1 + reduce.bn.eps) ** 0.5
    assert torch.allclose(even, torch.tensor([[1.0, 3.0], [7.0, 9.0]]))
    assert torch.allclose(odd, torch.tensor([[5.0, 0.0], [0.0, 0.0]]))


def test_average_pool_leaves_the_padding_out() -> None:
    pool = ops.build_operator(Workload("avg_pool_3x3", 2, 2, 5, 5))
    assert torch.equal(pool(torch.ones(1, 2, 5, 5)), torch.ones(1, 2, 5, 5))


def test_operators_leave_their_input_alone() -> None:
    for workload in workloads():
        inputs = ops.example_inputs(workload, torch.Generator().manual_seed(0))
        before = [x.clone() for x in inputs]
        with torch.no_grad():
            ops.build_operator(workload).eval()(*inputs)
        assert all(map(torch.equal, before, inputs)), workload.key


def test_sum_adds_and_concat_puts_side_by_side() -> None:
    a, b, c = (torch.randn(2, 3, 4, 4) for _ in range(3))
    assert torch.allclose(ops.Sum()(a, b, c), a + b + c)
    assert torch.equal(ops.Concat()(a, b)[:, 3:], b)


@pytest.mark.parametrize(("height", "has_second_norm"), [(8, True), (7, False), (4, True), (12, True)])
def test_auxiliary_head(height: int, has_second_norm: bool) -> None:
    module = ops.auxiliary_head(6, height, 10).eval()
    assert module(torch.randn(2, 6, height, height)).shape == (2, 10)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in module) == 1 + has_second_norm
