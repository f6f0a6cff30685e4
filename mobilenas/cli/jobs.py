"""The commands that work: profile, search, train, evaluate, export, verify, predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobilenas.cli.options import (
    Channels,
    ComputePrecision,
    ConfigFile,
    DataName,
    DeviceName,
    Devices,
    Epochs,
    Estimator,
    Json,
    Layers,
    Plan,
    Precision,
    Quiet,
    Run,
    RuntimeName,
    Seed,
    Sets,
    Shapes,
    SpaceName,
    Threads,
    shapes_from_options,
)
from mobilenas.cli.output import (
    BEGINS_ANEW,
    GOES_ON,
    agreement_words,
    budget_rows,
    coverage_words,
    disagreement_rows,
    flag_words,
    interval_words,
    moved_words,
    proxy_row,
    repeats_of,
    say_next,
    scale_words,
    show,
    slow_down_words,
    speed_words,
    with_listener,
)
from mobilenas.config import (
    DataConfig,
    DescribeConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    ProfileConfig,
    SearchConfig,
    TrainConfig,
    VerifyConfig,
    command_line,
    load_config,
    load_preset,
    load_recipe,
    same_data,
)
from mobilenas.console import percent
from mobilenas.errors import BudgetError, MeasurementError

if TYPE_CHECKING:
    from mobilenas.results import ProfileResult, SearchPlan, TransferResult
    from mobilenas.search.memory import MemoryEstimate
    from mobilenas.search.selection import Selection


def _device_flags(
    device: str | None, runtime: str | None, precision: str | None, threads: int | None, estimator: str | None
) -> dict[str, Any]:
    return {
        "device.name": device,
        "device.runtime": runtime,
        "device.precision": precision,
        "device.threads": threads,
        "device.estimator": estimator,
    }


def profile(
    device: DeviceName = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    estimator: Estimator = None,
    space: SpaceName = None,
    channels: Channels = None,
    layers: Layers = None,
    data: DataName = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "--kernels",
            help="Not a space: kernels of mobile networks, for predict. About so many, or default; alone it means default.",
            metavar="[default|N]",
        ),
    ] = None,
    measure_networks: Annotated[
        int | None, typer.Option("--measure-networks", help="So many more whole networks, for search --latency-model network.")
    ] = None,
    transfer: Annotated[
        bool | None, typer.Option("--transfer", help="Measure those networks only, and start from tables of other targets.")
    ] = None,
    plan: Plan = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--env", help="A clock that is not fixed, a busy machine: strict refuses, warn says so, off does not look."
        ),
    ] = None,
    seed: Seed = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the table.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be measured.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a search space, or kernels of any network, on a device: a latency table with its error and where it came from.

    Interrupted, the same command goes on where it stopped.
    """
    flags = {
        **_device_flags(device, runtime, precision, threads, estimator),
        "space.name": space,
        "space.options.channels": channels,
        "space.options.layers": layers,
        "data.name": data,
        "kernels": int(kernels) if kernels is not None and kernels.lstrip("+-").isdecimal() else kernels,
        "measure_networks": measure_networks,
        "transfer": transfer,
        "plan": plan,
        "environment": environment,
        "seed": seed,
        "output": str(output) if output else None,
    }
    cfg = load_config(ProfileConfig, config, sets, flags, apart={"kernels": ("space", "data")})
    from mobilenas import workflows

    if dry_run:
        described = (workflows.transfer_from_config(cfg) if cfg.transfer else workflows.campaign_from_config(cfg)).describe()
        show(described, json, "profile, not run", [(key, str(value)) for key, value in described.items()])
        return
    if cfg.transfer:
        _transfer(cfg, json, quiet)
        return
    result = with_listener(quiet or json, lambda told: workflows.profile(cfg, told), GOES_ON)
    rows = [
        ("table", result.table),
        ("kernels", f"{result.kernels} measured, {result.kernels_not_converged} not converged"),
        ("networks", scale_words(result.scale, result.scale_spread_fraction)),
        ("not converged", f"{result.networks_not_converged} of {result.networks} measured networks"),
        ("error of the table", f"{percent(result.table_mape_fraction)}, worst {percent(result.table_worst_fraction)}"),
        ("error of a * MAdds + b", percent(result.baseline_mape_fraction)),
        ("repeatability", f"{percent(result.repeatability_fraction)} (of the measurements that judge)"),
    ]
    if result.workload_mape_fraction is not None:
        rows.append(("workload costs", f"{percent(result.workload_mape_fraction)} off the kernel sums"))
    learnt = result.network_error
    if learnt is not None:
        error = f"{percent(learnt.mape_fraction)}, worst {percent(learnt.worst_fraction)}"
        rows.append(("error of the network predictor", f"{error} ({learnt.networks} networks, each without itself)"))
    rows += [*_doubt_rows(result), *(("doubt", words) for words in flag_words(result.flags))]
    if result.since:
        rows.append((f"since {result.since.before_created}", moved_words(result.since)))
    rows.append(("took", f"{result.duration_s:.0f} s"))
    show(result, json, "profile", rows)
    if cfg.kernels is not None:
        say_next(json, command_line("predict", PredictConfig(device=cfg.device), "MODEL.onnx"))
        return
    say_next(json, _search_after(cfg, "network" if learnt and learnt.mape_fraction < result.table_mape_fraction else "table"))


def _doubt_rows(result: ProfileResult | TransferResult) -> list[tuple[str, str]]:
    slowed = [slow_down_words(result.slow_down)] if result.slow_down else []
    return [("doubt", doubt) for doubt in (*result.doubts, *slowed)]


def _transfer(cfg: ProfileConfig, json: bool, quiet: bool) -> None:
    from mobilenas import workflows

    result = with_listener(quiet or json, lambda told: workflows.transfer(cfg, told), GOES_ON)
    error = f"{percent(result.error.mape_fraction)}, worst {percent(result.error.worst_fraction)}"
    rows = [
        ("network predictor", result.folder),
        ("measured", f"{result.networks} networks, {result.networks_not_converged} not converged; no kernels"),
        ("error", f"{error} (each network without itself)"),
        ("interval", f"within {result.interval_factor:.3f} times{coverage_words(result.coverage_fraction)}"),
        ("linear costs", f"{percent(result.workload_mape_fraction)} off the predictor"),
        *(proxy_row(proxy) for proxy in result.proxies),
        *_doubt_rows(result),
        ("took", f"{result.duration_s:.0f} s"),
    ]
    show(result, json, "profile --transfer", rows)
    say_next(json, _search_after(cfg, "network"))


def _search_after(cfg: ProfileConfig, latency_model: str) -> str:
    following = SearchConfig(
        device=cfg.device,
        space=cfg.space,
        data=same_data(DataConfig(), cfg.data) if cfg.data.name else DataConfig(),
        latency_budget="40%",
        latency_model=latency_model,
        table=cfg.output,
    )
    return command_line("search", following)


def search(
    latency_budget: Annotated[
        str | None,
        typer.Option("--latency-budget", help="As 5ms, 800us, or 40% of the space's range.", metavar="BUDGET"),
    ] = None,
    budget_statistic: Annotated[
        str | None,
        typer.Option("--budget-statistic", help="What the budget binds: floor, median or p90; by default the estimator."),
    ] = None,
    budget_quantile: Annotated[
        float | None, typer.Option("--budget-quantile", help="Bind the prediction's interval at this quantile, 0.5 to 0.99.")
    ] = None,
    latency_model: Annotated[
        str | None, typer.Option("--latency-model", help="What predicts: table, kernel or network.", metavar="NAME")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Search method: darts, gdas, p-darts, pc-darts, dense-nas or random.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Published settings of the method (cifar10, imagenet, ...), or quick.")
    ] = None,
    space: SpaceName = None,
    channels: Channels = None,
    layers: Layers = None,
    data: DataName = None,
    epochs: Epochs = None,
    devices: Devices = None,
    compute_precision: ComputePrecision = None,
    device: DeviceName = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    estimator: Estimator = None,
    table: Annotated[Path | None, typer.Option("--table", help="Folder of the latency table.")] = None,
    plan: Plan = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Do not measure candidates.")] = False,
    seed: Seed = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be searched, and the memory it takes.")
    ] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for an architecture that meets a latency budget; measure what was found on the device."""
    flags = {
        "latency_budget": latency_budget,
        "budget_statistic": budget_statistic,
        "budget_quantile": budget_quantile,
        "latency_model": latency_model,
        "method": method,
        "space.name": space,
        "space.options.channels": channels,
        "space.options.layers": layers,
        "data.name": data,
        "epochs": epochs,
        "compute.devices": devices,
        "compute.precision": compute_precision,
        **_device_flags(device, runtime, precision, threads, estimator),
        "table": str(table) if table else None,
        "plan": plan,
        "measure": False if no_measure else None,
        "seed": seed,
    }
    cfg = load_config(SearchConfig, config, sets, flags)
    if preset is not None:
        cfg = load_config(SearchConfig, config, sets, flags, load_preset(cfg.method, preset))
    if cfg.latency_budget is not None:
        from mobilenas.core.units import parse_latency_target

        parse_latency_target(cfg.latency_budget)
    from mobilenas import workflows

    if dry_run:
        _show_search_plan(workflows.search_plan(cfg), json)
        return
    folder = output or workflows.default_run("search")
    after_stop = GOES_ON if output else GOES_ON.replace("command", f"command with --output {folder}")
    result = with_listener(quiet or json, lambda told: workflows.search(cfg, folder, told), after_stop)
    rows = [
        *(budget_rows(result.budgets[0]) if result.budgets else [("budget", "none")]),
        *disagreement_rows(result.budgets[0].agrees if result.budgets else None),
        *(
            [("doubt", "the search collapsed" + "; this is where it stood before" * result.restored)]
            if result.collapsed
            else []
        ),
        *_selection_rows(result.selection),
        ("parameters", f"{result.params:,}"),
        ("MAdds", f"{result.madds:,}"),
        ("architecture", f"{result.run}/architecture.json ({result.fingerprint})"),
        ("took", f"{result.duration_s:.0f} s"),
    ]
    show(result, json, "search", rows)
    say_next(json, command_line("train", TrainConfig(data=same_data(TrainConfig().data, cfg.data)), result.run))


def _selection_rows(selection: Selection | None) -> list[tuple[str, str]]:
    """Return rows on the choice of the network among those that use up the budget."""
    if selection is None or not selection.candidates:
        return []
    best, count = selection.candidates[0], len(selection.candidates)
    ranks = ", ".join(f"{rank:g} of {count} by {name}" for name, rank in best.ranks.items())
    rows = [("chosen", f"the best sum of ranks: {ranks}; {selection.images:,} images were spent")]
    agreement = [f"{name} {found:.2f}" for name, found in selection.correlations.items()]
    return rows + ([("agreement", f"with the short trainings, by Spearman: {', '.join(agreement)}")] if agreement else [])


def _show_search_plan(plan: SearchPlan, json: bool) -> None:
    epochs = " + ".join(map(str, plan.stages)) or "none"
    rows = [
        ("method", plan.method),
        ("space", plan.space),
        ("images", f"{plan.images[0]:,} for the weights, {plan.images[1]:,} for the architecture"),
        ("epochs", epochs),
        *_memory_rows(plan.memory, plan.batch, plan.parts),
    ]
    if plan.target_ms is not None:
        rows.append(
            ("budget", f"{plan.target_ms:.4g} ms; the space's networks take {plan.lowest_ms:.4g} to {plan.highest_ms:.4g} ms")
        )
    show(plan, json, "search, not run", rows)


def _memory_rows(memory: MemoryEstimate | None, batch: int, parts: int) -> list[tuple[str, str]]:
    if memory is None:
        return []
    in_parts = f" in {parts} parts" if parts > 1 else ""
    return [
        ("parameters", f"{memory.parameters:,}"),
        ("memory", f"{memory} for a step on {batch} images{in_parts}, beside libraries"),
    ]


def train(
    target: Annotated[
        str, typer.Argument(help="Run directory, architecture file, or name of a published network.", metavar="RUN|FILE|NAME")
    ],
    preset: Annotated[str | None, typer.Option("--preset", help="Published settings, as darts-cifar.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Train on noise, to see how fast it is.")] = False,
    data: DataName = None,
    epochs: Epochs = None,
    devices: Devices = None,
    compute_precision: ComputePrecision = None,
    seed: Seed = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be trained, and the memory it takes.")
    ] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an architecture from scratch."""
    flags = {
        "data.name": data,
        "epochs": epochs,
        "compute.devices": devices,
        "compute.precision": compute_precision,
        "seed": seed,
        "synthetic": True if synthetic else None,
    }
    cfg = load_config(TrainConfig, config, sets, flags, load_recipe(preset) if preset else None)
    from mobilenas import workflows

    if dry_run:
        plan = workflows.train_plan(workflows.find_network(target, DescribeConfig()).architecture, cfg)
        rows = [("network", plan.fingerprint), ("images", f"{plan.images:,}"), ("epochs", str(plan.epochs))]
        show(plan, json, "train, not run", [*rows, *_memory_rows(plan.memory, plan.batch, plan.parts)])
        return
    run = workflows.run_of(target)
    result = with_listener(quiet or json, lambda told: workflows.train(run, cfg, told), GOES_ON)
    rows = [
        ("test accuracy", f"{result.test_accuracy:.2%}"),
        ("top 5", "-" if result.top_5_accuracy is None else f"{result.top_5_accuracy:.2%}"),
        ("weights", result.weights),
        ("took", f"{result.duration_s:.0f} s"),
    ]
    show(result, json, "train", rows)
    if not synthetic:
        say_next(json, command_line("export", ExportConfig(), str(run), "--onnx"))


def export(
    target: Annotated[str, typer.Argument(help="Run directory, or name of a published network.", metavar="RUN|NAME")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Check and measure the ONNX model by ONNX Runtime.")] = False,
    ncnn: Annotated[bool, typer.Option("--ncnn", help="Convert the model to ncnn, too.")] = False,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Have TensorRT build an engine of it, too.")] = False,
    mnn: Annotated[bool, typer.Option("--mnn", help="Convert the model to MNN, too.")] = False,
    kit: Annotated[list[str] | None, typer.Option("--kit", help="Fill a deployment kit, as linux-onnxruntime.")] = None,
    precision: Precision = None,
    device: DeviceName = None,
    no_device: Annotated[bool, typer.Option("--no-device", help="Do not measure the exported model.")] = False,
    plan: Plan = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export the network, check it against torch, and measure it on the device: predicted beside measured."""
    by_flag = {"onnxruntime": onnx, "ncnn": ncnn, "mnn": mnn, "tensorrt": tensorrt}
    asked = [name for name, is_asked in by_flag.items() if is_asked]
    flags = {"runtimes": asked or None, "kits": kit or None, "precision": precision, "device": device, "plan": plan}
    cfg = load_config(ExportConfig, config, sets, flags)
    from mobilenas import workflows

    if no_device:
        import msgspec

        cfg = msgspec.structs.replace(cfg, device=None)
    run = workflows.run_of(target)
    result = with_listener(quiet or json, lambda told: workflows.export(run, cfg, told), BEGINS_ANEW)
    rows = [] if result.budget is None else budget_rows(result.budget)
    verdict = {None: "", True: "; the budget is met", False: "; OVER THE BUDGET"}[result.budget_met]
    if result.budget and result.measured:
        verdict = speed_words(result.budget.table_sentinel_ms, result.measured.sentinel_ms) + verdict
    for engine in result.engines:
        said = agreement_words(engine.agreement) if engine.agreement else f"not run: {engine.not_run}"
        rows.append((f"{engine.runtime} {engine.settings.precision}", f"{', '.join(engine.files)}; {said}"))
        if engine.measured is not None:
            when = f", at {engine.measured_at}" if cfg.device is None else ""
            rows.append(("  measured", f"{engine.measured.value_ms:.4g} ms, {repeats_of(engine.measured)}{when}{verdict}"))
        verdict = ""  # the budget is that of the first one, the search's own
    rows += [
        *disagreement_rows(result.agrees),
        ("parameters", f"{result.params:,}"),
        ("MAdds", f"{result.madds:,}"),
        ("test accuracy", "untrained" if result.test_accuracy is None else f"{result.test_accuracy:.2%}"),
        ("model", f"{result.model}; {agreement_words(result.agreement)}"),
        *(("kit", folder) for folder in result.kits),
        ("report", f"{result.folder}/report.json, {result.folder}/MODEL_CARD.md"),
        ("look further", f"{run}/result.json, {run}/metrics.jsonl; netron {result.model}"),
    ]
    show(result, json, "export", rows)


def evaluate(
    run: Run,
    data: DataName = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test the trained network on the test images of its data set, or of another one of the same shape."""
    cfg = load_config(EvaluateConfig, config, sets, {"data.name": data})
    from mobilenas import workflows

    result = with_listener(quiet or json, lambda told: workflows.evaluate(run, cfg, told), BEGINS_ANEW)
    rows = [
        ("accuracy", f"{result.accuracy:.2%} of {result.images} test images of {result.data}"),
        ("top 5", "-" if result.top_5_accuracy is None else f"{result.top_5_accuracy:.2%}"),
        ("cross entropy", f"{result.cross_entropy:.4f}"),
        ("worst class", f"{result.worst_class} ({result.worst_class_accuracy:.1%})"),
    ]
    show(result, json, "evaluate", rows)


def verify(
    run: Run,
    device: DeviceName = None,
    plan: Plan = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the network of a run on a device again: predicted beside measured. Ends with 5 if it is over its budget."""
    cfg = load_config(VerifyConfig, config, sets, {"device": device, "plan": plan})
    from mobilenas import workflows

    result = with_listener(quiet or json, lambda told: workflows.verify(run, cfg, told), BEGINS_ANEW)
    speed = speed_words(result.budget.table_sentinel_ms, result.measured.sentinel_ms) if result.budget else ""
    within = {None: "", True: ", in the table's interval", False: ", outside the table's interval"}[result.within_interval]
    rows = [] if result.budget is None else budget_rows(result.budget)
    rows += [
        ("measured now", f"{result.measured.value_ms:.4g} ms, {repeats_of(result.measured)}{within}{speed}"),
        ("model", "the exported one" if result.exported else "of the architecture, untrained"),
        *disagreement_rows(result.agrees),
        ("device", result.device),
        ("record", result.record),
    ]
    show(result, json, "verify", rows)
    if result.budget and result.budget_met is False:
        raise BudgetError(
            f"the network takes {result.measured.value_ms:.4g} ms on {result.device}; its budget is "
            f"{result.budget.target_ms:.4g} ms: search again with a lower --latency-budget, or profile again if the device "
            "has changed"
        )


def predict(
    model: Annotated[Path, typer.Argument(help="ONNX file of any network.", metavar="MODEL.onnx")],
    device: DeviceName = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    estimator: Estimator = None,
    table: Annotated[Path | None, typer.Option("--table", help="Use this latency table only.")] = None,
    profile_missing: Annotated[
        bool | None, typer.Option("--profile-missing", help="Measure kernels that no table has, and keep them.")
    ] = None,
    extrapolate: Annotated[
        bool | None, typer.Option("--extrapolate", help="Without effect: all kernels are predicted or estimated.", hidden=True)
    ] = None,
    measure: Annotated[bool | None, typer.Option("--measure", help="Measure the whole model too.")] = None,
    shape: Shapes = None,
    plan: Plan = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the dearest kernels to list.")] = 10,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict the latency of any ONNX model, kernel by kernel, from what was measured on the device."""
    flags = {
        **_device_flags(device, runtime, precision, threads, estimator),
        "table": str(table) if table else None,
        "profile_missing": profile_missing,
        "extrapolate": extrapolate,
        "measure": measure,
        "shapes": shapes_from_options(shape),
        "plan": plan,
    }
    cfg = load_config(PredictConfig, config, sets, flags)
    from mobilenas import workflows

    result = with_listener(quiet or json, lambda told: workflows.predict(model, cfg, told), GOES_ON)
    found, ms = result.predicted, result.predicted.prediction
    shaky = found.not_converged_share_fraction
    unsettled = f"; {percent(shaky)} of it in rows that did not converge" if shaky else ""
    rows = [
        ("predicted", f"{ms.ms:.4g} ms ({ms.low_ms:.4g} to {ms.high_ms:.4g})"),
        ("rests on", f"{found.rests_on}{unsettled}"),
        ("kernels", f"{sum(share.count for share in found.kernels)} executed, {len(found.kernels)} kinds"),
        ("sum", f"{found.kernel_sum_ms:.4g} ms of kernels, in networks {ms.ms / found.kernel_sum_ms:.3f} times as long"),
    ]
    rows += [("not used", text) for text in found.left_out]
    if result.table:
        rows.append(("newly measured", f"{result.newly_measured} kernels, kept in {result.table}"))
    if result.measured:
        error = percent(abs(ms.ms / result.measured.value_ms - 1))
        speed = speed_words(found.sentinel_ms, result.measured.sentinel_ms)
        rows.append(("measured", f"{result.measured.value_ms:.4g} ms: off by {error}, {repeats_of(result.measured)}{speed}"))
    rows += [
        (
            f"{share.ms:.4f} ms",
            f"{share.count} x {share.kernel.key}{'' if share.source == 'measured' else f' ({share.source})'}",
        )
        for share in found.kernels[:top]
    ]
    show(result, json, f"predict {model}", rows)
    if result.measured and result.agrees is False:
        raise MeasurementError(
            f"measured {interval_words(result.measured)}, predicted {ms.ms:.4g} ms ({ms.low_ms:.4g} to {ms.high_ms:.4g}): the "
            "two intervals have nothing in common, so one of them is wrong. Measure again on an idle device; if it stays so, "
            "say --profile-missing, or profile anew"
        )
