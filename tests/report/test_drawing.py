"""Drawings: whole, and inside their own edges."""

import re
from xml.etree import ElementTree

from mobilenas.config import DescribeConfig
from mobilenas.report.drawing import draw_cells, draw_layers
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.spaces.published import PUBLISHED
from mobilenas.workflows.run_describe import find_network

SVG = "{http://www.w3.org/2000/svg}"


def test_every_edge_and_node_is_drawn_inside_the_picture() -> None:
    for name in (n for n in PUBLISHED if not n.startswith("densenas")):
        choices = find_network(name, DescribeConfig()).architecture.choices
        root = ElementTree.fromstring(draw_cells(choices, f"{name} <&>"))
        texts = [element.text for element in root.iter(f"{SVG}text")]
        for operator in set(choices.values()):
            assert texts.count(operator) == list(choices.values()).count(operator)
        cells = len({edge.partition(".")[0] for edge in choices})
        assert texts.count("node 5") == cells
        arrows = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
        assert len(arrows) == 2 * len(choices) + 4 * cells
        width, height = float(root.get("width", 0)), float(root.get("height", 0))
        boxes = [(float(box.get("x", 0)), float(box.get("y", 0)), float(box.get("width", "0").rstrip("%")))
                 for box in root.iter(f"{SVG}rect")]  # fmt: skip
        assert all(x >= 0 and x + w <= width and 0 <= y <= height - 28 for x, y, w in boxes[1:])
        assert len(set(boxes)) == len(boxes), "boxes on top of each other"
        for path in arrows:
            assert all(-1 <= float(number) <= max(width, height) for number in re.findall(r"-?[0-9.]+", path.get("d", "")))


def test_a_cell_that_reads_one_cell_ends_in_its_last_node() -> None:
    choices = NasBench201Space().architecture_of_codes((3, 0, 1, 4, 0, 2)).choices
    root = ElementTree.fromstring(draw_cells(choices, "six edges"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert sorted(texts) == sorted(["six edges", "cell", "cell k-1", "node 1", "node 2", "node 3", "cell k", *choices.values()])
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(arrows) == 2 * len(choices) + 1


def test_every_layer_is_drawn_inside_the_picture() -> None:
    for name in ("densenas-a", "densenas-c"):
        found = find_network(name, DescribeConfig())
        blueprint = found.space.blueprint(found.architecture)
        root = ElementTree.fromstring(draw_layers(blueprint, f"{name} <&>"))
        texts = [element.text or "" for element in root.iter(f"{SVG}text")]
        drawn = sorted(text.partition(",")[0] for text in texts if ":" not in text and "<" not in text)
        assert drawn == sorted(layer.workload.operator for layer in blueprint.layers)
        assert "block4: 48 x 28 x 28" in texts
        width, height = float(root.get("width", 0)), float(root.get("height", 0))
        boxes = list(root.iter(f"{SVG}rect"))[1:]
        assert len(boxes) == len(blueprint.layers)
        for box in boxes:
            x, y, w = (float(box.get(key, 0)) for key in ("x", "y", "width"))
            assert x >= 0
            assert x + w <= width
            assert 0 <= y <= height - 28
