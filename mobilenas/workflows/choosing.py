"""Set up the choice of the delivered network: how networks are proposed, by which rankers, and what these may look at."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mobilenas import config, ops
from mobilenas.config import SearchConfig, SelectionConfig, TrainConfig
from mobilenas.core.architecture import Architecture
from mobilenas.data import ImageData
from mobilenas.errors import IncompatibleError
from mobilenas.latency.budget import Budget, Restrict, score_of
from mobilenas.latency.proposal import RAREST, Proposal, propose, propose_uniformly
from mobilenas.methods.base import SearchMethod
from mobilenas.search.engine import SearchEngine
from mobilenas.search.ranked import Propose
from mobilenas.search.rankers import RANKERS
from mobilenas.search.rankers.base import Evidence, Ranking
from mobilenas.search.rankers.inherited import Inherited
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SearchSpace
from mobilenas.workflows.naming import Listener, train_settings

MOST_JUDGED = 2000
"""Images of the validation half that a short training is judged on."""


def propose_by(
    cfg: SearchConfig, space: SearchSpace, method: SearchMethod, scores: Mapping[str, np.ndarray], told: Listener
) -> Propose:
    """Return how networks are proposed: drawn by the method's scores, or uniformly where it is uniform and enough fit."""
    generator, uniform = np.random.default_rng(cfg.seed), random.Random(cfg.seed)
    least, pool = cfg.selection.least_fraction, cfg.selection.pool

    def proposed(budget: Budget, without: Collection[Architecture]) -> Proposal:
        told.progress("proposing", 0, pool)
        if method.is_uniform:
            found = propose_uniformly(
                space, budget, pool, uniform, least_fraction=least, restrict=method.restrict, without=without
            )
            if found is not None:
                told.note("candidates: networks in the band out of uniform draws")
                return found
            told.note(f"candidates: drawn by the integer program, as less than one uniform draw in {RAREST} is in the band")
        return propose(space, scores, budget, pool, generator, least_fraction=least, restrict=method.restrict, without=without)

    return proposed


def evidence_of(
    cfg: SearchConfig,
    engine: SearchEngine,
    recipe: TrainConfig,
    data: ImageData,
    scores: Mapping[str, np.ndarray],
    told: Listener,
) -> Evidence:
    """Collect what rankers may look at: everything of a search but test images."""
    program = engine.method.restrict(engine.space.derivation_program(scores))

    def inherited(networks: Sequence[Architecture]) -> Ranking:
        return Ranking(*engine.inherited(networks))

    return Evidence(
        space=engine.space,
        data=data.halved(cfg.seed, cfg.validation_fraction, MOST_JUDGED),
        recipe=train_settings(recipe, cfg.seed),
        steps=cfg.selection.steps,
        seed=cfg.seed,
        fabric=engine.fabric,
        task=Classification(recipe.label_smoothing),
        directory=engine.directory,
        logit_scores=lambda networks: np.array([score_of(program, architecture) for architecture in networks]),
        inherited=inherited,
        progress=told.progress,
    )


def rankers_of(cfg: SelectionConfig, space: SearchSpace, method: SearchMethod, processes: int) -> tuple[str, ...]:
    """Return the names of the rankers of a search.

    Raises ``UnknownNameError``, and ``IncompatibleError`` for one that has nothing to look at.
    """
    default = ("capacity", "training") if "cells" in space.traits else ("training",)
    names = tuple(dict.fromkeys(cfg.rank or default))
    for name in names:
        RANKERS.get(name)
    if Inherited.name in names and not method.trains:
        raise IncompatibleError(f"selection.rank has {Inherited.name}: the method {method.name} trains no supernet")
    if Inherited.name in names and processes > 1:
        raise IncompatibleError(f"selection.rank has {Inherited.name}, which one process computes: say compute.devices=1")
    return names


def recipe_of(cfg: SelectionConfig) -> TrainConfig:
    """Load the configuration of short trainings; raises ``UsageError`` kinds for a file, preset or setting that is none."""
    if not isinstance(cfg.recipe, str):
        return config.load_config(TrainConfig, None, [], config.flat(cfg.recipe))
    if cfg.recipe.endswith(".toml"):
        return config.load_config(TrainConfig, Path(cfg.recipe), [], {})
    return config.load_config(TrainConfig, None, [], {}, config.load_recipe(cfg.recipe))


def largest_first(space: SearchSpace, restrict: Restrict) -> Restrict:
    """Return the rules of ``restrict`` with networks scored by their number of parameters."""
    params = space.option_costs({workload: float(ops.params(workload)) for workload in space.workloads()})
    scores = space.derivation_program(space.undecided, [params]).costs[0]
    return lambda program: replace(restrict(program), scores=scores)
