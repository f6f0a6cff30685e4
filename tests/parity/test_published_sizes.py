"""Oracle: sizes counted by the authors' own network code (quark0/darts), as exact integers."""

import pytest

from mobilenas.network import count_madds, count_params
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace

V2 = {
    "normal": "sep0 sep1|sep0 sep1|sep1 skip0|skip0 dil2",
    "reduce": "max0 max1|skip2 max1|max0 skip2|skip2 max1",
}
V1 = {
    "normal": "sep1 sep0|skip0 sep1|skip0 sep1|sep0 skip2",
    "reduce": "max0 max1|skip2 max0|max0 skip2|skip2 avg0",
}
OPERATORS = {
    "sep": "sep_conv_3x3",
    "skip": "skip_connect",
    "dil": "dil_conv_3x3",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
}


def architecture(space: CellSpace, cells: dict[str, str]):
    return space.architecture(
        (f"{kind}.{edge[-1]}-{node}", OPERATORS[edge[:-1]])
        for kind, text in cells.items()
        for node, edges in enumerate(text.split("|"), 2)
        for edge in edges.split()
    )


CIFAR = {"channels": 36, "layers": 20}
IMAGENET = {"channels": 48, "layers": 14, "classes": 1000, "image_size": 224, "stem": "imagenet"}


@pytest.mark.parametrize(
    ("cells", "options", "params", "with_auxiliary", "madds"),
    [
        (V1, CIFAR, 3_169_414, 3_645_840, 500_987_520),
        (V2, CIFAR, 3_349_342, 3_825_768, 528_359_040),
        (V2, {**CIFAR, "classes": 100}, 3_401_272, 3_946_908, 528_410_880),
        (V2, IMAGENET, 4_718_752, 5_979_528, 529_911_552),
    ],
)
def test_darts_networks(cells, options, params, with_auxiliary, madds) -> None:
    space = CellSpace(**options)
    found = architecture(space, cells)
    network = space.build(found, auxiliary=True)
    assert space.params(found) == count_params(network) == params
    assert sum(p.numel() for p in network.parameters()) == with_auxiliary
    assert space.madds(found) == count_madds(network, space.image_shape) == madds


def test_darts_supernet() -> None:
    supernet = CellSpace().supernet(SupernetPlan(SupernetSize(16, 8), CellSpace().decisions))
    assert sum(p.numel() for p in supernet.parameters()) == 1_930_618
