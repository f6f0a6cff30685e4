"""Where a campaign's networks come from: a search space, or the wider family of mobile networks for tables of any network."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleUnit
from torchvision.models.squeezenet import Fire
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from mobilenas import network, onnx_model
from mobilenas.core.architecture import Architecture, OptionValue
from mobilenas.latency.table import MOBILE_NETWORKS, WorkloadCosts
from mobilenas.profiling import fit
from mobilenas.spaces.base import SearchSpace


class NetworkSource(ABC):
    """Draws networks, and makes the ONNX models by which they are lowered and timed."""

    name: str
    options: dict[str, OptionValue]
    key: str
    """What a table's card calls the source."""
    may_lack_kernels = False
    """Whether a table of it serves without the networks that have a kernel which the engine refuses to run alone."""
    lowering_s, kernel_sweep_s = 0.06, 0.03
    """For the estimate of a dry run only: lowering one network, and timing the two models of one kernel."""

    published: tuple[Architecture, ...] = ()
    """Networks that are always measured, to learn from them how far sums of kernels are off real ones."""

    def likely_kernels(self, networks: int) -> int:
        """Return about how many distinct kernels ``networks`` random networks have, together with the published ones."""
        return 150

    @abstractmethod
    def draw(self, generator: random.Random) -> Architecture:
        """A random network."""

    @abstractmethod
    def model_for_lowering(self, architecture: Architecture) -> bytes:
        """An ONNX model of the network's structure."""

    @abstractmethod
    def model_for_timing(self, architecture: Architecture) -> bytes:
        """An ONNX model whose activations have the range of a trained network's."""

    @abstractmethod
    def madds(self, architecture: Architecture) -> int:
        """Multiply-adds of one inference."""

    def workload_costs(self, architectures: Sequence[Architecture], kernel_sums_ms: np.ndarray) -> WorkloadCosts | None:
        """What a search in the source needs beside kernels; ``None`` where nothing is searched."""
        return None


class SpaceNetworks(NetworkSource):
    """The networks of a search space."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.name, self.options, self.key = space.name, space.options, space.key

    def draw(self, generator: random.Random) -> Architecture:
        """Every second one favours a few options, as searched networks do, and spans the space."""
        if generator.random() < 0.5:
            return self.space.random_architecture(generator)
        favour: dict[str, float] = {}
        probabilities = {}
        for decision in self.space.decisions:
            logits = [favour.setdefault(option, generator.gauss(0, 3)) + generator.gauss(0, 1) for option in decision.options]
            probabilities[decision.name] = torch.tensor(logits, dtype=torch.float64).softmax(0)
        return self.space.decode(probabilities)

    def model_for_lowering(self, architecture: Architecture) -> bytes:
        return onnx_model.compose(self.space.blueprint(architecture))

    def model_for_timing(self, architecture: Architecture) -> bytes:
        return network_for_timing(self.space, architecture)

    def madds(self, architecture: Architecture) -> int:
        return self.space.madds(architecture)

    def workload_costs(self, architectures: Sequence[Architecture], kernel_sums_ms: np.ndarray) -> WorkloadCosts:
        counts = [self.space.workloads_of(a) for a in architectures]
        return fit.fit_workload_costs(counts, kernel_sums_ms, sorted(self.space.workloads()))


def network_for_timing(space: SearchSpace, architecture: Architecture) -> bytes:
    """The ONNX model of an untrained network whose activations have the range of a trained one."""
    return _timed(space.build(architecture), space.image_shape)


def _timed(module: nn.Module, image_shape: tuple[int, int, int, int]) -> bytes:
    exported = onnx_model.onnx_from_module(network.initialise_for_timing(module, image_shape), [torch.zeros(image_shape)])
    return bytes(onnx_model.slim(exported).SerializeToString())


# ---- any mobile network ------------------------------------------------------------------------------------------------

CLASSES = (10, 100, 1000)
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard-swish": nn.Hardswish,
    "swish": nn.SiLU,
}


class Sizes(NamedTuple):
    """What networks are drawn from; of pairs, any number between."""

    image_sizes: tuple[int, ...]
    stem_channels: tuple[int, ...]
    stages: tuple[int, int]
    depth: tuple[int, int]
    """Blocks of a stage."""
    widening: tuple[float, float]
    """From one stage to the next."""
    largest_channels: int
    """Of a block's output."""


SMALL = Sizes((96, 128, 160, 192, 224), (8, 12, 16, 24, 32, 48), (3, 4), (1, 3), (1.2, 2.2), 512)
"""For boards: most hold less than two MiB of weights, which a cache may keep."""
PUBLISHED = Sizes((192, 224, 256), (16, 24, 32, 48, 64), (4, 5), (2, 4), (1.3, 2.0), 768)
"""As wide and deep as the networks of papers: most hold 5 to 50 MiB of weights."""
LARGE_IMAGES = Sizes((320, 384, 416, 512), (8, 12, 16), (3, 4), (1, 2), (1.3, 2.0), 256)
"""As detectors and segmenters read them; of light blocks only, as others would take most of a campaign's time."""
LIGHT_BLOCKS = ("inverted residual", "separable", "shuffle", "fire")
LARGEST_HIDDEN = 2**23
"""Weights of one hidden layer over averages."""
LARGEST_CLASSIFIER = 2**27
"""Weights of the first hidden layer of AlexNet's kind; VGG's has 2**26.6."""

GENERATOR = 6
"""Raised whenever ``random_network`` draws other networks from the same seeds, or others are published: campaigns of two are
never joined.
"""

PUBLISHED_NETWORKS = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "efficientnet_b0",
)
"""torchvision's mobile networks, which a campaign measures, and all of whose kernels, at ``PUBLISHED_PIXELS``."""
PUBLISHED_PIXELS, PUBLISHED_KERNELS = 224, 580
KERNELS_PER_NETWORK = 30
"""That no other network had, of the first twenty or so, on average."""


class MobileNetworks(NetworkSource):
    """Random networks of the blocks that mobile networks are made of, at their shapes: what a table for any network is of.

    The blocks are made of torchvision's parts, as in MobileNet v1 to v3, MNASNet, EfficientNet, ResNet, RegNet, ShuffleNet,
    SqueezeNet, Inception and DenseNet, and with the normalisations of their time; a network keeps to one kind of block or
    mixes them. An architecture holds the seed that it is drawn from, or the name of a published network.
    """

    name = MOBILE_NETWORKS
    may_lack_kernels = True
    lowering_s, kernel_sweep_s = 1.2, 0.12

    def __init__(self, batch: int = 1) -> None:
        self.options: dict[str, OptionValue] = {"batch": batch, "generator": GENERATOR}
        self.key = self.name if batch == 1 else f"{self.name}-b{batch}"
        self.published = tuple(Architecture(self.name, {**self.options, "network": name}, {}) for name in PUBLISHED_NETWORKS)

    def likely_kernels(self, networks: int) -> int:
        return PUBLISHED_KERNELS + KERNELS_PER_NETWORK * networks

    def draw(self, generator: random.Random) -> Architecture:
        return Architecture(self.name, {**self.options, "seed": generator.randrange(2**31)}, {})

    def model_for_lowering(self, architecture: Architecture) -> bytes:
        return self.model_for_timing(architecture)

    def model_for_timing(self, architecture: Architecture) -> bytes:
        return _timed(*self._build(architecture))

    def madds(self, architecture: Architecture) -> int:
        with torch.device("meta"):  # shapes are enough
            return network.count_madds(*self._build(architecture))

    def _build(self, architecture: Architecture) -> tuple[nn.Module, tuple[int, int, int, int]]:
        batch, name = self.options["batch"], architecture.space_options.get("network")
        assert isinstance(batch, int)
        with torch.random.fork_rng(devices=[]):
            if name is not None:
                torch.manual_seed(0)
                return published_network(str(name)), (batch, 3, PUBLISHED_PIXELS, PUBLISHED_PIXELS)
            seed = architecture.space_options["seed"]
            assert isinstance(seed, int)
            torch.manual_seed(seed)
            module, image_size = random_network(random.Random(seed))
        return module, (batch, 3, image_size, image_size)


def published_network(name: str) -> nn.Module:
    """Build torchvision's network ``name`` with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initialisations that another version will change
        module: nn.Module = get_model(name, weights=None)
    return module


def random_network(generator: random.Random) -> tuple[nn.Module, int]:
    """Draw a mobile network with random weights; return it with the pixels of its images.

    Two in five are small, two as large as published ones, and one reads large images.
    """
    sizes = generator.choice((SMALL, SMALL, PUBLISHED, PUBLISHED, LARGE_IMAGES))
    image_size = generator.choice(sizes.image_sizes)
    activation = ACTIVATIONS[generator.choice(list(ACTIVATIONS))]
    blocks = LIGHT_BLOCKS if sizes is LARGE_IMAGES else tuple(BLOCKS)
    kinds = blocks if generator.random() < 0.3 else (generator.choice(blocks),)
    channels = generator.choice(sizes.stem_channels)
    layers = _stem(generator, channels, image_size, activation)
    for stage in range(generator.randint(*sizes.stages)):
        after = _channels(generator, channels * generator.uniform(*sizes.widening), sizes.largest_channels)
        block, alike = BLOCKS[generator.choice(kinds)], generator.random()  # the blocks of a stage are drawn alike
        stride = 2 if stage or generator.random() < 0.5 else 1
        for _ in range(generator.randint(*sizes.depth)):
            layers.append(block(random.Random(alike), channels, after, stride, activation))
            channels, stride = after, 1
    if generator.random() < 0.7:
        last = _channels(generator, channels * generator.uniform(1.5, 4.0), 2048)
        layers.append(Conv2dNormActivation(channels, last, 1, activation_layer=activation))
    return nn.Sequential(*layers, *_head(generator, nn.Sequential(*layers), image_size, activation)), image_size


def _stem(generator: random.Random, channels: int, image_size: int, activation: Any) -> list[nn.Module]:
    """One convolution, in larger images perhaps a pool, and perhaps a normalisation of responses."""
    convolution = Conv2dNormActivation(3, channels, generator.choice((3, 3, 3, 7, 11)), 2, activation_layer=activation)
    pool = [nn.MaxPool2d(3, 2, 1)] if image_size >= 160 and generator.random() < 0.4 else []
    return [convolution, *pool, *([_LocalResponseNorm()] if generator.random() < 0.15 else [])]


def _head(generator: random.Random, body: nn.Module, image_size: int, activation: Any) -> list[nn.Module]:
    """Averaging, or all pixels; perhaps a hidden layer; the classifier; perhaps a softmax."""
    with torch.no_grad():
        channels, pixels = body.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1:3]
    if generator.random() < 0.2:
        return _wide_head(generator, channels, pixels)
    averages: list[list[nn.Module]] = [
        [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.AvgPool2d(pixels), nn.Flatten()],
        [_Mean()],
        [nn.Flatten()],
    ]
    [layers] = generator.choices(averages, (4, 2, 3, 1 if pixels <= 8 else 0))
    features = channels * pixels**2 if len(layers) == 1 and isinstance(layers[0], nn.Flatten) else channels
    if generator.random() < 0.4:
        hidden = _channels(generator, channels * generator.uniform(0.5, 2.0), min(4096, LARGEST_HIDDEN // features))
        layers += [nn.Linear(features, hidden), generator.choice((activation, nn.ReLU))()]
        features = hidden
    layers.append(nn.Linear(features, generator.choice((*CLASSES, generator.randint(2, 1500)))))
    return [*layers, nn.Softmax(dim=1)] if generator.random() < 0.4 else layers


def _wide_head(generator: random.Random, channels: int, pixels: int) -> list[nn.Module]:
    """AlexNet, ZFNet and VGG: two hidden layers over a map of some 6x6 pixels, which hold most of a network's weights."""
    pool = max(1, round(pixels / generator.choice((4, 5, 6, 7))))
    features = channels * (pixels // pool) ** 2
    hidden = min(generator.choice((512, 1024, 2048, 4096, 4096, 4096)), LARGEST_CLASSIFIER // features)
    layers: list[nn.Module] = [nn.MaxPool2d(pool), nn.Flatten()]
    for read in (features, hidden):
        layers += [nn.Linear(read, hidden), nn.ReLU()]
    return [*layers, nn.Linear(hidden, generator.choice(CLASSES))]


def _channels(generator: random.Random, about: float, largest: int) -> int:
    """A number of channels as papers choose them: most are multiples of 8."""
    multiple = generator.choice((8, 8, 8, 16, 4, 2))
    return max(multiple, min(largest, round(about / multiple) * multiple))


Block = Callable[[random.Random, int, int, int, Any], nn.Module]
"""Generator, channels in and out, stride, activation -> a block of a network."""


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3])


class _Residual(nn.Module):
    """Exported as an addition, or as the sum of a list, as other frameworks write it."""

    def __init__(self, body: nn.Module, is_sum: bool = False) -> None:
        super().__init__()
        self.body, self.is_sum = body, is_sum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _SumOfList.apply(x, self.body(x)) if self.is_sum else x + self.body(x)
        return out


class _SumOfList(torch.autograd.Function):
    """The operator ``Sum``, which torch does not export."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    @staticmethod
    def symbolic(g: Any, x: Any, y: Any) -> Any:
        """For the exporter."""
        return g.op("Sum", x, y).setType(x.type())


class _LocalResponseNorm(nn.Module):
    """Over five channels (Krizhevsky et al., NeurIPS 2012), exported as the operator ``LRN``, where torch writes a pool."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _NormOverChannels.apply(x)
        return out


class _NormOverChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.local_response_norm(x, 5)

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        """For the exporter."""
        return g.op("LRN", x, size_i=5, alpha_f=1e-4, beta_f=0.75, bias_f=1.0).setType(x.type())


class _Affine(nn.Module):
    """A factor and an offset per channel, which other frameworks keep apart from BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.offset = nn.Parameter(0.1 * torch.randn(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor + self.offset


class _Branches(nn.Module):
    """Several readers of the same channels, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _DenseLayers(nn.Module):
    """Each layer reads what entered and what all before it made (Huang et al., CVPR 2017, with bottlenecks)."""

    def __init__(self, layers: int, channels: int, growth: int, has_affines: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList()

        def norm(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels), *([_Affine(channels)] if has_affines else []), nn.ReLU()]

        for read in range(channels, channels + layers * growth, growth):
            squeeze = [*norm(read), nn.Conv2d(read, 4 * growth, 1, bias=False)]
            grow = [*norm(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)]
            self.layers.append(nn.Sequential(*squeeze, *grow))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [x]
        for layer in self.layers:
            made.append(layer(torch.cat(made, 1)))
        return torch.cat(made, 1)


def _with_shortcut(generator: random.Random, body: list[nn.Module], before: int, after: int, stride: int) -> nn.Module:
    is_shortcut, is_sum = stride == 1 and before == after, generator.random() < 0.5
    return _Residual(nn.Sequential(*body), is_sum) if is_shortcut else nn.Sequential(*body)


def _inverted_residual(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """MobileNet v2 and v3, MNASNet, EfficientNet: expansion, depthwise, perhaps squeeze and excitation, projection."""
    kernel, expansion = generator.choice((3, 3, 5, 7)), generator.choice((1, 2, 3, 4, 6))
    inner = before * expansion
    body: list[nn.Module] = [Conv2dNormActivation(before, inner, 1, activation_layer=activation)] if expansion > 1 else []
    body.append(Conv2dNormActivation(inner, inner, kernel, stride, groups=inner, activation_layer=activation))
    if generator.random() < 0.5:
        squeezed, gate = max(4, inner // generator.choice((4, 8, 24))), generator.choice((nn.Sigmoid, nn.Hardsigmoid))
        body.append(SqueezeExcitation(inner, squeezed, generator.choice((nn.ReLU, activation)), gate))
    body.append(Conv2dNormActivation(inner, after, 1, activation_layer=None))
    return _with_shortcut(generator, body, before, after, stride)


def _separable(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """MobileNet v1."""
    kernel = generator.choice((3, 3, 5))
    return nn.Sequential(
        Conv2dNormActivation(before, before, kernel, stride, groups=before, activation_layer=activation),
        Conv2dNormActivation(before, after, 1, activation_layer=activation),
    )


def _plain(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """AlexNet, VGG, and the stages of many detectors."""
    groups = 2 if before % 2 == after % 2 == 0 and generator.random() < 0.2 else 1
    kernel = generator.choice((1, 3, 3, 5))
    layers: list[nn.Module] = [Conv2dNormActivation(before, after, kernel, 1, groups=groups, activation_layer=activation)]
    if generator.random() < 0.15:
        layers.append(_LocalResponseNorm())
    if stride == 2:
        layers.append(generator.choice((nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1))))
    return nn.Sequential(*layers)


def _residual(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """ResNet: two convolutions, or a bottleneck."""
    shortcut = None
    if generator.random() < 0.5:
        if stride != 1 or before != after:
            shortcut = Conv2dNormActivation(before, after, 1, stride, activation_layer=None)
        basic: nn.Module = BasicBlock(before, after, stride, shortcut)
        return basic
    inner = max(1, after // generator.choice((1, 2, 4)))
    shortcut = Conv2dNormActivation(before, 4 * inner, 1, stride, activation_layer=None)
    block = Bottleneck(before, inner, stride, shortcut)
    return nn.Sequential(block, Conv2dNormActivation(4 * inner, after, 1, activation_layer=activation))


def _grouped(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """RegNet, ResNeXt, and ShuffleNet v1 with its grouped pointwise convolutions."""
    width = generator.choice((4, 8, 8, 8, 16, 16, 24, 32, 48))
    inner = width * max(1, round(after / width))
    pointwise_groups = generator.choice([g for g in (1, 1, 2, 4) if before % g == 0 and inner % g == 0])
    body: list[nn.Module] = [
        Conv2dNormActivation(before, inner, 1, groups=pointwise_groups, activation_layer=activation),
        Conv2dNormActivation(inner, inner, 3, stride, groups=inner // width, activation_layer=activation),
    ]
    if generator.random() < 0.5:
        body.append(SqueezeExcitation(inner, max(4, before // 4)))
    groups = pointwise_groups if after % pointwise_groups == 0 else 1
    body.append(Conv2dNormActivation(inner, after, 1, groups=groups, activation_layer=None))
    return _with_shortcut(generator, body, before, after, stride)


def _shuffle(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """ShuffleNet v2: split, depthwise, concatenation, shuffle."""
    even, unit_stride = max(2, after // 2 * 2), stride if before != after else 1
    into: list[nn.Module] = []
    if unit_stride == 1 and before != even:
        into = [Conv2dNormActivation(before, even, 1, activation_layer=activation)]
        before = even
    out = [Conv2dNormActivation(even, after, 1, activation_layer=activation)] if even != after else []
    return nn.Sequential(*into, ShuffleUnit(before, even, unit_stride), *out)


def _fire(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """SqueezeNet."""
    squeeze, half = max(2, after // generator.choice((4, 8))), after // 2
    pool = [nn.MaxPool2d(3, 2, ceil_mode=True)] if stride == 2 else []
    return nn.Sequential(*pool, Fire(before, squeeze, half, after - half))


def _inception(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """GoogLeNet and Inception v2: convolutions of three sizes and a pool side by side; with a stride, two and a pool."""
    squeezed = max(2, after // generator.choice((2, 4, 8)))

    def convolutions(out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        squeeze = Conv2dNormActivation(before, squeezed, 1, activation_layer=activation)
        return [squeeze, Conv2dNormActivation(squeezed, out, kernel, stride, activation_layer=activation)]

    if stride == 2:
        half = after // 2
        again = Conv2dNormActivation(half, half, 3, 2, activation_layer=activation)
        joined = _Branches(nn.Sequential(*convolutions(after - half, 3, 2)), nn.Sequential(*convolutions(half, 3), again))
        pooled = _Branches(joined, nn.MaxPool2d(3, 2, 1))
        return nn.Sequential(pooled, Conv2dNormActivation(after + before, after, 1, activation_layer=activation))
    quarter = max(1, after // 4)
    pool = generator.choice((nn.MaxPool2d, nn.AvgPool2d))(3, 1, 1)
    branches = [
        Conv2dNormActivation(before, quarter, 1, activation_layer=activation),
        nn.Sequential(*convolutions(after - 3 * quarter, 3)),
        nn.Sequential(*convolutions(quarter, 5)),
        nn.Sequential(pool, Conv2dNormActivation(before, quarter, 1, activation_layer=activation)),
    ]
    return _Branches(*branches)


def _dense(generator: random.Random, before: int, after: int, stride: int, activation: Any) -> nn.Module:
    """DenseNet: each layer reads all before it; a transition halves the resolution."""
    growth, layers = generator.choice((8, 12, 16, 32)), generator.randint(2, 4)
    block = _DenseLayers(layers, before, growth, has_affines=generator.random() < 0.3)
    transition = Conv2dNormActivation(before + layers * growth, after, 1, activation_layer=activation)
    return nn.Sequential(block, transition, *([nn.AvgPool2d(2)] if stride == 2 else []))


BLOCKS: Mapping[str, Block] = {
    "inverted residual": _inverted_residual,
    "separable": _separable,
    "plain": _plain,
    "residual": _residual,
    "grouped": _grouped,
    "shuffle": _shuffle,
    "fire": _fire,
    "inception": _inception,
    "dense": _dense,
}
