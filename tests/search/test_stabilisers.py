"""Decay of the logits, auxiliary skips, choice by perturbation, and the watch for a collapse."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mobilenas.core.architecture import Architecture
from mobilenas.methods.base import DROPPED_SCORE, Moved, Progress
from mobilenas.methods.darts import Darts
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.switches import Switches
from mobilenas.search import engine
from mobilenas.search.checkpoints import load_tensors
from mobilenas.search.collapse import Health, certain, entropy, idle_share
from mobilenas.search.perturbation import importance
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.supernet import SKIP, ArchitectureParameters, Mixture
from tests.conftest import SMALL, Outcome

SPACE = CellSpace(channels=4, layers=3, image_size=8, nodes=2, classes=3)
NODES = ("--set", "space.options.nodes=2")
QUICK = (
    *SMALL,
    *NODES,
    "--data",
    "digits",
    "--set",
    "data.train_fraction=0.15",
    "--set",
    "data.batch=48",
    "--set",
    "warmup_epochs=0",
)


def parameters(spread: float = 1.0) -> ArchitectureParameters:
    made = ArchitectureParameters(SPACE.decisions, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for row in made.parameters():
            row.mul_(1e3 * spread)
    return made


def test_the_decay_adds_the_gradient_of_the_mean_of_log_sum_exp_over_operators() -> None:
    logits = parameters()
    edges = [name for name in logits.groups if name.startswith("op")]
    total = torch.cat([logits.logits[name].logsumexp(dim=-1) for name in edges]).mean()
    wanted = torch.autograd.grad(0.25 * 50.0 * total, [logits.logits[name] for name in edges])
    for row in logits.parameters():
        row.grad = torch.ones_like(row)
    Switches(beta_decay=50.0).decay(logits, 0.25)
    for name, gradient in zip(edges, wanted, strict=True):
        torch.testing.assert_close(logits.logits[name].grad, gradient + 1)
    others = [row.grad for name, row in logits.logits.items() if name not in edges]
    assert others, "inputs have logits too"
    assert all(torch.equal(grad, torch.ones_like(grad)) for grad in others), "the inputs do not decay"


def test_the_automatic_decay_is_as_long_as_the_losss_gradient_at_the_end_and_nothing_at_first() -> None:
    logits = parameters()
    lengths = []
    for fraction in (0.0, 1.0):
        for row in logits.parameters():
            row.grad = torch.zeros_like(row)
        edge = next(row for name, row in logits.logits.items() if name.startswith("op"))
        edge.grad[0, 0] = 3.0
        Switches(beta_decay="auto").decay(logits, fraction)
        edge.grad[0, 0] -= 3.0
        lengths.append(float(torch.cat([row.grad.flatten() for row in logits.parameters()]).norm()))
    assert lengths == [0.0, pytest.approx(3.0)]


def searched_entropy(command: Callable[..., Outcome], output: str, *more: str) -> list[float]:
    outcome = command(
        "search", "--method", "darts", *QUICK, "--epochs", "3", "--set", "architecture.lr=0.2", *more, "-o", output
    )
    assert outcome.code == 0, outcome.err
    lines = (Path(output) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["health"]["entropy"] for line in lines]


def test_the_decay_keeps_logits_apart_for_longer(command: Callable[..., Outcome]) -> None:
    free = searched_entropy(command, "free")
    held = searched_entropy(command, "held", "--set", "switches.beta_decay=50")
    assert free[0] > free[-1], "logits become certain"
    assert held[-1] > free[-1] + 0.001


def test_an_auxiliary_skip_is_one_more_skip_on_every_edge_that_fades_away() -> None:
    switches, rows = Switches(auxiliary_skip=True), {n: r.detach() for n, r in parameters().softmax().items()}
    torch.manual_seed(0)
    supernet = SPACE.supernet(SupernetPlan(SupernetSize(4, 3), SPACE.decisions)).train()
    images = torch.randn(4, 3, 8, 8)
    skip = {d.name: d.options.index(SKIP) for d in SPACE.decisions if d.kind == "op"}
    by_hand = {name: row + 0.75 * torch.eye(len(row))[skip[name]] if name in skip else row for name, row in rows.items()}
    plain, with_skips = (supernet(images, switches.relaxed(Mixture.soft(rows), SPACE, f)) for f in (1.0, 0.25))
    torch.testing.assert_close(with_skips, supernet(images, Mixture.soft(by_hand)))
    torch.testing.assert_close(plain, supernet(images, Mixture.soft(rows)))
    assert not torch.allclose(plain, with_skips, atol=1e-3)
    assert switches.relaxed(Mixture.soft(rows), SPACE, 0.25).probabilities == rows, "what a network costs is as before"

    drawn = Gdas(noise=torch.zeros_like).relax_architecture(parameters(), type("P", (), {"fraction": 0.0}))
    relaxed = switches.relaxed(drawn, SPACE, 0.25)
    for name, chosen in drawn.active.items():
        assert set(relaxed.active[name]) == {*chosen, skip[name]}
        assert float(relaxed.weights[name].detach().sum()) == pytest.approx(1.75)


@pytest.mark.parametrize("method", ["darts", "gdas", "p-darts", "pc-darts"])
def test_every_cell_method_takes_all_of_them_together(
    method: str, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PERTURBED_IMAGES", 48)
    more = ("--set", "method_options.added_layers=[0,1]", "--set", "method_options.added_channels=[0,0]",
            "--set", "method_options.kept=[4]", "--set", "method_options.skip_dropout=[0.0,0.2]")  # fmt: skip
    outcome = command(
        "search", "--method", method, *QUICK, "--epochs", "1", "--set", "switches.beta_decay=10", "--set",
        "switches.auxiliary_skip=true", "--set", "switches.skip_limit=2", "--set", "derivation=perturbation", "--json",
        *(more if method == "p-darts" else ()),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    choices = json.loads(outcome.out)["architecture"]["choices"]
    assert sum(option == SKIP for name, option in choices.items() if name.startswith("normal.")) <= 2


def test_they_are_for_nas_bench_201_too_and_refused_where_they_mean_nothing(command: Callable[..., Outcome]) -> None:
    space = NasBench201Space(channels=4, image_size=8, classes=3)
    Switches(auxiliary_skip=True, beta_decay=1.0).check(space)
    for arguments, said in (
        (("--method", "dense-nas", "--space", "dense-small", "--set", "derivation=perturbation"), "needs a supernet of cells"),
        (("--method", "random", *SMALL, "--set", "derivation=perturbation"), "not random on cells"),
        (("--method", "darts", *SMALL, "--set", "switches.beta_decay=much"), "switches.beta_decay"),
        (
            ("--method", "darts", "--set", 'space.options.operators=["sep_conv_3x3","avg_pool_3x3"]', "--set",
             "switches.auxiliary_skip=true"),
            "switches.auxiliary_skip: no edge of this space may be skip_connect",
        ),
    ):  # fmt: skip
        outcome = command("search", *arguments, "--data", "digits")
        assert outcome.code == 2, outcome.err
        assert said in outcome.err


def test_what_an_option_is_worth_is_what_the_loss_rises_by_without_it() -> None:
    [first, second, *_] = [decision for decision in SPACE.decisions if decision.kind == "op"]
    kept = type(first)(first.name, first.options[2:5], first.kind)
    rows = {d.name: torch.full((len(d.options),), 1 / len(d.options)) for d in (first, second)}
    worth = {first.name: torch.arange(8.0), second.name: torch.linspace(-1, 1, 8)}

    def loss(mixture: Mixture) -> float:
        return 5 - sum(float(mixture.weights[name] @ worth[name]) for name in rows)

    scores = importance(rows, (kept, second), (first, second), loss)
    np.testing.assert_allclose(scores[second.name], np.linspace(-1, 1, 8) / 8, atol=1e-6)
    np.testing.assert_allclose(scores[first.name][2:5], np.array([2, 3, 4]) / 8, atol=1e-6)
    assert set(scores[first.name][[0, 1, 5, 6, 7]]) == {DROPPED_SCORE}


def test_the_chosen_network_alone_is_what_is_tried_and_its_idle_operators_are_counted() -> None:
    drawn: Architecture = SPACE.random_architecture(random.Random(0))
    mixture = certain(SPACE, drawn, torch.zeros(()))
    assert {name: SPACE.operators[row.argmax()] for name, row in mixture.weights.items() if row.sum()} == drawn.choices
    assert all(len(active) == 1 for active in mixture.active.values())
    idle = SPACE.architecture((name, SKIP if name.startswith("normal") else "sep_conv_3x3") for name in drawn.choices)
    assert idle_share(SPACE, idle) == 0.5
    assert entropy(parameters(0.0)) == pytest.approx(1.0)
    assert entropy(parameters(100.0)) < 0.05
    assert math.isclose(entropy(parameters(1.0)), entropy(parameters(1.0)))


def test_idle_networks_have_collapsed_only_where_the_budget_would_allow_more() -> None:
    assert Health(0.75, 0.5, 0.7, may_be_slower=True).is_collapsed
    assert not Health(0.75, 0.5, 0.7, may_be_slower=False).is_collapsed
    assert Health(0.5, 0.5, 0.7, may_be_slower=True).is_collapsed, "half is enough"
    assert not Health(0.45, 0.5, 0.7, may_be_slower=True).is_collapsed


def towards_skips(self: Darts, moved: Moved) -> None:
    """From the third of four epochs on nothing but skips, as a search that runs for too long ends."""
    if moved.progress.epoch >= 2:
        for name, row in moved.parameters.logits.items():
            if name.startswith("op"):
                row[:, SPACE.operators.index(SKIP)] += 1.0


def test_a_search_that_collapses_is_derived_from_before(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Darts, "after_architecture_step", towards_skips)
    arguments = ("--method", "darts", *QUICK, "--epochs", "4", "--set", "watch=restore", "-o", "run")
    outcome = command("search", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["health"]["idle_share"] == 1.0, "the logits stood for skips alone"
    assert (result["collapsed"], result["restored"]) == (True, True)
    best = max((0, 1), key=lambda epoch: (lines[epoch]["valid_accuracy"], epoch))
    assert result["fingerprint"] == lines[best]["decoded"] != lines[-1]["decoded"]
    told = command("search", *arguments)
    assert told.code == 0
    share = lines[best]["health"]["idle_share"]
    assert (
        "warning: the search has collapsed: 100% of the operators it chooses are skips or none; it goes back to epoch "
        f"{best + 1}, where it was {share:.0%}"
    ) in told.err
    assert "doubt" in told.out


def test_a_search_that_was_idle_from_the_start_says_so(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Darts, "after_architecture_step", lambda self, moved: towards_skips(self, replace(moved, progress=Progress(0, 2, 3)))
    )
    outcome = command("search", "--method", "darts", *QUICK, "--epochs", "1")
    assert outcome.code == 0
    assert "100% of the operators it chooses are skips or none, and it never was otherwise" in outcome.err


def test_trying_a_network_leaves_a_search_as_it_was(command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for watched in (1024, 64):
        monkeypatch.setattr(engine, "WATCHED_IMAGES", watched)
        outcome = command("search", "--method", "gdas", *QUICK, "--epochs", "2", "-o", f"run{watched}")
        assert outcome.code == 0, outcome.err
        tensors: dict[str, Tensor] = load_tensors(Path(f"run{watched}/logits.safetensors"))
        found.append(tensors)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_stages_of_p_darts_may_grow_in_width_and_the_deployed_network_stays_as_it_is(command: Callable[..., Outcome]) -> None:
    outcome = command(
        "search", "--method", "p-darts", *QUICK, "--epochs", "1", "--set", "supernet.channels=4", "--set", "supernet.layers=3",
        "--set", "method_options.added_layers=[0,1]", "--set", "method_options.added_channels=[0,8]", "--set",
        "method_options.kept=[4]", "--set", "method_options.skip_dropout=[0.0,0.2]", "-o", "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    stages = [max(Path(f"run/checkpoints/stage{index}").glob("*.safetensors")) for index in (0, 1)]
    widths = [len(load_tensors(path)["/supernet/stems.stem.1.weight"]) for path in stages]
    assert widths[1] == 3 * widths[0]
    assert json.loads(outcome.out)["architecture"]["space_options"]["channels"] == 4


@pytest.mark.parametrize(
    ("method", "space"),
    [("dense-nas", "dense-small"), ("darts", "nas-bench-201"), ("gdas", "nas-bench-201"), ("random", "cells")],
)
def test_every_space_is_watched(method: str, space: str, command: Callable[..., Outcome]) -> None:
    outcome = command(
        "search", "--method", method, "--space", space, "--data", "digits", "--set", "data.train_fraction=0.1", "--set",
        "data.batch=48", "--set", "warmup_epochs=0", "--epochs", "1", "-o", "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()] if method != "random" else []
    assert all(0 <= line["health"][key] <= 1 for line in lines for key in ("entropy", "accuracy"))
    assert all((line["health"]["idle_share"] is None) == (space == "dense-small") for line in lines)


def test_metrics_of_all_stages_are_there_however_often_a_search_is_run_again(command: Callable[..., Outcome]) -> None:
    arguments = (
        "search", "--method", "p-darts", *QUICK, "--epochs", "1", "--set", "method_options.added_layers=[0,1]", "--set",
        "method_options.added_channels=[0,0]", "--set", "method_options.kept=[4]", "--set",
        "method_options.skip_dropout=[0.0,0.2]", "-o", "run",
    )  # fmt: skip
    for _ in range(2):
        assert command(*arguments).code == 0
        lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        assert [(line["stage"], line["epoch"]) for line in lines] == [(0, 0), (1, 0)]
