"""Where names become objects: what all workflows need of configurations, data, spaces, targets and runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from mobilenas import config
from mobilenas.config import DataConfig, DataSetConfig, DeviceConfig, SearchConfig, SpaceConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Environment, detect_environment
from mobilenas.core.measurement import Estimator, Measurement, MeasurementPlan, plan_named
from mobilenas.core.options import option_types
from mobilenas.core.outcomes import BudgetOutcome, DataFacts, SearchOutcome, TrainResult
from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import ImageData, load_data
from mobilenas.devices.device import Device, find_device
from mobilenas.errors import DocumentError, IncompatibleError, UsageError, nearest_names
from mobilenas.latency.table import TableKey
from mobilenas.network import Network, initialise_for_timing
from mobilenas.onnx_model import ModelFile
from mobilenas.runtimes import RUNTIMES
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.measure import MeasureProgress, measure
from mobilenas.search.checkpoints import check_like, load_tensors, not_finite, one_line, sha256_of
from mobilenas.search.descent import SgdSettings
from mobilenas.search.retrain import TrainSettings
from mobilenas.spaces import SPACES
from mobilenas.spaces.base import SearchSpace

ARCHITECTURE, RESULT, WEIGHTS = "architecture.json", "result.json", "weights.safetensors"


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


@dataclass(frozen=True)
class Target:
    """A device with the runtime and its settings: where latency is measured."""

    device: Device
    runtime: Runtime
    settings: RunSettings
    estimator: Estimator = "floor"

    @classmethod
    def from_config(cls, cfg: DeviceConfig) -> Target:
        """Resolve the names; raises ``UnknownNameError`` and ``IncompatibleError``."""
        runtime = RUNTIMES.get(cfg.runtime)()
        settings = RunSettings(cfg.precision, cfg.provider or runtime.providers[0], cfg.threads, cfg.batch)
        runtime.check(settings)
        return cls(find_device(cfg.name, cfg.python, cfg.governor), runtime, settings, cfg.estimator)

    def plan(self, name: str) -> MeasurementPlan:
        """The plan called ``name`` with the device's estimator; raises ``UnknownNameError``."""
        return msgspec.structs.replace(plan_named(name), estimator=self.estimator)

    @property
    def table_key(self) -> TableKey:
        """What a latency table for this target is of; the engine's version, known only on the device, stays open."""
        return TableKey(
            device=self.device.card.name,
            runtime=self.runtime.name,
            runtime_version="",
            **msgspec.to_builtins(self.settings),
            estimator=self.estimator,
        )

    def engine_version(self) -> str:
        """That of the engine on the device."""
        with self.device.open() as link:
            return str(self.runtime.hello(link, self.settings)["engine_version"])

    def compute(self, model: PreparedModel, inputs: np.ndarray) -> np.ndarray:
        """What the engine on the device makes of ``inputs``, ``(calls, ...)``: ``(calls, numbers)``."""
        with self.device.open() as link:
            return self.runtime.compute(model, inputs, link, self.settings)

    def measure(
        self, name: str, model: bytes | ModelFile | PreparedModel, plan: MeasurementPlan, told: Listener, stage: str
    ) -> tuple[Measurement, Environment]:
        """Measure a model, given as ONNX or in the engine's form, on the device, by the path of all numbers.

        The interval is that in which a later measurement lies. The state of the device is that in the last sweep.
        """
        if isinstance(model, ModelFile):
            model = self.runtime.prepare_file(model, self.settings)
        prepared = self.runtime.prepare(model, self.settings) if isinstance(model, bytes) else model
        with self.device.open() as link:
            models = {name: prepared}
            found, log = measure(models, link, self.runtime, self.settings, plan, progress=lambda p: tell_sweep(told, stage, p))
        return found[name].lasting(), log.environment


def space_from_config(cfg: SpaceConfig, data: ImageData | None, batch: int) -> SearchSpace:
    """The deployed space: the data set gives image size, image channels and classes unless the options say otherwise."""
    kind = SPACES.get(cfg.name)
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
    types = option_types(kind)
    check_options(f"the space {cfg.name}", options, list(types))
    space: SearchSpace = kind(**typed_options("space.options", options, types))
    return space


def typed_options(where: str, given: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the types that a constructor asks for; raises ``UsageError`` for a value that is of another."""
    found = {}
    for name, value in given.items():
        try:
            found[name] = msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            raise UsageError(f"{where}.{name} is {value!r}: {error}") from error
    return found


def check_options(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise ``UsageError`` for an option that ``what`` does not have, with the nearest and all that it has."""
    for name in given:
        if name not in known:
            near = nearest_names(name, known)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"{what} has no option {name!r}: {hint}it has {', '.join(known) or 'none'}")


def data_set_from_config(cfg: DataSetConfig, seed: int = 0) -> ImageData:
    """The whole data set that a configuration names; its images are read when first asked for.

    ``seed`` draws the images for validation where the configuration asks for a share; it has no part in the facts.
    """
    return load_data(cfg.name, Path(cfg.root) if cfg.root else None, cfg.image_size, cfg.split, seed)


def data_from_config(cfg: DataConfig, seed: int) -> ImageData:
    """The share of a data set that a configuration asks for; its images are read when first asked for."""
    return data_set_from_config(cfg, seed).reduced(cfg.train_fraction, seed)


def facts_of(data: ImageData, told: Listener) -> DataFacts:
    """Read the list of images, and report once what was left out of it."""
    for note in data.notes:
        told.note(f"note: {note}")
    images = {"train_images": len(data.train), "test_images": len(data.test)}
    return DataFacts(name=data.name, digest=data.digest(), split=data.split, notes=data.notes, **images)


def space_of(architecture: Architecture) -> SearchSpace:
    """The space that an architecture document names; raises ``UsageError`` kinds."""
    options = architecture.space_options
    batch = options.get("batch", 1)
    if not isinstance(batch, int):
        raise DocumentError(f"architecture: space_options.batch is {batch!r}; it must be a whole number")
    return space_from_config(SpaceConfig(name=architecture.space, options=options), None, batch)


def run_environment() -> Environment:
    """This host with the versions that every run records."""
    return detect_environment({"mobilenas": version("mobilenas"), "torch": str(torch.__version__)})


SHORT_PRECISIONS = {"32": "32-true"}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""What searches and trainings compute in."""


def uses_gpus(cfg: config.ComputeConfig) -> bool:
    """Whether what trains does so on NVIDIA's GPUs."""
    return torch.cuda.is_available() and cfg.accelerator != "cpu"


def fabric_from_config(cfg: config.ComputeConfig, place: int = 0) -> Fabric:
    """What trains, on the GPU at ``place`` if on any.

    Raises ``UsageError`` for an accelerator that this host does not have, or an unknown precision.
    """
    precision: Any = SHORT_PRECISIONS.get(cfg.precision, cfg.precision)
    if precision not in PRECISIONS:
        raise UsageError(f"compute.precision is {cfg.precision!r}; available: {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and not uses_gpus(cfg):
        raise UsageError("compute.precision 16-mixed is for GPUs; on a CPU choose 32-true or bf16-mixed")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    try:
        fabric = Fabric(accelerator=cfg.accelerator, devices=[place] if uses_gpus(cfg) else 1, precision=precision)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UsageError(f"compute.accelerator {cfg.accelerator!r} with compute.precision {precision!r}: {error}") from error
    fabric.launch()
    return fabric


def default_run(verb: str) -> Path:
    """``runs/<verb>-<time>-<4 hex>``: a new folder for a run that was not given one."""
    return Path("runs") / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def check_data_fits(space: SearchSpace, data: ImageData) -> None:
    """Raise ``IncompatibleError`` if the space's networks cannot read the data set's images or name its classes."""
    _, channels, height, _ = space.image_shape
    found = (data.preprocessing.channels, data.preprocessing.image_size, len(data.class_names))
    wanted = (channels, height, space.options["classes"])
    if found != wanted:
        raise IncompatibleError(
            f"the network reads {wanted[0]} x {wanted[1]} x {wanted[1]} images of {wanted[2]} classes; {data.name} has "
            f"{found[0]} x {found[1]} x {found[1]} of {found[2]}: name the data set of the search with --data"
        )


def search_config_of(run: Path) -> SearchConfig:
    """The configuration that a run was searched with; raises ``DocumentError`` where ``run`` is no run directory."""
    path = run / "config.toml"
    documents.read_text(path)
    return config.load_config(SearchConfig, path, [], {})


def seed_of_test_images(run: Path, cfg: SearchConfig) -> int:
    """Return the seed that drew the images which ``run`` was not trained on: its training's, if it was trained."""
    path = run / "train" / "config.toml"
    return config.load_config(config.TrainConfig, path, [], {}).seed if path.exists() else cfg.seed


def network_of(run: Path, space: SearchSpace, architecture: Architecture) -> tuple[Network, float | None]:
    """The network with its trained weights and their test accuracy, or untrained, the same each time, and ``None``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = space.build(architecture)
    weights = run / "train" / WEIGHTS
    if not weights.exists():
        if (run / "train" / RESULT).exists():
            raise DocumentError(f"{weights}: gone, and {RESULT} beside it says that the network was trained: train it again")
        initialise_for_timing(network, space.image_shape)
        return network.eval(), None
    path = str(run / "train" / RESULT)
    document = documents.check_schema(RunDirectory(run / "train").read_document(RESULT), "train-result", 1, path)
    trained = documents.convert(document, TrainResult, path)
    if trained.fingerprint != architecture.fingerprint:
        raise DocumentError(
            f"{path}: is of the network {trained.fingerprint}, not of {architecture.fingerprint}: train it again"
        )
    if sha256_of(weights) != trained.sha256:
        raise DocumentError(f"{weights}: changed since it was trained (SHA-256 differs from {RESULT}'s): train it again")
    tensors = load_tensors(weights, architecture.fingerprint)
    if bad := not_finite(tensors):
        raise DocumentError(
            f"{weights}: {len(bad)} of {len(tensors)} tensors hold numbers that are not finite, the first one {bad[0]}: "
            "train it again"
        )
    try:
        check_like(tensors, network.state_dict())
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise DocumentError(f"{weights}: other tensors than the network has ({one_line(error)}): train it again") from error
    return network.eval(), trained.test_accuracy


def sgd_settings(cfg: config.WeightsConfig) -> SgdSettings:
    """The engine's settings of the weight optimiser; raises ``UsageError`` for settings that contradict each other."""
    if cfg.nesterov and cfg.momentum == 0:
        raise UsageError("weights.nesterov with weights.momentum = 0: Nesterov's step needs a momentum")
    return SgdSettings(**msgspec.to_builtins(cfg))


def train_settings(cfg: config.TrainConfig, seed: int) -> TrainSettings:
    """The trainer's settings; raises ``UsageError`` for settings that contradict each other."""
    return TrainSettings(
        epochs=cfg.epochs,
        batch_size=cfg.data.batch,
        workers=cfg.data.workers,
        weights=sgd_settings(cfg.weights),
        drop_path_fraction=cfg.drop_path_fraction,
        auxiliary_weight=cfg.auxiliary_weight,
        cutout=cfg.cutout,
        seed=seed,
        colour_jitter=cfg.colour_jitter,
        ema_decay=cfg.ema_decay,
        accumulate=cfg.compute.accumulate,
        on_device=cfg.data.on_device,
    )


def tell_sweep(told: Listener, stage: str, p: MeasureProgress) -> None:
    """Pass on how far a measurement is."""
    told.progress(f"{stage}, {p.text}", p.done, p.total)


def tell_data_dependent(operators: Sequence[str], told: Listener, model: Path | None = None) -> None:
    """Name the operators whose outputs depend on the numbers that a model is given."""
    if operators:
        told.note(
            f"{f'{model}: ' if model else ''}what {', '.join(operators)} put out, and what reads it, depends on the numbers "
            "that the model is given: the time is that for these inputs, which are random unless they are given"
        )


def budget_of(run: Path) -> BudgetOutcome | None:
    """What a search reached for its budget, ``None`` if it had none; raises ``DocumentError`` if ``run`` holds no search."""
    path = run / RESULT
    data = documents.parse_json(documents.read_text(path), str(path))
    if isinstance(data, dict) and "schema" in data:
        data = documents.check_schema(data, "search-result", 1, str(path))
    found = documents.convert(data, SearchOutcome, str(path))
    own = Architecture.load(run / ARCHITECTURE).fingerprint
    if found.fingerprint not in (None, own):
        raise DocumentError(f"{path}: is of the network {found.fingerprint}, {ARCHITECTURE} holds {own}")
    return found.budgets[0] if found.budgets else None
