"""The operator catalogue: name -> module builder, multiply-adds and parameters.

The same modules are profiled, searched and exported. Cell operators follow DARTS (Liu, Simonyan, Yang, ICLR 2019,
arXiv 1806.09055, section 3.1 and appendix A), those of dense blocks DenseNAS (Fang et al., CVPR 2020, arXiv 1906.09607),
those named ``nor_conv`` and what is around them NAS-Bench-201 (Dong, Yang, ICLR 2020, arXiv 2001.00326).
Shapes: ``B`` batch, ``C`` channels, ``H`` height, ``W`` width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilenas.core.registry import Registry
from mobilenas.core.workload import Workload

FIXED_REDUCE_GROUPS = 8
"""Groups of the convolutions of GDAS's fixed reduction cell."""

Builder = Callable[[Workload, bool], nn.Module]
Counter = Callable[[Workload], int]


@dataclass(frozen=True)
class Operator:
    """One entry of the catalogue.

    ``build(workload, affine)`` returns the module; ``affine`` is whether its BatchNorms have a learned scale and shift and
    keep running statistics (they have neither while a cell is searched). ``madds`` and ``params`` count a batch of one and
    the affine module; BatchNorm, ReLU, pooling and sums count no multiply-adds.
    """

    name: str
    build: Builder
    madds: Counter
    params: Counter


def norm(channels: int, affine: bool, eps: float = 1e-5) -> nn.BatchNorm2d:
    """BatchNorm of a derived network (``affine``), or of a searched one, which knows its batch's statistics only."""
    return nn.BatchNorm2d(channels, eps, affine=affine, track_running_stats=affine)


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: int,
    stride: int,
    affine: bool,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution with same padding, BatchNorm, activation: ``(B, c_in, H, W) -> (B, c_out, H/stride, W/stride)``."""
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, norm(c_out, affine, eps), *([activation(inplace=True)] if activation else []))


def relu_conv_bn(c_in: int, c_out: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """ReLU, convolution with same padding, BatchNorm: ``(B, c_in, H, W) -> (B, c_out, H/stride, W/stride)``."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        norm(c_out, affine),
    )


def _depthwise_separable(c_in: int, c_out: int, kernel: int, stride: int, dilation: int, affine: bool) -> nn.Sequential:
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_in, kernel, stride, padding, dilation, groups=c_in, bias=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        norm(c_out, affine),
    )


class FactorizedReduce(nn.Module):
    """Halve the resolution by two 1x1 convolutions of stride 2, the second one pixel further, concatenated.

    ``(B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2))``. Odd sizes are zero-padded at the right and bottom, which
    leaves even sizes unchanged.
    """

    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.bn = norm(c_out, affine)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        return cast(Tensor, self.bn(torch.cat([self.even(x), self.odd(shifted_by_one(x))], dim=1)))


def shifted_by_one(x: Tensor) -> Tensor:
    """``x`` from its second row and column on; zero-padded first where a size is odd."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, width % 2, 0, height % 2)) if width % 2 or height % 2 else x
    return padded[..., 1:, 1:]


def _fixed_reduce_conv(w: Workload, affine: bool) -> nn.Module:
    """Branch of GDAS's fixed reduction cell (arXiv 1910.04465): 1x3, 3x1 in eight groups, then 1x1; stride 2."""
    c_in, c_out = w.in_channels, w.out_channels
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_in, (1, 3), (1, 2), (0, 1), groups=FIXED_REDUCE_GROUPS, bias=False),
        nn.Conv2d(c_in, c_in, (3, 1), (2, 1), (1, 0), groups=FIXED_REDUCE_GROUPS, bias=False),
        norm(c_in, affine),
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        norm(c_out, affine),
    )


def _fixed_reduce_conv_madds(w: Workload) -> int:
    grouped = 3 * w.in_channels * (w.in_channels // FIXED_REDUCE_GROUPS)
    return (w.height + w.out_height) * w.out_width * grouped + _pointwise_madds(w)


def _fixed_reduce_conv_params(w: Workload) -> int:
    grouped = 3 * w.in_channels * (w.in_channels // FIXED_REDUCE_GROUPS)
    return 2 * grouped + 2 * w.in_channels + _pointwise_params(w)


MOBILE_EPS = 1e-3
"""What the BatchNorms of DenseNAS's mobile networks add to the variance."""


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 to ``expansion * C_in`` channels, depthwise ``kernel x kernel``, 1x1 to ``C_out``.

    The input is added where the shapes agree. Without expansion the first 1x1 is left out, and the last BatchNorm always has
    a scale and shift, as in the authors' code.
    """

    def __init__(self, w: Workload, kernel: int, expansion: int, affine: bool) -> None:
        super().__init__()
        hidden = expansion * w.in_channels
        self.adds_input = w.stride == 1 and w.in_channels == w.out_channels
        parts = [
            conv_bn(hidden, hidden, kernel, w.stride, affine, groups=hidden, activation=nn.ReLU6, eps=MOBILE_EPS),
            conv_bn(hidden, w.out_channels, 1, 1, affine or expansion == 1, eps=MOBILE_EPS),
        ]
        if expansion > 1:
            parts.insert(0, conv_bn(w.in_channels, hidden, 1, 1, affine, activation=nn.ReLU6, eps=MOBILE_EPS))
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.layers(x))
        return x + y if self.adds_input else y


class ResidualBlock(nn.Module):
    """ResNet's block: convolutions of ``kernels``, the input added (through a 1x1 where the shapes differ), then ReLU.

    ``channels`` are those between the convolutions; the first 3x3 has the stride (He et al., arXiv 1512.03385; the
    stride's place as in torchvision).
    """

    def __init__(self, w: Workload, kernels: Sequence[int], channels: int, affine: bool) -> None:
        super().__init__()
        widths = [w.in_channels, *[channels] * (len(kernels) - 1), w.out_channels]
        strided = kernels.index(3)
        parts = []
        for index, kernel in enumerate(kernels):
            activation = nn.ReLU if index + 1 < len(kernels) else None
            stride = w.stride if index == strided else 1
            parts.append(conv_bn(widths[index], widths[index + 1], kernel, stride, affine, activation=activation))
        self.layers = nn.Sequential(*parts)
        same = w.stride == 1 and w.in_channels == w.out_channels
        self.shortcut = nn.Identity() if same else conv_bn(w.in_channels, w.out_channels, 1, w.stride, affine)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.layers(x) + self.shortcut(x))


BOTTLENECK_EXPANSION = 4
"""A bottleneck's output is so many times as wide as its 3x3."""


class ResidualReduction(nn.Module):
    """Half the resolution: two 3x3 convolutions, each ReLU before and BatchNorm behind, plus a 2x2 average through a 1x1.

    ``(B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2))``. At an odd edge the average is of the pixels that are there.
    """

    def __init__(self, w: Workload, affine: bool) -> None:
        super().__init__()
        self.first = relu_conv_bn(w.in_channels, w.out_channels, 3, 2, affine)
        self.second = relu_conv_bn(w.out_channels, w.out_channels, 3, 1, affine)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=w.height % 2 == 1 or w.width % 2 == 1, count_include_pad=False),
            nn.Conv2d(w.in_channels, w.out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.shortcut(x) + self.second(self.first(x)))


class Zeros(nn.Module):
    """The value of a node that nothing enters: zero times a tensor ``(B, C, H, W)`` of its shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0


class Sum(nn.Module):
    """The value of a cell's node: the sum of its inputs, all ``(B, C, H, W)``."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for tensor in inputs[1:]:
            total = total + tensor
        return total


class Concat(nn.Module):
    """The output of a cell: its nodes side by side, ``n * (B, C, H, W) -> (B, n*C, H, W)``."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)


def head(c_in: int, classes: int) -> nn.Sequential:
    """Global average pooling and the classifier: ``(B, c_in, H, W) -> (B, classes)``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


def _bn_relu_head(w: Workload, affine: bool) -> nn.Sequential:
    return nn.Sequential(norm(w.in_channels, affine), nn.ReLU(), *head(w.in_channels, w.out_channels))


def auxiliary_head(c_in: int, height: int, classes: int, second_norm: bool = False) -> nn.Sequential:
    """The auxiliary classifier that DARTS trains with: ``(B, c_in, height, height) -> (B, classes)``.

    As published where the map is 8x8 (CIFAR: pooling stride 3) or 7x7 (ImageNet: stride 2, and a second BatchNorm in the
    code of some authors only); other sizes are brought to the same 2x2 by adaptive pooling.
    """
    pool: nn.Module = nn.AdaptiveAvgPool2d(2)
    if height in (7, 8):
        pool = nn.AvgPool2d(5, stride=3 if height == 8 else 2, count_include_pad=False)
    second = [
        nn.Conv2d(128, 768, 2, bias=False),
        *([] if height == 7 and not second_norm else [nn.BatchNorm2d(768)]),
        nn.ReLU(),
    ]
    return nn.Sequential(
        nn.ReLU(),
        pool,
        nn.Conv2d(c_in, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        *second,
        nn.Flatten(),
        nn.Linear(768, classes),
    )


def _stem_cifar(workload: Workload, affine: bool) -> nn.Module:
    c_in, c_out = workload.in_channels, workload.out_channels
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out))


def _stem_imagenet(workload: Workload, affine: bool) -> nn.Module:
    c_in, c_out = workload.in_channels, workload.out_channels
    return nn.Sequential(
        nn.Conv2d(c_in, c_out // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(c_out // 2),
        nn.ReLU(),
        nn.Conv2d(c_out // 2, c_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
    )


def _stem_imagenet_madds(w: Workload) -> int:
    half_pixels = -(-w.height // 2) * -(-w.width // 2)
    return half_pixels * w.in_channels * (w.out_channels // 2) * 9 + _out_pixels(w) * (w.out_channels // 2) * (
        w.out_channels * 9
    )


def _out_pixels(w: Workload) -> int:
    return w.out_height * w.out_width


def _separable(name: str, kernel: int, dilation: int, twice: bool) -> Operator:
    """``sep_conv`` (applied twice, only the first half strided) and ``dil_conv`` (once, dilated) in one."""

    def build(w: Workload, affine: bool) -> nn.Module:
        first = _depthwise_separable(w.in_channels, w.in_channels, kernel, w.stride, dilation, affine)
        if not twice:
            return first
        return nn.Sequential(*first, *_depthwise_separable(w.in_channels, w.out_channels, kernel, 1, dilation, affine))

    repeats = 2 if twice else 1

    def madds(w: Workload) -> int:
        return repeats * _out_pixels(w) * w.in_channels * (kernel * kernel + w.in_channels)

    def params(w: Workload) -> int:
        return repeats * w.in_channels * (kernel * kernel + w.in_channels + 2)

    return Operator(name, build, madds, params)


def _inverted_residual(kernel: int, expansion: int) -> Operator:
    def madds(w: Workload) -> int:
        hidden = expansion * w.in_channels
        expand = w.height * w.width * w.in_channels * hidden if expansion > 1 else 0
        return expand + _out_pixels(w) * hidden * (kernel * kernel + w.out_channels)

    def params(w: Workload) -> int:
        hidden = expansion * w.in_channels
        expand = hidden * (w.in_channels + 2) if expansion > 1 else 0
        return expand + hidden * (kernel * kernel + 2) + w.out_channels * (hidden + 2)

    name = f"mbconv_k{kernel}_e{expansion}"
    return Operator(name, lambda w, affine: InvertedResidual(w, kernel, expansion, affine), madds, params)


def _conv_bn_relu6(name: str, kernel: int, eps: float) -> Operator:
    def build(w: Workload, affine: bool) -> nn.Module:
        return conv_bn(w.in_channels, w.out_channels, kernel, w.stride, affine, activation=nn.ReLU6, eps=eps)

    return Operator(
        name,
        build,
        lambda w: kernel * kernel * _pointwise_madds(w),
        lambda w: w.out_channels * (kernel * kernel * w.in_channels + 2),
    )


def _nor_conv(kernel: int) -> Operator:
    return Operator(
        f"nor_conv_{kernel}x{kernel}",
        lambda w, affine: relu_conv_bn(w.in_channels, w.out_channels, kernel, w.stride, affine),
        lambda w: kernel * kernel * _pointwise_madds(w),
        lambda w: w.out_channels * (kernel * kernel * w.in_channels + 2),
    )


def _reduction_weights(w: Workload) -> int:
    """Of two 3x3 convolutions and a 1x1; all of them are applied to as many pixels as the output has."""
    return w.out_channels * (9 * w.in_channels + 9 * w.out_channels + w.in_channels)


def _residual_block(name: str, kernels: tuple[int, ...], expansion: int) -> Operator:
    """The widths of ``w`` are those of its input and output; between them are ``out_channels / expansion`` channels."""

    def convolutions(w: Workload) -> Iterator[tuple[int, int]]:
        """Pixels and weights of each convolution."""
        inner = w.out_channels // expansion
        widths = [w.in_channels, *[inner] * (len(kernels) - 1), w.out_channels]
        strided = kernels.index(3)
        for index, kernel in enumerate(kernels):
            pixels = _out_pixels(w) if index >= strided else w.height * w.width
            yield pixels, kernel * kernel * widths[index] * widths[index + 1]
        if not _skip_is_identity(w):
            yield _out_pixels(w), w.in_channels * w.out_channels

    def params(w: Workload) -> int:
        norms = (len(kernels) - 1) * (w.out_channels // expansion) + w.out_channels * (1 if _skip_is_identity(w) else 2)
        return sum(weights for _, weights in convolutions(w)) + 2 * norms

    return Operator(
        name,
        lambda w, affine: ResidualBlock(w, kernels, w.out_channels // expansion, affine),
        lambda w: sum(pixels * weights for pixels, weights in convolutions(w)),
        params,
    )


def _nothing(w: Workload) -> int:
    return 0


def _skip_is_identity(w: Workload) -> bool:
    return w.stride == 1 and w.in_channels == w.out_channels


def _pool(name: str, build: Builder) -> Operator:
    return Operator(name, build, _nothing, _nothing)


def _pointwise_madds(w: Workload) -> int:
    return _out_pixels(w) * w.in_channels * w.out_channels


def _pointwise_params(w: Workload) -> int:
    return w.out_channels * (w.in_channels + 2)


OPERATORS: Registry[Operator] = Registry(
    "operator",
    built_in={
        operator.name: operator
        for operator in (
            _pool("max_pool_3x3", lambda w, affine: nn.MaxPool2d(3, w.stride, 1)),
            _pool("avg_pool_3x3", lambda w, affine: nn.AvgPool2d(3, w.stride, 1, count_include_pad=False)),
            Operator(
                "skip_connect",
                lambda w, affine: (
                    nn.Identity() if _skip_is_identity(w) else FactorizedReduce(w.in_channels, w.out_channels, affine)
                ),
                lambda w: 0 if _skip_is_identity(w) else _pointwise_madds(w),
                lambda w: 0 if _skip_is_identity(w) else _pointwise_params(w),
            ),
            _separable("sep_conv_3x3", 3, 1, twice=True),
            _separable("sep_conv_5x5", 5, 1, twice=True),
            _separable("dil_conv_3x3", 3, 2, twice=False),
            _separable("dil_conv_5x5", 5, 2, twice=False),
            Operator(
                "relu_conv1x1_bn",
                lambda w, affine: relu_conv_bn(w.in_channels, w.out_channels, 1, w.stride, affine),
                _pointwise_madds,
                _pointwise_params,
            ),
            Operator(
                "factorized_reduce",
                lambda w, affine: FactorizedReduce(w.in_channels, w.out_channels, affine),
                _pointwise_madds,
                _pointwise_params,
            ),
            Operator("fixed_reduce_conv", _fixed_reduce_conv, _fixed_reduce_conv_madds, _fixed_reduce_conv_params),
            Operator(
                "fixed_reduce_pool",
                lambda w, affine: nn.Sequential(nn.MaxPool2d(3, 2, 1), norm(w.out_channels, affine)),
                _nothing,
                lambda w: 2 * w.out_channels,
            ),
            *(_inverted_residual(kernel, expansion) for kernel, expansion in product((3, 5, 7), (1, 3, 6))),
            _residual_block("basic_block", (3, 3), 1),
            _residual_block("bottleneck", (1, 3, 1), BOTTLENECK_EXPANSION),
            _conv_bn_relu6("conv1x1_bn_relu6", 1, MOBILE_EPS),
            _conv_bn_relu6("conv3x3_bn_relu6", 3, MOBILE_EPS),
            _conv_bn_relu6("stem_resnet", 3, 1e-5),
            _nor_conv(1),
            _nor_conv(3),
            Operator(
                "residual_reduction",
                ResidualReduction,
                lambda w: _out_pixels(w) * _reduction_weights(w),
                lambda w: _reduction_weights(w) + 4 * w.out_channels,
            ),
            Operator("zeros", lambda w, affine: Zeros(), _nothing, _nothing),
            Operator("sum", lambda w, affine: Sum(), _nothing, _nothing),
            Operator("concat", lambda w, affine: Concat(), _nothing, _nothing),
            Operator(
                "stem_cifar",
                _stem_cifar,
                lambda w: 9 * _pointwise_madds(w),
                lambda w: w.out_channels * (9 * w.in_channels + 2),
            ),
            Operator(
                "stem_imagenet",
                _stem_imagenet,
                _stem_imagenet_madds,
                lambda w: (w.out_channels // 2) * (9 * w.in_channels + 2) + w.out_channels * (9 * (w.out_channels // 2) + 2),
            ),
            Operator(
                "stem_imagenet_second",
                lambda w, affine: nn.Sequential(
                    nn.ReLU(),
                    nn.Conv2d(w.in_channels, w.out_channels, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(w.out_channels),
                ),
                lambda w: 9 * _pointwise_madds(w),
                lambda w: w.out_channels * (9 * w.in_channels + 2),
            ),
            Operator(
                "head",
                lambda w, affine: head(w.in_channels, w.out_channels),
                lambda w: w.in_channels * w.out_channels,
                lambda w: w.out_channels * (w.in_channels + 1),
            ),
            Operator(
                "bn_relu_head",
                _bn_relu_head,
                lambda w: w.in_channels * w.out_channels,
                lambda w: 2 * w.in_channels + w.out_channels * (w.in_channels + 1),
            ),
        )
    },
)


def build_operator(workload: Workload, affine: bool = True) -> nn.Module:
    """The module that computes ``workload``; raises ``UnknownNameError`` if the catalogue has no such operator."""
    return OPERATORS.get(workload.operator).build(workload, affine)


def madds(workload: Workload) -> int:
    """Multiply-adds of one inference of ``workload`` at batch 1."""
    return OPERATORS.get(workload.operator).madds(workload)


def params(workload: Workload) -> int:
    """Learned scalars of ``workload`` in a derived network (BatchNorm affine, running statistics not counted)."""
    return OPERATORS.get(workload.operator).params(workload)


def example_inputs(workload: Workload, generator: torch.Generator | None = None) -> Sequence[Tensor]:
    """Standard normal tensors of the shapes that ``workload`` reads."""
    shape = (workload.batch, workload.in_channels, workload.height, workload.width)
    return [torch.randn(shape, generator=generator) for _ in range(workload.inputs)]
