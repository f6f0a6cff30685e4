"""A campaign on an engine whose times are exact: what the table says must then be exact too."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mobilenas.cli.output import flag_words
from mobilenas.core.measurement import PLANS, Measurement
from mobilenas.core.run_directory import Journal, working_in
from mobilenas.core.workload import Kernel, Workload
from mobilenas.devices.device import Device, find_device
from mobilenas.errors import LinkError, MeasurementError, RunnerError, UsageError
from mobilenas.latency.table import ModelFlags
from mobilenas.profiling import networks
from mobilenas.profiling.campaign import Campaign
from mobilenas.profiling.cards import card_of
from mobilenas.profiling.learn import learn_network_model
from mobilenas.profiling.networks import MobileNetworks, SpaceNetworks
from mobilenas.runtimes.base import SESSION, PreparedModel, RunSettings
from mobilenas.runtimes.measure import SweepLog
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fake_devices import CALL_MS, SENTINEL_MS, FakeLink, FakeRuntime, kernel_ms
from mobilenas.testing.fakes import kernel_of

SPACE = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
PLAN = msgspec.structs.replace(
    PLANS["quick"], sweeps=3, maximum_sweeps=4, spread_s=0.0, scale_networks=4, test_networks=4, lowered_networks=30
)


def campaign(root: Path, runtime: FakeRuntime | None = None) -> Campaign:
    device = Device(find_device("local").card, FakeLink)
    return Campaign(SpaceNetworks(SPACE), device, runtime or FakeRuntime(), RunSettings(), PLAN, root, seed=1)


def test_exact_times_make_an_exact_table(tmp_path: Path) -> None:
    table = campaign(tmp_path).run()
    assert table.card.session_ms == pytest.approx(CALL_MS)
    assert table.card.sentinel_ms == SENTINEL_MS
    for kernel, row in table.rows.items():
        assert row.value_ms == pytest.approx(kernel_ms(kernel), rel=1e-9)
        assert row.converged
    card = table.space_card(SPACE.key)
    assert card.scale.factor == pytest.approx(1, rel=1e-3)
    assert card.table_error.worst_fraction < 1e-6
    assert card.repeatability_fraction < 1e-12
    assert set(card.statistics) == {"median", "p90"}
    for fitted in card.statistics.values():  # without any noise they are the floor itself
        assert fitted.factor == pytest.approx(1)
        assert fitted.error.worst_fraction < 1e-6
    assert table.card.slow_down is None
    [doubt] = table.card.doubts  # the fake engine tells nothing of its device, so nobody knows its clock
    assert "governor unknown" in doubt
    assert {row.role for row in table.networks} == {"scale", "test"}
    assert len({row.architecture for row in table.networks}) == 8


def test_what_makes_a_model_doubtful_is_counted(tmp_path: Path) -> None:
    clean = Measurement(
        "floor", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0, None, sweeps=4, samples=200,
        slow_fraction=0.1, warm_fraction=0.75, is_bimodal=False, clocks_agree=True, converged=True,
    )  # fmt: skip
    bad = msgspec.structs.replace(clean, slow_fraction=0.11, warm_fraction=0.5, is_bimodal=True, clocks_agree=False)
    found = {SESSION: bad, "a": clean, "b": bad, "c": msgspec.structs.replace(clean, is_bimodal=True)}
    begun = campaign(tmp_path)
    log = SweepLog(None, {"engine_version": "1"}, sentinels=[(0.0, 0.1)])
    for threads, disagree in ((1, 1), (2, 0)):
        card = card_of(begun.device, begun.runtime, RunSettings(threads=threads), PLAN, log, found)
        assert card.flags == ModelFlags(3, bimodal=2, clocks_disagree=disagree, not_warm=1, disturbed=1)
    assert flag_words(ModelFlags(100, 10, 11, 0, 12)) == [
        "11 of 100 models took another time by the wall clock than by the CPU clock",
        "12 of 100 models were disturbed in over a tenth of their runs",
    ]


def test_a_runner_that_does_not_say_whether_it_was_warm_is_not_blamed(tmp_path: Path) -> None:
    table = campaign(tmp_path).run()
    models = 2 * len(table.rows) + len(table.networks)
    assert table.card.flags == ModelFlags(models, 0, 0, not_warm=0, disturbed=0)
    assert flag_words(msgspec.structs.replace(table.card.flags, not_warm=models)) == [
        f"{models} of {models} models were not warm in half of their sweeps"
    ]


def test_networks_that_fit_are_never_those_that_test(tmp_path: Path) -> None:
    networks = replace(campaign(tmp_path), learnt_networks=5).networks
    assert [len(part) for part in networks] == [4, 4, 5, 30]
    assert len({architecture for part in networks for architecture in part}) == 43
    assert replace(campaign(tmp_path), learnt_networks=5).networks == networks
    assert replace(campaign(tmp_path), learnt_networks=5, seed=2).networks != networks
    assert campaign(tmp_path).networks.learn == ()


def test_a_predictor_learns_from_all_measured_networks(tmp_path: Path) -> None:
    """Times are exact sums here, so that whole networks tell nearly all."""
    table = replace(campaign(tmp_path), learnt_networks=25).run()
    assert Counter(row.role for row in table.networks) == {"scale": 4, "test": 4, "learn": 25}
    model = learn_network_model(SPACE, table)
    assert model.card.networks == model.error.networks == 33
    times = [row.measured_ms for row in table.networks]
    assert model.error.mape_fraction < 0.4 * np.std(times) / np.mean(times), "their mean alone would be off by about 0.8"
    assert model.error.spearman > 0.9
    assert model.card.table == table.digest


def test_a_slow_sweep_does_not_count_and_is_made_up_for(tmp_path: Path) -> None:
    runtime = FakeRuntime(slowdown=lambda sweeps: 1.5 if 1 <= sweeps < 2 else 1.0)
    table = campaign(tmp_path, runtime).run()
    assert runtime.sweeps == 4
    assert all(row.sweeps == 3 for row in table.rows.values())
    assert table.space_card(SPACE.key).table_error.worst_fraction < 1e-6


@pytest.mark.parametrize(("slows_at", "speed"), [(0.5, 1.4), (2.5, 1.0)])
def test_a_device_that_slows_for_good_half_way_leaves_all_rows_at_one_speed(
    slows_at: float, speed: float, tmp_path: Path
) -> None:
    """By 40 %, in the middle of a sweep, as when it begins to throttle: at the speed that it had for most of the time."""
    plan = msgspec.structs.replace(PLAN, sweeps=3, maximum_sweeps=4)
    device = FakeRuntime(slowdown=lambda sweeps: 1.4 if sweeps >= slows_at else 1.0)
    table = replace(campaign(tmp_path, device), plan=plan).run()
    for kernel, row in table.rows.items():
        assert row.value_ms == pytest.approx(speed * kernel_ms(kernel), rel=1e-9)
    assert table.card.sentinel_ms == pytest.approx(speed * SENTINEL_MS)
    assert table.card.slow_down is not None
    assert table.card.slow_down.fraction == pytest.approx(0.4)


def test_a_device_that_throttles_is_named_in_the_card(tmp_path: Path) -> None:
    table = campaign(tmp_path / "hot", FakeRuntime(slowdown=lambda sweeps: 1.4 if sweeps >= 2 else 1.0)).run()
    assert table.card.slow_down is not None
    assert table.card.slow_down.fraction == pytest.approx(0.4)


def test_a_table_of_medians_is_another_target(tmp_path: Path) -> None:
    plan = msgspec.structs.replace(PLAN, estimator="median", sweeps=3, maximum_sweeps=8)
    table = replace(campaign(tmp_path), plan=plan).run()
    assert table.card.key.estimator == "median"
    for kernel, row in table.rows.items():
        assert row.value_ms == pytest.approx(kernel_ms(kernel), rel=1e-9)
        assert row.converged
        assert row.sweeps == 6, "fewer medians cannot hold the true one in 95 % of cases"
    assert set(table.space_card(SPACE.key).statistics) == {"p90"}


def test_an_unfit_environment_is_refused_where_it_must_not_be(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="--env warn"):
        replace(campaign(tmp_path), gate="strict").run()


def test_a_device_that_is_slow_for_half_a_sweep_leaves_no_trace(tmp_path: Path) -> None:
    table = campaign(tmp_path, FakeRuntime(slowdown=lambda sweeps: 1.4 if 1.4 <= sweeps < 2.1 else 1.0)).run()
    for kernel, row in table.rows.items():
        assert row.value_ms == pytest.approx(kernel_ms(kernel), rel=1e-9)


class Refusing(FakeRuntime):
    """Runs no kernel of an operator alone."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        return PreparedModel(b"refused") if kernel.operator == self.operator else super().kernel_model(kernel, copies)


def test_mobile_networks_with_a_kernel_that_is_refused_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PUBLISHED", "LARGE_IMAGES"):  # for time's sake, as are the next
        monkeypatch.setattr(networks, name, networks.SMALL)
    monkeypatch.setattr(networks, "LARGEST_CLASSIFIER", 2**18)
    monkeypatch.setattr(networks, "PUBLISHED_NETWORKS", ("squeezenet1_1",))
    mobile = replace(
        campaign(tmp_path, Refusing("Clip")),
        source=MobileNetworks(),
        plan=msgspec.structs.replace(PLAN, scale_networks=6, test_networks=4, lowered_networks=1),
        maximum_kernels=1,
        seed=2,  # two of its networks have such a kernel
    )
    table = mobile.run()
    lowered = mobile.lowered_kernels()
    has_some = {a for _, a in mobile.networks.measured if any(k.operator == "Clip" for k in lowered[a.fingerprint])}
    assert 0 < len(has_some) < 5
    assert {row.architecture for row in table.networks} == {a for _, a in mobile.networks.measured} - has_some
    assert all(kernel.operator != "Clip" for kernel in table.rows)
    published = mobile.networks.scale[0]
    assert published.space_options["network"] == "squeezenet1_1"
    assert lowered[published.fingerprint].keys() <= table.rows.keys()
    assert {row.architecture: row.role for row in table.networks}[published] == "scale"
    assert table.space_card(mobile.source.key).scale.factor == pytest.approx(1, rel=1e-3)
    doubt = table.card.doubts[-1]
    assert f"{len(has_some)} of the 11 measured networks, which have some of them, are left out: Clip" in doubt


def test_kernels_of_rare_families_fill_up_the_number_asked_for(tmp_path: Path) -> None:
    asked = campaign(tmp_path)
    many = [kernel_of(Workload("conv_1x1", 8, 8, size, size)) for size in range(1, 41)]
    few = sorted(kernel_of(Workload("max_pool_3x3", 8, 8, size, size)) for size in range(1, 19))
    measured, others = many[:20], [*many, *few]
    lowered = [*[Counter(measured)] * len(asked.networks.measured), Counter(others)]

    def chosen(maximum_kernels: int | None) -> list[Kernel]:
        return replace(asked, maximum_kernels=maximum_kernels)._chosen(lowered)

    assert chosen(None) == sorted(others)
    assert chosen(38) == sorted([*measured, *few])
    assert len(chosen(45)) == 45
    assert chosen(1) == sorted([*measured, *few[:16]]), "what is measured of networks, and a few of every family"


def test_a_space_needs_all_its_kernels(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="refuses to run 1 kernels alone: Gemm 1x"):
        campaign(tmp_path, Refusing("Gemm")).run()


def test_an_interrupted_campaign_measures_only_what_is_missing(tmp_path: Path) -> None:
    class Interrupting(FakeRuntime):
        def time_models(self, models, link, settings, plan, on_record, on_hello=lambda _: None):  # type: ignore[no-untyped-def]
            def record(name, record):  # type: ignore[no-untyped-def]
                if self.sweeps == 2 and name == list(models)[len(models) // 2]:
                    raise KeyboardInterrupt
                on_record(name, record)

            super().time_models(models, link, settings, plan, record, on_hello)

    with pytest.raises(KeyboardInterrupt):
        campaign(tmp_path, Interrupting()).run()
    journal = campaign(tmp_path).folder / "rows.jsonl"
    begun = journal.read_text()
    table = campaign(tmp_path).run()
    assert journal.read_text().startswith(begun)
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    seen = [(e["sweep"], e["model"]) for e in entries if "record" in e]
    assert len(seen) == len(set(seen))
    assert table.card.key.runtime_version == "1"


def test_a_campaign_does_not_go_on_with_another_engine(tmp_path: Path) -> None:
    begun = campaign(tmp_path)
    begun.run()
    journal = begun.folder / "rows.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-2]))  # something is left to measure
    with pytest.raises(MeasurementError, match="engine_version 1, the device now has 2"):
        campaign(tmp_path, FakeRuntime(version="2")).run()


def test_a_campaign_is_held_by_one_process_and_set_aside_when_done(tmp_path: Path) -> None:
    with campaign(tmp_path).running():
        with pytest.raises(UsageError, match="another process"), campaign(tmp_path).running():
            pass
        assert campaign(tmp_path).folder.exists()
    assert not campaign(tmp_path).folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ZeroDivisionError), campaign(tmp_path).running():
        raise ZeroDivisionError
    assert campaign(tmp_path).folder.exists(), "a campaign that failed stays where it is"


def test_a_link_that_fails_leaves_what_was_measured(tmp_path: Path) -> None:
    link = FakeLink({2: LinkError("unplugged")})
    with link, pytest.raises(LinkError, match="unplugged"):
        for _ in range(3):
            link.push({"x": b"x"})
    assert link.operations == 3


def test_a_folder_that_was_set_aside_while_another_waited_for_it_is_not_worked_in(tmp_path: Path) -> None:
    """Whoever opened the lock before the folder was renamed holds a lock that nobody else sees."""
    folder, turns = tmp_path / "records", 25

    def work(worker: int) -> None:
        done = 0
        while done < turns:
            try:
                with working_in(folder):
                    Journal(folder / "rows.jsonl").append({"worker": worker, "turn": done})
                    [entry] = Journal(folder / "rows.jsonl").read()
                    assert entry == {"worker": worker, "turn": done}
                done += 1
            except UsageError:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    kept = [Journal(aside / "rows.jsonl").read() for aside in tmp_path.iterdir()]
    assert sorted((entry["worker"], entry["turn"]) for [entry] in kept) == [(w, n) for w in range(4) for n in range(turns)]


def test_what_spoke_against_the_device_at_any_start_is_in_the_card(tmp_path: Path) -> None:
    """Begun on a busy host, interrupted, gone on with when it was idle: the numbers are of both."""

    def told(governor: str, load: float) -> FakeRuntime:
        state = {
            "machine": "m",
            "system": "s",
            "cpu_model": "c",
            "cpu_count": 2,
            "governor": governor,
            "frequencies_mhz": [],
            "temperatures_celsius": [],
            "load_average": [load] * 3,
        }

        class Told(FakeRuntime):
            def hello(self, link, settings):  # type: ignore[no-untyped-def]
                return {**super().hello(link, settings), "state": state}

        return Told()

    busy = told("performance", 3.0)

    def interrupt(progress: object) -> None:
        if busy.sweeps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        campaign(tmp_path, busy).run(interrupt)
    with pytest.raises(MeasurementError, match=r"load 3\.00"):
        replace(campaign(tmp_path, told("performance", 0.1)), gate="strict").run()
    card = campaign(tmp_path, told("performance", 0.1)).run().card
    [doubt] = card.doubts
    assert "load 3.00" in doubt
    assert card.environment.load_average[0] == 3.0, "as it was before anything was measured"
