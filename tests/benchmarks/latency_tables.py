"""How far latency tables are from whole networks: five spaces on this host, judged on networks that nothing was fitted on.

``OMP_NUM_THREADS=1 python tests/benchmarks/latency_tables.py --output runs/tables`` profiles each space with 30 networks for
the scale, 29 for the interval and 100 that judge, each measured in at least eight sweeps, and prints the tables of
docs/benchmarks/latency-table.md. Interrupted, the same command goes on; tables that are in ``--output`` are not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from scipy.linalg import block_diag

from mobilenas.config import DeviceConfig
from mobilenas.core.measurement import plan_named
from mobilenas.core.resources import user_data_directory
from mobilenas.latency.prediction import conformal_quantile
from mobilenas.latency.table import ErrorReport, LatencyTable, NetworkRow
from mobilenas.profiling import fit
from mobilenas.profiling.campaign import Campaign
from mobilenas.profiling.networks import SpaceNetworks
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import densenas_mbv2
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.workflows import Target

SCALED, CALIBRATING, JUDGES = plan_named("standard").scale_networks, 29, 100
"""Of 30 and 29 the 54th smallest error covers 54 of 60 networks: 90 % exactly."""
SPLITS = 200
"""Random halvings into networks that give the interval and networks that try it."""


def spaces() -> dict[str, SearchSpace]:
    return {
        "cells-c16": CellSpace(channels=16, layers=8),
        "nas-bench-201": NasBench201Space(),
        "densenas-96": densenas_mbv2(image_size=96),
        "cells-c36": CellSpace(channels=36, layers=8),
        "densenas-224": densenas_mbv2(image_size=224),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spaces", nargs="+", choices=list(spaces()), default=list(spaces()))
    arguments = parser.parse_args()
    judged = {
        name: Judged.of(space, profiled(space, arguments.output / name), name)
        for name, space in spaces().items()
        if name in arguments.spaces
    }
    print_spaces(judged)
    terms = {name: terms_of(found) for name, found in judged.items()}
    print_pooled(judged, terms)
    print_coverage(judged, terms)


def profiled(space: SearchSpace, folder: Path) -> LatencyTable:
    """The table in ``folder``, which is measured first if there is none."""
    if not (folder / "card.json").exists():
        target = Target.from_config(DeviceConfig())
        plan = msgspec.structs.replace(
            plan_named("standard"), scale_networks=SCALED, test_networks=CALIBRATING + JUDGES, lowered_networks=300
        )
        root = user_data_directory() / "campaigns"
        campaign = Campaign(SpaceNetworks(space), target.device, target.runtime, target.settings, plan, root)
        stage = ""

        def tell(progress) -> None:
            nonlocal stage
            if progress.stage.partition(",")[0] != stage:
                stage = progress.stage.partition(",")[0]
                print(f"{folder.name}: {stage}", flush=True)

        with campaign.running():
            campaign.run(tell).save(folder)
    return LatencyTable.load(folder)


@dataclass
class Judged:
    """A table with its networks by what they are for; sums, multiply-adds and measured milliseconds as ``(n, 3)``."""

    space: SearchSpace
    table: LatencyTable
    scaled: np.ndarray
    calibrating: np.ndarray
    judges: np.ndarray
    rows: list[NetworkRow]

    @classmethod
    def of(cls, space: SearchSpace, table: LatencyTable, name: str) -> Judged:
        scaled = [row for row in table.networks if row.role == "scale"]
        tested = [row for row in table.networks if row.role == "test"]
        print(f"{name}: {len(tested)} test networks, fewest sweeps {min(row.sweeps for row in tested)}", flush=True)
        calibrating, judges = tested[:CALIBRATING], tested[CALIBRATING:]
        return cls(space, table, columns(scaled), columns(calibrating), columns(judges), judges)

    def predicted(self, networks: np.ndarray) -> np.ndarray:
        [card] = self.table.card.spaces.values()
        return np.array([card.predict(total).ms for total in networks[:, 0]])


def columns(rows: list[NetworkRow]) -> np.ndarray:
    return np.array([(row.kernel_sum_ms, float(row.madds), row.measured_ms) for row in rows])


def print_spaces(judged: dict[str, Judged]) -> None:
    names = "networks | range ms | MAPE | worst | within 5 % | Spearman | a * MAdds + b: MAPE | within 5 % | repeatability"
    print(f"\n| space | {names} | networks not converged | kernels | not converged |\n|{'---|' * 13}")
    for name, found in judged.items():
        measured = found.judges[:, 2]
        error = ErrorReport.of(found.predicted(found.judges), measured)
        a, b = fit.fit_madds_baseline(found.scaled[:, 1], found.scaled[:, 2])
        baseline = ErrorReport.of(a * found.judges[:, 1] + b, measured)
        repeatability = np.mean([row.high_ms / row.measured_ms - 1 for row in found.rows])
        card = found.table.card
        print(
            f"| {name} | {error.networks} | {measured.min():.2f} to {measured.max():.2f} | {error.mape_fraction:.2%} | "
            f"{error.worst_fraction:.1%} | {error.within_5_fraction:.0%} | {error.spearman:.3f} | "
            f"{baseline.mape_fraction:.2%} | {baseline.within_5_fraction:.0%} | {repeatability:.2%} | "
            f"{sum(not row.converged for row in found.rows)} | {card.rows} | {card.rows_not_converged} |"
        )


def print_pooled(judged: dict[str, Judged], of_spaces: dict[str, fit.NetworkTerms]) -> None:
    """One scale and context for all spaces, and ``a * MAdds + b``, fitted on the same networks."""
    terms = joined(list(of_spaces.values()))
    _, madds, measured = np.concatenate([part for f in judged.values() for part in (f.scaled, f.judges)]).T
    is_judge = np.concatenate([np.arange(len(f.scaled) + len(f.judges)) >= len(f.scaled) for f in judged.values()])
    fitted = fit.fit_networks(terms.take(~is_judge), measured[~is_judge])
    a, b = fit.fit_madds_baseline(madds[~is_judge], measured[~is_judge])
    truth = measured[is_judge]
    print(f"\n| pooled, {len(truth)} networks | MAPE | bias | within 5 % | misses |\n|{'---|' * 5}")
    words = f"kernels, {fitted.scale}, {fitted.context}"
    for name, predicted in ((words, fitted.predict(terms.take(is_judge))), ("a * MAdds + b", a * madds[is_judge] + b)):
        error = ErrorReport.of(predicted, truth)
        misses = round(len(truth) * (1 - error.within_5_fraction))
        print(f"| {name} | {error.mape_fraction:.2%} | {error.bias_fraction:+.2%} | {error.within_5_fraction:.1%} | {misses} |")


def terms_of(found: Judged) -> fit.NetworkTerms:
    """What the networks that give the scale and those that judge are made of; they are lowered once more."""
    rows = [*(row for row in found.table.networks if row.role == "scale"), *found.rows]
    source, target = SpaceNetworks(found.space), Target.from_config(DeviceConfig())
    with target.device.open() as link:
        models = [source.model_for_lowering(row.architecture) for row in rows]
        kernels = target.runtime.kernels(models, link, target.settings)
    return fit.NetworkTerms.of(kernels, found.table.rows, found.table.card.session_ms)


def joined(parts: list[fit.NetworkTerms]) -> fit.NetworkTerms:
    """Networks of several spaces, whose rows are of different campaigns."""
    return fit.NetworkTerms(
        session_ms=np.concatenate([part.session_ms for part in parts]),
        each_ms=block_diag(*(part.each_ms for part in parts)),
        weights_mib=np.concatenate([part.weights_mib for part in parts]),
        rows=tuple(row for part in parts for row in part.rows),
        contexts=np.concatenate([part.contexts for part in parts]),
    )


def print_coverage(judged: dict[str, Judged], terms: dict[str, fit.NetworkTerms]) -> None:
    """Of each space's interval as a profile makes it, and over random choices of the networks that give it with the scale's."""
    inside, whole = [], []
    generator = np.random.default_rng(0)
    for name, found in judged.items():
        scaled = np.arange(len(found.scaled))
        left_out = np.log(fit.left_out_ms(terms[name].take(scaled), found.scaled[:, 2]) / found.scaled[:, 2])

        def factor_of(calibrating: np.ndarray, found: Judged = found, left_out: np.ndarray = left_out) -> float:
            errors = np.log(found.predicted(calibrating) / calibrating[:, 2])
            return float(np.exp(conformal_quantile(np.abs(np.concatenate([errors, left_out])))))

        factor = factor_of(found.calibrating)
        inside.append(within(found.predicted(found.judges), found.judges[:, 2], factor))
        tested = np.concatenate([found.calibrating, found.judges])
        predicted = found.predicted(tested)
        for _ in range(SPLITS):
            order = generator.permutation(len(tested))
            few, others = order[:CALIBRATING], order[CALIBRATING:]
            factor = factor_of(tested[few])
            whole.append(within(predicted[others], tested[others, 2], factor).mean())
    held, each = np.concatenate(inside), ", ".join(f"{x.mean():.0%}" for x in inside)
    print(f"\n90 % intervals hold {held.mean():.1%} of {len(held)} networks ({each})")
    print(f"over {SPLITS} choices of the {CALIBRATING} networks in each space: {np.mean(whole):.1%}")


def within(predicted: np.ndarray, measured: np.ndarray, factor: float) -> np.ndarray:
    return np.abs(np.log(measured / predicted)) <= np.log(factor) + 1e-12


if __name__ == "__main__":
    main()
