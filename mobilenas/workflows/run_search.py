"""``mobilenas search``: logits become one network that meets its budget."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from mobilenas import config, onnx_model, ops
from mobilenas.config import DataSetConfig, LogCostConfig, ProfileConfig, SearchConfig, TrainConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Measurement, MeasurementPlan, Statistic
from mobilenas.core.options import option_types
from mobilenas.core.run_directory import Journal, RunDirectory, set_aside
from mobilenas.core.units import parse_latency_target
from mobilenas.core.workload import Kernel
from mobilenas.data import ImageData
from mobilenas.devices.links import Link
from mobilenas.errors import BudgetError, IncompatibleError, UsageError
from mobilenas.latency import LATENCY_MODELS
from mobilenas.latency.budget import Budget, LatencyRange, LogCost, latency_range, solutions, with_skip_share
from mobilenas.latency.models import LatencyModel, MeasureKernels, Sought, TableModel
from mobilenas.latency.prediction import COVERAGE_FRACTION, promised_coverage
from mobilenas.latency.table import TableRow
from mobilenas.methods import METHODS
from mobilenas.methods.base import SearchMethod
from mobilenas.profiling.kernels import measure_kernels
from mobilenas.profiling.networks import network_for_timing
from mobilenas.results import BudgetOutcome, DataFacts, SearchPlan, SearchResult
from mobilenas.runtimes.measure import measure
from mobilenas.search.checkpoints import save_tensors
from mobilenas.search.descent import AdamSettings
from mobilenas.search.engine import LOWEST_TEMPERATURE, EngineSettings, EpochReport, SearchEngine
from mobilenas.search.parts import told_where_memory_runs_out
from mobilenas.search.processes import Processes
from mobilenas.search.ranked import Rules, select_ranked
from mobilenas.search.rankers import RANKERS
from mobilenas.search.rankers.logits import Logits
from mobilenas.search.selection import Round, Selection, select
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SearchSpace, SupernetSize
from mobilenas.supernet import ArchitectureParameters
from mobilenas.workflows.choosing import evidence_of, largest_first, propose_by, rankers_of, recipe_of
from mobilenas.workflows.launch import MAY_DIFFER, end_if_not_first, local_rank, processes_of, writing
from mobilenas.workflows.naming import (
    ARCHITECTURE,
    RESULT,
    Listener,
    Silent,
    Target,
    check_data_fits,
    check_options,
    data_from_config,
    default_run,
    fabric_from_config,
    facts_of,
    sgd_settings,
    space_from_config,
    tell_sweep,
    typed_options,
)

OF_THE_SELECTION = ("measure", "plan", "rounds", "selection")
"""Settings that only the choice at the end depends on: a search that did not end well may go on with others."""
MEASUREMENTS, ROUNDS = "measurements", "rounds.json"


def search(cfg: SearchConfig, output: Path | None = None, listener: Listener | None = None) -> SearchResult:
    """Search under the budget and write the run directory. Raises ``BudgetError`` before any training if it is infeasible.

    Of several processes the first one measures, writes and returns; the others end here with ``SystemExit``.
    """
    folder = output or default_run("search")
    with processes_of("search", cfg, folder) as processes:
        found = Path(processes.share(str(folder)))
        if not processes.is_first:  # whose device is at hand already
            cfg = msgspec.structs.replace(cfg, device=msgspec.structs.replace(cfg.device, governor=None))
        return _search(cfg, RunDirectory(found), (processes.is_first and listener) or Silent(), processes)


def search_plan(cfg: SearchConfig, listener: Listener | None = None) -> SearchPlan:
    """What ``search`` would do, and the memory it would take; nothing is trained, measured or written.

    Raises what ``search`` raises before its first step.
    """
    with _prepared(cfg, RunDirectory(default_run("search")), listener or Silent(), Processes()) as prepared:
        engine, budget, bounds = prepared.engine, prepared.budget, prepared.bounds
        engine.check_batches(cfg.compute.devices)
        steps = engine.memory(cfg.compute.devices)
        largest = max((estimate for _, estimate in steps), key=lambda estimate: estimate.total_bytes, default=None)
        return SearchPlan(
            method=cfg.method,
            space=engine.space.key,
            images=(len(engine.halves[0]), len(engine.halves[1])),
            stages=tuple(stage.epochs for stage, _ in steps),
            batch=cfg.data.batch,
            parts=cfg.compute.accumulate,
            memory=largest,
            target_ms=budget.target_ms if budget else None,
            lowest_ms=bounds.lowest.table.ms if bounds else None,
            highest_ms=bounds.highest.table.ms if bounds else None,
        )


@dataclass(frozen=True)
class _Prepared:
    """A search before its first step: all names are objects, and what cannot be met has been refused."""

    engine: SearchEngine
    target: Target
    link: Link
    inputs: Mapping[str, str]
    budget: Budget | None
    bounds: LatencyRange | None
    rankers: tuple[str, ...]
    recipe: TrainConfig
    images: ImageData
    data: DataFacts


@contextmanager
def _prepared(cfg: SearchConfig, directory: RunDirectory, told: Listener, processes: Processes) -> Iterator[_Prepared]:
    """With the device open. Raises all that is wrong with a search and can be known before it."""
    method = method_from_config(cfg)
    data = data_from_config(cfg.data, cfg.seed)
    space = space_from_config(cfg.space, data, cfg.device.batch)
    check_data_fits(space, data)
    target = Target.from_config(cfg.device)
    target.plan(cfg.plan)
    LATENCY_MODELS.get(cfg.latency_model)
    rankers, recipe = rankers_of(cfg.selection, space, method, processes.size), recipe_of(cfg.selection)
    fabric = fabric_from_config(cfg.compute, local_rank())
    if fabric.strategy.precision.precision not in method.precisions:
        raise IncompatibleError(
            f"compute.precision is {cfg.compute.precision}; {cfg.method} with these options needs "
            f"{' or '.join(method.precisions)}"
        )
    if cfg.compute.accumulate > 1 and not method.may_be_in_parts:
        raise IncompatibleError(
            f"compute.accumulate is {cfg.compute.accumulate}: {cfg.method} with these options differentiates twice, which only "
            "whole batches can be"
        )
    if cfg.derivation == "perturbation" and ("cells" not in space.traits or not method.trains):
        raise IncompatibleError(
            f"derivation = perturbation needs a supernet of cells that is trained: not {cfg.method} on {space.name}"
        )
    with target.device.open() as link:
        bounds, budget, model = None, None, None
        facts = facts_of(data, told)
        inputs = {"data.root": facts.digest}
        if cfg.latency_budget is not None or (cfg.log_cost.weight and cfg.log_cost.unit == "ms"):
            model = latency_model(cfg, space, target, link)
            inputs["table"] = model.digest
        if cfg.latency_budget is not None and model is not None:
            bounds = latency_range(space, model, method.restrict)
            budget = _budget(cfg, space, model, bounds, target, told)
        engine = SearchEngine(
            space=space,
            method=method,
            task=Classification(),
            halves=data.halves(cfg.seed, cfg.validation_fraction),
            budgets=[budget] if budget else [],
            settings=_engine_settings(cfg, space, method),
            fabric=fabric,
            directory=directory,
            log_cost=_log_cost(cfg.log_cost, space, model),
            processes=processes,
            on_epoch=lambda report: _tell_epoch(told, report),
            on_note=told.note,
        )
        engine.check()
        yield _Prepared(engine, target, link, inputs, budget, bounds, rankers, recipe, data, facts)


def _search(cfg: SearchConfig, directory: RunDirectory, told: Listener, processes: Processes) -> SearchResult:
    begin = time.monotonic()
    may_differ = (*OF_THE_SELECTION, *MAY_DIFFER)
    with (
        _prepared(cfg, directory, told, processes) as prepared,
        writing(processes, directory, config.dump_config(cfg), prepared.inputs, may_differ),
    ):
        told.note(f"run directory {directory.path}")
        scores = None
        with told_where_memory_runs_out():
            parameters = prepared.engine.run()
            if cfg.derivation == "perturbation":
                scores = prepared.engine.importance(lambda done, total: told.progress("perturbing", done, total))
        end_if_not_first(processes)
        return _chosen(cfg, prepared, parameters, scores, directory, told, begin)


def _chosen(
    cfg: SearchConfig,
    prepared: _Prepared,
    parameters: ArchitectureParameters,
    importance: Mapping[str, np.ndarray] | None,
    directory: RunDirectory,
    told: Listener,
    begin: float,
) -> SearchResult:
    """The network that ``parameters`` stand for, or the ``importance`` of options where it is given, within its budget, and
    what is known of it, written down.
    """
    engine, budget, bounds = prepared.engine, prepared.budget, prepared.bounds
    space, method = engine.space, engine.method
    probabilities = {name: row.detach() for name, row in parameters.softmax().items()}
    save_tensors(directory.path / "logits.safetensors", probabilities)
    scores = method.scores(space, parameters) if importance is None else importance
    restrict = largest_first(space, method.restrict) if cfg.derivation == "parameters" else method.restrict
    selection = None
    if cfg.derivation == "logits":
        architecture = method.decode(space, parameters)
    else:
        architecture = space.architecture(next(solutions(restrict(space.derivation_program(scores)))))
    if budget is not None:
        told.progress("deriving", 0, 1)
        target, link, plan = prepared.target, prepared.link, prepared.target.plan(cfg.plan)
        if cfg.measure and isinstance(budget.model, TableModel):
            sentinel_ms = budget.model.table.card.sentinel_ms
            budget.model.measure_kernels = _measure_kernels(plan, target, link, directory, told, sentinel_ms)
        measure_networks = _measure_networks(plan, budget.statistic, space, target, link, directory, told)
        _write_rounds(directory, budget, ())
        with _set_aside_where_in_vain(directory):
            if cfg.derivation == "parameters" or (prepared.rankers == (Logits.name,) and not method.is_uniform):
                selection = select(
                    space,
                    scores,
                    budget,
                    measure=measure_networks if cfg.measure else None,
                    candidates=cfg.selection.keep,
                    rounds=cfg.rounds,
                    restrict=restrict,
                    preferred=architecture,
                    on_round=lambda rounds: _write_rounds(directory, budget, rounds),
                )
            else:
                evidence = evidence_of(cfg, engine, prepared.recipe, prepared.images, scores, told)
                selection = select_ranked(
                    propose_by(cfg, space, method, scores, told),
                    budget,
                    [RANKERS.get(name)(evidence) for name in prepared.rankers],
                    Rules(cfg.selection.keep, cfg.rounds, cfg.selection.least_fraction),
                    measure=measure_networks if cfg.measure else None,
                    generator=np.random.default_rng(cfg.seed),
                    on_round=lambda rounds: _write_rounds(directory, budget, rounds),
                    on_note=told.note,
                )
        architecture = selection.architecture
        if selection.budget_binds and method.switches.skip_limit is not None:
            told.note(
                f"the budget binds: of the networks within it and switches.skip_limit = {method.switches.skip_limit} the "
                "best-scoring one is chosen, not that of the P-DARTS authors' loop over skips"
            )
    outcomes: tuple[BudgetOutcome, ...] = ()
    if budget and bounds and selection:
        expected_ms = float(budget.model.expected_ms(probabilities, LOWEST_TEMPERATURE))
        outcomes = (_outcome(cfg, budget, bounds, selection, expected_ms),)
    result = SearchResult(
        run=str(directory.path),
        method=cfg.method,
        architecture=architecture,
        fingerprint=architecture.fingerprint,
        params=space.params(architecture),
        madds=space.madds(architecture),
        budgets=outcomes,
        verified_on_target=bool(selection and selection.verdict),
        selection=selection,
        latency_model=budget.model.describe() if budget else None,
        epochs=cfg.epochs,
        duration_s=time.monotonic() - begin,
        collapsed=engine.collapsed,
        restored=engine.restored,
        data=prepared.data,
        images=engine.images + (selection.images if selection else 0),
    )
    directory.write_document(ARCHITECTURE, documents.parse_json(architecture.to_json(), ARCHITECTURE))
    directory.write_document(RESULT, {"schema": "mobilenas/search-result@1", **msgspec.to_builtins(result)})
    return result


def method_from_config(cfg: SearchConfig) -> SearchMethod:
    """The search method with its options; raises ``UsageError`` naming those that it has."""
    kind = METHODS.get(cfg.method)
    types = option_types(kind)
    check_options(f"the method {cfg.method} (method_options)", cfg.method_options, list(types))
    method = kind(**typed_options("method_options", cfg.method_options, types))
    chosen = {name: value for name, value in msgspec.to_builtins(cfg.switches).items() if value is not None}
    method.switches = msgspec.structs.replace(method.switches, **chosen)
    return method


def latency_model(cfg: SearchConfig, space: SearchSpace, target: Target, link: Link) -> LatencyModel:
    """The latency model of a search, while ``link`` is open. Raises ``UnknownNameError`` for a name that is none, and
    ``DocumentError`` kinds where what was measured does not suffice for it.
    """

    def lower(architectures: Sequence[Architecture]) -> list[Counter[Kernel]]:
        models = [onnx_model.compose(space.blueprint(architecture)) for architecture in architectures]
        return target.runtime.kernels(models, link, target.settings)

    folder = Path(cfg.table) if cfg.table else None
    sought = Sought(space, target.table_key, folder, lower, _profile_command(cfg), _statistic(cfg, target))
    return LATENCY_MODELS.get(cfg.latency_model)(sought)


def _statistic(cfg: SearchConfig, target: Target) -> Statistic:
    return cfg.budget_statistic or target.estimator


def _profile_command(cfg: SearchConfig) -> str:
    data = config.same_data(DataSetConfig(), cfg.data)
    return config.command_line("profile", ProfileConfig(device=cfg.device, space=cfg.space, data=data))


def _budget(
    cfg: SearchConfig, space: SearchSpace, model: LatencyModel, bounds: LatencyRange, target: Target, told: Listener
) -> Budget:
    assert cfg.latency_budget is not None
    lowest_ms, highest_ms = (end.table.at_quantile(cfg.budget_quantile) for end in (bounds.lowest, bounds.highest))
    target_ms = parse_latency_target(cfg.latency_budget).resolve_ms(lowest_ms, highest_ms)
    if target_ms < lowest_ms:
        raise BudgetError(
            f"--latency-budget {cfg.latency_budget} is below what the space can do: its networks take {lowest_ms:.4g} "
            f"to {highest_ms:.4g} ms on {target.device.card.name} by the {cfg.latency_model} model; the fastest is "
            f"{bounds.lowest.architecture.choices}. Raise the budget, or make the deployed network smaller by its "
            f"space.options ({', '.join(space.options)})"
        )
    if cfg.budget_quantile != 0.5 and promised_coverage(model.error.networks) < COVERAGE_FRACTION:
        told.note(
            f"warning: --budget-quantile {cfg.budget_quantile:g} binds less than it says: the model's interval is from "
            f"{model.error.networks} networks, and promises to hold {promised_coverage(model.error.networks):.0%} of others, "
            f"not {COVERAGE_FRACTION:.0%}; measure more"
        )
    if target_ms > highest_ms:
        told.note(f"warning: the budget does not bind: the slowest network of the space takes {highest_ms:.4g} ms")
    told.note(f"budget {target_ms:.4g} ms; the space's networks take {lowest_ms:.4g} to {highest_ms:.4g} ms")
    return Budget(model, target_ms, _statistic(cfg, target), cfg.budget_quantile)


def _log_cost(cfg: LogCostConfig, space: SearchSpace, model: LatencyModel | None) -> LogCost | None:
    if not cfg.weight:
        return None
    if model is not None and cfg.unit == "ms":
        costs = model.option_costs
    else:
        costs = space.option_costs({workload: ops.madds(workload) / 1e6 for workload in space.workloads()})
    if cfg.skip_share:
        costs = with_skip_share(costs, space, cfg.skip_share)
    return LogCost(space, costs, cfg.weight, cfg.base)


def _engine_settings(cfg: SearchConfig, space: SearchSpace, method: SearchMethod) -> EngineSettings:
    own_warmup_epochs = round(method.warmup_fraction * cfg.epochs)
    if cfg.warmup_epochs is not None and cfg.warmup_epochs >= cfg.epochs:
        raise UsageError(
            f"warmup_epochs is {cfg.warmup_epochs} of {cfg.epochs} epochs: the architecture would never be searched; it must "
            "be less than epochs"
        )
    return EngineSettings(
        supernet=supernet_size(cfg, space),
        checkpoint_cells=cfg.supernet.checkpoint_cells,
        epochs=cfg.epochs,
        warmup_epochs=own_warmup_epochs if cfg.warmup_epochs is None else cfg.warmup_epochs,
        batch_size=cfg.data.batch,
        workers=cfg.data.workers,
        weights=sgd_settings(cfg.weights),
        architecture=AdamSettings(**msgspec.to_builtins(cfg.architecture)),
        seed=cfg.seed,
        accumulate=cfg.compute.accumulate,
        on_device=cfg.data.on_device,
        watch=cfg.watch,
    )


def supernet_size(cfg: SearchConfig, space: SearchSpace) -> SupernetSize | None:
    """Size of the supernet; raises ``IncompatibleError`` for a size of one that has none of its own."""
    channels, layers = cfg.supernet.channels, cfg.supernet.layers
    if space.proxy is not None:
        return SupernetSize(channels or space.proxy.channels, layers or space.proxy.layers)
    if channels or layers:
        raise IncompatibleError(
            f"supernet.channels and supernet.layers: leave them out, as the supernet of {space.name} is always as large as the "
            "deployed network"
        )
    return None


def _tell_epoch(told: Listener, report: EpochReport) -> None:
    told.progress("searching", report.epoch + 1, report.epochs)
    accuracy = "-" if report.valid_accuracy is None else f"{report.valid_accuracy:.1%}"
    budgets = "".join(
        f", expected {b.expected_ms:.4g} ms, decoded {'-' if b.table_ms is None else f'{b.table_ms:.4g} ms'} "
        f"of {b.target_ms:.4g} ms, multiplier {b.multiplier:.3g}"
        for b in report.budgets
    )
    stage = f"stage {report.stage + 1}, " if report.stage else ""
    told.note(
        f"{stage}epoch {report.epoch + 1}/{report.epochs}: cross entropy {report.train_cross_entropy:.3f}, "
        f"valid accuracy {accuracy}{budgets}"
    )


def _write_rounds(directory: RunDirectory, budget: Budget, rounds: Sequence[Round]) -> None:
    told = {"target_ms": budget.target_ms, "rounds": msgspec.to_builtins(rounds)}
    directory.write_document(ROUNDS, {"schema": "mobilenas/search-rounds@1", **told})


@contextmanager
def _set_aside_where_in_vain(directory: RunDirectory) -> Iterator[None]:
    """Left with a ``BudgetError``, what was measured is set aside: another attempt asks the device, not the same journals."""
    try:
        yield
    except BudgetError:
        set_aside(directory.path / MEASUREMENTS)
        raise


def _journal(directory: RunDirectory, plan: MeasurementPlan, label: str) -> Journal:
    """The records of one plan: those of another do not count towards it."""
    return Journal(directory.path / MEASUREMENTS / plan.name / f"{label}.jsonl")


def _measure_kernels(
    plan: MeasurementPlan, target: Target, link: Link, directory: RunDirectory, told: Listener, sentinel_ms: float
) -> MeasureKernels:
    """Measure what networks have that none of the profile had, as the profile would have; ``sentinel_ms`` is its speed."""
    numbers = itertools.count()

    def measure_missing(kernels: Sequence[Kernel]) -> dict[Kernel, TableRow]:
        told.note(f"{len(kernels)} kernels are not in the table yet: measuring them")
        return measure_kernels(
            kernels,
            link,
            target.runtime,
            target.settings,
            plan,
            _journal(directory, plan, f"kernels{next(numbers)}"),
            lambda p: tell_sweep(told, "measuring kernels", p),
            sentinel_ms,
        )

    return measure_missing


def _measure_networks(
    plan: MeasurementPlan,
    statistic: Statistic,
    space: SearchSpace,
    target: Target,
    link: Link,
    directory: RunDirectory,
    told: Listener,
) -> Callable[[Sequence[Architecture], str], list[Measurement]]:
    """Measure untrained networks as a campaign does; each label has a journal of its own in the run directory."""

    def measure_networks(architectures: Sequence[Architecture], label: str) -> list[Measurement]:
        models = {
            a.fingerprint: target.runtime.prepare(network_for_timing(space, a), target.settings)
            for a in dict.fromkeys(architectures)
        }
        measurements, _ = measure(
            models,
            link,
            target.runtime,
            target.settings,
            plan,
            journal=_journal(directory, plan, label),
            compared=models.keys(),
            progress=lambda p: tell_sweep(told, "measuring candidates" if "round" in label else "final measurement", p),
        )
        return [measurements[a.fingerprint].of_statistic(statistic) for a in architectures]

    return measure_networks


def _outcome(
    cfg: SearchConfig, budget: Budget, bounds: LatencyRange, selection: Selection, expected_ms: float
) -> BudgetOutcome:
    verdict = selection.verdict
    return BudgetOutcome(
        text=cfg.latency_budget or "",
        statistic=budget.statistic,
        target_ms=budget.target_ms,
        lowest_ms=budget.bound_ms(bounds.lowest.table),
        highest_ms=budget.bound_ms(bounds.highest.table),
        expected_ms=expected_ms,
        table_ms=selection.table_ms,
        table_low_ms=selection.table_low_ms,
        table_high_ms=selection.table_high_ms,
        measured_ms=verdict.value_ms if verdict else None,
        measured_repeatability_fraction=verdict.repeatability_fraction if verdict else None,
        measured_converged=verdict.converged if verdict else None,
        quantile=budget.quantile,
        model=cfg.latency_model,
        table_sentinel_ms=budget.model.describe().get("sentinel_ms"),
        measured_sentinel_ms=verdict.sentinel_ms if verdict else None,
        predicted_gap_fraction=selection.table_ms / budget.target_ms - 1,
        measured_gap_fraction=verdict.value_ms / budget.target_ms - 1 if verdict else None,
        rounds=len(selection.rounds),
        coverage_fraction=promised_coverage(budget.model.error.networks),
        agrees=verdict.lasting().agrees_with(selection.table_low_ms, selection.table_high_ms) if verdict else None,
    )
