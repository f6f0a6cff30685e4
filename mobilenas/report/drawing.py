"""A network as a drawing: SVG text, which every browser shows and every editor takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mobilenas.core.text import printable
from mobilenas.core.workload import Blueprint, Layer

_MARGIN, _ROW, _GAP, _HEIGHT = 24, 42, 34, 28
_NODE_WIDTH, _OPERATOR_WIDTH = 66, 104
_SKIP, _POOL, _CONVOLUTION, _DILATED = "#e5e5e5", "#d6eaf8", "#f9d6d2", "#fae5c3"
_COLOURS = {
    "skip": _SKIP,
    "max_": _POOL,
    "avg_": _POOL,
    "sep_": _CONVOLUTION,
    "dil_": _DILATED,
    "mbco": _CONVOLUTION,
    "nor_": _CONVOLUTION,
}


@dataclass(frozen=True)
class _Box:
    """A rectangle with a text, by its left edge and its middle in height."""

    x: float
    y: float
    width: float
    text: str
    colour: str

    def svg(self) -> str:
        return (
            f'<rect x="{self.x:g}" y="{self.y - _HEIGHT / 2:g}" width="{self.width:g}" height="{_HEIGHT}" rx="5" '
            f'fill="{self.colour}" stroke="#555555"/>'
            f'<text x="{self.x + self.width / 2:g}" y="{self.y + 4:g}" text-anchor="middle">{safe(self.text)}</text>'
        )

    def arrow_to(self, other: _Box) -> str:
        x0, x1 = self.x + self.width, other.x
        bend = max(_GAP, (x1 - x0) / 2)
        curve = f"M{x0:g} {self.y:g}C{x0 + bend:g} {self.y:g} {x1 - bend:g} {other.y:g} {x1:g} {other.y:g}"
        return f'<path d="{curve}" fill="none" stroke="#555555" marker-end="url(#head)"/>'


def draw_cells(choices: Mapping[str, str], title: str) -> str:
    """The cells of ``choices`` (``normal.0-2`` -> operator, or ``0-2`` where all are equal), one below the other.

    From left to right: the cells before, each node behind its operators, the cell's output. A cell that reads two before it
    ends in all its nodes side by side (DARTS), one that reads one in its last node (NAS-Bench-201).
    """
    cells: dict[str, dict[int, list[tuple[int, str]]]] = {}
    for name, operator in sorted(choices.items()):
        kind, _, ends = name.rpartition(".")
        source, _, node = ends.partition("-")
        cells.setdefault(kind, {}).setdefault(int(node), []).append((int(source), operator))
    parts, right, top = list[str](), 0.0, 1.8 * _MARGIN
    for kind, nodes in cells.items():
        parts.append(_text(_MARGIN, top + 12, f"{kind} cell".strip(), 12))
        boxes, arrows = _cell(nodes, top + _ROW)
        parts += [*arrows, *(box.svg() for box in boxes)]
        right = max(right, boxes[-1].x + boxes[-1].width)
        top = max(box.y for box in boxes) + 1.5 * _ROW
    return picture(title, parts, right + _MARGIN, top)


def draw_layers(blueprint: Blueprint, title: str) -> str:
    """A chain of layers from top to bottom, one row per block: its output's channels and size, then its operators in order."""
    rows: dict[str, list[Layer]] = {}
    for layer in blueprint.layers:
        rows.setdefault(layer.name.partition("/")[0], []).append(layer)
    parts, before, right, y = list[str](), None, 0.0, 1.8 * _MARGIN
    for name, layers in rows.items():
        y += _ROW
        last = layers[-1].workload
        parts.append(_text(_MARGIN, y + 4, f"{name}: {last.out_channels} x {last.out_height} x {last.out_width}", 12))
        for place, layer in enumerate(layers):
            x = _MARGIN + 3 * _NODE_WIDTH + place * (1.5 * _OPERATOR_WIDTH + _GAP)
            operator, stride = layer.workload.operator, layer.workload.stride
            text = operator if stride == 1 else f"{operator}, stride {stride}"
            box = _Box(x, y, 1.5 * _OPERATOR_WIDTH, text, _COLOURS.get(operator[:4], "white"))
            parts.append(box.svg())
            if before is not None and place > 0:
                parts.append(before.arrow_to(box))
            before, right = box, max(right, box.x + box.width)
    return picture(title, parts, right + _MARGIN, y + _ROW)


def picture(title: str, parts: Sequence[str], width: float, height: float) -> str:
    """An SVG document of ``parts`` under a title; ``url(#head)`` is an arrow's head."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="sans-serif" font-size="12">\n<title>{safe(title)}</title>\n'
        '<rect width="100%" height="100%" fill="white"/>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555555"/></marker></defs>\n'
        + "\n".join([_text(_MARGIN, _MARGIN, title, 14), *parts])
        + "\n</svg>\n"
    )


def _cell(nodes: Mapping[int, list[tuple[int, str]]], top: float) -> tuple[list[_Box], list[str]]:
    """Boxes, the output's last, and the arrows between them."""
    read = min(nodes)  # nodes are counted from the cells that are read
    states = {
        source: _Box(_MARGIN, top + (1 + 2 * source) * _ROW, _NODE_WIDTH, f"cell k-{read - source}", "#dff0d8")
        for source in range(read)
    }
    boxes, arrows, x, row = list(states.values()), [], _MARGIN + _NODE_WIDTH + _GAP, 0
    for node, edges in sorted(nodes.items()):
        behind = x + _OPERATOR_WIDTH + _GAP
        states[node] = _Box(behind, top + (row + (len(edges) - 1) / 2) * _ROW, _NODE_WIDTH, f"node {node}", "#f2f2f2")
        for source, operator in edges:
            operation = _Box(x, top + row * _ROW, _OPERATOR_WIDTH, operator, _COLOURS.get(operator[:4], "white"))
            arrows += [states[source].arrow_to(operation), operation.arrow_to(states[node])]
            boxes.append(operation)
            row += 1
        boxes.append(states[node])
        x = behind + _NODE_WIDTH + _GAP
    output = _Box(x, top + (row - 1) / 2 * _ROW, _NODE_WIDTH, "cell k", "#dff0d8")
    arrows += [states[node].arrow_to(output) for node in (nodes if read > 1 else [max(nodes)])]
    return [*boxes, output], arrows


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="bold">{safe(text)}</text>'


def safe(text: str) -> str:
    """Escape text for XML."""
    return escape(printable(text))
