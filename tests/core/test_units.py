import pytest

from mobilenas.core.units import parse_latency_target
from mobilenas.errors import UsageError


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5ms", 5.0), (" 800 us ", 0.8), ("0.005s", 5.0), (".5ms", 0.5), ("1e-3s", 1.0), ("2.5E2us", 0.25), ("1000s", 1e6)],
)
def test_latencies(text: str, ms: float) -> None:
    target = parse_latency_target(text)
    assert target.ms == pytest.approx(ms, rel=1e-12)
    assert target.range_fraction is None
    assert target.resolve_ms(1.0, 3.0) == target.ms
    assert target.text == text.strip()


@pytest.mark.parametrize(("text", "ms"), [("0%", 1.0), ("25%", 1.5), ("100 %", 3.0)])
def test_shares_of_the_range(text: str, ms: float) -> None:
    target = parse_latency_target(text)
    assert target.ms is None
    assert target.resolve_ms(1.0, 3.0) == pytest.approx(ms)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "",
        "ms",
        "-5ms",
        "0ms",
        "5 m s",
        "5min",
        "5MS",
        "nan ms",
        "infs",
        "1001s",
        "1e999ms",
        "101%",
        "-1%",
        "5ms 3",
        "５ms",
    ],
)
def test_everything_else_is_refused_with_the_flag_and_the_text(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_latency_target(text, "--my-flag")
    assert "--my-flag" in str(error.value)
    assert repr(text) in str(error.value)
