"""The budget in the loop: its quantile moves the multiplier and the gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from mobilenas.latency.budget import Budget, LogCost
from mobilenas.latency.models import TableModel
from mobilenas.search.descent import AdamSettings
from mobilenas.search.engine import EpochReport
from mobilenas.spaces.base import OptionCosts
from mobilenas.supernet import SKIP
from mobilenas.testing.fakes import make_lower, make_table
from tests.search.engines import SPACE, small_engine


def wide_model() -> TableModel:
    """Networks may take a quarter more than predicted."""
    table = make_table(SPACE)
    card = table.space_card(SPACE.key)
    error = msgspec.structs.replace(card.table_error, p90_fraction=0.25)
    wide = msgspec.structs.replace(card, interval_factor=1.25, table_error=error)
    whole = msgspec.structs.replace(table.card, spaces={SPACE.key: wide})
    return TableModel(replace(table, card=whole), SPACE, make_lower(SPACE))


def search(folder: Path, quantile: float, target_ms: float, on_note: Callable[[str], None] = lambda _: None) -> EpochReport:
    reports: list[EpochReport] = []
    budgets = [Budget(wide_model(), target_ms, quantile=quantile)]
    small_engine(folder, budgets=budgets, on_epoch=reports.append, on_note=on_note).run()
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


def test_the_log_cost_moves_the_logits_towards_what_is_cheap(tmp_path: Path) -> None:
    """Skips cost nothing and all else does: the heavier the objective, the likelier skips become."""
    costs = {d.name: np.array([0.0 if o == SKIP else 1.0 for o in d.options]) for d in SPACE.decisions if d.kind == "op"}
    likelihood = []
    for weight in (0.0, 100.0):
        log_cost = LogCost(SPACE, OptionCosts(1.0, costs), weight, base=15.0)
        engine = small_engine(
            tmp_path / str(weight),
            {"architecture": AdamSettings(lr=0.05, beta1=0.5, beta2=0.999, weight_decay=1e-3), "epochs": 3},
            log_cost=log_cost,
        )
        rows = engine.run().softmax()
        skips = [rows[d.name][d.options.index(SKIP)] for d in SPACE.decisions if d.kind == "op"]
        likelihood.append(float(torch.stack(skips).detach().mean()))
    assert likelihood[0] + 0.03 < likelihood[1], likelihood
