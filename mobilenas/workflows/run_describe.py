"""``mobilenas describe``: what a space is, or what a network of it is made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mobilenas import config, ops
from mobilenas.config import DataConfig, DataSetConfig, DescribeConfig, SearchConfig, SpaceConfig, overridden, same_data
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory, check_is_new
from mobilenas.errors import MissingDataError, UsageError
from mobilenas.network import count_params
from mobilenas.report.drawing import draw_cells, draw_layers
from mobilenas.results import NetworkDescription, OperatorShare, SpaceDescription
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.published import PUBLISHED, Published
from mobilenas.workflows.naming import ARCHITECTURE, RESULT, data_set_from_config, space_from_config, space_of


@dataclass(frozen=True)
class Found:
    """A network that a name or a path stands for, at the size asked for."""

    space: SearchSpace
    architecture: Architecture
    published: Published | None


def find_network(target: str, cfg: DescribeConfig) -> Found:
    """The network that ``target`` names: a run directory, an architecture document, or a published one.

    ``cfg.space.options`` and ``cfg.data`` change its size, image and classes. Raises ``MissingDataError`` if there is nothing
    of that name.
    """
    facts = data_set_from_config(cfg.data) if cfg.data.name else None
    shape = {}
    if facts is not None:
        shape = {"image_size": facts.preprocessing.image_size, "image_channels": facts.preprocessing.channels}
        shape["classes"] = len(facts.class_names)
    changed = {**shape, **cfg.space.options}
    path = Path(target)
    if path.exists():
        old = Architecture.load(path / ARCHITECTURE if path.is_dir() else path)
        space = space_of(Architecture(old.space, {**old.space_options, **changed}, old.choices))
        architecture, published = space.architecture(old.choices.items()), None
    elif target in PUBLISHED:
        published = PUBLISHED.get(target)
        space = space_from_config(SpaceConfig(name=published.space, options=published.options(changed)), None, cfg.batch)
        architecture = published.architecture(space)
    else:
        raise MissingDataError(
            f"{target}: neither a run directory nor an architecture.json, and no published network has that name "
            f"({', '.join(PUBLISHED)})"
        )
    space.blueprint(architecture)
    return Found(space, architecture, published)


def describe(target: str | None, cfg: DescribeConfig) -> SpaceDescription | NetworkDescription:
    """The network that ``target`` names, or the space that ``cfg`` describes."""
    if target is not None:
        return _network(find_network(target, cfg))
    data = cfg.data if cfg.data.name else overridden(DataSetConfig(), cfg.data)
    space = space_from_config(cfg.space, data_set_from_config(data), cfg.batch)
    return SpaceDescription(
        space=space.name,
        key=space.key,
        options=space.options,
        input_shape=space.image_shape,
        decisions=tuple(space.decisions),
        workloads=len(space.workloads()),
    )


def make_run(target: str, cfg: DescribeConfig, output: Path) -> None:
    """Write a run directory of the network, as a search without a budget leaves one, for ``train`` and ``export``.

    Without a name in ``cfg.data`` the run is of no data set; ``train`` wants one then.
    Raises ``UsageError`` if there is something at ``output``.
    """
    found = find_network(target, cfg)
    check_is_new(output)
    run = RunDirectory(output)
    searched = SearchConfig(
        space=SpaceConfig(name=found.space.name, options=dict(found.space.options)), data=same_data(DataConfig(), cfg.data)
    )
    with run.running(config.dump_config(searched), {}, {}):
        run.write_document(ARCHITECTURE, documents.parse_json(found.architecture.to_json(), ARCHITECTURE))
        run.write_document(RESULT, {"schema": "mobilenas/search-result@1", "budgets": []})


def run_of(target: str) -> Path:
    """The run directory that ``target`` names; that of a published network, or an architecture file, is made in ``runs``.

    Raises ``MissingDataError`` if there is none of these.
    """
    if Path(target).is_dir():
        return Path(target)
    if not Path(target).exists() and target not in PUBLISHED:
        raise MissingDataError(f"{target}: no run directory, and no published network has that name ({', '.join(PUBLISHED)})")
    run = Path("runs") / (target if target in PUBLISHED else Architecture.load(Path(target)).fingerprint)
    if not run.exists():
        make_run(target, DescribeConfig(), run)
    wanted = find_network(target, DescribeConfig()).architecture.fingerprint
    if not (run / ARCHITECTURE).exists() or Architecture.load(run / ARCHITECTURE).fingerprint != wanted:
        raise UsageError(f"{run} is there already and does not hold {target} as published: move it, or name it by its path")
    return run


def draw(target: str, cfg: DescribeConfig) -> str:
    """The network that ``target`` names as an SVG: its cells, or its layers block by block."""
    found = find_network(target, cfg)
    title = f"{target} ({found.architecture.fingerprint})"
    if "cells" in found.space.traits:
        return draw_cells(found.architecture.choices, title)
    return draw_layers(found.space.blueprint(found.architecture), title)


def _network(found: Found) -> NetworkDescription:
    space, architecture = found.space, found.architecture
    counts: Counter[str] = Counter()
    madds: Counter[str] = Counter()
    params: Counter[str] = Counter()
    for workload, count in space.workloads_of(architecture).items():
        counts[workload.operator] += count
        madds[workload.operator] += count * ops.madds(workload)
        params[workload.operator] += count * ops.params(workload)
    head = found.published.auxiliary_head(space) if found.published else space.auxiliary_head(architecture)
    return NetworkDescription(
        space=space.name,
        options=space.options,
        fingerprint=architecture.fingerprint,
        choices={d.name: architecture.choices[d.name] for d in space.decisions if d.name in architecture.choices},
        input_shape=space.image_shape,
        params=space.params(architecture),
        params_with_auxiliary=space.params(architecture) + (count_params(head) if head is not None else 0),
        madds=space.madds(architecture),
        paper=found.published.paper if found.published else None,
        operators=tuple(
            OperatorShare(name, count, madds[name], params[name])
            for name, count in sorted(counts.items(), key=lambda item: (-madds[item[0]], item[0]))
        ),
    )
