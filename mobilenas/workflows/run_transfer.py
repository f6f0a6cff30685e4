"""``mobilenas profile --transfer``: a few networks on a new device, and the tables of others, become a network predictor."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from mobilenas.config import ProfileConfig
from mobilenas.core.resources import user_data_directory
from mobilenas.core.run_directory import check_writable
from mobilenas.errors import DocumentError, MissingDataError, UsageError
from mobilenas.latency.network_card import load_card
from mobilenas.latency.prediction import promised_coverage
from mobilenas.latency.store import check_replaceable, keep_history, known_tables, same_target, table_folder
from mobilenas.latency.table import LatencyTable, TableKey
from mobilenas.profiling.transfer_campaign import TransferCampaign
from mobilenas.results import TransferResult
from mobilenas.workflows.naming import Listener, Silent, Target, data_set_from_config, space_from_config


def transfer_from_config(cfg: ProfileConfig) -> TransferCampaign:
    """The campaign that ``transfer`` would run; ``describe`` on it is the dry run."""
    if cfg.kernels is not None:
        raise UsageError("--transfer measures no kernels: leave --kernels out")
    if cfg.measure_networks is None:
        raise UsageError("--transfer learns from whole networks: say how many to measure, as --measure-networks 10")
    target = Target.from_config(cfg.device)
    space = space_from_config(cfg.space, data_set_from_config(cfg.data) if cfg.data.name else None, cfg.device.batch)
    return TransferCampaign(
        space,
        target.device,
        target.runtime,
        target.settings,
        target.plan(cfg.plan),
        user_data_directory() / "campaigns",
        _proxies(target.table_key, space.key),
        cfg.measure_networks,
        cfg.seed,
        cfg.environment,
    )


def transfer(cfg: ProfileConfig, listener: Listener | None = None) -> TransferResult:
    """Measure a few networks of a space on a device of which no kernel is known. Interrupted, the same command goes on.

    Raises ``MissingDataError`` if no table of another target covers the space.
    """
    told = listener or Silent()
    begin = time.monotonic()
    campaign = transfer_from_config(cfg)
    key = Target.from_config(cfg.device).table_key
    folder = Path(cfg.output) if cfg.output else table_folder(key, campaign.space.key)
    check_writable(folder)
    check_replaceable(folder, key, campaign.space.key)
    if _holds_more(folder):
        raise UsageError(f"{folder} holds a network predictor that was learnt from more than a transfer: name another --output")
    with campaign.running():
        model = campaign.run(lambda p: told.progress(p.stage, p.done, p.total))
        keep_history(folder)
        model.save(folder)
    return TransferResult(
        folder=str(folder),
        networks=model.card.networks,
        networks_not_converged=sum(not network.converged for network in model.card.measured),
        error=model.card.error,
        doubts=model.card.doubts,
        slow_down=model.card.slow_down,
        interval_factor=model.card.interval_factor,
        coverage_fraction=promised_coverage(model.card.error.networks),
        workload_mape_fraction=model.card.workload_error.mape_fraction,
        proxies=tuple(sorted(model.card.proxies, key=lambda proxy: -proxy.weight_fraction)),
        duration_s=time.monotonic() - begin,
    )


def _holds_more(folder: Path) -> bool:
    """Whether ``folder`` holds a predictor that was learnt from the target alone; not, where it cannot be read."""
    try:
        return load_card(folder).origin == "measured"
    except DocumentError:
        return False


def _proxies(key: TableKey, space_key: str) -> list[LatencyTable]:
    """The newest table with the space of each other target; raises ``MissingDataError`` if there is none."""
    newest: dict[TableKey, LatencyTable] = {}
    for _, table in sorted(known_tables()[0], key=lambda found: found[1].card.created):
        if space_key in table.workload_costs and not same_target(table.card.key, key):
            newest[msgspec.structs.replace(table.card.key, runtime_version="")] = table
    if not newest:
        raise MissingDataError(
            f"no latency table of another target covers the space {space_key}: nothing can be transferred. Profile the space "
            "where its kernels can be measured, as with --device local or other --threads, or copy the folder of a table "
            f"to {user_data_directory() / 'latency_tables'}"
        )
    return list(newest.values())
