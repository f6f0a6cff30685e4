"""MNN's converter in a process of its own, since it prints to the standard output and may end the process it is called in.

Run as a program this file serves: ``[name of a function, arguments]`` in, ``[result, complaint, system's complaint]`` out.
Each message is a line of JSON, which names bytes and arrays by their sizes, and then these: nothing that is read can run code.
Nothing of mobilenas is imported here. The ``mnnconvert`` command is not used: it sends data on its use to a server.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

WEIGHTS = ".weight"
"""Added to a model's name: its weights, in a file of their own."""
METHOD = "ADMM"
MAXIMUM_LINE_BYTES = 2**30
MAXIMUM_PART_BYTES = 2**34
DTYPES = ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Of arrays that travel."""


def model_from_onnx(onnx: bytes) -> tuple[bytes, bytes]:
    """Model and weights; raises ``ValueError`` if MNN cannot convert it."""
    with tempfile.TemporaryDirectory(prefix="mobilenas-mnn-") as folder:
        given, made = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
        given.write_bytes(onnx)
        _convert("ONNX", given, "--MNNModel", made, "--saveExternalData")
        weights = Path(f"{made}{WEIGHTS}")
        return made.read_bytes(), weights.read_bytes() if weights.exists() else b""


def integers_from_onnx(onnx: bytes, names: list[str], calls: list[list[Any]]) -> bytes:
    """The model in integers, weights inside; each of ``calls`` holds an array for each of the inputs called ``names``.

    Ranges are those of MNN's own tool by its method ADMM. Raises ``ValueError`` if MNN cannot convert it.
    """
    import _tools

    with tempfile.TemporaryDirectory(prefix="mobilenas-mnn-") as folder:
        given, whole, made = (Path(folder) / name for name in ("model.onnx", "whole.mnn", "model.mnn"))
        given.write_bytes(onnx)
        _convert("ONNX", given, "--MNNModel", whole)
        images, settings = Path(folder) / "calls", Path(folder) / "settings.json"
        for number, arrays in enumerate(calls):
            call = images / str(number)
            call.mkdir(parents=True)
            inputs = [{"name": name, "shape": array.shape} for name, array in zip(names, arrays, strict=True)]
            (call / "input.json").write_text(json.dumps({"inputs": inputs, "outputs": []}))
            for name, array in zip(names, arrays, strict=True):
                np.savetxt(call / f"{name}.txt", array.reshape(-1))
        quantising = {
            "path": f"{images}/",
            "input_type": "sequence",
            "used_sample_num": len(calls),
            "feature_quantize_method": METHOD,
            "weight_quantize_method": "MAX_ABS",
        }
        settings.write_text(json.dumps(quantising))
        if not _tools.mnnquant(["mobilenas", str(whole), str(made), str(settings)]) or not made.exists():
            raise ValueError("MNN's tool for integers refuses the model")
        return made.read_bytes()


def model_from_graph(graph: dict[str, Any]) -> bytes:
    """The inverse of ``graph_of``."""
    with tempfile.TemporaryDirectory(prefix="mobilenas-mnn-") as folder:
        given, made = Path(folder) / "model.json", Path(folder) / "model.mnn"
        given.write_text(json.dumps(graph))
        _convert("JSON", given, "--MNNModel", made)
        return made.read_bytes()


def graph_of(model: bytes, weights: bytes) -> tuple[dict[str, Any], dict[str, tuple[list[int], list[int] | None]]]:
    """A model as MNN's own JSON, and of each of its tensors the shape, and the values where they are integers: these are
    sizes, which are computed before the network runs.
    """
    import MNN

    with tempfile.TemporaryDirectory(prefix="mobilenas-mnn-") as folder:
        given, made = Path(folder) / "model.mnn", Path(folder) / "model.json"
        given.write_bytes(model)
        Path(f"{given}{WEIGHTS}").write_bytes(weights)
        _convert("MNN", given, "--JsonFile", made)
        graph = json.loads(made.read_text())
        interpreter = MNN.Interpreter(str(given))
        kept = tuple(graph["tensorName"])
        session = interpreter.createSession({"numThread": 1, "backend": "CPU", "precision": "high", "saveTensors": kept})
        interpreter.runSession(session)
        return graph, {name: _facts(tensor) for name, tensor in interpreter.getSessionOutputAll(session).items()}


def _facts(tensor: Any) -> tuple[list[int], list[int] | None]:
    import MNN

    shape = tuple(tensor.getShape())
    if tensor.getDataType() != MNN.Halide_Type_Int:
        return list(shape), None
    found = MNN.Tensor(shape, MNN.Halide_Type_Int, np.zeros(shape, np.int32), MNN.Tensor_DimensionType_Caffe)
    tensor.copyToHostTensor(found)
    return list(shape), np.array(found.getNumpyData()).reshape(-1).tolist()


def _convert(kind: str, given: Path, option: str, made: Path, *more: str) -> None:
    import _tools

    argv = ["mobilenas", "-f", kind, "--modelFile", str(given), option, str(made), "--bizCode", "mobilenas", *more]
    if not _tools.mnnconvert(argv) or not made.exists():
        raise ValueError(f"MNN's converter refuses the model ({kind})")


def send(stream: IO[bytes], value: Any) -> None:
    """Write one message: JSON values, bytes and arrays; tuples arrive as lists."""
    parts: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            parts.append(value)
            return {"bytes": len(value)}
        if isinstance(value, np.ndarray):
            parts.append(np.ascontiguousarray(value).tobytes())
            return {"bytes": len(parts[-1]), "dtype": str(value.dtype), "shape": list(value.shape)}
        if isinstance(value, list | tuple):
            return [plain(inside) for inside in value]
        if isinstance(value, dict):
            return {"object": {key: plain(inside) for key, inside in value.items()}}
        return value

    stream.write(json.dumps(plain(value)).encode() + b"\n")
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message. Raises ``EOFError`` where it is not whole, ``ValueError`` for anything that ``send`` does not write."""
    line = stream.readline(MAXIMUM_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(inside) for inside in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"object"}:
            return {key: whole(inside) for key, inside in value["object"].items()}
        size, dtype = value["bytes"], value.get("dtype", "bytes")
        if not isinstance(size, int) or not 0 <= size <= MAXIMUM_PART_BYTES or dtype not in ("bytes", *DTYPES):
            raise ValueError(f"a part of {size!r} bytes of {dtype!r}")
        part = stream.read(size)
        if len(part) < size:
            raise EOFError
        return part if dtype == "bytes" else np.frombuffer(part, dtype).reshape(value["shape"])

    try:
        return whole(json.loads(line))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a message that is none: {error!r}") from error


def _serve() -> None:
    works = {work.__name__: work for work in (model_from_onnx, integers_from_onnx, model_from_graph, graph_of)}
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        while True:
            try:
                name, arguments = receive(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer: list[Any] = [works[name](*arguments), None, None]
            except ValueError as error:
                answer = [None, str(error), None]
            except (OSError, MemoryError) as error:
                answer = [None, None, str(error) or type(error).__name__]
            send(answers, answer)


if __name__ == "__main__":
    _serve()
