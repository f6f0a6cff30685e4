"""The composition root: the only place where names become objects. One function per command, callable from Python."""

from __future__ import annotations

import dataclasses
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from mobilenas import config, onnx_model
from mobilenas.config import DataConfig, DeviceConfig, ExportConfig, ProfileConfig, SearchConfig, SpaceConfig, TrainConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Measurement, detect_environment, plan_named
from mobilenas.core.resources import user_data_directory
from mobilenas.core.run_directory import Journal, RunDirectory, check_writable
from mobilenas.core.units import parse_latency_target
from mobilenas.core.workload import Kernel
from mobilenas.data import ImageData, load_data
from mobilenas.devices.device import Device, find_device
from mobilenas.devices.links import Link
from mobilenas.errors import BudgetError, DocumentError, IncompatibleError, UsageError, nearest_names
from mobilenas.export.bundle import write_bundle
from mobilenas.export.verify import compare
from mobilenas.latency.budget import Budget, LatencyRange, latency_range
from mobilenas.latency.models import TableModel
from mobilenas.latency.store import find_table, table_folder
from mobilenas.latency.table import TableKey
from mobilenas.methods import METHODS
from mobilenas.network import Network, initialise_for_timing
from mobilenas.profiling.campaign import Campaign, network_for_timing
from mobilenas.results import BudgetOutcome, ExportResult, ProfileResult, SearchResult, TrainResult
from mobilenas.runtimes import RUNTIMES
from mobilenas.runtimes.base import RunSettings, Runtime
from mobilenas.runtimes.measure import MeasureProgress, measure
from mobilenas.search.checkpoints import load_tensors, save_tensors
from mobilenas.search.engine import AdamSettings, EngineSettings, EpochReport, SearchEngine, SgdSettings
from mobilenas.search.retrain import Trainer, TrainReport, TrainSettings
from mobilenas.search.selection import Selection, select
from mobilenas.search.task import Classification
from mobilenas.spaces import SPACES
from mobilenas.spaces.base import SearchSpace, SupernetSize

ARCHITECTURE, RESULT, WEIGHTS = "architecture.json", "result.json", "weights.safetensors"
VERIFIED_INPUTS = 64
"""Test images that an exported model is compared on."""


class Listener(Protocol):
    """Told what goes on; the command line draws it, a script may ignore it."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` in a stage that has a name for people."""

    def note(self, text: str) -> None:
        """One line that stays."""


class Silent:
    """A listener that says nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


# ---- names to objects ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A device with the runtime and its settings: where latency is measured."""

    device: Device
    runtime: Runtime
    settings: RunSettings

    @classmethod
    def from_config(cls, cfg: DeviceConfig) -> Target:
        """Resolve the names; raises ``UnknownNameError`` and ``IncompatibleError``."""
        runtime = RUNTIMES.get(cfg.runtime)()
        settings = RunSettings(cfg.precision, cfg.provider, cfg.threads, cfg.batch)
        runtime.check(settings)
        return cls(find_device(cfg.name), runtime, settings)

    @property
    def table_key(self) -> TableKey:
        """What a latency table for this target is of; the engine's version, known only on the device, stays open."""
        return TableKey(
            device=self.device.card.name, runtime=self.runtime.name, runtime_version="", **msgspec.to_builtins(self.settings)
        )


def space_from_config(cfg: SpaceConfig, data: ImageData | None, batch: int) -> SearchSpace:
    """The deployed space: the data set gives image size, image channels and classes unless the options say otherwise."""
    kind: Any = SPACES.get(cfg.name)
    if cfg.options.get("batch", batch) != batch:
        raise UsageError(
            f"space.options.batch is {cfg.options['batch']}, device.batch {batch}: say --set device.batch=... only"
        )
    options: dict[str, Any] = {"batch": batch}
    if data is not None:
        options |= {
            "image_size": data.preprocessing.image_size,
            "image_channels": data.preprocessing.channels,
            "classes": len(data.class_names),
        }
    options |= cfg.options
    known = [field.name for field in dataclasses.fields(kind)]
    for key in options:
        if key not in known:
            near = nearest_names(key, known)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"the space {cfg.name} has no option {key!r}: {hint}it has {', '.join(known)}")
    try:
        space: SearchSpace = kind(**options)
    except TypeError as error:
        raise UsageError(f"the options of the space {cfg.name} do not fit: {error}") from error
    return space


def data_from_config(cfg: DataConfig, seed: int) -> ImageData:
    """The data set that a configuration names; its images are read when first asked for."""
    return load_data(cfg.name, Path(cfg.root) if cfg.root else None, cfg.image_size).reduced(cfg.train_fraction, seed)


def space_of(architecture: Architecture) -> SearchSpace:
    """The space that an architecture document names; raises ``UsageError`` kinds."""
    options = architecture.space_options
    batch = options.get("batch", 1)
    if not isinstance(batch, int):
        raise DocumentError(f"architecture: space_options.batch is {batch!r}; it must be a whole number")
    return space_from_config(SpaceConfig(name=architecture.space, options=options), None, batch)


def _environment() -> Any:
    return detect_environment({"mobilenas": version("mobilenas"), "torch": str(torch.__version__)})


def _fabric(cfg: config.ComputeConfig) -> Fabric:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    precision: Any = cfg.precision
    try:
        fabric = Fabric(accelerator=cfg.accelerator, devices=1, precision=precision)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UsageError(f"compute.accelerator {cfg.accelerator!r} with compute.precision {precision!r}: {error}") from error
    fabric.launch()
    return fabric


def default_run(verb: str) -> Path:
    """``runs/<verb>-<time>-<4 hex>``: a new folder for a run that was not given one."""
    return Path("runs") / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


# ---- profile ---------------------------------------------------------------------------------------------------------------


def campaign_from_config(cfg: ProfileConfig) -> Campaign:
    """The campaign that ``profile`` would run; ``describe`` on it is the dry run."""
    target = Target.from_config(cfg.device)
    data = load_data(cfg.data) if cfg.data else None
    space = space_from_config(cfg.space, data, cfg.device.batch)
    root = user_data_directory() / "campaigns"
    return Campaign(space, target.device, target.runtime, target.settings, plan_named(cfg.plan), root, cfg.seed)


def profile(cfg: ProfileConfig, listener: Listener | None = None) -> ProfileResult:
    """Measure a space on a device into a latency table. Interrupted, the same configuration goes on."""
    told = listener or Silent()
    begin = time.monotonic()
    campaign = campaign_from_config(cfg)
    if cfg.output:
        check_writable(Path(cfg.output))
    with campaign.running():
        table = campaign.run(lambda p: told.progress(p.stage, p.done, p.total))
        folder = Path(cfg.output) if cfg.output else table_folder(table.card.key, campaign.space.key)
        table.save(folder)
    card = table.space_card(campaign.space.key)
    return ProfileResult(
        table=str(folder),
        kernels=table.card.rows,
        kernels_not_converged=table.card.rows_not_converged,
        scale=card.scale,
        offset_ms=card.offset_ms,
        table_mape_fraction=card.table_error.mape_fraction,
        table_worst_fraction=card.table_error.worst_fraction,
        baseline_mape_fraction=card.madds_baseline_error.mape_fraction,
        workload_mape_fraction=card.workload_error.mape_fraction,
        repeatability_fraction=card.repeatability_fraction,
        duration_s=time.monotonic() - begin,
    )


# ---- search ----------------------------------------------------------------------------------------------------------------


def search(cfg: SearchConfig, output: Path | None = None, listener: Listener | None = None) -> SearchResult:
    """Search under the budget and write the run directory. Raises ``BudgetError`` before any training if it is infeasible."""
    told = listener or Silent()
    begin = time.monotonic()
    method = METHODS.get(cfg.method)()
    if cfg.budget_statistic != "floor":
        raise IncompatibleError(
            f"--budget-statistic {cfg.budget_statistic}: tables hold the floor so far; say --budget-statistic floor"
        )
    data = data_from_config(cfg.data, cfg.seed)
    space = space_from_config(cfg.space, data, cfg.device.batch)
    _check_data_fits(space, data)
    target = Target.from_config(cfg.device)
    plan_named(cfg.plan)
    fabric = _fabric(cfg.compute)
    directory = RunDirectory(output or default_run("search"))
    with target.device.open() as link:
        bounds, budget = None, None
        if cfg.latency_budget is not None:
            model = table_model(cfg, space, target, link)
            bounds = latency_range(space, model)
            budget = _budget(cfg, model, bounds, told)
        with directory.running(config.dump_config(cfg), _environment()):
            told.note(f"run directory {directory.path}")
            engine = SearchEngine(
                space=space,
                method=method,
                task=Classification(),
                halves=data.halves(cfg.seed),
                budgets=[budget] if budget else [],
                settings=_engine_settings(cfg),
                fabric=fabric,
                directory=directory,
                on_epoch=lambda report: _tell_epoch(told, report),
                on_note=told.note,
            )
            parameters = engine.run()
            probabilities = {name: row.detach() for name, row in parameters.softmax().items()}
            selection = None
            if budget is None:
                architecture = method.decode(space, parameters)
            else:
                told.progress("deriving", 0, 1)
                measure_networks = _measure_networks(cfg.plan, space, target, link, directory, told)
                selection = select(
                    space,
                    method.scores(space, parameters),
                    budget,
                    measure=measure_networks if cfg.measure else None,
                    candidates=cfg.candidates,
                    rounds=cfg.rounds,
                )
                architecture = selection.architecture
            result = SearchResult(
                run=str(directory.path),
                method=cfg.method,
                architecture=architecture,
                fingerprint=architecture.fingerprint,
                params=space.params(architecture),
                madds=space.madds(architecture),
                budgets=(
                    (_outcome(cfg, budget, bounds, selection, float(budget.model.expected_ms(probabilities, 0.05))),)
                    if budget and bounds and selection
                    else ()
                ),
                verified_on_target=bool(selection and selection.verdict),
                selection=selection,
                latency_model=budget.model.describe() if budget else None,
                epochs=cfg.epochs,
                duration_s=time.monotonic() - begin,
            )
            save_tensors(directory.path / "logits.safetensors", parameters.softmax())
            directory.write_document(ARCHITECTURE, documents.parse_json(architecture.to_json(), ARCHITECTURE))
            directory.write_document(RESULT, {"schema": "mobilenas/search-result@1", **msgspec.to_builtins(result)})
    return result


def table_model(cfg: SearchConfig, space: SearchSpace, target: Target, link: Link) -> TableModel:
    """The latency model of a search, while ``link`` is open. Raises ``DocumentError`` kinds where no table fits."""
    path = Path(cfg.table) if cfg.table else None
    table = find_table(path, target.table_key, space.key, _profile_command(cfg))

    def lower(architectures: Sequence[Architecture]) -> list[Counter[Kernel]]:
        models = [onnx_model.compose(space.blueprint(architecture)) for architecture in architectures]
        return target.runtime.kernels(models, link, target.settings)

    return TableModel(table, space, lower)


def _profile_command(cfg: SearchConfig) -> str:
    return config.command_line("profile", ProfileConfig(device=cfg.device, space=cfg.space, data=cfg.data.name))


def _budget(cfg: SearchConfig, model: TableModel, bounds: LatencyRange, told: Listener) -> Budget:
    assert cfg.latency_budget is not None
    lowest_ms, highest_ms = bounds.lowest.table.ms, bounds.highest.table.ms
    target_ms = parse_latency_target(cfg.latency_budget).resolve_ms(lowest_ms, highest_ms)
    if target_ms < lowest_ms:
        raise BudgetError(
            f"--latency-budget {cfg.latency_budget} is below what the space can do: its networks take {lowest_ms:.4g} "
            f"to {highest_ms:.4g} ms on {model.table.card.key.device} by the table; the fastest is "
            f"{bounds.lowest.architecture.choices}. Raise the budget, or make the deployed network smaller "
            "(--set space.options.channels=...)"
        )
    if target_ms > highest_ms:
        told.note(f"warning: the budget does not bind: the slowest network of the space takes {highest_ms:.4g} ms")
    told.note(f"budget {target_ms:.4g} ms; the space's networks take {lowest_ms:.4g} to {highest_ms:.4g} ms")
    return Budget(model, target_ms, cfg.budget_statistic)


def _engine_settings(cfg: SearchConfig) -> EngineSettings:
    return EngineSettings(
        supernet=SupernetSize(cfg.supernet.channels, cfg.supernet.layers),
        epochs=cfg.epochs,
        warmup_epochs=cfg.warmup_epochs,
        batch_size=cfg.data.batch,
        workers=cfg.data.workers,
        weights=_sgd(cfg.weights),
        architecture=AdamSettings(**msgspec.to_builtins(cfg.architecture)),
        seed=cfg.seed,
    )


def _sgd(cfg: config.WeightsConfig) -> SgdSettings:
    return SgdSettings(**msgspec.to_builtins(cfg))


def _tell_epoch(told: Listener, report: EpochReport) -> None:
    told.progress("searching", report.epoch + 1, report.epochs)
    accuracy = "-" if report.valid_accuracy is None else f"{report.valid_accuracy:.1%}"
    budgets = "".join(
        f", expected {b.expected_ms:.4g} ms, decoded {'-' if b.table_ms is None else f'{b.table_ms:.4g} ms'} "
        f"of {b.target_ms:.4g} ms, multiplier {b.multiplier:.3g}"
        for b in report.budgets
    )
    told.note(
        f"epoch {report.epoch + 1}/{report.epochs}: cross entropy {report.train_cross_entropy:.3f}, "
        f"valid accuracy {accuracy}{budgets}"
    )


def _measure_networks(
    plan: str, space: SearchSpace, target: Target, link: Link, directory: RunDirectory, told: Listener
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
            plan_named(plan),
            journal=Journal(directory.path / "measurements" / f"{label}.jsonl"),
            progress=lambda p: _tell_sweep(told, "measuring candidates" if "round" in label else "final measurement", p),
        )
        return [measurements[a.fingerprint] for a in architectures]

    return measure_networks


def _tell_sweep(told: Listener, stage: str, p: MeasureProgress) -> None:
    told.progress(f"{stage}, {p.text}", p.done, p.total)


def _outcome(
    cfg: SearchConfig, budget: Budget, bounds: LatencyRange, selection: Selection, expected_ms: float
) -> BudgetOutcome:
    verdict = selection.verdict
    return BudgetOutcome(
        text=cfg.latency_budget or "",
        statistic=budget.statistic,
        target_ms=budget.target_ms,
        lowest_ms=bounds.lowest.table.ms,
        highest_ms=bounds.highest.table.ms,
        expected_ms=expected_ms,
        table_ms=selection.table_ms,
        table_low_ms=selection.table_low_ms,
        table_high_ms=selection.table_high_ms,
        measured_ms=verdict.value_ms if verdict else None,
        measured_repeatability_fraction=verdict.repeatability_fraction if verdict else None,
        measured_converged=verdict.converged if verdict else None,
    )


# ---- train -----------------------------------------------------------------------------------------------------------------


def train(run: Path, cfg: TrainConfig, listener: Listener | None = None) -> TrainResult:
    """Train the architecture of ``run`` from scratch into ``run/train``."""
    told = listener or Silent()
    begin = time.monotonic()
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    data = data_from_config(cfg.data, cfg.seed)
    _check_data_fits(space, data)
    torch.manual_seed(cfg.seed)
    network = space.build(architecture, auxiliary=cfg.auxiliary_weight > 0)
    fabric = _fabric(cfg.compute)
    directory = RunDirectory(run / "train")

    def on_epoch(report: TrainReport) -> None:
        told.progress("training", report.epoch + 1, report.epochs)
        told.note(
            f"epoch {report.epoch + 1}/{report.epochs}: cross entropy {report.train_cross_entropy:.3f}, "
            f"test accuracy {report.test_accuracy:.1%}"
        )

    with directory.running(f"# architecture {architecture.fingerprint}\n{config.dump_config(cfg)}", _environment()):
        trainer = Trainer(
            network=network,
            data=data,
            task=Classification(),
            settings=TrainSettings(
                epochs=cfg.epochs,
                batch_size=cfg.data.batch,
                workers=cfg.data.workers,
                weights=_sgd(cfg.weights),
                drop_path_fraction=cfg.drop_path_fraction,
                auxiliary_weight=cfg.auxiliary_weight,
                cutout=cfg.cutout,
                seed=cfg.seed,
            ),
            fabric=fabric,
            directory=directory,
            on_epoch=on_epoch,
            on_note=told.note,
        )
        report = trainer.run()
        weights = directory.path / WEIGHTS
        tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("auxiliary.")}
        save_tensors(weights, tensors, {"fingerprint": architecture.fingerprint})
        result = TrainResult(
            weights=str(weights),
            fingerprint=architecture.fingerprint,
            test_accuracy=report.test_accuracy,
            train_accuracy=report.train_accuracy,
            epochs=cfg.epochs,
            duration_s=time.monotonic() - begin,
        )
        directory.write_document(RESULT, {"schema": "mobilenas/train-result@1", **msgspec.to_builtins(result)})
    return result


def _check_data_fits(space: SearchSpace, data: ImageData) -> None:
    _, channels, height, _ = space.image_shape
    found = (data.preprocessing.channels, data.preprocessing.image_size, len(data.class_names))
    wanted = (channels, height, space.options["classes"])
    if found != wanted:
        raise IncompatibleError(
            f"the network reads {wanted[0]} x {wanted[1]} x {wanted[1]} images of {wanted[2]} classes; {data.name} has "
            f"{found[0]} x {found[1]} x {found[1]} of {found[2]}: name the data set of the search with --data"
        )


# ---- export ----------------------------------------------------------------------------------------------------------------


def export(run: Path, cfg: ExportConfig, listener: Listener | None = None) -> ExportResult:
    """Export the architecture of ``run``, trained if ``train`` was run, into ``run/export``: checked and measured."""
    told = listener or Silent()
    if not cfg.onnx:
        raise UsageError("nothing to export: say --onnx")
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    search_cfg = search_config_of(run)
    data = data_from_config(search_cfg.data, search_cfg.seed)
    _check_data_fits(space, data)
    plan = plan_named(cfg.plan)
    target = Target.from_config(msgspec.structs.replace(search_cfg.device, name=cfg.device)) if cfg.device else None
    budget = _budget_of(run)
    network, trained = _network_of(run, space, architecture)
    told.progress("exporting", 0, 1)
    exported = onnx_model.slim(onnx_model.onnx_from_module(network, [torch.zeros(space.image_shape)]))
    onnx_model.set_metadata(exported, _metadata(architecture, data))
    model = exported.SerializeToString()
    generator = random.Random(0)
    batch = space.image_shape[0]
    chosen = generator.sample(range(len(data.test)), batch * (min(VERIFIED_INPUTS, len(data.test)) // batch))
    images = torch.stack([data.test[index][0] for index in chosen])
    agreement = compare(network, model, images, cfg.tolerance, batch)

    measured = None
    if target is not None:
        with target.device.open() as link:
            measurements, _ = measure(
                {architecture.fingerprint: target.runtime.prepare(model, target.settings)},
                link,
                target.runtime,
                target.settings,
                plan,
                progress=lambda p: _tell_sweep(told, "measuring the exported model", p),
            )
        measured = measurements[architecture.fingerprint]
    folder = run / "export"
    result = ExportResult(
        folder=str(folder),
        model=str(folder / "model.onnx"),
        fingerprint=architecture.fingerprint,
        params=space.params(architecture),
        madds=space.madds(architecture),
        trained=trained is not None,
        test_accuracy=trained,
        agreement=agreement,
        budget=budget,
        measured=measured,
        budget_met=budget.is_met_by(measured) if budget and measured else None,
        device=msgspec.to_builtins(target.device.card) if target else None,
    )
    report = documents.dump_json({"schema": "mobilenas/export-report@1", **msgspec.to_builtins(result)})
    write_bundle(folder, {"model.onnx": model, ARCHITECTURE: architecture.to_json(), "report.json": report})
    return result


def search_config_of(run: Path) -> SearchConfig:
    """The configuration that a run was searched with; raises ``DocumentError`` where ``run`` is no run directory."""
    path = run / "config.toml"
    documents.read_text(path)
    return config.load_config(SearchConfig, path, [], {})


def _network_of(run: Path, space: SearchSpace, architecture: Architecture) -> tuple[Network, float | None]:
    """The network with its trained weights and their test accuracy, or untrained and ``None``."""
    network = space.build(architecture)
    weights = run / "train" / WEIGHTS
    if not weights.exists():
        initialise_for_timing(network, space.image_shape)
        return network.eval(), None
    network.load_state_dict(load_tensors(weights, architecture.fingerprint))
    path = str(run / "train" / RESULT)
    trained = documents.check_schema(RunDirectory(run / "train").read_document(RESULT), "train-result", 1, path)
    return network.eval(), documents.convert(trained, TrainResult, path).test_accuracy


def _budget_of(run: Path) -> BudgetOutcome | None:
    path = run / RESULT
    result = documents.parse_json(documents.read_text(path), str(path))
    if not isinstance(result, dict) or not isinstance(result.get("budgets"), list):
        raise DocumentError(f"{path}: not the result of a search: it has no list of budgets")
    return documents.convert(result["budgets"][0], BudgetOutcome, str(path)) if result["budgets"] else None


def _metadata(architecture: Architecture, data: ImageData) -> dict[str, str]:
    return {
        "mobilenas_version": version("mobilenas"),
        "fingerprint": architecture.fingerprint,
        "data": data.name,
        "preprocessing": msgspec.json.encode(data.preprocessing).decode(),
        "class_names": msgspec.json.encode(data.class_names).decode(),
    }
