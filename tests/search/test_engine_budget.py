"""The budget in the loop: its quantile moves the multiplier and the gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from lightning_fabric import Fabric

from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import Images, InMemory
from mobilenas.latency.budget import Budget
from mobilenas.latency.models import TableModel
from mobilenas.methods.darts import Darts
from mobilenas.search.descent import AdamSettings, SgdSettings
from mobilenas.search.engine import EngineSettings, EpochReport, SearchEngine
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_lower, make_table

SPACE = CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)


def wide_model() -> TableModel:
    """Networks may take a quarter more than predicted."""
    table = make_table(SPACE)
    card = table.space_card(SPACE.key)
    error = msgspec.structs.replace(card.table_error, p90_fraction=0.25)
    wide = msgspec.structs.replace(card, interval_factor=1.25, table_error=error)
    whole = msgspec.structs.replace(table.card, spaces={SPACE.key: wide})
    return TableModel(replace(table, card=whole), SPACE, make_lower(SPACE))


def images(seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(InMemory(pixels, torch.arange(8) % 3), lambda image: image.float() / 255)


def search(folder: Path, quantile: float, target_ms: float, on_note: Callable[[str], None] = lambda _: None) -> EpochReport:
    reports: list[EpochReport] = []
    engine = SearchEngine(
        space=SPACE,
        method=Darts(),
        task=Classification(),
        halves=(images(1), images(2)),
        budgets=[Budget(wide_model(), target_ms, quantile=quantile)],
        settings=EngineSettings(
            supernet=SupernetSize(channels=2, layers=3),
            checkpoint_cells=False,
            epochs=1,
            warmup_epochs=0,
            batch_size=4,
            workers=0,
            weights=SgdSettings(lr=0.05, min_lr=0.01, momentum=0.9, weight_decay=1e-4, clip_norm=5.0),
            architecture=AdamSettings(lr=0.01, beta1=0.5, beta2=0.999, weight_decay=1e-3),
            seed=0,
        ),
        fabric=Fabric(accelerator="cpu", devices=1),
        directory=RunDirectory(folder),
        on_epoch=reports.append,
        on_note=on_note,
    )
    engine.run()
    return reports[-1]


def test_the_bound_of_the_decoded_network_drives_the_multiplier(tmp_path: Path) -> None:
    free = search(tmp_path / "free", 0.5, 1e6)
    decoded_ms = free.budgets[0].table_ms
    assert decoded_ms is not None
    target_ms = 1.1 * decoded_ms
    point, bound = (search(tmp_path / str(q), q, target_ms) for q in (0.5, 0.95))
    assert point.decoded == bound.decoded == free.decoded, "one epoch at this rate does not change the choice"
    assert point.budgets[0].multiplier == 0, "the prediction is within the budget"
    assert bound.budgets[0].multiplier == pytest.approx(1.25 / 1.1 - 1), "the interval's end is not"


def test_the_margin_of_expectations_is_the_models_error() -> None:
    model = wide_model()
    assert Budget(model, 1.0).margin_factor == 1
    assert Budget(model, 1.0, quantile=0.95).margin_factor == pytest.approx(1.25)
    assert 1 < Budget(model, 1.0, quantile=0.8).margin_factor < 1.25
