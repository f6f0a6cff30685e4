"""Rankers: what a search judges proposed networks by. Names of rankers, resolved when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenas.core.registry import Registry

if TYPE_CHECKING:
    from mobilenas.search.rankers.base import Ranker

RANKERS: Registry[type[Ranker]] = Registry(
    "ranker",
    {
        "capacity": "mobilenas.search.rankers.capacity:Capacity",
        "training": "mobilenas.search.rankers.short_training:ShortTraining",
        "inherited": "mobilenas.search.rankers.inherited:Inherited",
        "logits": "mobilenas.search.rankers.logits:Logits",
    },
)
