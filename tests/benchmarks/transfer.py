"""Transfer to a new device from 5, 10 and 20 measured networks: HELP's protocol on published latencies of real devices.

python tests/benchmarks/transfer.py --data ../shared/data

Lee et al., HELP, NeurIPS 2021 (arXiv 2106.08630): a shuffle; the first 900 architectures are the pool that networks are
drawn from, the next 1,000 are the test, cut to its middle 80 % by latency. Each device in turn is the new one, all others
of its file are proxies. Needs the extra ``benchmarks``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge, RidgeCV

from mobilenas.latency.predictors.transfer import DeviceTransfer, choose_networks

POOL, TEST, RIDGE_SAMPLES, LEAST_MS = 900, 1000, 720, 0.05
COUNTS = (5, 10, 20)
WHOLE_MILLISECONDS = ("samsung_a50", "samsung_s7", "essential_ph_1")
FBNET_STAGES = (1, 4, 4, 4, 4, 4, 1)
METHODS = ("transfer, chosen", "transfer, random", "linear, chosen", "linear, random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=5, help="random draws of the networks to measure")
    parser.add_argument("--seed", type=int, default=3, help="of the shuffle; settings were chosen on seeds 0 and 1")
    parser.add_argument("--one-hot", action="store_true", help="encode positions one by one, not as counts of workloads")
    arguments = parser.parse_args()
    for name, positions in (("nasbench201", nasbench201_positions()), ("fbnet", fbnet_positions())):
        file = f"{name}_latency_ms.parquet"
        codes, devices, latency_ms = read(arguments.data / file, len(positions))
        rows = np.random.default_rng(arguments.seed).permutation(len(codes))[: POOL + TEST]
        results = {
            device: judge(
                codes[rows],
                list(range(len(positions))) if arguments.one_hot else positions,
                latency_ms[rows],
                column,
                arguments.draws,
            )
            for column, device in enumerate(devices)
        }
        print_tables(file, results)


def nasbench201_positions() -> list[int]:
    """All six edges of a cell run the same workload for the same operator."""
    return [0] * 6


def fbnet_positions() -> list[int]:
    """The first block of a stage has shapes of its own, the others of the stage share theirs."""
    return [2 * stage + (block > 0) for stage, blocks in enumerate(FBNET_STAGES) for block in range(blocks)]


def read(path: Path, decisions: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Codes ``(N, decisions)``, device names and latencies ``(N, devices)``; empty networks are left out on all devices."""
    try:
        from pyarrow import parquet
    except ImportError:
        sys.exit("reading Parquet needs pyarrow: pip install 'mobilenas[benchmarks]'")
    table = parquet.read_table(path)
    names = [f"{letter}{k}" for letter in ("op", "b") for k in range(decisions) if f"{letter}{k}" in table.column_names]
    devices = [name for name in table.column_names if name not in names and not name.startswith("arch")]
    codes = np.column_stack([table[name].to_numpy() for name in names])
    latency_ms = np.column_stack([table[name].to_numpy().astype(float) for name in devices])
    kept = (latency_ms >= LEAST_MS).all(axis=1)
    return codes[kept], devices, latency_ms[kept]


def one_hot(codes: np.ndarray) -> np.ndarray:
    return (codes[:, :, None] == np.arange(codes.max() + 1)).reshape(len(codes), -1).astype(float)


def counts_of_workloads(codes: np.ndarray, positions: list[int]) -> np.ndarray:
    """How often each option stands in the places that share their shapes."""
    chosen = codes[:, :, None] == np.arange(codes.max() + 1)
    groups = np.array(positions)
    return np.hstack([chosen[:, groups == group].sum(axis=1) for group in sorted(set(positions))]).astype(float)


def judge(codes: np.ndarray, positions: list[int], latency_ms: np.ndarray, column: int, draws: int) -> dict[str, list[tuple]]:
    """Per method the ``(Spearman, within 10 %)`` of each number of networks."""
    truth, proxies = latency_ms[:, column], np.delete(latency_ms, column, axis=1)
    encodings = counts_of_workloads(codes, positions)
    by_latency = POOL + np.argsort(truth[POOL:], kind="stable")
    test = by_latency[TEST // 10 : TEST - TEST // 10]
    pool = slice(0, POOL)
    found: dict[str, list[tuple]] = {method: [] for method in METHODS}
    for count in COUNTS:
        random = [np.random.default_rng(draw).choice(POOL, count, replace=False) for draw in range(draws)]
        choice = {"chosen": [choose_networks(encodings[pool], proxies[pool], count)], "random": random}
        for how, selections in choice.items():
            transfer, linear = [], []
            for measured in selections:
                model = DeviceTransfer().fit(encodings[pool], proxies[pool], measured, truth[measured])
                transfer.append(score(model.predict(encodings[test], proxies[test]), truth[test]))
                linear.append(score(linear_transfer(proxies, measured, truth[measured])[test], truth[test]))
            found[f"transfer, {how}"].append(tuple(np.mean(transfer, axis=0)))
            found[f"linear, {how}"].append(tuple(np.mean(linear, axis=0)))
    features = one_hot(codes)
    ridge = Ridge(alpha=1.0).fit(features[:RIDGE_SAMPLES], truth[:RIDGE_SAMPLES]).predict(features)
    found["ridge"] = [score(ridge[test], truth[test])]
    smooth = Ridge(alpha=1.0).fit(features, truth).predict(features)
    found["ceiling"] = [(float(spearmanr(smooth[test], np.round(smooth[test])).statistic), float("nan"))]
    return found


def linear_transfer(proxies_ms: np.ndarray, measured: np.ndarray, measured_ms: np.ndarray) -> np.ndarray:
    """The baseline: ridge of the new device's log latency on the proxies', standardised, its penalty by leaving one out."""
    logs = np.log(proxies_ms)
    features = (logs - logs[:POOL].mean(axis=0)) / logs[:POOL].std(axis=0)
    model = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(features[measured], np.log(measured_ms))
    return np.asarray(np.exp(model.predict(features)))


def score(predicted_ms: np.ndarray, truth_ms: np.ndarray) -> tuple[float, float]:
    within = np.abs(predicted_ms / truth_ms - 1) <= 0.10
    return float(spearmanr(predicted_ms, truth_ms).statistic), float(within.mean())


def print_tables(file: str, results: dict[str, dict[str, list[tuple]]]) -> None:
    groups = {
        "real-valued": [name for name in results if name not in WHOLE_MILLISECONDS],
        "whole milliseconds": [name for name in results if name in WHOLE_MILLISECONDS],
    }
    for title, devices in groups.items():
        for which, figure in enumerate(("Spearman", "within 10 %")):
            ceiling = title == "whole milliseconds" and which == 0
            print(f"\n{file}, {title}: {figure} with {' / '.join(map(str, COUNTS))} networks\n")
            print(f"| device | {' | '.join(METHODS)} | ridge, {RIDGE_SAMPLES} |" + (" ceiling |" if ceiling else ""))
            print("|---" * (len(METHODS) + 2 + ceiling) + "|")
            columns = (*METHODS, "ridge", *(["ceiling"] if ceiling else []))
            cells = {device: [[entry[which] for entry in results[device][column]] for column in columns] for device in devices}
            mean = [list(np.mean(column, axis=0)) for column in zip(*cells.values(), strict=True)]
            for device, row in (*cells.items(), ("**mean**", mean)):
                print(
                    f"| {device} | " + " | ".join(" / ".join(text(v, which) for v in cell) for cell in row) + " |", flush=True
                )
    for ours, theirs in (("chosen", "random"), ("random", "random"), ("chosen", "chosen")):
        behind = []
        for device, found in results.items():
            for k, count in enumerate(COUNTS):
                gain = found[f"transfer, {ours}"][k][0] - found[f"linear, {theirs}"][k][0]
                behind += [f"{device} with {count} ({gain:+.4f})"] if gain <= 0 else []
        print(f"\nTransfer, {ours}, is not above linear, {theirs} (Spearman): {', '.join(behind) or 'nowhere'}.")


def text(value: float, which: int) -> str:
    return f"{value:.3f}" if which == 0 else f"{value:.0%}"


if __name__ == "__main__":
    main()
