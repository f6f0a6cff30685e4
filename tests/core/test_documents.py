from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from mobilenas.core import documents
from mobilenas.errors import DocumentError


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    depth: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    channels: int
    inner: Inner


def test_dump_is_sorted_and_reads_back() -> None:
    text = documents.dump_json({"b": (1, 2.5), "a": None})
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    assert documents.parse_json(text, "here") == {"a": None, "b": [1, 2.5]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_dump_refuses_what_is_not_a_number(value: float) -> None:
    with pytest.raises(ValueError):
        documents.dump_json({"a": [value]})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"x": {"a": 1, "a": 1}}', "'a' stands twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1\n', "line 2"),
        ("", "line 1, column 1"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 65 + "1" + "]" * 65, "nested too deeply: over 64 levels"),
        ('{"a": [0, 1e999]}', "the number at $.a[1] is inf"),
        ("9" * 5_000, "a number is too long"),
        ('{"a": 99999999999999999999999}', "the number at $.a, 99999999999999999999999, has more than 64 bits"),
        (r'{"a": "\ud800"}', "the text at $.a, '\\ud800', is not Unicode"),
        (r'{"\udfff": 1}', "not Unicode"),
        ("[" + "0," * 1_000_001 + "0]", "more than 1,000,000 values"),
    ],
    ids=[
        "twice",
        "twice-inside",
        "nan",
        "infinity",
        "cut",
        "empty",
        "deep",
        "65",
        "overflow",
        "digits",
        "bits",
        "half",
        "name",
        "many",
    ],
)
def test_json_is_strict_and_errors_name_the_place(text: str, what: str) -> None:
    with pytest.raises(DocumentError, match="here") as error:
        documents.parse_json(text, "here")
    assert what in str(error.value)


def test_toml_errors_name_the_place() -> None:
    assert documents.parse_toml("[a]\nb = 1", "here") == {"a": {"b": 1}}
    with pytest.raises(DocumentError, match=r"here.*line 1"):
        documents.parse_toml("a = = 1", "here")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a = " + "[" * 20_000, "nested too deeply"),
        (".".join("a" * 5_000) + " = 1", "nested too deeply"),
        ("a = " + "9" * 5_000, "a number is too long"),
        ("[a]\nb = nan", "the number at $.a.b is nan"),
        ("a = 1e999", "the number at $.a is inf"),
        ("# " + "x" * 2**20, "larger than 1 MiB"),
        ("[a]\nlr = 1\n[b]\nlr = 2\nlr = 3", "line 5, column 7): 'lr = 3', after 'lr = 2'"),
        ("[a]\n[a]", "'[a]'"),
    ],
    ids=["deep", "dotted", "digits", "nan", "overflow", "large", "twice", "table-twice"],
)
def test_toml_is_as_strict(text: str, what: str) -> None:
    with pytest.raises(DocumentError, match="here") as error:
        documents.parse_toml(text, "here")
    assert what in str(error.value)


def test_what_is_at_the_limits_is_read() -> None:
    assert documents.parse_json("[" * 64 + "1" + "]" * 64, "here")
    assert (
        documents.parse_json('{"a": 18446744073709551615, "b": -9223372036854775808, "c": "\\ud83d\\ude00"}', "here")["c"]
        == "😀"
    )


def test_convert_names_the_value_that_it_refuses() -> None:
    class Bounded(msgspec.Struct):
        threads: Annotated[int, msgspec.Meta(ge=1)]
        inside: dict[str, list[Inner]] = {}

    with pytest.raises(DocumentError, match=r">= 1 - at `\$\.threads`, found 0$"):
        documents.convert({"threads": 0}, Bounded, "here")
    with pytest.raises(DocumentError, match=r"at `\$\.inside\.x\[1\]\.depth`, found '7'$"):
        documents.convert({"threads": 1, "inside": {"x": [{"depth": 7}, {"depth": "7"}]}}, Bounded, "here")


def test_convert_coerces_nothing() -> None:
    assert documents.convert({"channels": 3, "inner": {"depth": 4}}, Outer, "here") == Outer(3, Inner(4))
    for wrong in ("3", 3.5, True, None):
        with pytest.raises(DocumentError, match=r"here.*channels"):
            documents.convert({"channels": wrong, "inner": {"depth": 4}}, Outer, "here")


def test_convert_names_the_field_that_was_meant() -> None:
    with pytest.raises(DocumentError, match="did you mean channels"):
        documents.convert({"channnels": 3, "channels": 3, "inner": {"depth": 4}}, Outer, "here")
    with pytest.raises(DocumentError, match="did you mean depth"):
        documents.convert({"channels": 3, "inner": {"deph": 4, "depth": 4}}, Outer, "here")


def test_schema() -> None:
    data = {"schema": "mobilenas/thing@2", "a": 1}
    assert documents.check_schema(data, "thing", 2, "here") == {"a": 1}
    assert "schema" in data, "the caller's document is left as it was"
    with pytest.raises(DocumentError, match=r"newer mobilenas.*upgrade"):
        documents.check_schema(data, "thing", 1, "here")
    for wrong in (None, "mobilenas/other@2", "mobilenas/thing@x", "mobilenas/thing@1", 2):
        with pytest.raises(DocumentError, match="expected 'mobilenas/thing@2'"):
            documents.check_schema({"schema": wrong}, "thing", 2, "here")
    with pytest.raises(DocumentError, match="expected a JSON object, found list"):
        documents.check_schema([], "thing", 2, "here")


def test_read_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "document.json"
    with pytest.raises(DocumentError, match=r"document\.json: cannot be read: No such file"):
        documents.read_text(path)
    with pytest.raises(DocumentError, match="not a regular file"):
        documents.read_text(Path("/dev/zero"))
    path.write_bytes(b"ab\xff")
    with pytest.raises(DocumentError, match=r"not UTF-8 text \(byte 2\)"):
        documents.read_text(path)
    path.write_text("größe", encoding="utf-8")
    assert documents.read_text(path) == "größe"
    monkeypatch.setattr(documents, "MAXIMUM_BYTES", 3)
    with pytest.raises(DocumentError, match="larger than"):
        documents.read_text(path)
