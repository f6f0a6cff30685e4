"""A node of any opset as the node of this package's opset that does the same, where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import onnx
from onnx import defs, helper

from mobilenas.core.workload import OPSET, TensorSpec

FLATTENING, NO_LONGER_FLATTENING = ("Softmax", "LogSoftmax", "Hardmax"), 13
"""Before this opset they took all axes from theirs on as one."""


def in_own_opset(
    operator: str, attributes: Mapping[str, Any], inputs: Sequence[TensorSpec | None], opset: int
) -> tuple[int, dict[str, Any], tuple[TensorSpec | None, ...]]:
    """The opset of a node of ONNX's own domain, with its attributes and inputs there, so that rows serve whatever exporter.

    Most operators only learnt new types of numbers; some have new attributes, left at what they were before; and reductions
    take their axes as an input from opset 18 on. All these are told in ``OPSET``. Where it knows no such operator, or means
    another thing by the same words, as of a Softmax before 13 over several axes, the opset is that in which the operator became
    what it is.
    """
    if operator in FLATTENING and opset < NO_LONGER_FLATTENING and (axis := _only_axis(attributes, inputs)) is not None:
        attributes, opset = {**attributes, "axis": axis}, NO_LONGER_FLATTENING
    theirs, ours = _schema(operator, opset), _schema(operator, OPSET)
    as_it_is = dict(attributes), tuple(inputs)
    if theirs is None:
        return opset, *as_it_is
    if ours is None:
        return theirs.since_version, *as_it_is
    if theirs.since_version == ours.since_version:
        return OPSET, *as_it_is
    before, now = _defaults(theirs), _defaults(ours)
    told = {name: value for name, value in attributes.items() if name in now or value != before.get(name)}
    kept = []
    for index, spec in enumerate(inputs):
        name = _input_name(theirs, index)
        if spec and spec.values and name in ours.attributes and ours.attributes[name].type == defs.OpSchema.AttrType.INTS:
            told[name] = spec.numbers
        else:
            kept.append((name, spec))
    is_same = (
        told.keys() <= now.keys()
        and all(before[name] == now[name] for name in before.keys() & now.keys())
        and all(name == _input_name(ours, index) for index, (name, _) in enumerate(kept))
    )
    return (OPSET, told, tuple(spec for _, spec in kept)) if is_same else (theirs.since_version, *as_it_is)


def _only_axis(attributes: Mapping[str, Any], inputs: Sequence[TensorSpec | None]) -> int | None:
    """The one axis from ``axis`` on that is longer than 1, or the first where none is; ``None`` where several are."""
    shape = inputs[0].shape if inputs and inputs[0] else ()
    first = attributes.get("axis", 1) % max(1, len(shape))
    long = [axis for axis in range(first, len(shape)) if shape[axis] > 1]
    return (long or [first])[0] if shape and len(long) <= 1 else None


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """A number, a text, or a list of these; whatever else an attribute holds stays as it is."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Sequence):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value


@lru_cache(maxsize=1024)
def _schema(operator: str, opset: int) -> defs.OpSchema | None:
    """The operator in an opset; ``None`` where that knows it no longer, not yet, or never."""
    try:
        schema = defs.get_schema(operator, opset, "")
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _defaults(schema: defs.OpSchema) -> dict[str, Any]:
    """By name what an attribute is if it is left out, ``None`` where that is for the operator to say."""
    return {
        name: attribute_value(found.default_value) if found.default_value.type else None
        for name, found in schema.attributes.items()
    }


def _input_name(schema: defs.OpSchema, index: int) -> str | None:
    """The last one's name is that of all further ones where there may be any number of them."""
    if index < len(schema.inputs):
        return schema.inputs[index].name
    is_open = schema.inputs and schema.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic
    return schema.inputs[-1].name if is_open else None
