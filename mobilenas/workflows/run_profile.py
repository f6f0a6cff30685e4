"""``mobilenas profile``: a space on a device becomes a latency table."""

from __future__ import annotations

import time
from pathlib import Path

from mobilenas.config import ProfileConfig
from mobilenas.core.measurement import plan_named
from mobilenas.core.resources import user_data_directory
from mobilenas.core.run_directory import check_writable
from mobilenas.latency.store import check_replaceable, table_folder
from mobilenas.profiling.campaign import Campaign
from mobilenas.results import ProfileResult
from mobilenas.workflows.naming import (
    Listener,
    Silent,
    Target,
    data_set_from_config,
    space_from_config,
)


def campaign_from_config(cfg: ProfileConfig) -> Campaign:
    """The campaign that ``profile`` would run; ``describe`` on it is the dry run."""
    target = Target.from_config(cfg.device)
    data = data_set_from_config(cfg.data) if cfg.data.name else None
    space = space_from_config(cfg.space, data, cfg.device.batch)
    root = user_data_directory() / "campaigns"
    return Campaign(space, target.device, target.runtime, target.settings, plan_named(cfg.plan), root, cfg.seed)


def profile(cfg: ProfileConfig, listener: Listener | None = None) -> ProfileResult:
    """Measure a space on a device into a latency table. Interrupted, the same configuration goes on."""
    told = listener or Silent()
    begin = time.monotonic()
    campaign = campaign_from_config(cfg)
    if cfg.output:
        check_writable(Path(cfg.output))
        check_replaceable(Path(cfg.output), Target.from_config(cfg.device).table_key, campaign.space.key)
    with campaign.running():
        table = campaign.run(lambda p: told.progress(p.stage, p.done, p.total))
        folder = Path(cfg.output) if cfg.output else table_folder(table.card.key, campaign.space.key)
        table.save(folder)
    card = table.space_card(campaign.space.key)
    return ProfileResult(
        table=str(folder),
        kernels=table.card.rows,
        kernels_not_converged=table.card.rows_not_converged,
        scale=card.scale,
        offset_ms=card.offset_ms,
        table_mape_fraction=card.table_error.mape_fraction,
        table_worst_fraction=card.table_error.worst_fraction,
        baseline_mape_fraction=card.madds_baseline_error.mape_fraction,
        workload_mape_fraction=card.workload_error.mape_fraction,
        repeatability_fraction=card.repeatability_fraction,
        duration_s=time.monotonic() - begin,
    )
