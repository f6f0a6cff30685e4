"""Configurations of the commands: strict structs, TOML files, ``--set a.b=c``; read by ``cli`` and ``workflows`` only."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tomli_w

from mobilenas.core import documents
from mobilenas.core.architecture import OptionValue
from mobilenas.core.environment import Gate
from mobilenas.core.measurement import Estimator, Statistic
from mobilenas.core.text import shell_command
from mobilenas.core.units import ACCEPTED
from mobilenas.errors import DocumentError, UnknownNameError, UsageError

C = TypeVar("C", bound=msgspec.Struct)

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
ThreadsOrNone = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
BelowOne = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all configurations: unknown keys are refused."""


class SpaceConfig(Strict):
    """Which space, and its constructor's options (``channels``, ``layers``, ...; the data set gives image and classes)."""

    name: str = "cells"
    options: dict[str, OptionValue] = {}


class DeviceConfig(Strict):
    """Where and how networks are measured."""

    name: str = "local"
    """``local``, ``ssh://user@host[:port]``, ``adb:SERIAL``, or a name given by ``mobilenas devices add``."""
    python: str | None = None
    """The interpreter on a remote device that has the engine; its ``python3``, or its card's, by default."""
    governor: str | None = None
    """What holds the device's clock while it is measured, as ``performance``, where that may be set; it is set back after."""
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    provider: str | None = None
    """What executes inside the runtime; the first that it has by default."""
    threads: Threads = 1
    batch: Count = 1
    estimator: Estimator = "floor"
    """What stands for a model's latency: the floor over sweeps on a shared host, the median on an idle device of one's own."""


class DataPlace(Strict):
    """Location of a data set."""

    root: str | None = None
    """Folder of data sets; the user's data directory by default."""


class DataSetConfig(DataPlace):
    """Choice of a data set, from which a space takes its image size, image channels and classes."""

    name: str = "digits"
    image_size: Count | None = None
    """Pixels; for image folders only, where it is 224 by default."""
    split: Share | None = None
    """Share of each class held out for validation, drawn by the seed; only for image folders without ``train`` and ``val``."""


class DataConfig(DataSetConfig):
    """Which images, and how they are loaded."""

    train_fraction: Fraction = 1.0
    """Share of the training images that is used, drawn by the seed."""
    batch: Count = 64
    """Images per step."""
    workers: ThreadsOrNone = 0
    """Loader processes."""
    on_device: bool = False
    """Whether the images live where the network does, all of them, and are augmented there: small pictures only."""


class WeightsConfig(Strict):
    """SGD of network weights; the defaults are DARTS's."""

    lr: Positive = 0.025
    min_lr: NotNegative = 0.001
    warmup_epochs: CountOrNone = 0
    """First epochs in which ``lr`` rises linearly."""
    momentum: BelowOne = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 3e-4
    clip_norm: Positive = 5.0
    """A large one, as 1e30, clips nothing."""
    schedule: Literal["cosine", "linear", "exponential"] = "cosine"
    """From ``lr`` to ``min_lr`` by a cosine, to nothing by a line that ends flatter, or times ``decay`` each epoch."""
    decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.97
    """Of the exponential schedule."""
    per_step: bool = False
    """Whether the rate changes with every step instead of every epoch."""


class ArchitectureConfig(Strict):
    """Adam of the architecture logits; the defaults are DARTS's."""

    lr: Positive = 3e-4
    beta1: BelowOne = 0.5
    beta2: BelowOne = 0.999
    weight_decay: NotNegative = 1e-3
    clip_norm: Positive | None = None


class SupernetConfig(Strict):
    """The network that is trained while searching; its size is the space's choice where it is unset."""

    channels: Count | None = None
    layers: Count | None = None
    checkpoint_cells: bool = False
    """Compute each cell or block again on the way back: less memory, more time."""


class SwitchesConfig(Strict):
    """What any method on cells can turn on; unset, the method's own choice."""

    edge_normalisation: bool | None = None
    partial_channels: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    """K: one channel in K passes through the operators."""
    skip_dropout: BelowOne | None = None
    """Chance at first that an element of an identity is dropped."""
    skip_limit: CountOrNone | None = None
    """Skip connections in a normal cell at most."""
    beta_decay: NotNegative | Literal["auto"] | None = None
    """Weight at the end of the mean over edges of ``log(sum(exp(logits)))`` (beta-DARTS); ``auto``: as strong as the loss."""
    auxiliary_skip: bool | None = None
    """Every edge is also a skip, which fades away (DARTS-)."""


class LogCostConfig(Strict):
    """DenseNAS's objective beside or instead of a budget: ``weight * log(cost) / log(base)`` in the loss."""

    weight: NotNegative = 0.0
    """0 leaves the objective out."""
    base: Annotated[float, msgspec.Meta(gt=1, le=1e12)] = 15.0
    unit: Literal["ms", "million-madds"] = "ms"
    """Milliseconds of the latency table, or millions of multiply-adds."""
    skip_share: Fraction = 0.0
    """What a skip costs, as a share of the first operator in its place."""


class ComputeConfig(Strict):
    """What trains: lightning-fabric's accelerator (``auto``, ``cpu``, ``cuda``) and precision."""

    accelerator: str = "auto"
    precision: str = "32-true"
    """``32-true``, ``bf16-mixed`` or ``16-mixed``; logits, latencies and multipliers are of 32 bits or more in each."""
    accumulate: Count = 1
    """Parts that each batch is computed in, one after another; more where a batch does not fit into memory."""
    threads: ThreadsOrNone = 0
    """CPU threads; 0 leaves torch's default, shared among the processes of this host."""
    devices: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    """Processes on this host, each with a GPU or some threads, that share every batch; torchrun and Slurm say so themselves."""
    timeout_s: Positive = 600.0
    """How long one of several processes waits for the others."""


DEFAULT_CAMPAIGN: Literal["default"] = "default"
"""Of ``profile --kernels``: a campaign that predicts any mobile network."""


class ProfileConfig(Strict):
    """``mobilenas profile``."""

    device: DeviceConfig = DeviceConfig()
    space: SpaceConfig = SpaceConfig()
    data: DataSetConfig = DataSetConfig()
    """Without a name, the options of the space say all."""
    kernels: Count | Literal["default"] | None = None
    """Instead of a space, kernels of mobile networks: a table for any network. About so many, those of the measured networks
    at least, or the ``default`` number.
    """
    measure_networks: Count | None = None
    """Whole networks that are measured besides the plan's, to learn a network predictor from."""
    transfer: bool = False
    """Measure no kernels: only those networks, and start from the tables of other targets."""
    plan: str = "quick"
    environment: Gate = "warn"
    """What a clock that is not fixed or a busy machine does: ``strict`` refuses to measure, ``warn`` says so in the table."""
    seed: Seed = 0
    output: str | None = None


class SelectionConfig(Strict):
    """Choice of the delivered network among those that use up the budget."""

    pool: Count = 64
    """Number of networks proposed: drawn by the logits, close below the budget."""
    keep: Count = 8
    """Number of proposed networks that are measured, and trained for a short while if ``rank`` holds ``training``."""
    steps: Count = 450
    """Number of steps of each short training."""
    rank: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    """Names of the rankers whose ranks are summed: ``capacity``, ``training``, ``inherited``, ``logits``, or a plug-in's.

    By default ``capacity`` and ``training`` on cells, else ``training``. ``logits`` alone is the published choice: nothing is
    drawn.
    """
    recipe: str | dict[str, Any] = {}
    """Settings of the short trainings: those of ``train``, a preset of it, or a TOML file's."""
    least_fraction: Fraction = 0.95
    """Share of the budget that is used at least, where any network does."""


class SearchConfig(Strict):
    """``mobilenas search``."""

    method: str = "darts"
    method_options: dict[str, bool | int | float | str | tuple[int | float, ...]] = {}
    """Arguments of the method, as ``order = 2`` for darts."""
    switches: SwitchesConfig = SwitchesConfig()
    space: SpaceConfig = SpaceConfig()
    supernet: SupernetConfig = SupernetConfig()
    data: DataConfig = DataConfig()
    device: DeviceConfig = DeviceConfig()
    table: str | None = None
    """Folder of the latency table; found by device and space by default."""
    latency_budget: str | None = None
    """``5ms``, ``800us``, or ``40%`` of the space's range."""
    budget_statistic: Statistic | None = None
    """What the budget binds; the estimator of the device by default."""
    budget_quantile: Annotated[float, msgspec.Meta(ge=0.5, le=0.99)] = 0.5
    """What of the predicted interval the budget binds: 0.5 is the prediction, 0.9 what nine networks in ten stay below."""
    latency_model: str = "table"
    """``table``, ``kernel``, ``network``, or a plug-in's."""
    log_cost: LogCostConfig = LogCostConfig()
    plan: str = "quick"
    """How candidates are measured."""
    measure: bool = True
    validation_fraction: Share = 0.5
    """Share of the training images that the architecture is judged on."""
    derivation: Literal["logits", "perturbation", "parameters"] = "logits"
    """Basis of the choice of a network: ``logits``, ``perturbation`` (the supernet's loss without each option, DARTS-PT), or
    ``parameters`` (the most parameters within the budget, a baseline).
    """
    watch: Literal["off", "warn", "restore"] = "warn"
    """Action when a search collapses to skip connections: ``off`` ignores it, ``warn`` reports it, ``restore`` goes back."""
    selection: SelectionConfig = SelectionConfig()
    rounds: Count = 3
    """Largest number of rounds of measuring candidates."""
    epochs: Count = 50
    warmup_epochs: CountOrNone | None = None
    """First epochs (of each stage) that train only weights; the method's own share by default."""
    weights: WeightsConfig = WeightsConfig()
    architecture: ArchitectureConfig = ArchitectureConfig()
    compute: ComputeConfig = ComputeConfig()
    seed: Seed = 0


class TrainConfig(Strict):
    """``mobilenas train``: a derived architecture from scratch; the defaults are DARTS's but for the number of epochs."""

    data: DataConfig = DataConfig(batch=96)
    epochs: Count = 600
    weights: WeightsConfig = WeightsConfig(min_lr=0.0)
    drop_path_fraction: BelowOne = 0.2
    """Reached linearly in the last epoch."""
    auxiliary_weight: NotNegative = 0.4
    """Weight of the auxiliary head's loss; 0 trains without one."""
    cutout: bool = True
    colour_jitter: tuple[Fraction, Fraction, Fraction, Annotated[float, msgspec.Meta(ge=0, le=0.5)]] | None = None
    """Largest random changes of brightness, contrast, saturation and hue."""
    label_smoothing: BelowOne = 0.0
    ema_decay: BelowOne = 0.0
    """Of a running mean of the weights over steps, which is tested and kept instead of them; 0 leaves it out."""
    synthetic: bool = False
    """Noise in place of a data set, of the network's own image size and classes: to see how fast training is."""
    compute: ComputeConfig = ComputeConfig()
    seed: Seed = 0


class SweepConfig(Strict):
    """``mobilenas sweep``: searches and trainings of each method, budget, device and seed."""

    methods: tuple[str, ...] = ("darts",)
    """Besides random search, which is always one of them."""
    budgets: tuple[str, ...] = ("40%",)
    devices: tuple[str, ...] = ()
    """That of ``search`` where none is named."""
    seeds: Count = 2
    """Of each kind so many, from 0 on."""
    preset: str | None = None
    """Of each method's search; random search has none."""
    search: dict[str, Any] = {}
    """Settings of all searches, as those of ``mobilenas search``."""
    train: dict[str, Any] = {}
    """Settings of all trainings; data set and seed are those of the search unless they say otherwise."""
    address: str | None = None
    """Of a Ray cluster, whose machines see the folder of the sweep under the same path; one on this host by default."""
    cpus: Positive = 1.0
    """That each trial takes of Ray's."""
    gpus: NotNegative = 0.0


class ExportConfig(Strict):
    """``mobilenas export``."""

    runtimes: tuple[str, ...] = ()
    """Engines whose form of the model is wanted beside ONNX; that of the search is always there."""
    kits: tuple[str, ...] = ()
    """Deployment kits that are filled with the model, by name."""
    device: str | None = "local"
    """Where the exported model is measured; the settings of the runtime are those of the search."""
    precision: str | None = None
    """That of the search by default."""
    plan: str = "quick"
    data: DataPlace = DataPlace()
    """Location of the search's data set, if it was moved since."""
    tolerance: Fraction | None = None
    """Largest difference of any logit between torch and an engine, relative to the largest logit; by the precision."""


class DescribeConfig(Strict):
    """``mobilenas describe`` of a space."""

    space: SpaceConfig = SpaceConfig()
    data: DataSetConfig = DataSetConfig(name="")
    """Data set that gives image size, image channels and classes; without a name the space's options do."""
    batch: Count = 1


class EvaluateConfig(Strict):
    """``mobilenas evaluate``."""

    data: DataSetConfig = DataSetConfig(name="")
    """Data set; by default the one that the network was trained on, where it was. What is set here stands instead."""
    batch: Count = 256
    compute: ComputeConfig = ComputeConfig()


class VerifyConfig(Strict):
    """``mobilenas verify``."""

    device: str = "local"
    plan: str = "quick"


class PredictConfig(Strict):
    """``mobilenas predict``."""

    device: DeviceConfig = DeviceConfig()
    table: str | None = None
    """Folder of the only table to use; by default all of the target's are."""
    profile_missing: bool = False
    """Measure what no table has, and keep it."""
    extrapolate: bool = False
    """Without effect: kernels beyond the shapes that were learnt from are always estimated."""
    measure: bool = False
    """Measure the whole model too."""
    shapes: dict[str, tuple[Count, ...]] = {}
    """Shapes of inputs with open dimensions, by input name."""
    plan: str = "quick"


class MeasureConfig(Strict):
    """``mobilenas measure``."""

    device: DeviceConfig = DeviceConfig()
    runtimes: tuple[str, ...] = ()
    """Engines, one after the other; ``device.runtime`` where none is named."""
    budget: str | None = None
    """As 5ms: what each model may take."""
    shapes: dict[str, tuple[Count, ...]] = {}
    """Shapes of inputs with open dimensions, by input name."""
    inputs: dict[str, str] = {}
    """NumPy files with the values of inputs, by name; all others are drawn at random."""
    plan: str = "quick"


def load_preset(method: str, name: str) -> dict[str, Any]:
    """The settings of the preset ``name`` of a search method; raises ``UnknownNameError`` with those that it has."""
    return _preset(Path(__file__).with_name("presets"), f"{method}-", name, f"preset of {method}")


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of a published training; raises ``UnknownNameError`` with those that there are."""
    return _preset(Path(__file__).with_name("presets") / "train", "", name, "preset of train")


def _preset(folder: Path, prefix: str, name: str, kind: str) -> dict[str, Any]:
    known = sorted(path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.toml"))
    if name not in known:
        raise UnknownNameError(kind, name, known)
    path = folder / f"{prefix}{name}.toml"
    return documents.parse_toml(documents.read_text(path), str(path))


def load_config(
    kind: type[C],
    file: Path | None,
    sets: Sequence[str] | None,
    flags: Mapping[str, Any],
    preset: Mapping[str, Any] | None = None,
    apart: Mapping[str, tuple[str, ...]] | None = None,
) -> C:
    """Defaults, then a ``preset``, the TOML ``file``, ``flags`` (dotted key -> value, ``None`` where not given) and ``--set``.

    ``apart`` names keys that cannot be given together with others, whatever their values. Raises ``UsageError`` naming the key,
    with the nearest known ones, or the two that say different things of one key.
    """
    data: dict[str, Any] = msgspec.to_builtins(kind())
    _merge(data, preset or {})
    given: dict[str, Any] = {}
    if file is not None:
        if not file.exists():
            raise UsageError(f"--config {file}: no such file")
        given = documents.parse_toml(documents.read_text(file), str(file))
        _merge(data, given)
    said: dict[str, tuple[str, Any]] = {}
    for words, key, value in [*_said_by_flags(flags), *map(_said_by_set, sets or ())]:
        _assign(data, key, value)
        now = flat(data)
        for other, (other_words, other_value) in said.items():
            if now.get(other) != other_value:
                raise UsageError(f"{other_words} and {words} contradict each other: leave one of them out")
        said |= {inside: (words, found) for inside, found in flat({key: value}).items()}
    _check_apart([*flat(given), *said], apart or {})
    try:
        return documents.convert(data, kind, str(file or "configuration"))
    except DocumentError as error:
        raise UsageError(f"{error}{_accepted_form(str(error))}") from error


def _check_apart(given: Sequence[str], apart: Mapping[str, tuple[str, ...]]) -> None:
    for key, others in apart.items():
        found = sorted({other for other in given if other.partition(".")[0] in others})
        if key in given and found:
            raise UsageError(f"{_FLAGS.get(key, key)} stands for {', '.join(others)}: leave it out, or {', '.join(found)}")


def _said_by_flags(flags: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The words on the command line, the setting and its value, of each flag that was given."""
    given = {key: value for key, value in flags.items() if value is not None}
    return [(f"{_FLAGS.get(key, key)} {value}", key, value) for key, value in given.items()]


def _said_by_set(text: str) -> tuple[str, str, Any]:
    key, separator, value = (part.strip() for part in text.partition("="))
    if not separator:
        raise UsageError(f"--set {text}: say --set key=value, as --set epochs=20")
    return f"--set {text}", key, _parse_value(value, f"--set {key}")


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _assign(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {dotted}: {parent} is a value, not a group of settings")
    data[last] = value


def _parse_value(text: str, where: str) -> Any:
    """A TOML value; anything that is not one is text, so that ``--set latency_budget=5ms`` needs no quotes."""
    try:
        found = documents.parse_toml(f"value = {text}", where)
    except DocumentError as error:
        if isinstance(error.__cause__, tomllib.TOMLDecodeError):
            return text
        raise UsageError(str(error)) from error
    value, *others = found
    if others:
        raise UsageError(f"{where}: one --set is one setting, this also sets {', '.join(others)}: say --set for each")
    return found[value]


def _accepted_form(message: str) -> str:
    """What to say instead, where the type alone does not tell."""
    return f"; {ACCEPTED}" if "`$.latency_budget`" in message else ""


_FLAGS = {
    "device": "--device",
    "device.name": "--device",
    "device.runtime": "--runtime",
    "device.precision": "--precision",
    "compute.precision": "--compute-precision",
    "device.threads": "--threads",
    "space.name": "--space",
    "space.options.channels": "--channels",
    "space.options.layers": "--layers",
    "data": "--data",
    "data.name": "--data",
    "latency_budget": "--latency-budget",
    "budget_statistic": "--budget-statistic",
    "environment": "--env",
    "device.estimator": "--estimator",
    "budget_quantile": "--budget-quantile",
    "latency_model": "--latency-model",
    "method": "--method",
    "epochs": "--epochs",
    "kernels": "--kernels",
    "measure_networks": "--measure-networks",
    "plan": "--plan",
    "compute.devices": "--devices",
    "table": "--table",
    "seed": "--seed",
    "output": "--output",
}
"""Settings that have a flag of their own on the command line; all others are said with ``--set``."""


D = TypeVar("D", bound=DataSetConfig)


def same_data(kind: D, data: DataSetConfig) -> D:
    """``kind`` with the data set of ``data``."""
    return msgspec.structs.replace(kind, name=data.name, root=data.root, image_size=data.image_size, split=data.split)


def overridden(kind: D, data: DataPlace) -> D:
    """Return ``kind`` with the values that ``data`` sets: a name that is not empty, and what is not ``None``."""
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value not in (None, "")}
    return msgspec.structs.replace(kind, **given)


def command_line(verb: str, config: msgspec.Struct, *arguments: str) -> str:
    """A command that says what ``config`` says, as a person would type it: defaults are left out, the data set is not
    where one is read.
    """
    defaults = flat(msgspec.to_builtins(type(config)()))
    said = flat(msgspec.to_builtins(config))
    words = ["mobilenas", verb, *arguments]
    for key, value in said.items():
        if value == defaults.get(key) and (key != "data.name" or not value or "kernels" in said):
            continue
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        words += [_FLAGS[key], text] if key in _FLAGS else ["--set", f"{key}={text}"]
    return shell_command(words)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b`` -> value, without those that are unset."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found


def dump_config(config: msgspec.Struct) -> str:
    """The resolved configuration as TOML; what is unset is left out."""
    return tomli_w.dumps(_without_none(msgspec.to_builtins(config)))


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in data.items() if v is not None}
