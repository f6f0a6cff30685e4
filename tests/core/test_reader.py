"""The one door to files: regular ones only, of bounded size, whatever their kind."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from mobilenas import onnx_model
from mobilenas.core import documents, memory
from mobilenas.core.architecture import Architecture
from mobilenas.errors import DocumentError
from mobilenas.export.bundle import read_bundled
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.search.checkpoints import load_tensors, sha256_of
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_table

TABLE = make_table(CellSpace(channels=4, layers=3, image_size=8))


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 40 * 2**30)


def missing(path: Path) -> None:
    """Nothing is there."""


def bundled(path: Path) -> None:
    (path.parent / "SHA256SUMS").write_text("")
    read_bundled(path)


READERS: dict[str, Callable[[Path], object]] = {
    "text": documents.read_text,
    "architecture": Architecture.load,
    "ONNX": onnx_model.read_model,
    "weights": load_tensors,
    "checksum": sha256_of,
    "bundle": bundled,
    "kernel predictor": lambda path: KernelPredictor.load(path, TABLE),
}


@pytest.mark.parametrize("make", [folder, pipe, endless, huge, missing])
@pytest.mark.parametrize("reader", READERS)
def test_odd_files_are_refused_before_they_are_read(reader: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "file")
    with pytest.raises(DocumentError, match="file"):
        READERS[reader](tmp_path / "file")


def test_what_is_larger_than_the_free_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (memory.free_memory_bytes() or 2**30) > 2**20
    (tmp_path / "m.onnx").touch()
    os.truncate(tmp_path / "m.onnx", 3 * 2**30)
    monkeypatch.setattr(documents, "free_memory_bytes", lambda: 2**30)
    with pytest.raises(DocumentError, match="1,024 MiB of memory free"):
        onnx_model.read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("length", "99999"), ("offset", "x"), ("location", "a\0b")])
def test_weights_beside_a_model_that_are_not_there(key: str, value: str, tmp_path: Path) -> None:
    exported = onnx_model.onnx_from_module(torch.nn.Conv2d(3, 8, 3), [torch.zeros(1, 3, 8, 8)])
    onnx.save(exported, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.bin")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    data = model.graph.initializer[0].external_data
    kept = [entry for entry in data if entry.key != key]
    del data[:]
    data.extend([*kept, onnx.StringStringEntryProto(key=key, value=value)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DocumentError, match="weights"):
        onnx_model.read_model(tmp_path / "m.onnx")


def test_a_pipe_of_weights_is_not_waited_for(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.from_numpy(np.zeros(3))}, tmp_path / "a")
    assert load_tensors(tmp_path / "a")["a"].shape == (3,)
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    with pytest.raises(DocumentError, match="not a regular file"):
        load_tensors(tmp_path / "a")


@pytest.mark.parametrize("write", [documents.dump_json, documents.dump_line, documents.digest])
def test_numbers_that_are_not_finite_are_named_and_not_written(write: Callable[[object], str]) -> None:
    with pytest.raises(DocumentError, match=r"\$\.a\[1\]\.b is nan"):
        write({"a": [1.0, {"b": math.nan}]})
