import pytest

from mobilenas.core.measurement import PLANS, plan_named
from mobilenas.errors import UnknownNameError


@pytest.mark.parametrize("name", ["quick", "standard", "strict"])
def test_plans(name: str) -> None:
    plan = plan_named(name)
    assert plan.name == name
    assert 2 <= plan.sweeps <= plan.maximum_sweeps
    assert plan.samples <= plan.maximum_samples


def test_an_unknown_plan_names_the_nearest() -> None:
    assert set(PLANS) == {"quick", "standard", "strict"}
    with pytest.raises(UnknownNameError, match="did you mean strict"):
        plan_named("strickt")
