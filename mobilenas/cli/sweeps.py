"""The command that runs many searches and trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenas.cli.options import Channels, ConfigFile, DataName, Json, Layers, Quiet, Sets, SpaceName
from mobilenas.cli.output import show, with_listener
from mobilenas.config import SweepConfig, load_config
from mobilenas.errors import MobileNASError


def sweep(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the sweep; one that is there goes on.")],
    method: Annotated[
        list[str] | None, typer.Option("--method", help="A method to try, besides random search; may be said again.")
    ] = None,
    latency_budget: Annotated[
        list[str] | None, typer.Option("--latency-budget", help="A budget to try; may be said again.", metavar="BUDGET")
    ] = None,
    device: Annotated[list[str] | None, typer.Option("--device", help="A device to try; may be said again.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Searches of each kind.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Settings of the methods' searches, as quick.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster; one on this host by default.")] = None,
    space: SpaceName = None,
    channels: Channels = None,
    layers: Layers = None,
    data: DataName = None,
    config: ConfigFile = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search and train by several methods, budgets, devices and seeds; which networks are beaten by none."""
    flags = {
        "methods": tuple(method) if method else None,
        "budgets": tuple(latency_budget) if latency_budget else None,
        "devices": tuple(device) if device else None,
        "seeds": seeds,
        "preset": preset,
        "address": address,
        "search.space.name": space,
        "search.space.options.channels": channels,
        "search.space.options.layers": layers,
        "search.data.name": data,
    }
    cfg = load_config(SweepConfig, config, sets, flags)
    from mobilenas import workflows

    goes_on = "the same command goes on; trials that are done are not run again"
    result = with_listener(quiet or json, lambda told: workflows.sweep(cfg, output, told), goes_on)
    rows = [
        (
            f"{'* ' if group.is_on_front else ''}{group.method} {group.budget} {group.device}",
            f"{group.accuracy:.2%} ({group.lowest_accuracy:.2%} to {group.highest_accuracy:.2%} of {group.trials}) at "
            f"{group.ms:.4g} ms; searched in {group.search_s:.0f} s, {group.images:,.0f} images",
        )
        for group in sorted(result.groups, key=lambda group: (group.budget, -group.accuracy))
    ]
    rows += [(f"failed {trial.name}", trial.reason) for trial in result.trials if trial.reason]
    rows += [("drawing", result.drawing)] if result.drawing else []
    show(result, json, f"sweep: {len(result.trials)} trials, * beaten by none", rows)
    if not result.groups:
        raise MobileNASError(f"no trial of {output} was finished: see why in {output}/sweep.json")
