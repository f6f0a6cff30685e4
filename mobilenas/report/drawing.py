"""A network's cells as a drawing: SVG text, which every browser shows and every editor takes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_COLUMN, _ROW, _BOX_WIDTH, _BOX_HEIGHT, _MARGIN, _CELL_HEIGHT = 190, 84, 74, 30, 24, 470
_COLOURS = {"skip": "#8a8a8a", "max": "#2b7bba", "avg": "#2b7bba", "sep": "#c0392b", "dil": "#b9770e", "none": "#bbbbbb"}


def draw_cells(choices: Mapping[str, str], title: str) -> str:
    """The cells of ``choices`` (``normal.0-2`` -> operator), one below the other: nodes as boxes, operators along the edges."""
    cells: dict[str, list[tuple[int, int, str]]] = {}
    for name, operator in choices.items():
        kind, _, ends = name.partition(".")
        source, _, node = ends.partition("-")
        cells.setdefault(kind, []).append((int(source), int(node), operator))
    parts, width = [], 0
    for row, (kind, edges) in enumerate(cells.items()):
        drawn, cell_width = _cell(kind, sorted(edges), _MARGIN + 26 + row * _CELL_HEIGHT)
        parts += drawn
        width = max(width, cell_width)
    height = _MARGIN + 26 + len(cells) * _CELL_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="white"/>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555555"/></marker></defs>\n'
        f'<text x="{_MARGIN}" y="{_MARGIN}" font-size="14" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _cell(kind: str, edges: list[tuple[int, int, str]], top: int) -> tuple[list[str], int]:
    nodes = max(node for _, node, _ in edges) + 1
    middle = top + _CELL_HEIGHT // 2

    def centre(node: int) -> tuple[int, int]:
        if node < 2:
            return _MARGIN + _BOX_WIDTH // 2, middle + (-1 if node == 0 else 1) * _ROW
        return _MARGIN + _BOX_WIDTH // 2 + (node - 1) * _COLUMN, middle + (-1 if node % 2 else 1) * _ROW * (
            1 + (node - 2) // 2
        ) // 2

    last = (_MARGIN + _BOX_WIDTH // 2 + (nodes - 1) * _COLUMN, middle)
    parts = [f'<text x="{_MARGIN}" y="{top + 14}" font-weight="bold">{escape(kind)} cell</text>']
    labels = []
    for index, (source, node, operator) in enumerate(edges):
        parts.append(_arrow(centre(source), centre(node), _COLOURS.get(operator[:4].rstrip("_"), "#555555")))
        labels.append(_label(centre(source), centre(node), operator, 0.36 + 0.14 * (index % 3)))
    parts += [_arrow(centre(node), last, "#555555", dashed=True) for node in range(2, nodes)]
    names = {0: "cell k-2", 1: "cell k-1", **{node: f"node {node}" for node in range(2, nodes)}}
    parts += [_box(centre(node), name, "#dff0d8" if node < 2 else "#d9edf7") for node, name in names.items()]
    parts += [_box(last, "cell k", "#fcf3cf"), *labels]
    return parts, last[0] + _BOX_WIDTH // 2 + _MARGIN


def _arrow(start: tuple[int, int], end: tuple[int, int], colour: str, dashed: bool = False) -> str:
    x0, y0, x1, y1 = start[0] + _BOX_WIDTH // 2, start[1], end[0] - _BOX_WIDTH // 2, end[1]
    bend = (x1 - x0) // 2
    style = ' stroke-dasharray="4 4"' if dashed else ""
    path = f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{style} marker-end="url(#head)"/>'


def _label(start: tuple[int, int], end: tuple[int, int], text: str, at: float) -> str:
    """The operator's name at the share ``at`` of its curve."""
    x0, x1 = start[0] + _BOX_WIDTH // 2, end[0] - _BOX_WIDTH // 2
    middle, ease = (x0 + x1) / 2, at * at * (3 - 2 * at)
    x = (1 - at) ** 3 * x0 + 3 * (1 - at) * at * middle + at**3 * x1
    y = start[1] + (end[1] - start[1]) * ease
    half = 3.4 * len(text) + 4
    return (
        f'<rect x="{x - half:.0f}" y="{y - 9:.0f}" width="{2 * half:.0f}" height="17" rx="3" fill="white" opacity="0.9"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escape(text)}</text>'
    )


def _box(centre: tuple[int, int], text: str, colour: str) -> str:
    x, y = centre[0] - _BOX_WIDTH // 2, centre[1] - _BOX_HEIGHT // 2
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" fill="{colour}" stroke="#555555"/>'
        f'<text x="{centre[0]}" y="{centre[1] + 4}" text-anchor="middle">{escape(text)}</text>'
    )
