"""Decisions and architectures: what a search chooses among, and what it chose, as plain hashable data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from mobilenas.core import documents
from mobilenas.errors import DocumentError

DecisionKind = Literal["op", "input", "route", "width"]
OptionValue = int | str | tuple[str, ...]


class Decision(msgspec.Struct, frozen=True):
    """One choice of a search space: exactly one (or, where the space says so, none) of ``options``."""

    name: str
    options: tuple[str, ...]
    kind: DecisionKind


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network of a search space: the space's options and the option chosen at each decision.

    A decision that is not in ``choices`` is off (a dropped edge, a block off the path). Never mutate the mappings.
    """

    space: str
    space_options: dict[str, OptionValue]
    choices: dict[str, str]

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]

    def to_json(self) -> str:
        """The versioned document that ``from_json`` reads."""
        return documents.dump_json(
            {"schema": "mobilenas/architecture@1", "fingerprint": self.fingerprint, **msgspec.to_builtins(self)}
        )

    @classmethod
    def from_json(cls, text: str, where: str = "architecture") -> Architecture:
        """Read ``to_json``'s text; raises ``DocumentError``. Whether the space allows the choices is the space's check.

        A document without a fingerprint, as one writes it by hand, is taken as it is.
        """
        data = documents.check_schema(documents.parse_json(text, where), "architecture", 1, where)
        fingerprint = data.pop("fingerprint", None)
        found = documents.convert(data, cls, where)
        if fingerprint not in (None, found.fingerprint):
            raise DocumentError(
                f"{where}: says the fingerprint {fingerprint}, its content has {found.fingerprint}: it was changed; leave the "
                "fingerprint out if that was on purpose"
            )
        return found

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read the architecture document at ``path``; raises ``DocumentError``."""
        if path.parent.is_file():
            raise DocumentError(f"{path.parent} is a file; name the folder of the run")
        return cls.from_json(documents.read_text(path), str(path))


def options_key(space: str, options: Mapping[str, Any]) -> str:
    """A stable short name of a space with its options, e.g. for the rows that belong to it in a table."""
    canonical = msgspec.json.encode({"space": space, "options": options}, order="sorted")
    return f"{space}-{hashlib.sha256(canonical).hexdigest()[:8]}"
