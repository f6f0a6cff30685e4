"""Registry: names to things, from a literal dict of built-ins and from entry points of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Generic, TypeVar, cast

from mobilenas.errors import ResourceError, UnknownNameError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Looks names up; a built-in is the thing itself or its dotted path ``"package.module:attribute"``.

    Paths are imported on ``get`` only, so that listing names loads nothing. Plug-ins register under the entry-point
    group ``mobilenas.<kind>s``; a name that two of them (or a built-in) claim raises ``UsageError``.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T | str]) -> None:
        self.kind = kind
        self.group = f"mobilenas.{kind.replace(' ', '_')}s"
        self._built_in = dict(built_in)

    @cached_property
    def _entries(self) -> dict[str, T | str | EntryPoint]:
        entries: dict[str, T | str | EntryPoint] = dict(self._built_in)
        for point in entry_points(group=self.group):
            if point.name in entries:
                raise UsageError(
                    f"two packages provide the {self.kind} {point.name!r} (entry-point group {self.group}, "
                    f"one of them {point.value}): uninstall or rename one"
                )
            entries[point.name] = point
        return entries

    def get(self, name: str) -> T:
        """The thing called ``name``.

        Raises ``UnknownNameError`` with the nearest names, and ``ResourceError`` if a package that it needs is missing.
        """
        try:
            entry = self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None
        try:
            if isinstance(entry, EntryPoint):
                return cast(T, entry.load())
            if isinstance(entry, str):
                module, _, attribute = entry.partition(":")
                return cast(T, attrgetter(attribute)(importlib.import_module(module)))
        except ModuleNotFoundError as error:
            raise ResourceError(
                f"the {self.kind} {name!r} needs the Python package {error.name!r}, which is not installed: "
                f"pip install {error.name}"
            ) from error
        except (ImportError, AttributeError) as error:
            value = entry.value if isinstance(entry, EntryPoint) else entry
            raise ResourceError(f"the {self.kind} {name!r} cannot be loaded from {value}: {error}") from error
        return entry

    @property
    def plug_ins(self) -> tuple[str, ...]:
        """The names that installed packages add, sorted."""
        return tuple(sorted(name for name in self._entries if name not in self._built_in))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
