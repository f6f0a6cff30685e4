"""A dense space small enough to enumerate and to search in seconds."""

from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.dense_layout import blocks


def small_blocks(image_size: int = 8) -> DenseBlockSpace:
    """Five blocks with one or two stacked operators, three to four routes out of each, two MBConvs to choose from."""
    layout = blocks((4, 4, 6, 6, 8, 10), (1, 2, 2, 4, 4, 4), (0, 1, 1, 2, 2, 3), (0, 1, 2, 1, 0, 1))
    operators = ("mbconv_k3_e3", "mbconv_k5_e6")
    return DenseBlockSpace(
        "mbconv", layout, 12, reach=3, operators=operators, image_size=image_size, image_channels=1, classes=3
    )
