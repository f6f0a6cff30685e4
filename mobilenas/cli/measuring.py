"""The command ``measure``: what ONNX models take on a device, as a table or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenas.cli.options import (
    ConfigFile,
    DeviceName,
    Estimator,
    Json,
    Plan,
    Precision,
    Quiet,
    Sets,
    Shapes,
    Threads,
    named_values,
    shapes_from_options,
)
from mobilenas.cli.output import BEGINS_ANEW, repeats, show, with_listener
from mobilenas.config import MeasureConfig, load_config
from mobilenas.console import percent, print_columns, print_error
from mobilenas.errors import BudgetError

if TYPE_CHECKING:
    from mobilenas.results import MeasuredTimes, MeasureResult

BUSY = 0.05
"""Share of the processors that others take, from which on it is said to be much."""


def measure(
    models: Annotated[list[Path], typer.Argument(help="ONNX files of any networks.", metavar="MODEL.onnx...")],
    device: DeviceName = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="Engines, as onnxruntime,ncnn,mnn; each measures every model.")
    ] = None,
    precision: Precision = None,
    threads: Threads = None,
    estimator: Estimator = None,
    plan: Plan = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="As 5ms: ends with 5 where a model takes longer.", metavar="TIME")
    ] = None,
    shape: Shapes = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", help="Values of an input, as --input images=images.npy.", metavar="NAME=FILE.npy"),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the dearest kernels to list.")] = 5,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure ONNX models on a device, in seconds and without a table. Ends with 5 if one is over --budget.

    A model that fails does not cost the others: the command ends with the exit code of the first failure.
    """
    flags = {
        "device.name": device,
        "runtimes": runtime.split(",") if runtime is not None else None,
        "device.precision": precision,
        "device.threads": threads,
        "device.estimator": estimator,
        "plan": plan,
        "budget": budget,
        "shapes": shapes_from_options(shape),
        "inputs": named_values("--input", given, "images=images.npy"),
    }
    cfg = load_config(MeasureConfig, config, sets, flags)
    from mobilenas import workflows

    results = with_listener(quiet or json, lambda told: workflows.measure(models, cfg, told), BEGINS_ANEW)
    failures = [result.failure for result in results if result.failure]
    if len(results) > 1:
        _show_several(results, json)
    elif not failures or json:
        show(results[0], json, f"measure {results[0].model}", _rows(results[0], top))
    for failure in failures:
        print_error(failure.message)
    if failures:
        raise typer.Exit(failures[0].exit_code)
    over = [result for result in results if result.budget_met is False and result.measured]
    if over:
        said = ", ".join(f"{r.model} by {r.runtime} takes {r.measured.value_ms:.4g} ms" for r in over if r.measured)
        raise BudgetError(f"{said}; --budget is {cfg.budget}: use a smaller model, or raise the budget")


def _rows(result: MeasureResult, top: int) -> list[tuple[str, str]]:
    found = result.measured
    if found is None:
        return []
    rows = [
        (found.estimator, f"{found.value_ms:.4g} ms; a later run: {found.low_ms:.4g} to {found.high_ms:.4g} ms"),
        ("median, p90", f"{found.p50_ms:.4g} ms, {found.p90_ms:.4g} ms ({found.throughput_per_s:.4g} runs per second)"),
        ("first run, loading", f"{found.first_ms:.4g} ms, {found.load_ms:.4g} ms"),
        ("peak memory", "not known" if found.peak_memory_mib is None else f"{found.peak_memory_mib:.0f} MiB of the process"),
        (
            "measured",
            f"{found.samples} runs in {found.sweeps} sweeps, {repeats(found.repeatability_fraction, found.converged)}",
        ),
        ("load", _load_words(found)),
        ("by", f"{result.runtime} {result.engine_version} {result.settings.precision}, {result.settings.threads} threads"),
        ("on", result.device),
    ]
    if result.budget_ms is not None:
        rows.append(("budget", f"{result.budget_ms:.4g} ms: {'met' if result.budget_met else 'EXCEEDED'}"))
    rows += [("depends on data", operator) for operator in result.data_dependent]
    return [
        *rows,
        *((f"{k.ms:.4f} ms", f"{percent(k.share_fraction)}  {k.count} x {k.kernel}") for k in result.kernels[:top]),
    ]


def _load_words(found: MeasuredTimes) -> str:
    if found.load is None:
        return "the device does not tell how busy it is"
    words = f"others took {percent(found.load)} of the processors"
    return words if found.load < BUSY else f"{words}: measure on an idle device for a narrower interval"


def _show_several(results: tuple[MeasureResult, ...], json: bool) -> None:
    if json:
        from mobilenas.core import documents

        print(documents.dump_json({"results": results}), end="")
        return
    header = ("model", "runtime", "ms", "a later run", "median", "p90", "first", "load", "MiB", "")
    rows = []
    for result in results:
        found = result.measured
        if found is None:
            rows.append((result.model, result.runtime, *[""] * 7, "failed"))
            continue
        times = (found.p50_ms, found.p90_ms, found.first_ms, found.load_ms)
        memory = "" if found.peak_memory_mib is None else f"{found.peak_memory_mib:.0f}"
        interval = f"{found.low_ms:.4g} to {found.high_ms:.4g}"
        verdict = {None: "", True: "within budget", False: "OVER THE BUDGET"}[result.budget_met]
        notes = [*([verdict] if verdict else []), *(["depends on data"] if result.data_dependent else [])]
        sizes = (f"{found.value_ms:.4g}", interval, *(f"{ms:.4g}" for ms in times), memory)
        rows.append((result.model, result.runtime, *sizes, ", ".join(notes)))
    print_columns(header, rows)
