"""The watch for a collapse: what it judges, what it does about it, and that it judges no published network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mobilenas.config import DescribeConfig
from mobilenas.latency.budget import Budget
from mobilenas.methods.base import Moved
from mobilenas.methods.darts import Darts
from mobilenas.search import engine as engine_module
from mobilenas.search.collapse import Health, idle_share
from mobilenas.search.engine import EpochReport, SearchEngine
from mobilenas.search.task import Classification
from mobilenas.spaces import SPACES
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.published import PUBLISHED
from mobilenas.supernet import SKIP, ArchitectureParameters
from mobilenas.workflows.run_describe import find_network
from tests.conftest import Outcome
from tests.search.engines import SPACE, small_engine
from tests.search.test_engine_budget import wide_model

EPOCHS = 4


class EndsInSkips(Darts):
    """In the last epoch nothing but skips, as a search that runs for too long ends."""

    def after_architecture_step(self, moved: Moved) -> None:
        if moved.progress.epoch == EPOCHS - 1:
            for name, row in moved.parameters.logits.items():
                if name.startswith("op"):
                    row[:, SPACE.operators.index(SKIP)] += 10.0


class Scored(Classification):
    """Right on so many of each part as is ``told``, whatever the network says."""

    told = 0

    def correct(self, output: Tensor, target: Tensor, guesses: int = 1) -> int:
        return min(self.told, len(target))


def searched(
    folder: Path, watch: str, right: tuple[int, ...] = (1, 1, 1, 1)
) -> tuple[SearchEngine, ArchitectureParameters, list[EpochReport], list[dict[str, Tensor]], list[str]]:
    """The engine after its run; per epoch what it reported and its logits then; and its notes."""
    reports: list[EpochReport] = []
    logits: list[dict[str, Tensor]] = []
    notes: list[str] = []
    task = Scored()
    task.told = right[0]

    def on_epoch(report: EpochReport) -> None:
        reports.append(report)
        assert engine._last is not None
        logits.append({name: row.clone() for name, row in engine._last.parameters.state_dict().items()})
        task.told = right[min(len(reports), EPOCHS - 1)]

    changed = {"watch": watch, "epochs": EPOCHS}
    engine = small_engine(folder, changed, method=EndsInSkips(), task=task, on_epoch=on_epoch, on_note=notes.append)
    return engine, engine.run(), reports, logits, notes


def same(parameters: ArchitectureParameters, logits: dict[str, Tensor]) -> bool:
    return all(torch.equal(row, logits[name]) for name, row in parameters.state_dict().items())


def test_a_collapse_is_reported_and_the_methods_own_network_stays(tmp_path: Path) -> None:
    engine, parameters, reports, logits, notes = searched(tmp_path / "run", "warn")
    assert (engine.collapsed, engine.restored) == (True, False)
    assert same(parameters, logits[-1])
    health = reports[-1].health
    assert health is not None
    assert health.is_collapsed
    [note] = [note for note in notes if "collapsed" in note]
    assert "watch=restore" in note
    assert "100%" in note


def test_restoring_takes_the_most_accurate_epoch_before(tmp_path: Path) -> None:
    """The second of four epochs: neither the first, nor the last one before the collapse."""
    engine, parameters, reports, logits, _ = searched(tmp_path / "run", "restore", right=(1, 3, 2, 4))
    assert [report.valid_accuracy for report in reports] == [0.25, 0.75, 0.5, 1.0]
    assert (engine.collapsed, engine.restored) == (True, True)
    assert [same(parameters, row) for row in logits] == [False, True, False, False]


def test_of_epochs_as_accurate_the_later_is_restored(tmp_path: Path) -> None:
    _, parameters, _, logits, _ = searched(tmp_path / "run", "restore", right=(1, 3, 3, 4))
    assert [same(parameters, row) for row in logits] == [False, False, True, False]


def test_only_a_network_far_below_its_budget_has_collapsed(tmp_path: Path) -> None:
    """One of skips alone that takes more than 80 % of its budget is what the budget asks for."""
    found, table_ms = [], 1e5
    for share in (0.1, 0.75, 0.85):
        reports: list[EpochReport] = []
        budgets = [Budget(wide_model(), table_ms / share)]
        engine = small_engine(
            tmp_path / str(share), {"epochs": EPOCHS}, method=EndsInSkips(), budgets=budgets, on_epoch=reports.append
        )
        engine.run()
        found.append(engine.collapsed)
        assert reports[-1].budgets[0].table_ms is not None
        table_ms = reports[-1].budgets[0].table_ms
    assert found == [True, True, False]


class Counted(Classification):
    """Counts the images that are tried without being learnt from."""

    tried = 0

    def correct(self, output: Tensor, target: Tensor, guesses: int = 1) -> int:
        self.tried += 0 if torch.is_grad_enabled() else len(target)
        return super().correct(output, target, guesses)


@pytest.mark.parametrize(("most", "tried"), [(1024, 8), (1, 4)])
def test_the_network_is_tried_on_so_many_images_a_batch_at_least(
    most: int, tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "WATCHED_IMAGES", most)
    task = Counted()
    small_engine(tmp_path / "run", task=task).run()
    assert task.tried == tried


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Oracle: the same search that never was."""
    reports: list[EpochReport] = []

    def stop(report: EpochReport) -> None:
        raise KeyboardInterrupt

    whole = small_engine(tmp_path / "whole", {"epochs": 2}).run()
    with pytest.raises(KeyboardInterrupt):
        small_engine(tmp_path / "run", {"epochs": 2}, on_epoch=stop).run()
    rest = small_engine(tmp_path / "run", {"epochs": 2}, on_epoch=reports.append).run()
    assert [report.epoch for report in reports] == [1]
    assert same(rest, dict(whole.state_dict()))


def test_nothing_is_looked_at_where_the_watch_is_off(tmp_path: Path) -> None:
    engine, parameters, reports, logits, notes = searched(tmp_path / "run", "off")
    assert (engine.collapsed, engine.restored) == (False, False)
    assert same(parameters, logits[-1])
    assert all(report.health is None for report in reports)
    assert not [note for note in notes if "collapsed" in note]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_no_published_network_counts_as_collapsed(name: str) -> None:
    network = find_network(name, DescribeConfig())
    share = idle_share(network.space, network.architecture)
    assert not Health(share, 0.0, 0.9, may_be_slower=True).is_collapsed
    assert (share is None) == (name == "gdas-frc" or name.startswith("densenas")), "the others are judged"


@pytest.mark.parametrize("name", list(SPACES))
def test_spaces_are_judged_where_skips_tell_of_a_collapse(name: str) -> None:
    assert SPACES.get(name)().may_collapse == (name in ("cells", "nas-bench-201"))


def test_cells_with_a_fixed_reduction_are_not_judged() -> None:
    assert not CellSpace(reduction="fixed").may_collapse


def test_an_unknown_watch_is_refused_with_those_there_are(command: Callable[..., Outcome]) -> None:
    outcome = command("search", "--set", "watch=maybe", "--data", "digits")
    assert outcome.code == 2
    assert all(word in outcome.err for word in ("watch", "maybe", "off", "warn", "restore"))
