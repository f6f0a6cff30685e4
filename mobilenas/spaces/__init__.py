"""What may be searched. Names of spaces, resolved when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenas.core.registry import Registry

if TYPE_CHECKING:
    from mobilenas.spaces.base import SearchSpace

SPACES: Registry[type[SearchSpace]] = Registry("space", {"cells": "mobilenas.spaces.cells:CellSpace"})
