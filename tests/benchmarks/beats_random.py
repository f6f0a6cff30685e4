"""Does a search under a latency budget find better networks than random draws within it?

    OMP_NUM_THREADS=1 python tests/benchmarks/beats_random.py --oracle nb201 --data DIR --output runs/beats

On NAS-Bench-201, whose 15,625 networks all have a known accuracy (CIFAR-10) and known latencies. What searches see is
Fashion-MNIST at 14x14, a space of 8 channels and one cell a stage; the accuracies judge what they deliver, and nothing else
reads them. One search per method and seed serves every device and share of its range, as the budget is not in its loss; the
stage then proposes networks within each budget, trains the best few for a short while and delivers one. Beside it: a uniform
draw within the budget (its mean), random search as it was before that stage, random search with it, the network with the most
parameters that fits, and the best there is. Searches and short trainings are kept in the output folder: the same command goes
on.

DIR holds ``nasbench201_latency_ms.parquet`` and ``nasbench201_cifar10_accuracy.parquet``. Ends with 1 where a figure that must
hold does not, and lists the rows that miss it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec
import numpy as np
import torch
from lightning_fabric import Fabric
from torch.nn import functional

from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory, write_atomic
from mobilenas.data import ImageData, InMemory, load_data
from mobilenas.data.images import Shift
from mobilenas.latency.budget import Budget, allows, derive, score_of
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.proposal import LEAST_FRACTION, propose, propose_uniformly
from mobilenas.latency.table import ErrorReport
from mobilenas.methods import METHODS
from mobilenas.search.checkpoints import load_tensors, save_tensors
from mobilenas.search.descent import AdamSettings, SgdSettings
from mobilenas.search.engine import EngineSettings, SearchEngine
from mobilenas.search.ranked import Rules, select_ranked
from mobilenas.search.rankers.base import Evidence, Ranking
from mobilenas.search.rankers.capacity import Capacity
from mobilenas.search.rankers.short_training import ShortTraining
from mobilenas.search.retrain import TrainSettings
from mobilenas.search.task import Classification
from mobilenas.spaces.base import OptionCosts
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.spaces.nas_bench_201_layout import EDGES, INCOMING, OPERATORS, arriving

SPACE = NasBench201Space(channels=8, cells_per_stage=1, image_size=14, image_channels=1)
LEAST_MS = 0.05
"""Below it a row of the latencies is of an empty network."""
SEARCHED = ("darts", "gdas")
OLD, STAGED, PARAMETERS = "random before", "random", "most parameters"
SIZES = {
    "default": {"epochs": 20, "images": 6000, "keep": 6, "steps": 465},
    "full": {"epochs": 50, "images": 12000, "keep": 12, "steps": 930},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", choices=("nb201",), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--accuracy", type=Path, help="another file of accuracies, of the same form")
    parser.add_argument("--devices", default="pixel3,silver_4210r,titanx_32")
    parser.add_argument("--shares", default="25,40,60", help="of each device's range of latencies, in percent")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--least", type=float, default=LEAST_FRACTION, help="share of the budget that is used at least")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    oracle = Oracle.read(arguments.data, arguments.accuracy)
    devices, shares = arguments.devices.split(","), [float(share) / 100 for share in arguments.shares.split(",")]
    unknown = [device for device in devices if device not in oracle.latency_ms]
    if unknown:
        sys.exit(f"--devices: no {', '.join(unknown)}; available: {', '.join(oracle.latency_ms)}")
    size = SIZES["full" if arguments.full else "default"]
    work = partial(_rows_of_seed, oracle, devices, shares, size, arguments.least, arguments.output)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(work, range(arguments.seeds)) for row in found]
    if arguments.json:
        write_atomic(arguments.json, json.dumps(rows, indent=1))
    missed = report(oracle, rows, devices, shares)
    print("\n".join(missed) if missed else "every figure that must hold does")
    return int(bool(missed))


# ---- what is known of the networks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oracle:
    """Accuracies in percent and latencies in milliseconds of the networks that read their input."""

    architectures: tuple[Architecture, ...]
    accuracy: np.ndarray
    latency_ms: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path, accuracies: Path | None = None) -> Oracle:
        """Read both files; a network is known by its codes, not by its place."""
        timed, trained = _columns(folder / "nasbench201_latency_ms.parquet"), None
        trained = _columns(accuracies or folder / "nasbench201_cifar10_accuracy.parquet")
        named = [f"op{index}" for index in range(len(EDGES))]
        codes = np.column_stack([timed[name] for name in named]).astype(int)
        order = np.arange(len(codes))
        if named[0] in trained:
            others = np.column_stack([trained[name] for name in named]).astype(int).tolist()
            place = {tuple(row): index for index, row in enumerate(others)}
            order = np.array([place[tuple(row)] for row in codes.tolist()])
        [values] = [column for name, column in trained.items() if name not in named and column.dtype.kind == "f"]
        timed_on = [name for name, column in timed.items() if name not in named and column.dtype.kind in "fi"]
        devices = {name: timed[name].astype(float) for name in timed_on}
        program = SPACE.derivation_program(SPACE.undecided)
        found = [SPACE.architecture_of_codes(row) for row in codes.tolist()]
        alive = {choices: allows(SPACE, program, a) for choices, a in {_ways(a): a for a in found}.items()}
        kept = np.array([alive[_ways(a)] for a in found]) & np.all([c >= LEAST_MS for c in devices.values()], axis=0)
        architectures = tuple(a for a, keep in zip(found, kept, strict=True) if keep)
        return cls(architectures, values[order][kept], {name: column[kept] for name, column in devices.items()})

    @cached_property
    def place(self) -> dict[Architecture, int]:
        """Where each network stands."""
        return {architecture: index for index, architecture in enumerate(self.architectures)}

    def target_ms(self, device: str, share: float) -> float:
        """So much of the way from the fastest network to the slowest."""
        column = self.latency_ms[device]
        return float(column.min() + share * (column.max() - column.min()))

    def within(self, device: str, share: float) -> np.ndarray:
        """Which networks meet the budget."""
        found: np.ndarray = self.latency_ms[device] <= self.target_ms(device, share)
        return found


def _ways(architecture: Architecture) -> tuple[bool, ...]:
    """Which edges are there: all that decides whether the output depends on the input."""
    return tuple(architecture.choices[edge] != "none" for edge in EDGES)


def _columns(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import parquet
    except ImportError:
        sys.exit("reading Parquet needs pyarrow: pip install 'mobilenas[benchmarks]'")
    table = parquet.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@dataclass(frozen=True)
class Known:
    """A latency model that knows every network; the program sees a linear fit."""

    oracle: Oracle
    device: str
    interval_factor: float = 1.0
    digest: str = "known"

    @cached_property
    def option_costs(self) -> OptionCosts:
        """Least squares on which operator is on which edge."""
        networks = self.oracle.architectures
        columns = [(edge, operator) for edge in EDGES for operator in OPERATORS[1:]]
        features = np.array([[1.0, *(a.choices[edge] == operator for edge, operator in columns)] for a in networks])
        fitted = np.linalg.lstsq(features, self.oracle.latency_ms[self.device], rcond=None)[0]
        cost = dict(zip(columns, np.maximum(fitted[1:], 0.0), strict=True))
        options = {edge: np.array([cost.get((edge, operator), 0.0) for operator in OPERATORS]) for edge in EDGES}
        options.update({arriving(node): np.zeros(node + 1) for node in INCOMING})
        return OptionCosts(float(fitted[0]), options)

    @cached_property
    def workload_error(self) -> ErrorReport:
        ratios = np.array([self.workload_ms(a) for a in self.oracle.architectures]) / self.oracle.latency_ms[self.device]
        return msgspec.structs.replace(self.error, p90_fraction=float(np.quantile(np.abs(ratios - 1), 0.9)))

    @property
    def error(self) -> ErrorReport:
        return ErrorReport.none()

    def latency(self, architecture: Architecture) -> Prediction:
        return Prediction.within(float(self.oracle.latency_ms[self.device][self.oracle.place[architecture]]), 1.0)

    def latencies(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        return [self.latency(architecture) for architecture in architectures]

    def workload_ms(self, architecture: Architecture) -> float:
        costs = self.option_costs
        return costs.fixed + sum(float(costs.options[edge][OPERATORS.index(architecture.choices[edge])]) for edge in EDGES)

    def expected_ms(self, probabilities: Any, temperature: float = 1.0) -> torch.Tensor:
        raise NotImplementedError("the budget is not in the loss")

    def describe(self) -> dict[str, Any]:
        return {"device": self.device}


# ---- what searches see -----------------------------------------------------------------------------------------------


def images_of(seed: int, count: int) -> ImageData:
    """So many of Fashion-MNIST's training images at 14x14, each pixel the mean of four."""
    data = load_data("fashion-mnist").reduced(count / 60_000, seed)

    source = data.train.source
    pairs = [source.read(index) for index in range(len(source))]
    pixels = functional.avg_pool2d(torch.stack([pixels for pixels, _ in pairs]).float(), 2).round().to(torch.uint8)
    train = InMemory(pixels, torch.tensor([label for _, label in pairs]))
    facts = msgspec.structs.replace(data.preprocessing, image_size=14)
    return replace(data, preprocessing=facts, read=lambda: (train, train), augment=Shift(padding=1, flip=True), cutout_size=4)


def scores_of(method: str, seed: int, size: dict[str, int], folder: Path) -> tuple[dict[str, np.ndarray], float, int]:
    """Log probabilities that a search ends with, its CPU seconds and the images that it passed through its supernet."""
    kept, facts = folder / f"{method}-{seed}.safetensors", folder / f"{method}-{seed}.json"
    if not facts.exists():
        data = images_of(seed, size["images"])
        begin = time.process_time()
        engine = SearchEngine(
            space=SPACE,
            method=METHODS.get(method)(),
            task=Classification(),
            halves=data.halves(seed),
            budgets=[],
            settings=EngineSettings(
                supernet=None,
                checkpoint_cells=False,
                epochs=size["epochs"],
                warmup_epochs=0,
                batch_size=64,
                workers=0,
                weights=SgdSettings(lr=0.025, min_lr=0.001, momentum=0.9, weight_decay=3e-4, clip_norm=5.0),
                architecture=AdamSettings(lr=3e-3, beta1=0.5, beta2=0.999, weight_decay=1e-3, clip_norm=None),
                seed=seed,
                watch="off",
            ),
            fabric=Fabric(accelerator="cpu", devices=1),
            directory=RunDirectory(folder / f"{method}-{seed}"),
        )
        parameters = engine.run()
        save_tensors(kept, {name: row.detach() for name, row in parameters.softmax().items()})
        steps = size["epochs"] * min(len(half) // 64 for half in engine.halves)
        write_atomic(facts, json.dumps({"cpu_s": time.process_time() - begin, "images": 2 * 64 * steps}))
    known = json.loads(facts.read_text())
    rows = {name: row.double().log().numpy() for name, row in load_tensors(kept).items()}
    return rows, known["cpu_s"], known["images"]


def evidence_of(seed: int, size: dict[str, int], folder: Path, scores: dict[str, np.ndarray]) -> Evidence:
    program = SPACE.derivation_program(scores)
    weights = SgdSettings(lr=0.1, min_lr=0.0, momentum=0.9, weight_decay=5e-4, clip_norm=5.0, nesterov=True, per_step=True)
    return Evidence(
        space=SPACE,
        data=images_of(seed, size["images"]).halved(seed, most=2000),
        recipe=TrainSettings(1, 64, 0, weights, drop_path_fraction=0.0, auxiliary_weight=0.0, cutout=False, seed=seed),
        steps=size["steps"],
        seed=seed,
        fabric=Fabric(accelerator="cpu", devices=1),
        task=Classification(),
        directory=RunDirectory(folder / f"trained-{seed}"),
        logit_scores=lambda networks: np.array([score_of(program, architecture) for architecture in networks]),
        inherited=lambda networks: Ranking(np.zeros(len(networks)), 0),
    )


# ---- one seed --------------------------------------------------------------------------------------------------------


def _rows_of_seed(
    oracle: Oracle, devices: Sequence[str], shares: Sequence[float], size: dict[str, int], least: float, output: Path, seed: int
) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for device in devices:
        model = Known(oracle, device)
        for share in shares:
            budget = Budget(model, oracle.target_ms(device, share))
            for method in (*SEARCHED, STAGED, OLD):
                rows.append(_row(oracle, budget, device, share, method, seed, size, least, output))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def _row(
    oracle: Oracle,
    budget: Budget,
    device: str,
    share: float,
    method: str,
    seed: int,
    size: dict[str, int],
    least: float,
    output: Path,
) -> dict[str, Any]:
    scores, cpu_s, images = SPACE.undecided, 0.0, 0
    if method in SEARCHED:
        scores, cpu_s, images = scores_of(method, seed, size, output)
    begin = time.process_time()
    if method == OLD:
        noise = np.random.default_rng(seed)
        untrained = {name: 1e-3 * noise.normal(size=row.shape) for name, row in scores.items()}
        found = derive(SPACE, untrained, budget)[0].architecture
    else:
        evidence = evidence_of(seed, size, output, scores)
        found, spent = _staged(scores, budget, evidence, size, least, method == STAGED, seed)
        images += spent
    place = oracle.place[found]
    within = oracle.within(device, share)
    return {
        "device": device,
        "share": share,
        "method": method,
        "seed": seed,
        "accuracy": float(oracle.accuracy[place]),
        "share_used": float(oracle.latency_ms[device][place] / budget.target_ms),
        "regret": float(oracle.accuracy[within].max() - oracle.accuracy[place]),
        "cpu_s": cpu_s + time.process_time() - begin,
        "images": images,
    }


def _staged(
    scores: dict[str, np.ndarray],
    budget: Budget,
    evidence: Evidence,
    size: dict[str, int],
    least: float,
    is_uniform: bool,
    seed: int,
) -> tuple[Architecture, int]:
    """The network that the stage delivers, and the images that it took."""
    generator, drawn = np.random.default_rng(seed), random.Random(seed)

    def proposed(budget: Budget, without: Any) -> Any:
        uniform = propose_uniformly(SPACE, budget, 64, drawn, least_fraction=least, without=without) if is_uniform else None
        return uniform or propose(SPACE, scores, budget, 64, generator, least_fraction=least, without=without)

    selection = select_ranked(
        proposed,
        budget,
        [Capacity(evidence), ShortTraining(evidence)],
        Rules(size["keep"], 1, least),
        measure=None,
        generator=generator,
    )
    return selection.architecture, selection.images


# ---- what must hold --------------------------------------------------------------------------------------------------


def report(oracle: Oracle, rows: Sequence[dict[str, Any]], devices: Sequence[str], shares: Sequence[float]) -> list[str]:
    """Print the tables; return the figures that must hold and do not."""
    missed: list[str] = []
    beside_most: dict[tuple[str, float], list[float]] = {}
    print("| device | share | method | accuracy, % (sd) | lowest | share of the budget | regret | CPU s | images |")
    print("|---|---|---|---|---|---|---|---|---|")
    for device in devices:
        for share in shares:
            within = oracle.within(device, share)
            uniform, best = float(oracle.accuracy[within].mean()), float(oracle.accuracy[within].max())
            params = np.array([SPACE.params(a) if w else -1 for a, w in zip(oracle.architectures, within, strict=True)])
            most = float(oracle.accuracy[params == params.max()].mean())
            spread = float(oracle.accuracy[within].std())
            print(f"| {device} | {share:.0%} | uniform within | {uniform:.2f} ({spread:.2f}) | | | {best - uniform:.2f} | | |")
            print(f"| {device} | {share:.0%} | {PARAMETERS} | {most:.2f} | | | {best - most:.2f} | | |")
            before = _of(rows, device, share, OLD)
            for method in (OLD, STAGED, *SEARCHED):
                found = _of(rows, device, share, method)
                accuracies = [row["accuracy"] for row in found]
                mean, spread = fmean(accuracies), stdev(accuracies) if len(accuracies) > 1 else 0.0
                print(
                    f"| {device} | {share:.0%} | {method} | {mean:.2f} ({spread:.2f}) | {min(accuracies):.2f} | "
                    f"{min(row['share_used'] for row in found):.3f} | {best - mean:.2f} | "
                    f"{fmean(row['cpu_s'] for row in found):.0f} | {fmean(row['images'] for row in found):,.0f} |"
                )
                if method == OLD:
                    continue
                where = f"{device} {share:.0%} {method}"
                for row in found:
                    if row["share_used"] < LEAST_FRACTION:
                        missed.append(f"{where} seed {row['seed']}: share {row['share_used']:.3f}")
                    if row["accuracy"] < uniform:
                        missed.append(f"{where} seed {row['seed']}: below the uniform mean")
                missed += _gain(where, mean, uniform, best, 4.0, "a uniform draw")
                if share in (0.25, 0.40):
                    missed += _gain(where, mean, fmean(row["accuracy"] for row in before), best, 3.5, "random search before")
                    if best - mean > 2.0:
                        missed.append(f"{where}: regret {best - mean:.2f}, must be at most 2.0")
                if spread > (1.0 if device == "pixel3" else 1.5):
                    missed.append(f"{where}: spread {spread:.2f}")
                beside_most.setdefault((method, share), []).append(mean - most)
    for (method, share), differences in beside_most.items():
        if fmean(differences) < -0.5:
            missed.append(f"{method} {share:.0%}: {fmean(differences):+.2f} beside {PARAMETERS}, must not be below -0.5")
    for method in SEARCHED:
        low, mean, high = _interval(rows, "pixel3", shares, method)
        print(f"\n{method} minus {STAGED} on pixel3: {mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}")
        if high < -0.3:
            missed.append(f"{method}: below random with the same stage by {mean:+.2f} ({low:+.2f} to {high:+.2f})")
    return missed


def _of(rows: Sequence[dict[str, Any]], device: str, share: float, method: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["device"], row["share"], row["method"]) == (device, share, method)]


def _gain(where: str, mean: float, base: float, best: float, points: float, what: str) -> list[str]:
    needed = min(points, 0.6 * (best - base))
    return [] if mean - base >= needed else [f"{where}: {mean - base:+.2f} over {what}, must be {needed:.2f}"]


def _interval(rows: Sequence[dict[str, Any]], device: str, shares: Sequence[float], method: str) -> tuple[float, float, float]:
    """Of the difference to random search with the same stage, seed by seed; by Student's t."""
    from scipy.stats import t

    both = [
        (a["accuracy"], b["accuracy"])
        for share in shares
        for a, b in zip(_of(rows, device, share, method), _of(rows, device, share, STAGED), strict=True)
    ]
    differences = [a - b for a, b in both]
    if len(differences) < 2:
        return math.nan, fmean(differences) if differences else math.nan, math.nan
    mean, n = fmean(differences), len(differences)
    half = float(t.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)
    return mean - half, mean, mean + half


if __name__ == "__main__":
    sys.exit(main())
