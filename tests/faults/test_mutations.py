"""Valid documents, spoiled at random: refused with an error of ours, or read as what they were. 3,000 mutations in all."""

from __future__ import annotations

import json
import random
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from mobilenas.config import SearchConfig, dump_config, load_config
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import Journal
from mobilenas.errors import MobileNASError
from mobilenas.latency.table import LatencyTable
from mobilenas.report.summary import summarise
from mobilenas.search.checkpoints import Checkpoints
from mobilenas.workflows.naming import budget_of, network_of
from tests.conftest import CONFIG, space

CASES = 250
"""Mutations of each of the twelve kinds of file below."""


DEEP_EDITS = (
    (rb"(?<=\d)(?=[,\s}\]])", b"e999"),
    (rb"(?<=\d)(?=[,\s}\]])", b"0" * 5000),
    (rb"(?<=[:=] )\d", b"[" * 30_000 + b"1"),
    (rb"(?<=[:=] )\d", b"[" * 40 + b"1" + b"]" * 40),
    (rb"(?<=[:=] )\d", b"[" * 100 + b"1" + b"]" * 100),
    (rb"(?<=\w)(?=\")", rb"\ud800"),
    (rb"(?<=[:=] )\d[\d.e-]*", b"nan"),
)
"""What is replaced (by pattern) and by what: edits that random bytes do not hit upon."""


def mutated(data: bytes, generator: random.Random) -> bytes:
    """One to three edits: a byte changed, added or removed, a digit replaced, a line twice or gone, the end cut off; or a
    number made infinite, far too long or a nest of lists, half a character put into a text.
    """
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(data)) if data else 0
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        lines = data.split(b"\n")
        line = generator.randrange(len(lines))
        edit = generator.randrange(8)
        if edit == 0:
            data = data[:at] + bytes([generator.randrange(256)]) + data[at + 1 :]
        elif edit == 1:
            data = data[:at] + bytes([generator.randrange(32, 127)]) + data[at:]
        elif edit == 2:
            data = data[:at] + data[at + 1 :]
        elif edit == 3 and digits:
            at = generator.choice(digits)
            data = data[:at] + str(generator.randrange(10)).encode() + data[at + 1 :]
        elif edit == 4:
            data = b"\n".join([*lines[: line + 1], *lines[line:]])
        elif edit == 5:
            data = b"\n".join([*lines[:line], *lines[line + 1 :]])
        elif edit == 6:
            data = data[: len(data) - generator.randrange(1 + len(data) // 4)]
        elif edit == 7:
            spoilt, instead = generator.choice(DEEP_EDITS)
            places = list(re.finditer(spoilt, data))
            if places:
                start, end = generator.choice(places).span()
                data = data[:start] + instead + data[end:]
    return data


def survives(read: Callable[[], Any], same: Callable[[Any], bool]) -> bool:
    """Whether it was read; what was read must be the same as before, what was not must say so in our words."""
    try:
        found = read()
    except MobileNASError:
        return False
    assert same(found), "read with another meaning"
    return True


@pytest.mark.parametrize("name", ["card.json", "kernels.csv", "workloads.csv", "networks.csv"])
def test_tables(name: str, valid_table: Path, tmp_path: Path) -> None:
    table = LatencyTable.load(valid_table)
    folder = Path(shutil.copytree(valid_table, tmp_path / "table"))
    generator = random.Random(name)
    read = 0
    for _ in range(CASES):
        (folder / name).write_bytes(mutated((valid_table / name).read_bytes(), generator))
        read += survives(lambda: LatencyTable.load(folder), lambda found: found == table)
    assert read < CASES / 10


def test_architectures(tmp_path: Path) -> None:
    architecture = space().random_architecture(random.Random(4))
    path, generator = tmp_path / "architecture.json", random.Random(1)
    for _ in range(CASES):
        path.write_bytes(mutated(architecture.to_json().encode(), generator))
        survives(lambda: space().blueprint(Architecture.load(path)), lambda found: found == space().blueprint(architecture))


def test_configurations_say_what_their_toml_says(tmp_path: Path) -> None:
    """What is accepted is exactly what an independent reading of the TOML gives: nothing dropped, nothing coerced."""
    text, generator = dump_config(CONFIG).encode(), random.Random(2)
    path = tmp_path / "config.toml"
    for _ in range(CASES):
        data = mutated(text, generator)
        path.write_bytes(data)

        def same(found: SearchConfig, data: bytes = data) -> bool:
            flat, said = flatten(msgspec.to_builtins(found)), flatten(tomllib.loads(data.decode()))
            different = {k: (v, flat[k]) for k, v in said.items() if v != {} and not equal(v, flat[k])}
            assert not different
            return True

        survives(lambda: load_config(SearchConfig, path, [], {}), same)


def equal(said: Any, found: Any) -> bool:
    """The same value of the same type; a whole number may stand for a float, nothing else for anything else."""
    return bool(said == found) and (type(said) is type(found) or (type(said), type(found)) == (int, float))


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_checkpoints(suffix: str, tmp_path: Path) -> None:
    state = {"tensor": torch.arange(12.0), "numbers": [1, 2.5, {"a": None}], "step": 7}
    Checkpoints(tmp_path).save(state)
    path, generator = tmp_path / f"000001.{suffix}", random.Random(suffix)
    valid = path.read_bytes()
    expected = documents.digest({**state, "tensor": state["tensor"].tolist()})
    for _ in range(CASES):
        path.write_bytes(mutated(valid, generator))
        survives(
            lambda: Checkpoints(tmp_path).load_latest(),
            lambda found: documents.digest({**found, "tensor": found["tensor"].tolist()}) == expected,
        )


@pytest.mark.parametrize("name", ["weights.safetensors", "result.json"])
def test_trained_weights(name: str, run: Path, valid_run: Path) -> None:
    """Weights are what was trained or refused; of the result the accuracy may be another, as nothing signs it."""
    architecture = Architecture.load(run / "architecture.json")
    network, _ = network_of(valid_run, space(), architecture)
    generator, valid = random.Random(name), (run / "train" / name).read_bytes()
    expected = network.state_dict()
    for _ in range(CASES):
        (run / "train" / name).write_bytes(mutated(valid, generator))
        survives(
            lambda: network_of(run, space(), architecture)[0].state_dict(),
            lambda found: all(torch.equal(found[name], tensor) for name, tensor in expected.items()),
        )


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_reports(name: str, run: Path) -> None:
    """What is read of a run can be told and written down again."""
    (run / "result.json").write_text(documents.dump_json(SEARCHED))
    (run / "metrics.jsonl").write_text("".join(json.dumps({**EPOCH, "epoch": n}) + "\n" for n in range(9)))
    generator, valid = random.Random(name), (run / name).read_bytes()
    if name == "metrics.jsonl":
        (run / "result.json").unlink()
    for _ in range(CASES):
        (run / name).write_bytes(mutated(valid, generator))
        survives(lambda: summarise(run), lambda found: bool(documents.dump_json(found.document).encode()))
        survives(lambda: budget_of(run), lambda found: found is None or found.target_ms > 0)
        here = Journal(run / name)
        survives(lambda journal=here: journal.keep(lambda line: line["epoch"] < 5), lambda kept: True)


EPOCH = {"stage": 0, "epoch": 0, "epochs": 9, "train_cross_entropy": 2.25, "train_accuracy": 0.5, "lr": 0.025, "budgets": []}
BUDGET = {
    "text": "40%", "statistic": "floor", "target_ms": 1.5, "lowest_ms": 0.5, "highest_ms": 3.0, "expected_ms": 1.25,
    "table_ms": 1.4, "table_low_ms": 1.3, "table_high_ms": 1.6, "measured_ms": 1.45, "measured_repeatability_fraction": 0.01,
    "measured_converged": True,
}  # fmt: skip
SEARCHED = {
    "schema": "mobilenas/search-result@1", "method": "darts", "fingerprint": "0123456789abcdef", "params": 7698,
    "madds": 103872, "epochs": 9, "duration_s": 12.5, "budgets": [BUDGET],
}  # fmt: skip


def test_the_mutations_do_reach_deep(valid_table: Path) -> None:
    """Mutations that stay valid JSON are among them, so that more than the parser is tried."""
    generator, parsed = random.Random(0), 0
    for _ in range(CASES):
        try:
            json.loads(mutated((valid_table / "card.json").read_bytes(), generator))
        except (ValueError, RecursionError):
            continue
        parsed += 1
    assert parsed > CASES / 10
