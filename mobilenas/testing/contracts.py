"""Conformance kits: the laws that every search space, latency model and search method obeys, as classes to subclass.

A kit is a plain class whose ``test_*`` methods pytest collects from a subclass::

    class TestMySpace(SpaceContract):
        def make(self) -> SearchSpace:
            return MySpace(channels=4)

Nothing here imports pytest. Shapes: ``B`` batch, ``C`` channels, ``H``, ``W``, ``O`` options of a decision.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilenas import network
from mobilenas.core.architecture import Architecture
from mobilenas.core.workload import Workload, weighted_sum
from mobilenas.latency.budget import extreme_program, score_of, solutions
from mobilenas.spaces.base import OptionCosts, Probabilities, SearchSpace, SupernetPlan
from mobilenas.supernet import Mixture, SearchedPool


@contextmanager
def expect_error(kind: type[BaseException], what: str, *said: str) -> Iterator[None]:
    """Fail with ``what`` unless the block raises ``kind`` with a message that holds each of ``said``."""
    try:
        yield
    except kind as error:
        unsaid = [text for text in said if text not in str(error)]
    else:
        raise AssertionError(f"no {kind.__name__} was raised: {what}")
    if unsaid:
        raise AssertionError(f"the {kind.__name__} does not say {', '.join(map(repr, unsaid))}: {what}")


def random_costs(space: SearchSpace, seed: int) -> dict[Workload, float]:
    """A positive cost for every workload of ``space``, between 0.001 and 1."""
    generator = random.Random(seed)
    return {workload: generator.uniform(0.001, 1.0) for workload in sorted(space.workloads())}


def random_probabilities(space: SearchSpace, seed: int, spread: float = 1.0) -> dict[str, Tensor]:
    """Softmax of normal logits of standard deviation ``spread``: float64 ``(O,)`` per decision."""
    generator = torch.Generator().manual_seed(seed)
    return {
        decision.name: (spread * torch.randn(len(decision.options), generator=generator, dtype=torch.float64)).softmax(0)
        for decision in space.decisions
    }


def log_scores(probabilities: Probabilities) -> dict[str, np.ndarray]:
    """Log probabilities, what a derivation maximises."""
    return {name: row.detach().log().numpy() for name, row in probabilities.items()}


def central_difference(row: Tensor, index: int, value: Callable[[], float], step: float = 1e-5) -> float:
    """Slope of ``value`` along ``row[index]``, which is moved in place and put back."""
    with torch.no_grad():
        row[index] += step
        above = value()
        row[index] -= 2 * step
        below = value()
        row[index] += step
    return (above - below) / (2 * step)


class SpaceContract(ABC):
    """The laws of a search space. Override ``make`` and, where they do not fit, the other hooks."""

    samples = 8
    """Random architectures per law."""
    one_hot_temperature = 1.0
    """At which ``expected_cost(one_hot(a))`` is exact. Lower it where ``one_hot`` cannot be certain of every decision."""
    heeds_temperature = True
    """Whether the decode rule has anything all-or-nothing to sharpen; ``False`` where every decision is always made."""

    @abstractmethod
    def make(self) -> SearchSpace:
        """The space under test; small enough to run its supernet."""

    def may_be_derived(self, architecture: Architecture) -> bool:
        """Whether a derivation may return it; override where the program leaves out networks that ``decode`` may return."""
        return True

    def architectures(self, space: SearchSpace) -> list[Architecture]:
        """Random architectures of ``space``, the same ones each time."""
        generator = random.Random(5)
        return [space.random_architecture(generator) for _ in range(self.samples)]

    # ---- data ------------------------------------------------------------------------------------------------------

    def test_options_rebuild_the_space(self) -> None:
        space = self.make()
        again = type(space)(**space.options)
        assert again == space
        assert again.key == space.key

    def test_decisions_have_distinct_names_and_options(self) -> None:
        decisions = self.make().decisions
        assert decisions, "nothing to search"
        assert len({decision.name for decision in decisions}) == len(decisions)
        for decision in decisions:
            assert decision.options, decision.name
            assert len(set(decision.options)) == len(decision.options), decision.name

    def test_random_architectures_are_legal_reproducible_and_differ(self) -> None:
        space = self.make()
        drawn = self.architectures(space)
        assert drawn == self.architectures(space)
        assert len(set(drawn)) > 1
        options = {decision.name: decision.options for decision in space.decisions}
        for architecture in drawn:
            assert architecture.space == space.name
            assert architecture.space_options == space.options
            for name, option in architecture.choices.items():
                assert option in options[name], (name, option)

    def test_json_round_trip_keeps_the_fingerprint(self) -> None:
        space = self.make()
        for architecture in self.architectures(space):
            again = Architecture.from_json(architecture.to_json())
            assert again.fingerprint == architecture.fingerprint
            assert again == architecture
            assert space.decode(space.one_hot(again)).fingerprint == architecture.fingerprint

    def test_decode_inverts_one_hot(self) -> None:
        space = self.make()
        for architecture in self.architectures(space):
            assert space.decode(space.one_hot(architecture)) == architecture

    # ---- workloads and costs ---------------------------------------------------------------------------------------

    def test_workloads_cover_every_architecture(self) -> None:
        space = self.make()
        known = space.workloads()
        for architecture in self.architectures(space):
            used = space.workloads_of(architecture)
            assert sum(used.values()) == len(space.blueprint(architecture).layers)
            assert not used.keys() - known, sorted(w.key for w in used.keys() - known)

    def test_one_hot_cost_is_the_sum_over_workloads(self) -> None:
        space = self.make()
        for seed, architecture in enumerate(self.architectures(space)):
            cost = random_costs(space, seed)
            expected = space.expected_cost(space.one_hot(architecture), space.option_costs(cost), self.one_hot_temperature)
            summed = weighted_sum(space.workloads_of(architecture), cost)
            assert math.isclose(float(expected), summed, rel_tol=1e-9), (float(expected), summed)

    def test_an_expectation_is_the_costs_times_the_expected_uses(self) -> None:
        space = self.make()
        for seed, temperature in enumerate((1.0, 0.3)):
            probabilities, costs = random_probabilities(space, seed), space.option_costs(random_costs(space, seed))
            uses = space.expected_uses(probabilities, temperature)
            summed = costs.fixed + float(uses @ torch.cat([torch.as_tensor(row) for row in costs.options.values()]))
            assert math.isclose(summed, float(space.expected_cost(probabilities, costs, temperature)), rel_tol=1e-9)

    def test_workloads_of_options_add_up_to_a_networks_own(self) -> None:
        space = self.make()
        counts = space.workloads_of_options()
        fixed = [space.option_costs({w: float(w == own) for w in space.workloads()}).fixed for own in sorted(space.workloads())]
        for architecture in self.architectures(space)[:3]:
            uses = space.expected_uses(space.one_hot(architecture), self.one_hot_temperature)
            own = space.workloads_of(architecture)
            assert np.allclose(uses.numpy() @ counts + fixed, [own[w] for w in sorted(space.workloads())], atol=1e-6)

    def test_an_expectation_lies_between_the_cheapest_and_the_dearest_network(self) -> None:
        """Where all workloads cost the same this pins the expectation in spaces whose networks are equally deep."""
        space = self.make()
        for seed, cost in enumerate((dict.fromkeys(space.workloads(), 1.0), random_costs(space, 5))):
            costs = space.option_costs(cost)
            ends = []
            for sign in (-1.0, 1.0):
                extreme = space.architecture(next(solutions(extreme_program(space, costs, sign))))
                ends.append(weighted_sum(space.workloads_of(extreme), cost))
            for temperature in (1.0, 0.2):
                expected = float(space.expected_cost(random_probabilities(space, seed), costs, temperature))
                assert ends[0] * (1 - 1e-9) <= expected <= ends[1] * (1 + 1e-9), "no mixture of networks costs that"

    def test_a_low_temperature_brings_the_expectation_nearer_to_the_decoded_network(self) -> None:
        """All options of a decision cost the same here, so that the cost is a matter of which decisions are on."""
        space = self.make()
        generator = random.Random(6)
        costs = {decision.name: generator.uniform(0.001, 1.0) for decision in space.decisions}
        of_options = OptionCosts(0.0, {d.name: np.full(len(d.options), costs[d.name]) for d in space.decisions})
        off = {1.0: 0.0, 0.1: 0.0}
        for seed in range(self.samples):
            probabilities = random_probabilities(space, seed, 3.0)
            decoded = sum(costs[name] for name in space.decode(probabilities).choices)
            for temperature in off:
                off[temperature] += abs(float(space.expected_cost(probabilities, of_options, temperature)) - decoded)
        if self.heeds_temperature:
            assert off[0.1] < off[1.0], "the temperature changes nothing, or in the wrong direction"
        else:
            assert off[0.1] <= off[1.0] * (1 + 1e-9)

    def test_a_missing_workload_cost_raises(self) -> None:
        space = self.make()
        cost = random_costs(space, 0)
        space.option_costs(cost)
        for workload in sorted(cost):
            partial = {known: value for known, value in cost.items() if known != workload}
            with expect_error(KeyError, f"the cost of {workload.key} is missing"):
                space.option_costs(partial)

    def test_expected_cost_has_finite_gradients(self) -> None:
        space = self.make()
        costs = space.option_costs(random_costs(space, 1))
        for spread in (0.0, 1e-3, 1.0, 100.0):
            logits = _random_logits(space, 2, spread)
            total = space.expected_cost({name: row.softmax(0) for name, row in logits.items()}, costs)
            torch.autograd.backward(total)
            assert math.isfinite(float(total.detach()))
            for name, row in logits.items():
                assert row.grad is not None, name
                assert torch.isfinite(row.grad).all(), (name, spread)
            if spread == 1.0:
                assert any(row.grad is not None and row.grad.abs().max() > 1e-6 for row in logits.values())

    def test_gradient_of_expected_cost_matches_finite_differences(self) -> None:
        space = self.make()
        costs = space.option_costs(random_costs(space, 3))
        logits = _random_logits(space, 4, 1.0)

        def cost() -> Tensor:
            return space.expected_cost({name: row.softmax(0) for name, row in logits.items()}, costs, 0.7)

        gradients = dict(zip(logits, torch.autograd.grad(cost(), list(logits.values())), strict=True))
        for name, row in logits.items():
            for index, gradient in enumerate(gradients[name].tolist()):
                difference = central_difference(row, index, lambda: float(cost()))
                assert math.isclose(difference, gradient, rel_tol=1e-4, abs_tol=1e-6), (name, index, difference, gradient)

    # ---- modules ---------------------------------------------------------------------------------------------------

    def test_counted_madds_and_params_are_the_catalogues(self) -> None:
        space = self.make()
        for architecture in self.architectures(space):
            built = space.build(architecture)
            assert network.count_params(built) == space.params(architecture)
            assert network.count_madds(built, space.image_shape) == space.madds(architecture)

    def test_build_has_one_module_per_layer_of_the_blueprint(self) -> None:
        space = self.make()
        for architecture in self.architectures(space):
            names = [layer.name for layer in space.blueprint(architecture).layers]
            assert list(space.build(architecture).layers) == names

    def test_build_computes_what_the_one_hot_supernet_computes(self) -> None:
        """On the statistics of the batch: a supernet need not keep running ones, which would be of no network at all."""
        space = self.make()
        torch.manual_seed(0)
        supernet = space.supernet(SupernetPlan(None, space.decisions)).double()
        for module in space.search_only(supernet):
            _replace_by_identity(supernet, module)
        images = torch.randn((4, *space.image_shape[1:]), dtype=torch.float64)
        for architecture in self.architectures(space)[:3]:
            built = space.build(architecture).double()
            mixture = Mixture.soft(_certain_weights(space, architecture))
            _copy_weights(supernet.modules_of(architecture.choices), built)
            with torch.no_grad():
                ours, theirs = built.train()(images), supernet.train()(images, mixture)
            assert ours.abs().max() > 1e-3
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10), float((ours - theirs).abs().max())

    def test_supernet_gives_every_decision_a_finite_gradient(self) -> None:
        space = self.make()
        torch.manual_seed(1)
        supernet = space.supernet(SupernetPlan(None, space.decisions))
        logits = {name: row.detach().float().requires_grad_() for name, row in _random_logits(space, 6, 0.1).items()}
        images = torch.randn((4, *space.image_shape[1:]))
        output = supernet(images, Mixture.soft({name: row.softmax(0) for name, row in logits.items()}))
        torch.autograd.backward(functional.cross_entropy(output, torch.arange(4) % output.shape[1]))
        for name, row in logits.items():
            assert row.grad is not None, name
            assert torch.isfinite(row.grad).all(), name
            assert len(row) == 1 or row.grad.abs().max() > 0, name

    # ---- derivation ------------------------------------------------------------------------------------------------

    def test_derivation_without_budget_is_decode(self) -> None:
        space = self.make()
        for seed in range(self.samples):
            probabilities = random_probabilities(space, seed)
            program = space.derivation_program(log_scores(probabilities))
            found, decoded = space.architecture(next(solutions(program))), space.decode(probabilities)
            assert self.may_be_derived(found)
            assert found == decoded or not self.may_be_derived(decoded)

    def test_undecided_probabilities_score_every_network_alike(self) -> None:
        space = self.make()
        program = space.derivation_program(space.undecided)
        scores = [score_of(program, architecture) for architecture in self.architectures(space)]
        assert max(scores) - min(scores) < 1e-9, "what has not been decided prefers some networks"

    def test_derivation_is_never_over_the_budget(self) -> None:
        space = self.make()
        drawn = [architecture for architecture in self.architectures(space) if self.may_be_derived(architecture)]
        for seed in range(self.samples):
            cost = random_costs(space, seed)
            sums = sorted(weighted_sum(space.workloads_of(architecture), cost) for architecture in drawn)
            program = space.derivation_program(log_scores(random_probabilities(space, seed)), [space.option_costs(cost)])
            found = [space.architecture(choice) for choice in islice(solutions(program, [sums[0]]), 3)]
            assert found, "a random network costs no more than the budget, yet nothing was found"
            for architecture in found:
                assert self.may_be_derived(architecture)
                assert weighted_sum(space.workloads_of(architecture), cost) <= sums[0] * (1 + 1e-8)

    def test_no_drawn_network_within_two_budgets_scores_higher_than_the_derived(self) -> None:
        space = self.make()
        generator = random.Random(7)
        drawn = [space.random_architecture(generator) for _ in range(25 * self.samples)]
        drawn = [architecture for architecture in drawn if self.may_be_derived(architecture)]
        costs = [random_costs(space, seed) for seed in (1, 2)]
        sums = np.array([[weighted_sum(space.workloads_of(a), cost) for a in drawn] for cost in costs])
        for share in (30, 60):
            targets = np.percentile(sums, share, axis=1)
            scores = log_scores(random_probabilities(space, share))
            program = space.derivation_program(scores, [space.option_costs(cost) for cost in costs])
            found = space.architecture(next(solutions(program, targets)))
            assert self.may_be_derived(found)
            for cost, target in zip(costs, targets, strict=True):
                assert weighted_sum(space.workloads_of(found), cost) <= target * (1 + 1e-8)
            fitting = [a for a, pair in zip(drawn, sums.T, strict=True) if np.all(pair <= targets)]
            assert fitting, "no drawn network fits both budgets: the law says nothing"
            free = space.derivation_program(scores)
            best = max(score_of(free, architecture) for architecture in fitting)
            assert score_of(free, found) >= best - 1e-9, "a network that was drawn fits and scores higher"

    def test_derivations_come_in_order_of_score_and_never_twice(self) -> None:
        space = self.make()
        program = space.derivation_program(log_scores(random_probabilities(space, 11)))
        found = [space.architecture(choice) for choice in islice(solutions(program), 6)]
        assert len(set(found)) == len(found) > 1
        scores = [score_of(program, architecture) for architecture in found]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(scores)), scores


def _random_logits(space: SearchSpace, seed: int, spread: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        decision.name: (spread * torch.randn(len(decision.options), generator=generator, dtype=torch.float64)).requires_grad_()
        for decision in space.decisions
    }


def _replace_by_identity(root: nn.Module, target: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if child is target:
                setattr(parent, name, nn.Identity())


def _certain_weights(space: SearchSpace, architecture: Architecture) -> dict[str, Tensor]:
    """One-hot weights in which a decision that is off weighs nothing at all; inputs are left unweighted."""
    return {
        decision.name: torch.tensor(
            [float(option == architecture.choices.get(decision.name)) for option in decision.options], dtype=torch.float64
        )
        for decision in space.decisions
        if decision.kind != "input"
    }


def _copy_weights(source: dict[str, nn.Module], built: nn.Module) -> None:
    """Give ``built`` the supernet's weights; BatchNorms without scale and shift leave the built ones at 1 and 0."""
    layers = dict(built.get_submodule("layers").named_children())
    for name, module in source.items():
        if isinstance(module, SearchedPool):
            continue
        missing, unexpected = layers[name].load_state_dict(module.state_dict(), strict=False)
        norms = {f"{path}." if path else "" for path, part in layers[name].named_modules() if isinstance(part, nn.BatchNorm2d)}
        assert not unexpected, (name, unexpected)
        assert {key.rpartition(".")[0] + "." for key in missing} <= norms, (name, missing)
