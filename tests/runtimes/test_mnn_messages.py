"""Messages between mobilenas and the process that converts for MNN: JSON, bytes and arrays, and nothing that could run code."""

import io
import json
import pickle

import numpy as np
import pytest

from mobilenas.runtimes import mnn_convert


def test_values_bytes_and_arrays_arrive_as_they_were() -> None:
    stream = io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for value in (["f", (b"\n\0", {"bytes": 1, "a": [None, 1.5, "x"]}, [array], np.array(3, np.int8))], b""):
        mnn_convert.send(stream, value)
    stream.seek(0)
    name, (content, plain, [found], scalar) = mnn_convert.receive(stream)
    assert (name, content, plain) == ("f", b"\n\0", {"bytes": 1, "a": [None, 1.5, "x"]})
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert (scalar.shape, int(scalar)) == ((), 3)
    assert mnn_convert.receive(stream) == b""


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"", EOFError),
        (b"[1, 2", EOFError),
        (b'{"bytes": 3}\nab', EOFError),
        (b'{"bytes": -1}\n', ValueError),
        (b'{"bytes": 8, "dtype": "object", "shape": [1]}\n12345678', ValueError),
        (b'{"bytes": 8, "dtype": "int64", "shape": [2]}\n12345678', ValueError),
        (json.dumps({"object": 3}).encode() + b"\n", ValueError),
        (pickle.dumps(print) + b"\n", ValueError),
    ],
)
def test_anything_else_is_refused(message: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        mnn_convert.receive(io.BytesIO(message))
