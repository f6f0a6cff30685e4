from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from mobilenas.report.front import Point, draw_front, front_of

NUMBERS = st.floats(0.01, 100.0)
POINTS = st.lists(st.tuples(NUMBERS, st.floats(0.0, 1.0)), min_size=1, max_size=12)


def point(ms: float, accuracy: float, kind: str = "darts") -> Point:
    return Point(f"{kind} {ms:g}", kind, ms, accuracy, accuracy - 0.01, accuracy + 0.01)


@given(POINTS)
def test_the_front_holds_exactly_what_none_beats(given: list[tuple[float, float]]) -> None:
    points = [point(ms, accuracy) for ms, accuracy in given]
    front = front_of(points)

    def beats(a: Point, b: Point) -> bool:
        return a.ms <= b.ms and a.accuracy >= b.accuracy and (a.ms, a.accuracy) != (b.ms, b.accuracy)

    for one in points:
        is_beaten = any(beats(other, one) for other in points)
        assert is_beaten != any((f.ms, f.accuracy) == (one.ms, one.accuracy) for f in front)
    assert [p.ms for p in front] == sorted(p.ms for p in front)


@given(POINTS)
def test_a_drawing_is_well_formed_and_shows_every_point_inside_it(given: list[tuple[float, float]]) -> None:
    points = [point(ms, accuracy, f"<kind> & {index % 3}") for index, (ms, accuracy) in enumerate(given)]
    root = ElementTree.fromstring(draw_front(points, "a <title>"))
    width, height = float(root.get("width")), float(root.get("height"))
    circles = [element for element in root.iter() if element.tag.endswith("circle") and len(element)]
    assert len(circles) == len(points)
    assert all(0 <= float(c.get("cx")) <= width and 0 <= float(c.get("cy")) <= height for c in circles)
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a <title>" in words
    assert "<kind> & 0" in words
