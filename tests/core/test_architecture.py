import hashlib
import json
from pathlib import Path

import pytest

from mobilenas.core.architecture import Architecture, options_key
from mobilenas.errors import DocumentError

OPTIONS = {"channels": 4, "stem": "cifar", "operators": ("none", "skip_connect")}
ARCHITECTURE = Architecture("cells", OPTIONS, {"normal.0-2": "skip_connect", "normal.1-2": "sep_conv_3x3"})


def backwards(mapping: dict) -> dict:
    return dict(reversed(list(mapping.items())))


def test_fingerprint_does_not_depend_on_the_order_of_names() -> None:
    other = Architecture("cells", backwards(OPTIONS), backwards(ARCHITECTURE.choices))
    assert other.fingerprint == ARCHITECTURE.fingerprint
    assert other == ARCHITECTURE
    assert len({other, ARCHITECTURE}) == 1


def test_fingerprint_tells_every_part_apart() -> None:
    variants = [
        ARCHITECTURE,
        Architecture("other", OPTIONS, ARCHITECTURE.choices),
        Architecture("cells", OPTIONS | {"channels": 5}, ARCHITECTURE.choices),
        Architecture("cells", OPTIONS, ARCHITECTURE.choices | {"normal.0-2": "max_pool_3x3"}),
        Architecture("cells", OPTIONS, {"normal.0-2": "skip_connect"}),
    ]
    assert len({a.fingerprint for a in variants}) == len(variants)


def test_fingerprint_is_the_hash_of_canonical_json() -> None:
    """Oracle: SHA-256 of the canonical JSON, made by the standard library."""
    parts = {"space": "cells", "space_options": OPTIONS, "choices": ARCHITECTURE.choices}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    assert ARCHITECTURE.fingerprint == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(ARCHITECTURE.to_json(), encoding="utf-8")
    again = Architecture.load(path)
    assert again == ARCHITECTURE
    assert again.space_options["operators"] == ("none", "skip_connect")
    assert again.to_json() == ARCHITECTURE.to_json()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema": "mobilenas/architecture@2"}, "upgrade"),
        ({"schema": "mobilenas/kit@1"}, "expected 'mobilenas/architecture@1'"),
        ({"choices": {"normal.0-2": 3}}, "choices"),
        ({"space": None}, "space"),
    ],
)
def test_a_wrong_document_is_refused_by_name(change: dict, what: str) -> None:
    data = json.loads(ARCHITECTURE.to_json()) | change
    with pytest.raises(DocumentError, match="my file") as error:
        Architecture.from_json(json.dumps(data), "my file")
    assert what in str(error.value)


@pytest.mark.parametrize("name", ["space", "space_options", "choices"])
def test_a_missing_part_is_refused(name: str) -> None:
    data = json.loads(ARCHITECTURE.to_json())
    del data[name]
    with pytest.raises(DocumentError, match=f"`{name}`"):
        Architecture.from_json(json.dumps(data))


def test_options_key() -> None:
    key = options_key("cells", OPTIONS)
    assert key.startswith("cells-")
    assert options_key("cells", backwards(OPTIONS)) == key
    assert options_key("cells", OPTIONS | {"operators": ["none", "skip_connect"]}) == key, "as read back from JSON"
    assert options_key("cells", OPTIONS | {"channels": 5}) != key
    assert options_key("other", OPTIONS).partition("-")[2] != key.partition("-")[2]
