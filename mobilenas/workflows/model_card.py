"""The model card of an export: what the network is, what it reaches, what it takes on which device, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from mobilenas.config import DeviceConfig, ExportConfig, SearchConfig, TrainConfig, command_line, load_config
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import Measurement
from mobilenas.core.text import markdown, printable
from mobilenas.data import ImageData
from mobilenas.export.verify import Agreement
from mobilenas.results import BudgetOutcome, DataFacts, EngineExport, ExportResult
from mobilenas.spaces.base import SearchSpace
from mobilenas.workflows.naming import RESULT

MODEL_CARD = "MODEL_CARD.md"
"""Its file in the exported folder."""


def model_card(
    run: Path,
    result: ExportResult,
    space: SearchSpace,
    architecture: Architecture,
    data: ImageData | None,
    search_cfg: SearchConfig,
    cfg: ExportConfig,
) -> str:
    """The card as Markdown; what is not known is said to be so."""
    commands = "\n".join(_commands(run, search_cfg, cfg))
    fence = "```"
    while fence in commands:
        fence += "`"
    onnx = ["ONNX", "fp32", f"`{Path(result.model).name}`", *_agreement_words(result.agreement)]
    parts = [
        f"# A network of the space {markdown(architecture.space)}, {result.fingerprint}",
        f"Made by mobilenas {version('mobilenas')}. The same facts as JSON: `report.json`; the architecture alone: "
        "`architecture.json`.",
        "## The network",
        _table(
            ("", ""),
            [
                ("Input", " x ".join(map(str, space.image_shape)) + _preprocessing_words(data)),
                ("Classes", str(space.options["classes"])),
                ("Parameters", f"{result.params:,}"),
                ("Multiply-adds", f"{result.madds:,}"),
                *_data_rows(data, result.data),
                ("Test accuracy", "untrained" if result.test_accuracy is None else f"{result.test_accuracy:.2%}"),
                *((f"Option {markdown(name)}", markdown(str(value))) for name, value in sorted(space.options.items())),
            ],
        ),
        _table(("Decision", "Choice"), [tuple(map(markdown, choice)) for choice in sorted(architecture.choices.items())]),
        "## What each engine makes of it",
        _table(
            (
                "Engine",
                "Precision",
                "Files",
                "Largest difference from torch",
                "Same class",
                "Accuracy",
                "Torch on the same images",
            ),
            [onnx, *(_engine_row(engine) for engine in result.engines)],
        ),
        "## Latency",
        *_budget_words(result.budget, search_cfg.device),
        *_latency(result),
        "## How it was made",
        f"{fence}sh\n{commands}\n{fence}",
    ]
    return "\n\n".join(parts) + "\n"


def _data_rows(data: ImageData | None, facts: DataFacts | None) -> list[tuple[str, str]]:
    """Return rows on the data set: how its files were read, and what was left out of it."""
    if data is None or facts is None:
        return [("Data set", "none")]
    rows = [
        ("Data set", f"{markdown(data.name)}, {facts.train_images:,} images for training, {facts.test_images:,} for testing")
    ]
    if facts.split is not None:
        drawn = f"a share of {facts.split:g} of each class, drawn by the seed of the training"
        rows.append(("Images for testing", f"{drawn}; digest of the lists {facts.digest}"))
    if data.reading:
        rows.append(("Pictures", data.reading))
    return [*rows, *(("Left out", markdown(note)) for note in facts.notes)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(printable, line)) + " |" for line in lines)


def _preprocessing_words(data: ImageData | None) -> str:
    if data is None:
        return ""
    how = data.preprocessing
    return f", {how.colour}: (pixel / 255 - mean) / std with mean {list(how.mean)} and std {list(how.std)}"


def _engine_row(engine: EngineExport) -> list[str]:
    named = ", ".join(f"`{Path(file).name}`" for file in engine.files)
    head = [markdown(f"{engine.runtime} {engine.engine_version}"), markdown(engine.settings.precision), named]
    if engine.agreement is None:
        return [*head, f"not run: {markdown(str(engine.not_run))}", "", "", ""]
    return [*head, *_agreement_words(engine.agreement)]


def _agreement_words(found: Agreement) -> list[str]:
    off = "no numbers" if found.relative_difference is None else f"{found.relative_difference:.2g} of the largest logit"
    accuracies = ["unknown" if a is None else f"{a:.2%}" for a in (found.accuracy, found.torch_accuracy)]
    return [off, f"{found.top_1_agreement_fraction:.1%} of {found.inputs}", *accuracies]


def _budget_words(budget: BudgetOutcome | None, device: DeviceConfig) -> list[str]:
    if budget is None:
        return ["The network was not searched for a budget."]
    target = markdown(f"{device.name}, {device.runtime} {device.precision}, {device.threads} threads, batch {device.batch}")
    return [
        f"Budget: {budget.target_ms:.4g} ms ({budget.statistic}) on {target}. Predicted for that by the {budget.model}: "
        f"{budget.table_ms:.4g} ms ({budget.table_low_ms:.4g} to {budget.table_high_ms:.4g}, which holds "
        f"{budget.coverage_fraction:.0%} of networks)."
    ]


def _latency(result: ExportResult) -> list[str]:
    timed = [(engine, engine.measured, engine.environment) for engine in result.engines if engine.measured]
    if not timed or result.device is None:
        return ["The exported model was not measured."]
    rows = [_latency_row(engine, measured) for engine, measured, _ in timed]
    engines = [
        f"{markdown(engine.runtime)}: {_state_words(environment)}; measured at {engine.measured_at or 'a time not noted'}."
        for engine, _, environment in timed
        if environment
    ]
    return [
        "Device: "
        + ", ".join(markdown(str(words)) for words in (result.device["name"], result.device["cpu_model"]))
        + f", {result.device['cpu_count']} cores, {markdown(str(result.device['system']))}.",
        _table(
            ("Engine", "By", "Precision", "Threads", "Batch", "Measured", "Repeats within", "First run", "Peak memory"), rows
        ),
        "\n".join(["The device while it was measured:", "", *(f"- {words}" for words in engines)]),
    ]


def _latency_row(engine: EngineExport, measured: Measurement) -> list[str]:
    asked, memory = engine.settings, measured.peak_memory_mib
    return [
        markdown(f"{engine.runtime} {engine.engine_version}"),
        markdown(asked.provider),
        asked.precision,
        str(asked.threads),
        str(asked.batch),
        f"{measured.value_ms:.4g} ms ({measured.estimator} of {measured.samples} runs)",
        f"{measured.repeatability_fraction:.1%}" + ("" if measured.converged else ", not yet settled"),
        f"{measured.first_ms:.4g} ms",
        "unknown" if memory is None else f"{memory:.0f} MiB",
    ]


def _state_words(state: Environment) -> str:
    clocks, heat = state.frequencies_mhz, state.temperatures_celsius
    known = [
        f"governor {markdown(state.governor or 'unknown')}",
        f"clocks {min(clocks):.0f} to {max(clocks):.0f} MHz" if clocks else "clocks unknown",
        f"{max(heat):.0f} degrees Celsius at the warmest" if heat else "temperature unknown",
        f"load {state.load_average[0]:.2f}",
    ]
    return ", ".join(known)


def _commands(run: Path, search_cfg: SearchConfig, cfg: ExportConfig) -> list[str]:
    """Those that made the run, as a person would type them; of a network that was given, from its training on."""
    found = []
    if "method" in documents.parse_json(documents.read_text(run / RESULT), str(run / RESULT)):
        found.append(command_line("search", search_cfg, "--output", str(run)))
    trained = run / "train" / "config.toml"
    if trained.exists():
        found.append(command_line("train", load_config(TrainConfig, trained, [], {}), str(run)))
    unmeasured = [] if cfg.device else ["--no-device"]
    return [*found, command_line("export", cfg, str(run), "--onnx", *unmeasured)]
