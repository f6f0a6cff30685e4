"""P-DARTS: dropping of operators, the skip loop for every limit, the dropout's schedule, against independent renderings."""

import random

import numpy as np
import pytest
import torch

from mobilenas.core.architecture import Decision
from mobilenas.errors import UsageError
from mobilenas.latency.budget import Budget, solutions
from mobilenas.methods.base import Stage
from mobilenas.methods.p_darts import PDarts, keep_likeliest
from mobilenas.methods.switches import Switches
from mobilenas.search.selection import select
from mobilenas.spaces.base import SupernetSize
from mobilenas.spaces.cells import OPERATORS, CellSpace
from mobilenas.supernet import ArchitectureParameters
from mobilenas.testing.fakes import make_model

SPACE = CellSpace(channels=4, layers=3, image_size=8)
EDGES = [decision for decision in SPACE.decisions if decision.kind == "op"]


def minima_dropped(row: list[float], count: int) -> list[int]:
    """The authors' way: take the smallest, mark it with 1, again; what is never taken stays."""
    row, taken = list(row), []
    for _ in range(count):
        index = int(np.argmin(row))
        taken.append(index)
        row[index] = 1.0
    return [index for index in range(len(row)) if index not in taken]


def test_the_least_likely_operators_are_dropped() -> None:
    generator = random.Random(0)
    for trial in range(300):
        available = sorted(generator.sample(range(8), generator.choice([8, 5])))
        logits = [generator.choice([0.0, 0.5, generator.gauss(0, 1)]) for _ in available]
        compact = torch.tensor(logits, dtype=torch.float64).softmax(0)
        full = torch.zeros(8, dtype=torch.float64).scatter(0, torch.tensor(available), compact)
        decision = Decision("normal.0-2", tuple(OPERATORS[index] for index in available), "op")
        kept = keep_likeliest(decision, OPERATORS, full, len(available) - 3)
        wanted = minima_dropped(compact.tolist(), 3)
        assert kept.options == tuple(OPERATORS[available[place]] for place in wanted), trial


def test_three_stages_grow_while_their_operators_dwindle() -> None:
    method = PDarts()
    stages = method.stages(SPACE, SupernetSize(16, 5), 25, 10)
    stage, seen = next(stages), []
    for seed in range(3):
        seen.append((stage.size.layers, {len(d.options) for d in stage.decisions}, stage.skip_dropout, stage.warmup_epochs))
        parameters = ArchitectureParameters(stage.decisions, torch.Generator().manual_seed(seed), SPACE.decisions)
        before = stage
        try:
            stage = stages.send(parameters)
        except StopIteration:
            break
        for old, new in zip(before.decisions, stage.decisions, strict=True):
            assert set(new.options) < set(old.options)
            assert list(new.options) == sorted(new.options, key=OPERATORS.index)
    assert seen == [(5, {8}, 0.0, 10), (11, {5}, 0.4, 10), (17, {3}, 0.7, 10)]


def authors_loop(rows: dict[str, list[float]], limit: int) -> dict[str, str]:
    """A second rendering: all tables as lists, limits counted down from 8 as in the authors' script."""
    rows = {name: [0.0, *row[1:]] for name, row in rows.items()}

    def choose() -> dict[str, str]:
        chosen = {}
        for kind in ("normal", "reduce"):
            for node in range(2, 6):
                strengths = [max(rows[f"{kind}.{source}-{node}"]) for source in range(node)]
                for source in sorted(range(node), key=lambda s: -strengths[s])[:2]:
                    row = rows[f"{kind}.{source}-{node}"]
                    chosen[f"{kind}.{source}-{node}"] = OPERATORS[row.index(max(row))]
        return chosen

    skip = OPERATORS.index("skip_connect")
    for maximum in range(8, limit - 1, -1):
        while True:
            skips = [n for n, o in choose().items() if o == "skip_connect" and n.startswith("normal")]
            if len(skips) <= maximum:
                break
            rows[min(skips, key=lambda name: rows[name][skip])][skip] = 0.0
    return choose()


@pytest.mark.parametrize("limit", range(9))
@pytest.mark.parametrize("heavy", [0.0, 3.0])
def test_the_skip_loop(limit: int, heavy: float) -> None:
    """On random logits, and on ones that make most edges skips; operators were dropped from every edge."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows = {}
        for decision in EDGES:
            logits = torch.randn(8, generator=generator, dtype=torch.float64)
            logits[OPERATORS.index("skip_connect")] += heavy
            others = torch.randperm(7, generator=generator)[:2]
            others = others + (others >= 3).long()
            kept = torch.cat([others, torch.tensor([3])]) if heavy else torch.arange(8)
            rows[decision.name] = torch.zeros(8, dtype=torch.float64).scatter(0, kept, logits[kept].softmax(0))
        if any((row[1:] > 0).sum() < 2 for row in rows.values()):
            continue  # only none and skip are left of an edge: without the skip nothing is
        found = Switches(skip_limit=limit).decode(SPACE, rows)
        assert found.choices == authors_loop({name: row.tolist() for name, row in rows.items()}, limit)
        skips = [o for n, o in found.choices.items() if n.startswith("normal") and o == "skip_connect"]
        assert len(skips) <= limit


def test_the_limit_is_a_row_of_the_program() -> None:
    """Best score within the limit by brute force over one node's networks."""
    space = CellSpace(channels=4, layers=3, image_size=8, nodes=1, operators=("none", "skip_connect", "sep_conv_3x3"))
    scores = {d.name: np.log(np.array([0.1, 0.8, 0.1])) for d in space.decisions if d.kind == "op"}
    for limit, wanted in ((0, 0), (1, 1), (2, 2), (5, 2)):
        program = Switches(skip_limit=limit).restrict(space.derivation_program(scores))
        choices = dict(next(solutions(program)))
        assert sum(o == "skip_connect" for n, o in choices.items() if n.startswith("normal")) == wanted
        assert sum(o == "skip_connect" for n, o in choices.items() if n.startswith("reduce")) == 2


def skips_favoured(seed: int, dropped: int) -> ArchitectureParameters:
    """Logits as of a last stage: each edge has lost ``dropped`` operators, and its skip is likelier than the others."""
    generator = torch.Generator().manual_seed(seed)
    decisions = []
    for decision in EDGES:
        others = torch.randperm(7, generator=generator)[: 7 - dropped]
        kept = {3, *(int(index) + (index >= 3) for index in others)}
        decisions.append(Decision(decision.name, tuple(OPERATORS[index] for index in sorted(kept)), "op"))
    parameters = ArchitectureParameters(tuple(decisions), generator, SPACE.decisions)
    with torch.no_grad():
        for name, rows in parameters.logits.items():
            rows.copy_(torch.randn(rows.shape, generator=generator))
            for decision, row in zip(parameters.groups[name].members, rows, strict=True):
                row[decision.options.index("skip_connect")] += 1.5
    return parameters


def test_where_the_budget_does_not_bind_the_skip_loop_chooses() -> None:
    """Oracle: the same search without a budget. An exact row in its place would choose others in most cases."""
    method, model, others = PDarts(), make_model(SPACE), 0
    for seed in range(40):
        parameters = skips_favoured(seed, dropped=5 if seed % 2 else 0)
        wanted = method.decode(SPACE, parameters)
        scores = method.scores(SPACE, parameters)
        for target_ms in (model.latency(wanted).ms, 10 * model.latency(wanted).ms):
            found = select(SPACE, scores, Budget(model, target_ms), measure=None, restrict=method.restrict, preferred=wanted)
            assert found.architecture == wanted, seed
            assert not found.budget_binds
        program = method.restrict(SPACE.derivation_program(scores))
        others += SPACE.architecture(next(solutions(program))) != wanted
    assert others > 20, others


def test_where_the_budget_binds_the_limit_is_exact() -> None:
    method, model = PDarts(), make_model(SPACE)
    for seed in range(4):
        parameters = skips_favoured(seed, dropped=0)
        wanted = method.decode(SPACE, parameters)
        budget = Budget(model, 0.9 * model.latency(wanted).ms)
        scores = method.scores(SPACE, parameters)
        found = select(SPACE, scores, budget, measure=None, restrict=method.restrict, preferred=wanted)
        assert found.budget_binds
        assert found.table_ms <= budget.target_ms
        assert sum(o == "skip_connect" for n, o in found.architecture.choices.items() if n.startswith("normal")) <= 2


def test_dropout_follows_the_authors_schedule() -> None:
    stage = Stage(SupernetSize(16, 5), (), epochs=25, warmup_epochs=10, skip_dropout=0.4)
    for epoch in range(25):
        wanted = 0.4 * (25 - epoch - 1) / 25 if epoch < 10 else 0.4 * 2.718281828459045 ** (-0.2 * (epoch - 10))
        assert stage.skip_dropout_at(epoch) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "options", [{"kept": (5,)}, {"kept": (5, 1)}, {"skip_dropout": (0.0, 0.4)}, {"skip_dropout": (0, 0, 1)}]
)
def test_options_that_do_not_fit(options: dict) -> None:
    with pytest.raises(UsageError, match="method_options"):
        PDarts(**options)


def test_a_space_without_skips_keeps_within_its_limit_of_skips() -> None:
    space = CellSpace(channels=4, layers=3, image_size=8, operators=("none", "sep_conv_3x3"))
    method = PDarts()
    method.check(space)
    parameters = ArchitectureParameters(space.decisions, torch.Generator())
    assert set(method.decode(space, parameters).choices.values()) == {"sep_conv_3x3"}
