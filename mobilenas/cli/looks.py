"""The commands that only look: env, describe, table, devices, report; and what copies a table for others."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mobilenas.cli.options import Channels, DataName, Json, Layers, Sets, SpaceName
from mobilenas.cli.output import moved_words, proxy_row, scale_words, show, slow_down_words
from mobilenas.config import DescribeConfig, TrainConfig, command_line, load_config, same_data
from mobilenas.console import percent
from mobilenas.errors import UsageError

if TYPE_CHECKING:
    from mobilenas.latency.diff import Move
    from mobilenas.latency.network_card import NetworkCard
    from mobilenas.latency.table import NetworkContext, TableCard


def env(json: Json = False) -> None:
    """Versions, devices and folders: what to paste into a bug report."""
    from importlib.metadata import PackageNotFoundError, version

    from mobilenas.core.environment import detect_environment
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
    show(facts, json, "environment", [(name, str(value)) for name, value in facts.items()])


def describe(
    target: Annotated[
        str | None,
        typer.Argument(help="Run directory, architecture.json, or the name of a published network.", metavar="[TARGET]"),
    ] = None,
    space: SpaceName = None,
    channels: Channels = None,
    layers: Layers = None,
    classes: Annotated[int | None, typer.Option("--classes", help="Classes that the network tells apart.")] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Height and width of its images in pixels.")] = None,
    stem: Annotated[str | None, typer.Option("--stem", help="First layers: cifar or imagenet.")] = None,
    data: DataName = None,
    sets: Sets = None,
    drawing: Annotated[Path | None, typer.Option("--drawing", help="Draw the network into this SVG file.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Make a run directory of the network, to train and export it.")
    ] = None,
    json: Json = False,
) -> None:
    """What a network is made of (TARGET, at any size), or what a search space may choose (without TARGET)."""
    flags = {
        "space.name": space,
        "space.options.channels": channels,
        "space.options.layers": layers,
        "space.options.classes": classes,
        "space.options.image_size": image_size,
        "space.options.stem": stem,
        "data.name": data,
    }
    cfg = load_config(DescribeConfig, None, sets, flags)
    if target is None and (drawing or output):
        raise UsageError("describe without TARGET tells of a space: name a network to draw it or to make a run of it")
    from mobilenas import workflows
    from mobilenas.results import NetworkDescription

    found = workflows.describe(target, cfg)
    options = ", ".join(f"{name} {value}" for name, value in found.options.items() if not isinstance(value, tuple))
    rows = [("space", f"{found.space} ({options})"), ("input", " x ".join(map(str, found.input_shape)))]
    if isinstance(found, NetworkDescription):
        has_head = found.params_with_auxiliary > found.params
        with_head = f" ({found.params_with_auxiliary:,} with the auxiliary head)" if has_head else ""
        rows += [
            ("fingerprint", found.fingerprint),
            *([("paper", found.paper)] if found.paper else []),
            ("parameters", f"{found.params:,}{with_head}"),
            ("MAdds", f"{found.madds:,}"),
            *found.choices.items(),
            *((f"{o.count} x {o.operator}", f"{o.madds:,} MAdds, {o.params:,} parameters") for o in found.operators),
        ]
        if drawing is not None:
            from mobilenas.core.run_directory import write_atomic

            write_atomic(drawing, workflows.draw(str(target), cfg))
            rows.append(("drawing", str(drawing)))
        if output is not None and target is not None:
            workflows.make_run(target, cfg, output)
            named = cfg.data if cfg.data.name else msgspec.structs.replace(cfg.data, name="DATA")
            command = command_line("train", TrainConfig(data=same_data(TrainConfig().data, named)), str(output))
            rows.append(("run", f"{output}: {command}"))
    else:
        rows += [("decisions", str(len(found.decisions))), ("workloads", str(found.workloads))]
        rows += [(decision.name, ", ".join(decision.options)) for decision in found.decisions]
    show(found, json, "network" if isinstance(found, NetworkDescription) else "space", rows)


def report(run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")], json: Json = False) -> None:
    """What is known of a run: search, training, export and later measurements, from its own files."""
    from mobilenas.report.summary import summarise

    summary = summarise(run)
    show(summary.document, json, f"report of {run}", summary.rows)


table = typer.Typer(name="table", help="Look at latency tables, publish one.", no_args_is_help=True, rich_markup_mode=None)
TablePath = Annotated[Path, typer.Argument(help="Folder of a latency table.")]
Top = Annotated[int, typer.Option(help="Kernels to list.", min=0)]


@table.command("list")
def table_list(json: Json = False) -> None:
    """The tables and network predictors that a search would find: your own and the shipped ones."""
    from mobilenas.latency.network_card import known_cards
    from mobilenas.latency.store import known_tables

    (found, damaged), (predictors, unread) = known_tables(), known_cards()
    damaged += unread
    rows = [
        (
            str(path),
            f"{t.card.created}, {', '.join(t.card.spaces) or 'kernels only'}, {t.card.rows} kernels, {t.card.key.device} "
            f"{t.card.key.runtime} {t.card.key.runtime_version}",
        )
        for path, t in found
    ]
    rows += [
        (
            str(path),
            f"{card.created}, {card.space}, network predictor ({card.origin}) from {card.networks} networks, "
            f"{card.key.device} {card.key.runtime} {card.key.runtime_version}",
        )
        for path, card in predictors
    ]
    document = [
        {
            "path": str(path),
            "created": t.card.created,
            "key": t.card.key,
            "spaces": list(t.card.spaces),
            "kernels": t.card.rows,
        }
        for path, t in found
    ]
    rows = rows or [("none", "mobilenas profile makes one")]
    rows += [("damaged", str(error)) for error in damaged]
    learnt = [
        {"path": str(path), **{name: getattr(card, name) for name in ("created", "origin", "key", "space", "networks")}}
        for path, card in predictors
    ]
    shown = {"tables": document, "predictors": learnt, "damaged": list(map(str, damaged))}
    show(shown, json, "latency tables", rows)


@table.command("show")
def table_show(path: TablePath, json: Json = False, top: Top = 10) -> None:
    """Where a table, or a predictor of networks, comes from, how far it can be trusted, and a table's dearest kernels."""
    from mobilenas.latency.kernels import predictor_beside
    from mobilenas.latency.network_card import load_card
    from mobilenas.latency.store import NETWORK_CARD, TABLE_CARD
    from mobilenas.latency.table import LatencyTable

    networks = load_card(path) if (path / NETWORK_CARD).exists() else None
    if networks and not (path / TABLE_CARD).exists():
        show({"card": None, "predictor": None, "networks": networks, "dearest": []}, json, str(path), _network_rows(networks))
        return
    found = LatencyTable.load(path)
    predictor = predictor_beside(path, found)
    card = found.card
    dearest = sorted(found.rows.values(), key=lambda row: -row.value_ms)[:top]
    flags = card.flags
    rows = [
        *_origin_rows(card),
        ("kernels", f"{card.rows}, {card.rows_not_converged} of them not converged"),
        ("a call", f"{1000 * card.session_ms:.3g} us, the sentinel {1000 * card.sentinel_ms:.4g} us"),
        (
            "in a network",
            f"{_weights_words(card.context)}; depthwise convolutions "
            f"{card.context.depthwise_factor:.3f} x, what only moves data {card.context.moving_factor:.3f} x the scale",
        ),
        (
            "of the models",
            f"{flags.models}: {flags.bimodal} with two modes, {flags.clocks_disagree} whose clocks disagree, "
            f"{flags.not_warm} not warm, {flags.disturbed} disturbed",
        ),
        *_doubt_rows(card),
    ]
    for key, space in card.spaces.items():
        rows += [
            (key, f"networks take {scale_words(space.scale, space.scale_spread_fraction)}"),
            ("  error", f"{percent(space.table_error.mape_fraction)}, worst {percent(space.table_error.worst_fraction)}"),
            ("  of a * MAdds + b", percent(space.madds_baseline_error.mape_fraction)),
            ("  repeatability", percent(space.repeatability_fraction)),
        ]
    if predictor:
        factors = predictor.factors_
        families = sorted(factors, key=lambda family: factors[family])
        named = ", ".join(f"{family} {percent(factors[family] - 1)}" for family in (families[0], families[-1]))
        rows.append(("learnt from them", f"{len(families)} families, nine kernels in ten within (best and worst) {named}"))
        rows.append(("  in networks", f"{percent(math.expm1(predictor.common_width_))} off in common"))
    learnt = {"factors": predictor.factors_, "common_width": predictor.common_width_} if predictor else None
    if networks:
        rows += [("network predictor", f"{networks.origin}, {networks.created}"), *_error_rows(networks)]
    rows += [(f"{row.value_ms:.5f} ms", row.kernel.key) for row in dearest]
    show({"card": card, "predictor": learnt, "networks": networks, "dearest": dearest}, json, str(path), rows)


def _network_rows(card: NetworkCard) -> list[tuple[str, str]]:
    """Of a predictor without a table."""
    return [
        *_origin_rows(card),
        ("kernels", "none: a predictor of whole networks"),
        ("the sentinel", f"{1000 * card.sentinel_ms:.4g} us"),
        *_doubt_rows(card),
        *_error_rows(card),
        *(proxy_row(proxy) for proxy in card.proxies),
    ]


def _origin_rows(card: TableCard | NetworkCard) -> list[tuple[str, str]]:
    return [
        ("of", f"{card.key.device}, {card.key.runtime} {card.key.runtime_version}, {card.key.provider}, {card.key.precision}"),
        ("threads, batch", f"{card.key.threads}, {card.key.batch}"),
        ("origin", f"{card.origin}, {card.created}, plan {card.plan.name}, estimator {card.key.estimator}"),
        ("machine", f"{card.environment.cpu_model}, {card.environment.system}"),
    ]


def _weights_words(context: NetworkContext) -> str:
    kinds = {"all": "kernels", "products": "linear layers", "others": "other kernels"}
    prices = [
        f"{1000 * cold.ms_per_mib:.3g} us in {kinds[cold.kernels]}"
        f"{f' with at most {cold.up_to_mib:g} MiB' if cold.up_to_mib else ''}"
        for cold in context.cold_weights
    ]
    return f"a MiB of weights costs more: {' and '.join(prices)}" if prices else "weights cost no more"


def _doubt_rows(card: TableCard | NetworkCard) -> list[tuple[str, str]]:
    slowed = [slow_down_words(card.slow_down)] if card.slow_down else []
    return [("doubt", doubt) for doubt in (*slowed, *card.doubts)]


def _error_rows(card: NetworkCard) -> list[tuple[str, str]]:
    error = f"{percent(card.error.mape_fraction)}, worst {percent(card.error.worst_fraction)}"
    return [
        (card.space, f"learnt from {card.networks} networks, nine in ten within {card.interval_factor:.3f} times"),
        ("  error", f"{error} (each network without itself)"),
    ]


@table.command("publish")
def table_publish(
    path: TablePath,
    name: Annotated[str, typer.Option("--name", help="The kind of device, as pixel-6; never a host's name.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of all tables; left out, the checkout's latency_tables.")
    ] = None,
    json: Json = False,
) -> None:
    """Copy a measured table, for others to start from, under the name of its kind of device."""
    from mobilenas.core.resources import in_checkout
    from mobilenas.latency.publish import publish

    folder = publish(path, name, output or in_checkout("latency_tables"))
    show({"path": str(folder)}, json, "table publish", [("table", str(folder))])


@table.command("diff")
def table_diff(
    before: TablePath,
    after: Annotated[
        Path | None, typer.Argument(help="The later one; left out, TABLE itself against what it replaced.")
    ] = None,
    json: Json = False,
    top: Top = 10,
) -> None:
    """What has moved between two tables: software, clocks and temperature do drift."""
    from mobilenas.latency.diff import difference
    from mobilenas.latency.store import last_kept

    if after is None:
        before, after = last_kept(before), before
    found = difference(before, after)
    then, now = found.sentinel_ms
    rows = [
        ("key", "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in found.key.items()) or "the same"),
        *((name, f"{old} -> {new}") for name, (old, new) in found.surroundings.items()),
        ("the sentinel", f"{1000 * then:.4g} -> {1000 * now:.4g} us: the device was {now / then:.3f} x as slow"),
        ("kernels", f"{found.common} in both, {len(found.only_before)} only before, {len(found.only_after)} only after"),
        ("moved", moved_words(found)),
        *((name, f"{old:.4g} -> {new:.4g}") for name, (old, new) in found.scales.items()),
        *(
            (f"doubt {when}", words)
            for when, doubts, slowed in zip(("before", "after"), found.doubts, found.slow_downs, strict=True)
            for words in (*doubts, *([slow_down_words(slowed)] if slowed else []))
        ),
        *(
            (f"{move.net_ratio:.2f} x net", f"{move.before_ms:.5f} -> {move.after_ms:.5f} ms{_unsure(move)}  {move.kernel}")
            for move in found.moves[:top]
        ),
    ]
    show(found, json, f"{before} -> {after}", rows)


def _unsure(move: Move) -> str:
    return "" if move.moved else " (within the intervals)" if move.converged else " (not converged)"
