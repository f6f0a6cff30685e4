"""What may be searched. Names of spaces, resolved when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mobilenas.core.registry import Registry

if TYPE_CHECKING:
    from mobilenas.spaces.base import SearchSpace

SPACES: Registry[Callable[..., SearchSpace]] = Registry(
    "space",
    {
        "cells": "mobilenas.spaces.cells:CellSpace",
        "dense-blocks": "mobilenas.spaces.dense_blocks:DenseBlockSpace",
        "dense-small": "mobilenas.spaces.dense_blocks:dense_small",
        "densenas-mbv2": "mobilenas.spaces.dense_blocks:densenas_mbv2",
        "densenas-resnet": "mobilenas.spaces.dense_blocks:densenas_resnet",
        "nas-bench-201": "mobilenas.spaces.nas_bench_201:NasBench201Space",
    },
)
"""Classes of spaces, and functions that make one at a paper's size; their arguments are the space's options."""
