"""Which network each paper's preset finds at reduced size: run it at two commits and compare what it prints.

    OMP_NUM_THREADS=1 python tests/benchmarks/published_forms.py --seeds 3 --json before.json

Digits, a few epochs and small supernets; no budget, nothing is measured. With ``--compare FILE`` it ends with 1 where a
network is another one than in FILE. About six minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from mobilenas import workflows
from mobilenas.config import SearchConfig, load_config, load_preset

CELLS = {
    "data": "{name='digits', batch=64, workers=0, train_fraction=0.25}",
    "space.options": "{channels=8, layers=4}",
    "supernet": "{channels=4, layers=3}",
    "weights.warmup_epochs": "0",
}
DENSE = {
    "data": "{name='digits', batch=64, workers=0, train_fraction=0.5}",
    "space": "{name='dense-small'}",
    "log_cost": "{weight=0.15, base=15.0, unit='million-madds'}",
}
REDUCED = {
    "darts cifar10": {**CELLS, "epochs": "4"},
    "darts cifar10-second-order": {**CELLS, "epochs": "2"},
    "gdas cifar10": {**CELLS, "epochs": "6"},
    "gdas cifar10-frc": {**CELLS, "epochs": "6", "space.options": "{channels=8, layers=4, reduction='fixed'}"},
    "p-darts cifar10": {**CELLS, "epochs": "3", "warmup_epochs": "1", "method_options.added_layers": "[0, 1, 1]"},
    "pc-darts cifar10": {**CELLS, "epochs": "4", "warmup_epochs": "1", "supernet": "{channels=8, layers=3}"},
    "dense-nas imagenet100": {**DENSE, "epochs": "4", "warmup_epochs": "1"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, sets in REDUCED.items():
        method, preset = name.split()
        for seed in range(arguments.seeds):
            words = [*(f"{key}={value}" for key, value in sets.items()), f"seed={seed}"]
            cfg = load_config(SearchConfig, None, words, {}, load_preset(method, preset))
            with tempfile.TemporaryDirectory() as folder:
                result = workflows.search(cfg, Path(folder) / "run")
            found[f"{name} seed {seed}"] = result.fingerprint
            print(f"{name} seed {seed}: {result.fingerprint}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    if arguments.compare:
        before = json.loads(arguments.compare.read_text())
        other = [name for name in found if before.get(name) != found[name]]
        print(f"{len(found) - len(other)} of {len(found)} are the same" + "".join(f"\n{name} is another" for name in other))
        return int(bool(other))
    return 0


if __name__ == "__main__":
    sys.exit(main())
