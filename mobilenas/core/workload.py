"""The two keys of latency modelling: a workload is what a space is made of, a kernel is what a runtime executes."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from mobilenas.errors import DocumentError

Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""Of one dimension of a tensor."""
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
NOT_FINITE = ("inf", "-inf", "nan")
NotFinite = Literal["inf", "-inf", "nan"]
"""How constants of somebody's model are kept that JSON has no number for; equal to themselves, as NaN is not."""


class Workload(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """One operator at one input shape, as a search space states it, before any runtime has fused anything.

    ``height`` and ``width`` are those of the operator's input, in pixels; the output is ``ceil(height / stride)``.
    ``attributes`` holds what only some operators have, e.g. ``(("inputs", 2),)`` for the sum of two tensors.
    """

    operator: str
    in_channels: Count
    out_channels: Count
    height: Count
    width: Count
    stride: Count = 1
    batch: Count = 1
    attributes: tuple[tuple[str, int], ...] = ()

    def attribute(self, name: str, default: int) -> int:
        """The extra attribute ``name``, or ``default`` where the operator has none."""
        return dict(self.attributes).get(name, default)

    @property
    def inputs(self) -> int:
        """How many tensors of the input shape the operator reads."""
        return self.attribute("inputs", 1)

    @property
    def out_height(self) -> int:
        """Height of the output in pixels."""
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        """Width of the output in pixels."""
        return -(-self.width // self.stride)

    @property
    def key(self) -> str:
        """A readable identity: ``sep_conv_3x3 16->16 32x32 s1 b1``."""
        extra = "".join(f" {name}={value}" for name, value in self.attributes)
        return (
            f"{self.operator} {self.in_channels}->{self.out_channels} "
            f"{self.height}x{self.width} s{self.stride} b{self.batch}{extra}"
        )


class Layer(msgspec.Struct, frozen=True):
    """One workload at its place in a network: ``name`` is unique, ``inputs`` name earlier layers or ``"images"``."""

    name: str
    workload: Workload
    inputs: tuple[str, ...]
    may_drop: bool = False
    """Whether drop path may zero this layer's output while the network is trained (DARTS section A.2)."""


class Blueprint(msgspec.Struct, frozen=True):
    """A whole network as data, in order of execution: the one description that is built, counted and lowered.

    The last layer is the output. ``auxiliary_after`` names the layer that feeds the auxiliary head in training.
    """

    layers: tuple[Layer, ...]
    image_shape: tuple[int, int, int, int]
    """Shape of the input images, ``(batch, channels, height, width)``."""
    auxiliary_after: str | None = None

    @property
    def workloads(self) -> Counter[Workload]:
        """How often the network executes each workload."""
        return Counter(layer.workload for layer in self.layers)

    @property
    def read_layers(self) -> tuple[Layer, ...]:
        """The layers that the output depends on; an exporter leaves out the others."""
        needed = {self.layers[-1].name}
        for layer in reversed(self.layers):
            if layer.name in needed:
                needed.update(layer.inputs)
        return tuple(layer for layer in self.layers if layer.name in needed)


def storable(value: Any) -> Any:
    """Return ``value``, which may be nested, with numbers that are not finite as the strings of ``NotFinite``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: storable(inside) for key, inside in value.items()}
    return [storable(inside) for inside in value] if isinstance(value, list | tuple) else value


def restored(value: Any) -> Any:
    """Return the inverse of ``storable``."""
    if isinstance(value, str) and value in NOT_FINITE:
        return float(value)
    if isinstance(value, dict):
        return {key: restored(inside) for key, inside in value.items()}
    return [restored(inside) for inside in value] if isinstance(value, list | tuple) else value


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shape, element type and constancy of one tensor of a kernel; ``values`` only for scalars, sizes and small whole
    constants.
    """

    shape: tuple[Size, ...]
    dtype: str
    is_constant: bool = False
    values: tuple[int | float | NotFinite, ...] | None = None
    """What it holds; given numbers that are not finite are kept as strings, truth values as 0 and 1."""

    def __post_init__(self) -> None:
        if self.values is None:
            return
        kept = tuple(int(value) if isinstance(value, bool) else storable(value) for value in self.values)
        msgspec.structs.force_setattr(self, "values", kept)

    @property
    def numbers(self) -> list[int | float]:
        """Its values as numbers; empty where it has none."""
        return [restored(value) for value in self.values or ()]

    @property
    def order(self) -> tuple[Any, ...]:
        """What it is sorted by."""
        values = None if self.values is None else [(isinstance(value, str), value) for value in self.values]
        return (self.shape, self.dtype, self.is_constant, values is not None, values or [])


_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
"""Of one element, for the types that weights are kept in."""


OPSET = 17
"""Of ONNX's own operators: that of the models which are made here, and of kernels that name none."""


COPIES = 2, 8
"""How often a kernel stands in the two models that it is measured by, where an engine asks for nothing else."""


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a runtime executes after its own fusion: one node of its optimised graph. The key of a table's rows.

    ``operator`` carries its domain (``com.microsoft.nchwc::Conv``), which with ONNX Runtime also tells the layout.
    ``attributes`` is the JSON of the node's attributes, in which numbers that are not finite are the strings of ``NotFinite``.
    ``inputs`` may hold ``None`` for an absent one.
    """

    operator: Annotated[str, msgspec.Meta(min_length=1)]
    attributes: str
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    provider: str
    opset: Annotated[int, msgspec.Meta(ge=1, le=1000)] = OPSET
    """Of ONNX's own operators, where this one does not mean the same in ``OPSET``; written down only then."""

    def __post_init__(self) -> None:
        try:
            found = json.loads(self.attributes)
        except (RecursionError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise DocumentError(f"the attributes of {self.operator} are {self.attributes[:100]!r}, which is no JSON object")
        if any(word in self.attributes for word in ("NaN", "Infinity")) and found != storable(found):
            msgspec.structs.force_setattr(self, "attributes", json.dumps(storable(found), sort_keys=True))

    def __lt__(self, other: Kernel) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[Any, ...]:
        """What kernels are sorted by: an input that is absent comes before any other."""
        inputs = [() if spec is None else spec.order for spec in self.inputs]
        return (self.operator, self.attributes, inputs, [spec.order for spec in self.outputs], self.provider, self.opset)

    @property
    def attribute_values(self) -> dict[str, Any]:
        """Its attributes, with numbers that are not finite as such."""
        found: dict[str, Any] = json.loads(self.attributes)
        return restored(found) if any(f'"{word}"' in self.attributes for word in NOT_FINITE) else found

    @property
    def weights(self) -> tuple[TensorSpec, ...]:
        """Its constant tensors of numbers that are computed with; other constants are shapes and axes."""
        return tuple(spec for spec in self.inputs if spec is not None and spec.is_constant and spec.dtype in _BYTES)

    @property
    def weight_mib(self) -> float:
        """Size of its weights, in mebibytes."""
        return sum(math.prod(spec.shape) * _BYTES[spec.dtype] for spec in self.weights) / 2**20

    @property
    def identifier(self) -> str:
        """Sixteen hexadecimal digits that identify the kernel in file names and journals."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]

    @property
    def key(self) -> str:
        """A readable summary for people; not unique (the attributes are left out)."""
        inputs = " ".join("x".join(map(str, spec.shape)) or "scalar" for spec in self.inputs if spec)
        outputs = " ".join("x".join(map(str, spec.shape)) or "scalar" for spec in self.outputs)
        opset = "" if self.opset == OPSET else f" (opset {self.opset})"
        return f"{self.operator} {inputs} -> {outputs}{opset}"


def weighted_sum(counts: Mapping[Workload, int], cost: Mapping[Workload, float]) -> float:
    """``sum(count * cost)``; a workload without a cost raises ``KeyError``: missing never counts as zero."""
    return math.fsum(count * cost[workload] for workload, count in counts.items())
