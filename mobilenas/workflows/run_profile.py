"""``mobilenas profile``: a space, or mobile networks at large, on a device become a latency table."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np

from mobilenas.config import DEFAULT_CAMPAIGN, DataSetConfig, ProfileConfig, SpaceConfig
from mobilenas.core.resources import user_data_directory
from mobilenas.core.run_directory import check_writable
from mobilenas.errors import DocumentError, IncompatibleError, UsageError
from mobilenas.latency.diff import TableDifference, difference
from mobilenas.latency.kernels import PREDICTOR, learn
from mobilenas.latency.network_card import TENSORS
from mobilenas.latency.network_model import NetworkModel
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.store import NETWORK_CARD, check_replaceable, keep_history, table_folder
from mobilenas.latency.table import LatencyTable
from mobilenas.profiling.campaign import Campaign
from mobilenas.profiling.learn import learn_network_model
from mobilenas.profiling.networks import MobileNetworks, NetworkSource, SpaceNetworks
from mobilenas.results import ProfileResult
from mobilenas.workflows.naming import (
    Listener,
    Silent,
    Target,
    data_set_from_config,
    space_from_config,
)

DEFAULT_KERNELS = 2500
"""Measured by the default campaign, about: a table that predicts any mobile network."""
NEW_KERNELS_PER_NETWORK = 15
"""Kernels asked for, divided by this: the networks that are lowered. Of the first twenty each showed 41 new ones on average."""


def campaign_from_config(cfg: ProfileConfig) -> Campaign:
    """The campaign that ``profile`` would run; ``describe`` on it is the dry run."""
    target = Target.from_config(cfg.device)
    plan = target.plan(cfg.plan)
    source: NetworkSource
    kernels = DEFAULT_KERNELS if cfg.kernels == DEFAULT_CAMPAIGN else cfg.kernels
    if cfg.transfer:
        raise UsageError("a transfer measures no kernels and makes no table: it is workflows.transfer, not workflows.profile")
    if kernels is None:
        data = data_set_from_config(cfg.data) if cfg.data.name else None
        source = SpaceNetworks(space_from_config(cfg.space, data, cfg.device.batch))
    elif cfg.measure_networks:
        raise UsageError(
            "--kernels measures kernels of any network, --measure-networks networks of a space: leave one of them out"
        )
    elif cfg.space != SpaceConfig() or cfg.data != DataSetConfig():
        raise UsageError("kernels are those of any mobile network, space and data name those of a space: leave one of them out")
    else:
        source = MobileNetworks(cfg.device.batch)
        plan = msgspec.structs.replace(plan, lowered_networks=-(-kernels // NEW_KERNELS_PER_NETWORK))
    root = user_data_directory() / "campaigns"
    return Campaign(
        source,
        target.device,
        target.runtime,
        target.settings,
        plan,
        root,
        seed=cfg.seed,
        maximum_kernels=kernels,
        learnt_networks=cfg.measure_networks or 0,
        gate=cfg.environment,
    )


def profile(cfg: ProfileConfig, listener: Listener | None = None) -> ProfileResult:
    """Measure a space, or any network's kernels, into a latency table. Interrupted, the same configuration goes on."""
    told = listener or Silent()
    begin = time.monotonic()
    campaign = campaign_from_config(cfg)
    if cfg.output:
        check_writable(Path(cfg.output))
        check_replaceable(Path(cfg.output), Target.from_config(cfg.device).table_key, campaign.source.key)
    with campaign.running():
        table = campaign.run(lambda p: told.progress(p.stage, p.done, p.total))
        folder = Path(cfg.output) if cfg.output else table_folder(table.card.key, campaign.source.key)
        before = keep_history(folder)
        learnt = _save(cfg, campaign, table, folder, told)
    card = table.space_card(campaign.source.key)
    return ProfileResult(
        table=str(folder),
        kernels=table.card.rows,
        kernels_not_converged=table.card.rows_not_converged,
        scale=card.scale,
        scale_spread_fraction=card.scale_spread_fraction,
        table_mape_fraction=card.table_error.mape_fraction,
        table_worst_fraction=card.table_error.worst_fraction,
        baseline_mape_fraction=card.madds_baseline_error.mape_fraction,
        workload_mape_fraction=card.workload_error.mape_fraction if card.workload_error else None,
        repeatability_fraction=card.repeatability_fraction,
        networks=len(table.networks),
        networks_not_converged=sum(not row.converged for row in table.networks),
        doubts=table.card.doubts,
        slow_down=table.card.slow_down,
        flags=table.card.flags,
        since=_since(before, folder) if before else None,
        duration_s=time.monotonic() - begin,
        network_error=learnt.error if learnt else None,
    )


def _since(before: Path, after: Path) -> TableDifference | None:
    """How far a table has moved; ``None`` where it was unreadable, or is about other kernels now."""
    try:
        return difference(before, after)
    except (DocumentError, IncompatibleError):
        return None


def _save(cfg: ProfileConfig, campaign: Campaign, table: LatencyTable, folder: Path, told: Listener) -> NetworkModel | None:
    """Write the table with what is learnt from it, and no longer what was learnt before; the model of networks, if any."""
    kernels, networks = None, None
    if cfg.kernels is not None:
        told.progress("learning from the kernels", 0, 1)
        kernels = _learn_kernels(campaign, table)
    elif cfg.measure_networks and isinstance(campaign.source, SpaceNetworks):
        told.progress("learning from the networks", 0, 1)
        networks = learn_network_model(campaign.source.space, table, cfg.seed)
    table.save(folder)
    if kernels is not None:
        kernels.save(folder / PREDICTOR)
    if networks is not None:
        networks.save(folder)
    learnt_before = [*([] if kernels else [PREDICTOR]), *([] if networks else [NETWORK_CARD, TENSORS])]
    for name in learnt_before:  # last: a disk that is full leaves the old table whole
        (folder / name).unlink(missing_ok=True)
    return networks


def _learn_kernels(campaign: Campaign, table: LatencyTable) -> KernelPredictor:
    """A predictor from the table's rows, and from its test networks how wrong it is."""
    lowered = campaign.lowered_kernels()
    tested = [row for row in table.networks if row.role == "test"]
    kernels = [lowered[row.architecture.fingerprint] for row in tested]
    return learn(table, kernels, np.array([row.measured_ms for row in tested]))
