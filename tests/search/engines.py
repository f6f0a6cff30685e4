"""A search engine of the smallest size, of real parts: eight images a half, three cells, two channels."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric

from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import Images, InMemory
from mobilenas.methods.darts import Darts
from mobilenas.search.descent import AdamSettings, SgdSettings
from mobilenas.search.engine import EngineSettings, SearchEngine
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SupernetSize
from mobilenas.spaces.cells import CellSpace

SPACE = CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)
SETTINGS = EngineSettings(
    supernet=SupernetSize(channels=2, layers=3),
    checkpoint_cells=False,
    epochs=1,
    warmup_epochs=0,
    batch_size=4,
    workers=0,
    weights=SgdSettings(lr=0.05, min_lr=0.01, momentum=0.9, weight_decay=1e-4, clip_norm=5.0),
    architecture=AdamSettings(lr=0.01, beta1=0.5, beta2=0.999, weight_decay=1e-3),
    seed=0,
)


def images(seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(InMemory(pixels, torch.arange(8) % 3), lambda image: image.float() / 255)


def small_engine(folder: Path, changed: dict[str, Any] | None = None, **parts: Any) -> SearchEngine:
    """An engine whose settings are ``SETTINGS`` but for those ``changed``; ``parts`` take the place of its own."""
    made: dict[str, Any] = {
        "space": SPACE,
        "method": Darts(),
        "task": Classification(),
        "halves": (images(1), images(2)),
        "budgets": [],
        "settings": msgspec.structs.replace(SETTINGS, **(changed or {})),
        "fabric": Fabric(accelerator="cpu", devices=1),
        "directory": RunDirectory(folder),
    }
    return SearchEngine(**{**made, **parts})
