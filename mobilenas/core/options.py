"""The options of something that is made by name: the arguments of its constructor that a configuration can give."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str}


def option_types(kind: Callable[..., Any]) -> dict[str, Any]:
    """Return name -> type of the arguments of ``kind`` that TOML has values for, in their order.

    Annotations may be types or texts of types (as ``from __future__ import annotations`` makes them). An argument without one
    has the type of its default. One of another type, as a function or a tensor, is no option.
    """
    hints = _hints(kind)
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        hint = hints.get(name, parameter.annotation)
        if hint is parameter.empty and parameter.default is not parameter.empty:
            hint = type(parameter.default)
        hint = _PLAIN.get(hint, hint) if isinstance(hint, str) else hint
        if _is_plain(hint):
            found[name] = hint
    return found


def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    """Resolve the annotations; empty where one names what exists for type checkers only."""
    annotated = kind.__init__ if inspect.isclass(kind) and not is_dataclass(kind) else kind
    try:
        return get_type_hints(annotated, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}


def _is_plain(hint: Any) -> bool:
    """Return whether values of this type can stand in a TOML file, where ``None`` is left out."""
    if hint in (*_PLAIN.values(), None, type(None)):
        return True
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return True
    if origin is Annotated:
        return _is_plain(inside[0])
    if origin in (Union, types.UnionType, tuple):
        return all(_is_plain(each) for each in inside if each is not ...)
    return False
