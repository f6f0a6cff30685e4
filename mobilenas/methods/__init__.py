"""Search methods, one paper per file. Names of methods, resolved when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenas.core.registry import Registry

if TYPE_CHECKING:
    from mobilenas.methods.base import SearchMethod

METHODS: Registry[type[SearchMethod]] = Registry(
    "method",
    {
        "darts": "mobilenas.methods.darts:Darts",
        "gdas": "mobilenas.methods.gdas:Gdas",
        "p-darts": "mobilenas.methods.p_darts:PDarts",
        "pc-darts": "mobilenas.methods.pc_darts:PCDarts",
        "dense-nas": "mobilenas.methods.dense_nas:DenseNas",
        "random": "mobilenas.methods.random_search:RandomSearch",
    },
)
