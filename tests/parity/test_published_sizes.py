"""Oracle: sizes counted by the authors' own network code (quark0/darts, D-X-Y/GDAS, chenxin061/pdarts, yuhuixu1993/PC-DARTS,
JaminFong/DenseNAS), as exact integers. Published results quote some of them rounded.
"""

import json
from collections.abc import Callable

import pytest
from torch import nn

from mobilenas import ops
from mobilenas.config import DescribeConfig, SpaceConfig
from mobilenas.network import count_madds, count_params
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.workflows.run_describe import find_network
from tests.conftest import Outcome

SIZES = [
    ("darts-v1", "", 3_169_414, 3_645_840, 500_987_520),
    ("darts-v2", "", 3_349_342, 3_825_768, 528_359_040),
    ("darts-v2", "--classes 100", 3_401_272, 3_946_908, 528_410_880),
    ("darts-v2", "--stem imagenet", 4_718_752, 5_979_528, 529_911_552),
    ("gdas-v1", "", 3_368_782, 3_845_208, 519_428_736),
    ("gdas-v1", "--stem imagenet", 5_345_075, 6_609_947, 581_009_000),
    ("gdas-frc", "", 2_543_014, 3_019_440, 402_781_824),
    ("gdas-frc", "--stem imagenet", 4_430_386, 5_699_354, 496_733_952),
    ("p-darts", "", 3_433_798, 3_910_224, 532_174_464),
    ("p-darts", "--stem imagenet", 4_944_352, 6_206_664, 542_819_328),
    ("pc-darts-cifar", "", 3_634_678, 4_111_104, 556_670_592),
    ("pc-darts-cifar", "--stem imagenet", 5_270_560, 6_531_336, 571_137_408),
    ("pc-darts-imagenet", "--stem imagenet", 5_342_464, 6_603_240, 581_627_328),
    ("densenas-a", "", 4_767_920, 4_767_920, 251_334_416),
    ("densenas-c", "", 6_134_144, 6_134_144, 360_808_256),
]


@pytest.mark.parametrize(("name", "flags", "params", "with_auxiliary", "madds"), SIZES)
def test_described_sizes(
    name: str, flags: str, params: int, with_auxiliary: int, madds: int, command: Callable[..., Outcome]
) -> None:
    found = json.loads(command("describe", name, *flags.split(), "--json").out)
    assert (found["params"], found["params_with_auxiliary"], found["madds"]) == (params, with_auxiliary, madds)
    assert found["paper"]
    assert sum(share["madds"] for share in found["operators"]) == madds


@pytest.mark.parametrize("name", ["darts-v2", "gdas-frc"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_built_network_has_the_described_size(name: str, stem: str) -> None:
    found = find_network(name, DescribeConfig(space=SpaceConfig(options={"stem": stem})))
    network = found.space.build(found.architecture, auxiliary=True)
    assert count_params(network) == found.space.params(found.architecture)
    assert count_madds(network, found.space.image_shape) == found.space.madds(found.architecture)


def test_the_supernet_for_imagenet_has_the_authors_stem() -> None:
    """Three convolutions to three times the supernet's channels (PC-DARTS's code: 3 -> 24 -> 48 -> 48), then to its own."""
    space = CellSpace(channels=48, layers=14, image_size=224, stem="imagenet", classes=1000)
    supernet = space.supernet(SupernetPlan(SupernetSize(16, 8), space.decisions, partial_channels=2))
    widths = [m.weight.shape[:2] for name, m in supernet.named_modules() if name.startswith("stems") and hasattr(m, "stride")]
    assert [tuple(w) for w in widths] == [(24, 3), (48, 24), (48, 48)]
    first = supernet.get_submodule("cells.0.preprocess")
    assert [m.weight.shape[:2] for m in first.modules() if isinstance(m, nn.Conv2d)][-1] == (16, 48)


def test_auxiliary_heads_of_the_other_code_generation() -> None:
    """Oracle: DARTS's and GDAS's networks for ImageNet with the second BatchNorm of the auxiliary head (1,536 scalars)."""
    assert 4_718_752 + count_all(ops.auxiliary_head(16 * 48, 7, 1000, second_norm=True)) == 5_979_528 + 1_536
    assert 5_345_075 + count_all(ops.auxiliary_head(16 * 50, 7, 1000, second_norm=True)) == 6_611_483
    assert 4_944_352 + count_all(ops.auxiliary_head(16 * 48, 7, 1000)) == 6_205_128


def count_all(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def supernet(space: CellSpace, channels: int = 16, layers: int = 8, parts: int = 1) -> nn.Module:
    return space.supernet(SupernetPlan(SupernetSize(channels, layers), space.decisions, parts))


def test_supernets() -> None:
    """DARTS with 8 cells; PC-DARTS with K = 4, for 10 and 100 classes; the three stages of P-DARTS with all operators."""
    assert count_all(supernet(CellSpace())) == 1_930_618
    assert count_all(supernet(CellSpace(), parts=4)) == 299_578
    assert count_all(supernet(CellSpace(classes=100), parts=4)) == 322_708
    for layers, size in ((5, 1_275_834), (11, 2_585_146), (17, 3_894_202)):
        assert count_all(supernet(CellSpace(), layers=layers)) == size


@pytest.mark.parametrize(("reduction", "size"), [("searched", 1_343_034), ("fixed", 744_570)])
def test_gdas_supernets(reduction: str, size: int) -> None:
    """The authors' search networks of 2021 (six cells) have what DARTS's lack: a bias on every 1x1 convolution without affine
    BatchNorm and on those of the fixed reduction cell, and a BatchNorm before the pooling. Ours is DARTS's, as in the paper.
    """
    network = supernet(CellSpace(reduction=reduction), layers=6)
    inside = [m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and not name.startswith("stems")]
    biases = sum(m.out_channels for m in inside if m.groups in (1, ops.FIXED_REDUCE_GROUPS) and m.groups != m.out_channels)
    norm_before_pooling = 2 * 4 * 64
    assert count_all(network) + biases + norm_before_pooling == size
