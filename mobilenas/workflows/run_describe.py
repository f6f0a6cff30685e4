"""``mobilenas describe``: what a space is, or what a network of it is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mobilenas import ops
from mobilenas.config import DescribeConfig
from mobilenas.core.architecture import Architecture
from mobilenas.data import load_data
from mobilenas.results import NetworkDescription, OperatorShare, SpaceDescription
from mobilenas.spaces.base import SearchSpace
from mobilenas.workflows.naming import ARCHITECTURE, space_from_config, space_of


def describe(path: Path | None, cfg: DescribeConfig) -> SpaceDescription | NetworkDescription:
    """The network of ``path`` (a run directory or an architecture document), or the space that ``cfg`` names."""
    if path is not None:
        architecture = Architecture.load(path / ARCHITECTURE if path.is_dir() else path)
        return _network(space_of(architecture), architecture)
    space = space_from_config(cfg.space, load_data(cfg.data) if cfg.data else None, cfg.batch)
    return SpaceDescription(
        space=space.name,
        key=space.key,
        options=space.options,
        input_shape=space.image_shape,
        decisions=tuple(space.decisions),
        workloads=len(space.workloads()),
    )


def _network(space: SearchSpace, architecture: Architecture) -> NetworkDescription:
    counts: Counter[str] = Counter()
    madds: Counter[str] = Counter()
    params: Counter[str] = Counter()
    for workload, count in space.workloads_of(architecture).items():
        counts[workload.operator] += count
        madds[workload.operator] += count * ops.madds(workload)
        params[workload.operator] += count * ops.params(workload)
    return NetworkDescription(
        space=space.name,
        options=space.options,
        fingerprint=architecture.fingerprint,
        choices=architecture.choices,
        input_shape=space.image_shape,
        params=space.params(architecture),
        madds=space.madds(architecture),
        operators=tuple(
            OperatorShare(name, count, madds[name], params[name])
            for name, count in sorted(counts.items(), key=lambda item: (-madds[item[0]], item[0]))
        ),
    )
