"""The command line: options -> configuration -> workflow; renders results and errors, sets exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mobilenas.config import DataConfig, ExportConfig, ProfileConfig, SearchConfig, TrainConfig, command_line, load_config
from mobilenas.console import ConsoleListener, percent, print_table
from mobilenas.core import documents
from mobilenas.errors import MobileNASError

if TYPE_CHECKING:
    from mobilenas.results import BudgetOutcome

R = TypeVar("R")

app = typer.Typer(
    name="mobilenas",
    help="Find a neural network for a latency budget on a real device, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file of settings.", metavar="FILE")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as --set weights.lr=0.05.", metavar="KEY=VALUE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
DeviceName = Annotated[str | None, typer.Option("--device", help="Where to measure: local is this host.")]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="Engine that runs the network: onnxruntime.")]
Precision = Annotated[str | None, typer.Option("--precision", help="Number format: fp32.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the engine, 1 by default.")]
SpaceName = Annotated[str | None, typer.Option("--space", help="Search space: cells.")]
Channels = Annotated[int | None, typer.Option("--channels", help="Channels of the deployed network.")]
Layers = Annotated[int | None, typer.Option("--layers", help="Cells of the deployed network.")]
Plan = Annotated[str | None, typer.Option("--plan", help="How much to measure: quick, standard or strict.")]
DataName = Annotated[str | None, typer.Option("--data", help="Data set: digits or fashion-mnist.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")]
Run = Annotated[Path, typer.Argument(help="Run directory of a search.", metavar="RUN")]


@app.command()
def profile(
    device: DeviceName = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    space: SpaceName = None,
    channels: Channels = None,
    layers: Layers = None,
    data: DataName = None,
    plan: Plan = None,
    seed: Seed = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the table.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be measured.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a search space on a device: a latency lookup table with its error and where it came from.

    Interrupted, the same command goes on where it stopped.
    """
    flags = {
        "device.name": device,
        "device.runtime": runtime,
        "device.precision": precision,
        "device.threads": threads,
        "space.name": space,
        "space.options.channels": channels,
        "space.options.layers": layers,
        "data": data,
        "plan": plan,
        "seed": seed,
        "output": str(output) if output else None,
    }
    cfg = load_config(ProfileConfig, config, sets, flags)
    from mobilenas import workflows

    if dry_run:
        described = workflows.campaign_from_config(cfg).describe()
        _show(described, json, "profile, not run", [(key, str(value)) for key, value in described.items()])
        return
    result = _with_listener(quiet or json, lambda told: workflows.profile(cfg, told))
    rows = [
        ("table", result.table),
        ("kernels", f"{result.kernels} measured, {result.kernels_not_converged} not converged"),
        ("networks", f"{result.scale:.3f} x the sum of their kernels {1000 * result.offset_ms:+.1f} us"),
        ("error of the table", f"{percent(result.table_mape_fraction)}, worst {percent(result.table_worst_fraction)}"),
        ("error of a * MAdds + b", percent(result.baseline_mape_fraction)),
        ("repeatability", f"{percent(result.repeatability_fraction)} (of the measurements that judge)"),
        ("workload costs", f"{percent(result.workload_mape_fraction)} off the kernel sums"),
        ("took", f"{result.duration_s:.0f} s"),
    ]
    _show(result, json, "profile", rows)
    following = SearchConfig(
        device=cfg.device,
        space=cfg.space,
        data=DataConfig(name=cfg.data or "digits"),
        latency_budget="40%",
        table=cfg.output,
    )
    _next(json, command_line("search", following))


@app.command()
def search(
    latency_budget: Annotated[
        str | None,
        typer.Option("--latency-budget", help="As 5ms, 800us, or 40% of the space's range.", metavar="BUDGET"),
    ] = None,
    budget_statistic: Annotated[str | None, typer.Option("--budget-statistic", help="What the budget binds: floor.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Search method: darts.")] = None,
    space: SpaceName = None,
    channels: Channels = None,
    layers: Layers = None,
    data: DataName = None,
    epochs: Epochs = None,
    device: DeviceName = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    table: Annotated[Path | None, typer.Option("--table", help="Folder of the latency table.")] = None,
    plan: Plan = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Do not measure candidates.")] = False,
    seed: Seed = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for an architecture that meets a latency budget; measure what was found on the device."""
    flags = {
        "latency_budget": latency_budget,
        "budget_statistic": budget_statistic,
        "method": method,
        "space.name": space,
        "space.options.channels": channels,
        "space.options.layers": layers,
        "data.name": data,
        "epochs": epochs,
        "device.name": device,
        "device.runtime": runtime,
        "device.precision": precision,
        "device.threads": threads,
        "table": str(table) if table else None,
        "plan": plan,
        "measure": False if no_measure else None,
        "seed": seed,
    }
    cfg = load_config(SearchConfig, config, sets, flags)
    if cfg.latency_budget is not None:
        from mobilenas.core.units import parse_latency_target

        parse_latency_target(cfg.latency_budget)
    from mobilenas import workflows

    folder = output or workflows.default_run("search")
    resume = "the same command" if output else f"the same command with --output {folder}"
    result = _with_listener(quiet or json, lambda told: workflows.search(cfg, folder, told), resume)
    rows = [
        *(_budget_rows(result.budgets[0]) if result.budgets else [("budget", "none")]),
        ("parameters", f"{result.params:,}"),
        ("MAdds", f"{result.madds:,}"),
        ("architecture", f"{result.run}/architecture.json ({result.fingerprint})"),
        ("took", f"{result.duration_s:.0f} s"),
    ]
    _show(result, json, "search", rows)
    _next(json, f"mobilenas train {result.run} --data {cfg.data.name}")


@app.command()
def train(
    run: Run,
    data: DataName = None,
    epochs: Epochs = None,
    seed: Seed = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the found architecture from scratch."""
    cfg = load_config(TrainConfig, config, sets, {"data.name": data, "epochs": epochs, "seed": seed})
    from mobilenas import workflows

    result = _with_listener(quiet or json, lambda told: workflows.train(run, cfg, told))
    rows = [
        ("test accuracy", f"{result.test_accuracy:.2%}"),
        ("weights", result.weights),
        ("took", f"{result.duration_s:.0f} s"),
    ]
    _show(result, json, "train", rows)
    _next(json, f"mobilenas export {run} --onnx")


@app.command()
def export(
    run: Run,
    onnx: Annotated[bool | None, typer.Option("--onnx", help="Write an ONNX model (the default).")] = None,
    device: DeviceName = None,
    no_device: Annotated[bool, typer.Option("--no-device", help="Do not measure the exported model.")] = False,
    plan: Plan = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export the network, check it against torch, and measure it on the device: predicted beside measured."""
    cfg = load_config(ExportConfig, config, sets, {"onnx": onnx, "device": device, "plan": plan})
    from mobilenas import workflows

    if no_device:
        import msgspec

        cfg = msgspec.structs.replace(cfg, device=None)
    result = _with_listener(quiet or json, lambda told: workflows.export(run, cfg, told))
    rows = [] if result.budget is None else _budget_rows(result.budget)
    if result.measured is not None:
        repeats = _repeats(result.measured.repeatability_fraction, result.measured.converged)
        met = {None: "", True: "; the budget is met", False: "; OVER THE BUDGET"}[result.budget_met]
        rows.append(("measured, exported", f"{result.measured.value_ms:.4g} ms, {repeats}{met}"))
    agreement = result.agreement
    rows += [
        ("parameters", f"{result.params:,}"),
        ("MAdds", f"{result.madds:,}"),
        ("test accuracy", "untrained" if result.test_accuracy is None else f"{result.test_accuracy:.2%}"),
        (
            "against torch",
            f"largest difference {agreement.maximum_difference:.2g}, same class for "
            f"{agreement.top_1_agreement_fraction:.0%} of {agreement.inputs} images",
        ),
        ("model", result.model),
        ("report", f"{result.folder}/report.json"),
        ("look further", f"{run}/result.json, {run}/metrics.jsonl; netron {result.model}"),
    ]
    _show(result, json, "export", rows)


@app.command()
def env(json: Json = False) -> None:
    """Versions, devices and folders: what to paste into a bug report."""
    from importlib.metadata import PackageNotFoundError, version

    from mobilenas.core.measurement import detect_environment
    from mobilenas.core.resources import shipped, user_data_directory

    packages = ("mobilenas", "torch", "torchvision", "lightning-fabric", "onnx", "onnxruntime", "scikit-learn", "numpy")
    optional = ("tensorrt-rtx", "tensorrt", "ray", "tensorboard")
    versions = {}
    for name in (*packages, *optional):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    environment = detect_environment(versions)
    home = user_data_directory()
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "system": environment.system,
        "cpu": f"{environment.cpu_model}, {environment.cpu_count} cores",
        "governor": environment.governor or "unknown",
        "load": " ".join(f"{load:.2f}" for load in environment.load_average),
        "ssh": shutil.which("ssh") or "not found",
        "adb": shutil.which("adb") or "not found",
        "user data": str(home),
        "free disk": f"{shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free / 2**30:.1f} GiB",
        "latency tables": str(shipped("latency_tables")),
        "runners": str(shipped("export") / "runners"),
        **versions,
    }
    _show(facts, json, "environment", [(name, str(value)) for name, value in facts.items()])


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("mobilenas"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _with_listener(quiet: bool, work: Callable[[ConsoleListener], R], resume: str = "the same command") -> R:
    try:
        with ConsoleListener(quiet) as told:
            return work(told)
    except KeyboardInterrupt:
        print(f"interrupted; {resume} goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def _budget_rows(budget: BudgetOutcome) -> list[tuple[str, str]]:
    if budget.measured_ms is None or budget.measured_repeatability_fraction is None:
        measured = "not verified on target"
    else:
        over = budget.measured_ms / budget.target_ms - 1
        repeats = _repeats(budget.measured_repeatability_fraction, bool(budget.measured_converged))
        measured = f"{budget.measured_ms:.4g} ms ({over:+.1%} of the budget), {repeats}"
    return [
        (
            "budget",
            f"{budget.target_ms:.4g} ms ({budget.text}; the space: {budget.lowest_ms:.4g} to {budget.highest_ms:.4g} ms)",
        ),
        ("expected", f"{budget.expected_ms:.4g} ms (supernet, last epoch)"),
        ("table", f"{budget.table_ms:.4g} ms ({budget.table_low_ms:.4g} to {budget.table_high_ms:.4g})"),
        ("measured", measured),
    ]


def _repeats(fraction: float, converged: bool) -> str:
    return f"repeatable within {percent(fraction)}" + ("" if converged else ", which is not yet settled: measure longer")


def _show(result: Any, json: bool, title: str, rows: list[tuple[str, str]]) -> None:
    if json:
        print(documents.dump_json(result), end="")
    else:
        print_table(title, rows)


def _next(json: bool, command: str) -> None:
    if not json:
        print(f"next: {command}")


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point: errors that a user can act on are one paragraph and their own exit code, bugs keep their traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=True)
    except MobileNASError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
