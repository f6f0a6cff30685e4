"""Spoil every kind of file that is stored, its checksum renewed, and read it by the path that commands read it by.

OMP_NUM_THREADS=1 python -m tests.benchmarks.mutate_documents --cases 3000 --seed 0

A case changes what a file holds (a key, a type, a number, a row, a tensor, a shape), or what the file is (a folder, a pipe, a
link to an endless device, empty, no text, huge). It is read in a child process that may grow by 2 GiB and take 60 s. Only
an error of ours or a right reading is good: what is accepted must be what the file says, without another type or something
dropped, and must not contradict itself, by the rules of ``sane_*`` below, which are not the product's. Numbers that are changed
into others that could have been measured are not told from these where the checksum is renewed: they count as ``changed``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import safetensors.torch
import tomli_w
import torch
from torch import nn

from mobilenas import onnx_model, workflows
from mobilenas.config import SearchConfig, SpaceConfig, dump_config
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import SweepRecord, plan_named
from mobilenas.core.outcomes import TrainResult
from mobilenas.core.run_directory import Journal, RunDirectory
from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.devices.catalogue import DeviceCard, load_card, save_card
from mobilenas.errors import MobileNASError
from mobilenas.export.bundle import read_bundled, write_bundle
from mobilenas.latency.kernels import PREDICTOR
from mobilenas.latency.models import TableModel
from mobilenas.latency.network_card import TENSORS, NetworkCard, WorkloadCost
from mobilenas.latency.network_model import NetworkModel, uses_of
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.store import NETWORK_CARD
from mobilenas.latency.table import LatencyTable, TableRow
from mobilenas.profiling.campaign import LoweredNetworks
from mobilenas.report.summary import summarise
from mobilenas.runtimes.measure import JournalEntry, SweepLog
from mobilenas.search.checkpoints import Checkpoints, check_like, save_tensors
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing import fakes
from mobilenas.workflows.naming import budget_of, network_of, search_config_of, space_of
from tests.faults.test_mutations import BUDGET, EPOCH

GROWTH_BYTES, LIMIT_S = 2 * 2**30, 60
SPACE = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
Json = Any
Found = Any
"""What was read, as plain data."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is spoilt, read, and what a reading must be like. Functions take the folder of a case."""

    name: str
    file: str
    spoil: Callable[[Path, random.Random], None]
    read: Callable[[Path], Found]
    sane: Callable[[Found, Path], None] = lambda found, folder: None


# ---- changes of plain data ---------------------------------------------------------------------------------------------


def places(value: Json, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places inside a value but the value itself."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*place, key)
        yield from places(each, (*place, key))


STRANGE = (None, True, False, 0, -1, 1, 2, 10**5, 2**31, 2**63 - 1, -(2**40), 0.0, -0.5, 1.5, 1e-12, 1e9, 1e30, 1e308)
TEXTS = ("", "x", "nan", "inf", "-1", "0", "../../etc/passwd", "\u001b[31m", "a" * 5000, "None", "[]", "\u0000")


def changed(value: Json, generator: random.Random) -> Json:
    """Something else in its place."""
    edit = generator.randrange(6)
    if edit == 0 and isinstance(value, int | float) and not isinstance(value, bool):
        return generator.choice((-value, value + 1, 1000 * value, value / 3, float(value), str(value), -1 - abs(value)))
    if edit <= 1 and isinstance(value, list):
        at = generator.randrange(len(value) + 1)
        return generator.choice(([], value[::-1], value[:at], [*value, *value[:1]], value * 50, [value]))
    if edit <= 1 and isinstance(value, str):
        return generator.choice((value + "x", value[:-1], value.upper(), value * 2, [value]))
    return generator.choice((*STRANGE, *TEXTS, [], {}, [[]], {"x": 1}))


def edited(whole: Json, generator: random.Random) -> Json:
    """A copy with one or two places changed, gone, new, or exchanged."""
    whole = copy.deepcopy(whole)
    for _ in range(generator.choice((1, 1, 2))):
        found = [place for place in places(whole) if place[0] != "sha256" or generator.random() < 0.1]
        if not found:
            return changed(whole, generator)
        *above, last = generator.choice(found)
        holder = whole
        for key in above:
            holder = holder[key]
        edit = generator.randrange(8)
        if edit == 0:
            del holder[last]
        elif edit == 1 and isinstance(holder, dict):
            holder[f"{last}x"] = holder[last]
        elif edit == 2 and isinstance(holder, list):
            holder.insert(last, copy.deepcopy(holder[last]))
        elif edit == 3 and len(holder) > 1:
            other = generator.choice([k for k in (holder if isinstance(holder, dict) else range(len(holder))) if k != last])
            holder[last], holder[other] = holder[other], holder[last]
        else:
            holder[last] = changed(holder[last], generator)
    return whole


def odd(path: Path, generator: random.Random) -> bool:
    """Another kind of file under the name; whether it is only cut off or gone, which no file without a checksum tells."""
    content = path.read_bytes()
    path.unlink()
    edit = generator.randrange(9)
    if edit == 0:
        path.mkdir()
    elif edit == 1:
        os.mkfifo(path)
    elif edit == 2:
        path.symlink_to("/dev/zero")
    elif edit == 3:
        path.write_bytes(b"")
    elif edit == 4:
        path.write_bytes(content[: len(content) // 2] + b"\xff\xfe" + content[len(content) // 2 :])
    elif edit == 5:
        path.write_bytes(content)
        os.truncate(path, 40 * 2**30)
    elif edit == 6:
        path.symlink_to("gone")
    elif edit == 7:
        path.write_bytes(b"[" * 200_000)
    else:
        path.write_bytes(content[: generator.randrange(len(content) or 1)])
    return edit in (3, 6, 8) or (edit == 7 and path.suffix == ".jsonl")  # a line without an end counts as torn


# ---- files -------------------------------------------------------------------------------------------------------------


def dump(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def renew(card: Path, name: str, files: tuple[str, ...]) -> None:
    """Give a card the checksums of its files and of itself, where it still holds any."""
    whole = json.loads(card.read_text())
    if not isinstance(whole, dict) or not isinstance(whole.get("sha256"), dict):
        return
    for file in files:
        if (card.parent / file).is_file():
            whole["sha256"][file] = hashlib.sha256((card.parent / file).read_bytes()).hexdigest()
    digests = {key: value for key, value in whole["sha256"].items() if key != name}
    with contextlib.suppress(ValueError):
        whole["sha256"][name] = documents.digest({**whole, "sha256": digests})
    dump(card, whole)


CSVS = ("kernels.csv", "workloads.csv", "networks.csv")


def spoil_json(file: str, after: Callable[[Path], None] = lambda folder: None) -> Callable[[Path, random.Random], None]:
    def spoil(folder: Path, generator: random.Random) -> None:
        dump(folder / file, edited(json.loads((folder / file).read_text()), generator))
        after(folder)

    return spoil


def spoil_toml(file: str) -> Callable[[Path, random.Random], None]:
    def spoil(folder: Path, generator: random.Random) -> None:
        while True:
            whole = edited(tomllib.loads((folder / file).read_text()), generator)
            with contextlib.suppress(TypeError, AttributeError):
                (folder / file).write_text(tomli_w.dumps(whole), encoding="utf-8")
                return

    return spoil


def spoil_lines(file: str) -> Callable[[Path, random.Random], None]:
    def spoil(folder: Path, generator: random.Random) -> None:
        lines = (folder / file).read_text().splitlines()
        at, edit = generator.randrange(len(lines)), generator.randrange(6)
        if edit == 0:
            lines.insert(at, lines[at])
        elif edit == 1:
            del lines[at]
        else:
            lines[at] = json.dumps(edited(json.loads(lines[at]), generator))
        (folder / file).write_text("".join(f"{line}\n" for line in lines))

    return spoil


def spoil_csv(file: str) -> Callable[[Path, random.Random], None]:
    import csv

    def cell_of(cell: str, generator: random.Random) -> str:
        try:
            value = json.loads(cell)
        except ValueError:
            return str(changed(cell, generator))
        value = edited(value, generator) if isinstance(value, dict | list) else changed(value, generator)
        return value if isinstance(value, str) else json.dumps(value)

    def spoil(folder: Path, generator: random.Random) -> None:
        head, *rows = csv.reader(io.StringIO((folder / file).read_text()))
        at, edit, column = generator.randrange(len(rows)), generator.randrange(8), generator.randrange(len(head))
        if edit == 0:
            rows.insert(0, list(rows[at]))
        elif edit == 1:
            del rows[at]
        elif edit == 2:
            del rows[at][column]
        elif edit == 3 and len(rows) > 1:
            other = (at + 1) % len(rows)
            rows[at][column], rows[other][column] = rows[other][column], rows[at][column]
        else:
            rows[at][column] = cell_of(rows[at][column], generator)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *rows])
        (folder / file).write_text(text.getvalue())
        renew(folder / "card.json", "card.json", CSVS)

    return spoil


def edited_tensors(tensors: dict[str, torch.Tensor], generator: random.Random) -> dict[str, torch.Tensor]:
    name, edit = generator.choice(sorted(tensors)), generator.randrange(10)
    tensor = tensors[name]
    new: dict[str, torch.Tensor] = {key: value for key, value in tensors.items() if key != name}
    if edit == 0:
        return new
    if edit == 1:
        return {**tensors, f"{name}x": tensor.clone()}
    if edit == 2:
        return {**new, name: tensor.to(generator.choice((torch.float16, torch.float32, torch.int64, torch.uint8)))}
    if edit == 3:
        return {**new, name: torch.cat([tensor.reshape(-1), tensor.reshape(-1)])}
    if edit == 4:
        return {**new, name: tensor.reshape(1, *tensor.shape)}
    if edit == 5:
        return {**new, name: tensor[:0] if tensor.dim() else tensor.reshape(1)}
    flat = tensor.clone().reshape(-1)
    if flat.numel():
        value = generator.choice((math.nan, math.inf, -math.inf, 1e30, -1.0, 0.0))
        flat[generator.randrange(flat.numel())] = value if flat.is_floating_point() else 1
    return {**new, name: flat.reshape(tensor.shape)}


def spoil_tensors(file: str, after: Callable[[Path], None]) -> Callable[[Path, random.Random], None]:
    def spoil(folder: Path, generator: random.Random) -> None:
        path = folder / file
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        content = safetensors.torch.save(edited_tensors(safetensors.torch.load_file(path), generator), metadata)
        if generator.random() < 0.1:
            length = int.from_bytes(content[:8], "little")
            header = json.dumps(edited(json.loads(content[8 : 8 + length]), generator)).encode()
            content = len(header).to_bytes(8, "little") + header + content[8 + length :]
        path.write_bytes(content)
        after(folder)

    return spoil


def spoil_skops(folder: Path, generator: random.Random) -> None:
    with zipfile.ZipFile(folder / PREDICTOR) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = generator.choice(sorted(parts)) if generator.random() < 0.7 else "schema.json"
    if name.endswith(".npy"):
        array = np.load(io.BytesIO(parts[name]))
        tensors = edited_tensors({"a": torch.from_numpy(np.array(array))}, generator)
        text = io.BytesIO()
        np.save(text, next(iter(tensors.values())).numpy() if tensors else np.zeros(0))
        parts[name] = text.getvalue()
    else:
        parts[name] = json.dumps(edited(json.loads(parts[name]), generator)).encode()
    with zipfile.ZipFile(folder / PREDICTOR, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def spoil_onnx(folder: Path, generator: random.Random) -> None:
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    edit = generator.randrange(8)
    if edit < 4:
        entry = generator.choice(list(generator.choice(list(model.graph.initializer)).external_data))
        entry.value = generator.choice(("-1", "1e9", "99999999999", "", "../model.bin", "/dev/zero", "x", "9" * 5000, "a\0b"))
    elif edit == 4:
        odd(folder / "model.bin", generator)
    elif edit == 5:
        dims = generator.choice(list(model.graph.initializer)).dims
        dims[0] = generator.choice((-1, 0, 2**40, 7))
    elif edit == 6:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = generator.choice((-1, 0, 2**40))
    content = bytearray(model.SerializeToString())
    if edit == 7:
        content[generator.randrange(len(content))] = generator.randrange(256)
    path.write_bytes(bytes(content))


def spoil_status(folder: Path, generator: random.Random) -> None:
    text = (folder / "STATUS").read_text()
    made = generator.choice(
        ("", "OK\n", "okay\n", "ok", "\nok\n", "running\n{}\n", f"{text}{text}", '{"a": 1}\n', "\0", "failed\n" * 9)
    )
    (folder / "STATUS").write_text(made)


def spoil_sums(folder: Path, generator: random.Random) -> None:
    path = folder / "export" / "SHA256SUMS"
    lines = path.read_text().splitlines()
    at = generator.randrange(len(lines))
    lines[at] = generator.choice(
        ("", lines[at][:20], lines[at] + "x", lines[at].upper(), f"{'0' * 64}  {lines[at][66:]}", "  ")
    )
    path.write_text("".join(f"{line}\n" for line in lines))


# ---- what must hold of what was read -----------------------------------------------------------------------------------


def plain(value: Any) -> Found:
    return msgspec.to_builtins(value)


def expect(holds: Any, words: str) -> None:
    if not holds:
        raise AssertionError(words)


def finite(value: Found, place: str = "$") -> None:
    if isinstance(value, dict):
        for key, inside in value.items():
            finite(inside, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for inside in value:
            finite(inside, f"{place}[]")
    elif isinstance(value, float):
        expect(math.isfinite(value), f"{place} is {value}")


def says(said: Json, found: Found, place: str = "$") -> None:
    """What was read is what the file says: of the same type, nothing dropped."""
    if isinstance(said, dict):
        expect(isinstance(found, dict), f"{place}: {said!r} was read as {found!r}")
        for key, inside in said.items():
            expect(key in found, f"{place}.{key} was dropped")
            says(inside, found[key], f"{place}.{key}")
    elif isinstance(said, list):
        expect(isinstance(found, list | tuple) and len(said) == len(found), f"{place}: {said!r} was read as {found!r}")
        for inside, other in zip(said, found, strict=True):
            says(inside, other, f"{place}[]")
    else:
        same_type = type(said) is type(found) or ({type(said), type(found)} == {int, float})
        expect(said == found and same_type, f"{place}: {said!r} was read as {found!r}")


def sane_table(found: Found, folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    says({key: value for key, value in card.items() if key not in ("schema", "sha256")}, found["card"], "card")
    finite(found)
    expect(card["rows"] == len(found["rows"]), "the card counts other rows")
    expect(card["rows_not_converged"] == sum(not row["converged"] for row in found["rows"]), "other rows converged")
    for row in found["rows"]:
        expect(0 <= row["low_ms"] <= row["value_ms"] <= row["high_ms"], f"a row's interval: {row}")
        expect(row["sweeps"] > 0 and 0 < row["few_copies"] < row["many_copies"] and row["few_ms"] > 0, f"counts: {row}")
        for spec in (*row["kernel"]["inputs"], *row["kernel"]["outputs"]):
            expect(spec is None or min(spec["shape"], default=0) >= 0, f"a shape: {spec}")
            expect(spec is None or math.prod(spec["shape"]) < 2**45, f"a shape: {spec}")
        expect(isinstance(json.loads(row["kernel"]["attributes"]), dict), "attributes")
    for network in found["networks"]:
        expect(0 < network["low_ms"] <= network["measured_ms"] <= network["high_ms"], f"a network's interval: {network}")
        expect(network["madds"] >= 0 and network["kernel_sum_ms"] > 0 and network["sweeps"] > 0, f"a network: {network}")
    expect(card["key"]["threads"] > 0 and card["key"]["batch"] > 0, "threads or batch")
    for space in found["card"]["spaces"].values():
        expect(space["interval_factor"] >= 1 and space["scale"]["factor"] > 0, "a scale")
        for error in (space["table_error"], space["madds_baseline_error"]):
            expect(0 <= error["within_5_fraction"] <= error["within_10_fraction"] <= 1 and error["networks"] > 0, f"{error}")
            expect(0 <= error["p90_fraction"] <= error["worst_fraction"], f"{error}")


def read_table(folder: Path) -> Found:
    table = LatencyTable.load(folder)
    for row in table.rows.values():
        table.kernel_ms(row.kernel)
    model = TableModel(table, SPACE, fakes.make_lower(SPACE))
    finite([plain(model.latency(ARCHITECTURE)), model.workload_ms(ARCHITECTURE), model.describe()])
    return {"card": plain(table.card), "rows": plain(list(table.rows.values())), "networks": plain(table.networks)}


def read_network_predictor(folder: Path) -> Found:
    model = NetworkModel.load(folder, SPACE)
    finite([plain(model.latency(ARCHITECTURE)), model.workload_ms(ARCHITECTURE)])
    expect(0 < model.latency(ARCHITECTURE).ms < 1e9, "a latency")
    return plain(model.card)


def sane_network_card(found: Found, folder: Path) -> None:
    card = json.loads((folder / NETWORK_CARD).read_text())
    says({key: value for key, value in card.items() if key not in ("schema", "sha256")}, found, "card")
    expect(found["interval_factor"] >= 1 and found["networks"] == len(found["measured"]), "counts")
    expect(len({json.dumps(cost["workload"]) for cost in found["costs"]}) == len(found["costs"]), "a workload twice")
    for network in found["measured"]:
        expect(0 < network["low_ms"] <= network["measured_ms"] <= network["high_ms"], f"a network's interval: {network}")


def read_kernel_predictor(folder: Path) -> Found:
    predictor = KernelPredictor.load(folder / PREDICTOR, KERNELS)
    known = [kernel for kernel in KERNELS.rows if predictor.knows(kernel)]
    found = [(t.prediction.low_ms, t.prediction.ms, t.prediction.high_ms) for t in predictor.predict(known)]
    finite(found)
    expect(all(0 <= low <= ms <= high for low, ms, high in found), f"predictions {found}")
    return found


def read_architecture(folder: Path) -> Found:
    architecture = Architecture.load(folder / "architecture.json")
    space = space_of(architecture)
    space.params(architecture)
    space.madds(architecture)
    space.build(architecture)
    return plain(architecture)


def sane_architecture(found: Found, folder: Path) -> None:
    said = json.loads((folder / "architecture.json").read_text())
    says({key: value for key, value in said.items() if key not in ("schema", "fingerprint")}, found)


def read_config(folder: Path) -> Found:
    cfg = search_config_of(folder)
    workflows.method_from_config(cfg)
    workflows.space_from_config(cfg.space, None, cfg.device.batch)
    return plain(cfg)


def sane_config(found: Found, folder: Path) -> None:
    says(tomllib.loads((folder / "config.toml").read_text()), found)


def read_result(folder: Path) -> Found:
    return [plain(budget_of(folder)), summarise(folder).document["search"]]


def sane_result(found: Found, folder: Path) -> None:
    budget, whole = found
    says(json.loads((folder / "result.json").read_text()), whole)
    finite(whole)
    expect((budget is None) is (whole["budgets"] == []), "the budget")
    expect(budget is None or 0 <= budget["table_low_ms"] <= budget["table_ms"] <= budget["table_high_ms"], f"{budget}")
    expect(whole["epochs"] >= 0 and whole["duration_s"] >= 0 and whole["params"] >= 0, "counts")


def read_trained(folder: Path) -> Found:
    network, accuracy = network_of(folder, SPACE, ARCHITECTURE)
    summarise(folder)
    return {"tensors": {name: tensor.tolist() for name, tensor in network.state_dict().items()}, "accuracy": accuracy}


def sane_trained(found: Found, folder: Path) -> None:
    said = json.loads((folder / "train" / "result.json").read_text())
    expect(0 <= found["accuracy"] <= 1 and said["test_accuracy"] == found["accuracy"], "an accuracy")
    expect(type(said["epochs"]) is int and said["epochs"] >= 0 and 0 <= said["train_accuracy"] <= 1, "the result")
    expect(said["fingerprint"] == ARCHITECTURE.fingerprint, "of another network")
    stored = safetensors.torch.load_file(folder / "train" / "weights.safetensors")
    own = SPACE.build(ARCHITECTURE).state_dict()
    expect({n: (t.dtype, t.shape) for n, t in stored.items()} == {n: (t.dtype, t.shape) for n, t in own.items()}, "tensors")


def read_checkpoint(folder: Path) -> Found:
    state = Checkpoints(folder).load_latest()
    expect(state is not None, "no checkpoint")
    try:
        check_like(state, STATE)
    except ValueError as error:
        raise documents.DocumentError(str(error)) from error
    return None


def read_journal(folder: Path) -> Found:
    log = SweepLog.resume(Journal(folder / "rows.jsonl"))
    measured = log.measurements(["a", "b"], plan_named("quick"), True)
    finite(plain(measured))
    expect(all(m.low_ms <= m.value_ms <= m.high_ms and m.value_ms > 0 for m in measured.values()), "an interval")
    expect(not log.hello or log.environment, "an environment")
    return plain(log.records)


def sane_journal(found: Found, folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    entries = [line for line in lines if "hello" not in line]
    expect(sum(map(len, found.values())) == len(entries), "records were dropped")
    for entry in entries:
        record = found[entry["model"]][entry["sweep"]]
        says(entry["record"], record)
        expect(len(record["wall_ms"]) == len(record["cpu_ms"]) and min(record["wall_ms"]) > 0 and entry["sweep"] >= 0, "times")


def read_lowered(folder: Path) -> Found:
    stored = LoweredNetworks.load(folder / "lowered.json")
    return [sorted((kernel.key, n) for kernel, n in counts.items()) for counts in stored.counts(NETWORKS)]


def sane_lowered(found: Found, folder: Path) -> None:
    expect(all(counts and all(n > 0 for _, n in counts) for counts in found), "counts")
    said = json.loads((folder / "lowered.json").read_text())["networks"]
    expect([len(said[a.fingerprint]) for a in NETWORKS] == [len(counts) for counts in found], "kernels were merged")


def read_metrics(folder: Path) -> Found:
    (folder / "result.json").unlink(missing_ok=True)
    summarise(folder)
    Journal(folder / "metrics.jsonl").keep(lambda line: line["epoch"] < 5)
    return None


def read_starts(folder: Path) -> Found:
    journal = Journal(folder / "starts.jsonl")
    return [plain(documents.convert(start, Environment, str(journal.path))) for start in journal.lines()]


def sane_starts(found: Found, folder: Path) -> None:
    says([json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()], found)
    expect(all(one["cpu_count"] > 0 and min(one["load_average"]) >= 0 for one in found), "an environment")


def read_device(folder: Path) -> Found:
    os.environ["MOBILENAS_HOME"] = str(folder)
    return msgspec.structs.asdict(load_card("phone"))


def sane_device(found: Found, folder: Path) -> None:
    says(tomllib.loads((folder / "devices" / "phone.toml").read_text()), found)
    expect(found["name"] == "phone" and found["cpu_count"] > 0 and (found["memory_mib"] or 1) > 0, "facts")


def read_status_file(folder: Path) -> Found:
    return [RunDirectory(folder).is_finished, summarise(folder).document["status"]]


def sane_status(found: Found, folder: Path) -> None:
    is_finished, word = found
    said = (folder / "STATUS").read_text().splitlines()
    expect(not is_finished or (said and said[0] == "ok"), f"finished by {said[:1]}")
    expect(is_finished is (word == "ok"), f"two meanings of {said[:1]}")


def read_bundle(folder: Path) -> Found:
    return len(read_bundled(folder / "export" / "model.onnx"))


def read_report(folder: Path) -> Found:
    return summarise(folder).document["export"]


def sane_report(found: Found, folder: Path) -> None:
    says(json.loads((folder / "export" / "report.json").read_text()), found)
    finite(found)


def read_verified(folder: Path) -> Found:
    return summarise(folder).document["verified"][0]


def read_onnx(folder: Path) -> Found:
    found = onnx_model.read_model(folder / "model.onnx")
    return len(found.content)


# ---- valid files -------------------------------------------------------------------------------------------------------

NETWORKS = [SPACE.random_architecture(random.Random(seed)) for seed in range(3)]
ARCHITECTURE = NETWORKS[0]
TABLE = fakes.make_table(SPACE)


def _convolution(channels: int, size: int) -> TableRow:
    image = TensorSpec((1, channels, size, size), "float32")
    weight = TensorSpec((channels, channels, 3, 3), "float32", is_constant=True)
    kernel = Kernel("Conv", '{"group": 1, "strides": [1, 1]}', (image, weight), (image,), "CPU")
    ms = 1e-3 + 1e-8 * (channels * size) ** 2
    return TableRow(kernel, ms, 0.99 * ms, 1.01 * ms, 0.1 + 2 * ms, 0.1 + 8 * ms, 4, True)


KERNELS = LatencyTable(
    msgspec.structs.replace(TABLE.card, spaces={}),
    {row.kernel: row for c in range(8, 128, 8) for size in (8, 16) for row in [_convolution(c, size)]},
    {},
    (),
).storable()
"""Of one family, from which a predictor learns."""


def learnt_kernels() -> KernelPredictor:
    """A predictor from ``KERNELS``."""
    learnt = KernelPredictor().fit(KERNELS.rows.values())
    learnt.common_width_, learnt.learnt_from_ = 0.1, KERNELS.digest
    return learnt


SEARCHED = {
    "schema": "mobilenas/search-result@1", "method": "darts", "fingerprint": ARCHITECTURE.fingerprint, "params": 7698,
    "madds": 103872, "epochs": 9, "duration_s": 12.5, "budgets": [BUDGET],
}  # fmt: skip
EXPORTED = {
    "schema": "mobilenas/export-report@1", "model": "model.onnx", "agreement": {"maximum_difference": 1e-6},
    "engines": [{"runtime": "onnxruntime", "measured": {"value_ms": 1.5}}],
}  # fmt: skip
VERIFIED = {
    "schema": "mobilenas/verification@1", "measured": {"value_ms": 1.5}, "device": "phone", "budget_met": True, "record": "a"
}  # fmt: skip
STATE = {
    "position": {"epoch": 1, "step": 2}, "supernet": {"w": torch.arange(12.0), "n": torch.tensor(3)}, "numbers": [1, 2.5, True],
    "best": {"epoch": 0, "logits": {"a": torch.ones(2, 3)}}, "lagrangians": [{"multiplier": 0.5}], "text": "x",
}  # fmt: skip


def make(root: Path) -> None:
    """A folder with a valid file of every kind."""
    TABLE.save(root)
    _save_predictors(root)
    (root / "architecture.json").write_text(ARCHITECTURE.to_json())
    options = {name: value for name, value in SPACE.options.items() if name not in ("batch",)}
    (root / "config.toml").write_text(dump_config(SearchConfig(space=SpaceConfig(options=options))))
    (root / "result.json").write_text(documents.dump_json(SEARCHED))
    (root / "metrics.jsonl").write_text("".join(json.dumps({**EPOCH, "epoch": n}) + "\n" for n in range(9)))
    (root / "STATUS").write_text("ok\n")
    (root / "train").mkdir()
    network = SPACE.build(ARCHITECTURE)
    weights = root / "train" / "weights.safetensors"
    sha256 = save_tensors(weights, network.state_dict(), {"fingerprint": ARCHITECTURE.fingerprint})
    result = TrainResult("weights.safetensors", sha256, ARCHITECTURE.fingerprint, 0.5, 0.6, 1, 1.0)
    dump(root / "train" / "result.json", {"schema": "mobilenas/train-result@1", **plain(result)})
    Checkpoints(root / "checkpoints").save(STATE)
    record = SweepRecord((1.0, 1.1), (1.0, 1.1), (0.1,), 2.0, 3.0, 20.0, True)
    journal = Journal(root / "rows.jsonl")
    environment = TABLE.card.environment
    state = {key: value for key, value in plain(environment).items() if key != "versions"}
    said = {
        "type": "hello",
        "protocol": 3,
        "runner": "r",
        "engine_version": "1",
        "providers": ["p"],
        "python": "3",
        "state": state,
    }
    journal.append({"hello": said})
    for sweep in range(4):
        for model in ("a", "b"):
            journal.append(JournalEntry(sweep, model, record, 1e9 + sweep))
    Journal(root / "starts.jsonl").append(environment)
    lowered = LoweredNetworks.from_counts(NETWORKS, fakes.make_lower(SPACE)(NETWORKS))
    (root / "lowered.json").write_text(documents.dump_json(lowered))
    os.environ["MOBILENAS_HOME"] = str(root)
    save_card(DeviceCard("phone", "adb:123", cpu_count=8, memory_mib=6000, governors=("performance",), engines={"ncnn": "1"}))
    write_bundle(root / "export", {"model.onnx": b"x" * 999, "report.json": json.dumps(EXPORTED)})
    (root / "verified").mkdir()
    dump(root / "verified" / "a.json", VERIFIED)
    exported = onnx_model.onnx_from_module(nn.Conv2d(3, 8, 3), [torch.zeros(1, 3, 8, 8)])
    kept = {"save_as_external_data": True, "all_tensors_to_one_file": True, "size_threshold": 0, "location": "model.bin"}
    onnx.save(exported, root / "model.onnx", **kept)


def _save_predictors(root: Path) -> None:
    learnt_kernels().save(root / PREDICTOR)
    drawn = list(dict.fromkeys(SPACE.random_architecture(random.Random(seed)) for seed in range(12)))
    model = fakes.make_model(SPACE)
    measured = tuple(plain(row) for row in TABLE.networks)
    fields = {field.name for field in msgspec.structs.fields(NetworkCard)}
    card = {key: value for key, value in plain(TABLE.card).items() if key in fields}
    [space] = TABLE.card.spaces.values()
    own = {
        "origin": "transferred", "space": SPACE.key, "options": SPACE.options, "networks": len(measured), "table": None,
        "error": space.table_error, "interval_factor": 1.1, "statistics": space.statistics, "workload_error": space.table_error,
        "costs": [WorkloadCost(w, ms) for w, ms in TABLE.workload_costs[SPACE.key].costs_ms.items()], "proxies": [],
        "measured": [{k: v for k, v in row.items() if k not in ("role", "kernel_sum_ms", "madds")} for row in measured],
    }  # fmt: skip
    fitted = NetworkPredictor().fit(uses_of(SPACE, drawn), np.array([model.latency(a).ms for a in drawn]))
    NetworkModel(msgspec.convert(plain({**card, **own}), NetworkCard), fitted, SPACE).save(root)


def _renew_table(folder: Path) -> None:
    renew(folder / "card.json", "card.json", CSVS)


def _renew_predictor(folder: Path) -> None:
    renew(folder / NETWORK_CARD, NETWORK_CARD, (TENSORS,))


def _renew_architecture(folder: Path) -> None:
    said = json.loads((folder / "architecture.json").read_text())
    if isinstance(said, dict):
        said.pop("fingerprint", None)
        dump(folder / "architecture.json", said)


def _renew_weights(folder: Path) -> None:
    path = folder / "train" / "result.json"
    said = json.loads(path.read_text())
    dump(path, {**said, "sha256": hashlib.sha256((folder / "train" / "weights.safetensors").read_bytes()).hexdigest()})


def _renew_checkpoint(folder: Path) -> None:
    path = folder / "checkpoints" / "000001.json"
    said = json.loads(path.read_text())
    if isinstance(said, dict) and isinstance(said.get("sha256"), dict):
        with contextlib.suppress(ValueError):
            tensors = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
            dump(path, {**said, "sha256": {"state": documents.digest(said.get("state")), "tensors": tensors}})


def _read_checkpoints(folder: Path) -> Found:
    return read_checkpoint(folder / "checkpoints")


KINDS = (
    Kind("table card", "card.json", spoil_json("card.json", _renew_table), read_table, sane_table),
    *(Kind(f"table {name}", name, spoil_csv(name), read_table, sane_table) for name in CSVS),
    Kind("network card", NETWORK_CARD, spoil_json(NETWORK_CARD, _renew_predictor), read_network_predictor, sane_network_card),
    Kind("network tensors", TENSORS, spoil_tensors(TENSORS, _renew_predictor), read_network_predictor),
    Kind("kernel predictor", PREDICTOR, spoil_skops, read_kernel_predictor),
    Kind(
        "architecture",
        "architecture.json",
        spoil_json("architecture.json", _renew_architecture),
        read_architecture,
        sane_architecture,
    ),
    Kind("configuration", "config.toml", spoil_toml("config.toml"), read_config, sane_config),
    Kind("search result", "result.json", spoil_json("result.json"), read_result, sane_result),
    Kind("train result", "train/result.json", spoil_json("train/result.json"), read_trained, sane_trained),
    Kind(
        "weights",
        "train/weights.safetensors",
        spoil_tensors("train/weights.safetensors", _renew_weights),
        read_trained,
        sane_trained,
    ),
    Kind("checkpoint", "checkpoints/000001.json", spoil_json("checkpoints/000001.json", _renew_checkpoint), _read_checkpoints),
    Kind(
        "checkpoint tensors",
        "checkpoints/000001.safetensors",
        spoil_tensors("checkpoints/000001.safetensors", _renew_checkpoint),
        _read_checkpoints,
    ),
    Kind("journal", "rows.jsonl", spoil_lines("rows.jsonl"), read_journal, sane_journal),
    Kind("starts", "starts.jsonl", spoil_lines("starts.jsonl"), read_starts, sane_starts),
    Kind("metrics", "metrics.jsonl", spoil_lines("metrics.jsonl"), read_metrics),
    Kind("lowered networks", "lowered.json", spoil_json("lowered.json"), read_lowered, sane_lowered),
    Kind("device card", "devices/phone.toml", spoil_toml("devices/phone.toml"), read_device, sane_device),
    Kind("status", "STATUS", spoil_status, read_status_file, sane_status),
    Kind("checksums", "export/SHA256SUMS", spoil_sums, read_bundle),
    Kind("export report", "export/report.json", spoil_json("export/report.json"), read_report, sane_report),
    Kind("verification", "verified/a.json", spoil_json("verified/a.json"), read_verified),
    Kind("ONNX model", "model.onnx", spoil_onnx, read_onnx),
)
UNSIGNED = ("status", "metrics", "journal", "starts", "configuration", "export report", "verification")
"""Kinds without a checksum that may be missing, or end early."""
ODD_SHARE = 0.15
"""Of the cases: another kind of file, not another content."""


# ---- cases -------------------------------------------------------------------------------------------------------------


def outcome_of(kind: Kind, folder: Path, before: Found, is_odd: bool) -> tuple[str, str]:
    """How a reading ends, and what is wrong with it if anything is."""
    try:
        found = kind.read(folder)
    except MobileNASError as error:
        return (
            ("refused", "") if 0 < len(str(error)) < 20_000 else ("traceback", "an error without words, or with endless ones")
        )
    except MemoryError:
        return "growth", traceback.format_exc(limit=-3)
    except AssertionError as error:
        return "meaning", str(error)[:500]
    except BaseException:
        return "traceback", traceback.format_exc(limit=-6)
    if is_odd or (found == before and kind.name != "weights"):
        return "same", ""
    try:
        kind.sane(found, folder)
    except Exception as error:
        return "meaning", f"{type(error).__name__}: {error}"[:500]
    return "changed", ""


def in_child(kind: Kind, folder: Path, before: Found, is_odd: bool) -> tuple[str, str]:
    """The same in a process of its own, with limits."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT_S)
            size = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH_BYTES, size + GROWTH_BYTES))
            os.write(writing, json.dumps(outcome_of(kind, folder, before, is_odd)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGALRM:
        return "hang", f"over {LIMIT_S} s"
    word, words = json.loads(said) if said else ("traceback", f"ended with {code}")
    return word, words


def run(cases: int, seed: int, only: str = "") -> tuple[dict[str, Counter[str]], list[str]]:
    """So many cases; by kind how many ended how, and what was wrong."""
    torch.set_num_threads(1)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        valid = Path(place) / "valid"
        valid.mkdir()
        make(valid)
        kinds = [kind for kind in KINDS if only in kind.name]
        before = {}
        for kind in kinds:
            copied = shutil.copytree(valid, Path(place) / "same")
            before[kind.name] = kind.read(copied)
            kind.sane(before[kind.name], copied)
            shutil.rmtree(copied)
        for number in range(cases):
            kind, generator = kinds[number % len(kinds)], random.Random(f"{seed}/{number}")
            folder = Path(shutil.copytree(valid, Path(place) / "case"))
            is_odd = generator.random() < ODD_SHARE
            is_cut = odd(folder / kind.file, generator) if is_odd else False
            if not is_odd:
                kind.spoil(folder, generator)
            word, words = in_child(kind, folder, before[kind.name], is_odd)
            if is_odd and word == "same" and not (is_cut and kind.name in UNSIGNED):
                word, words = "meaning", "another kind of file was read as before"
            counts[kind.name][word] += 1
            if word not in ("refused", "same", "changed"):
                wrong.append(f"{seed}/{number} {kind.name}{' (odd)' if is_odd else ''}: {word}: {words}")
            shutil.rmtree(folder)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Kinds whose name holds this.")
    asked = parser.parse_args()
    begin = time.monotonic()
    counts, wrong = run(asked.cases, asked.seed, asked.only)
    words = ("refused", "same", "changed", "meaning", "traceback", "growth", "hang")
    print(f"| {'kind':20} | {' | '.join(words)} |\n|---|{'---|' * len(words)}")
    for name, found in counts.items():
        print(f"| {name:20} | {' | '.join(f'{found[word]:{len(word)}}' for word in words)} |")
    together = sum(counts.values(), Counter())
    print(f"| {'all':20} | {' | '.join(f'{together[word]:{len(word)}}' for word in words)} |")
    print(f"{sum(together.values())} cases in {time.monotonic() - begin:.0f} s, {len(wrong)} wrong")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
