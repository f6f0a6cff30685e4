"""The kernel predictor on kernels whose times follow a known law, and its file."""

import json
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mobilenas.core.measurement import Estimator
from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.errors import DocumentError, MissingKernelError
from mobilenas.latency.calibration import Calibration
from mobilenas.latency.kernels import PREDICTOR, TargetKernels, learn
from mobilenas.latency.prediction import conformal_factor
from mobilenas.latency.predictors.kernel import BEYOND_FACTOR, KernelPredictor
from mobilenas.latency.predictors.kernel_features import FEATURES, family_of, features_of, work_of
from mobilenas.latency.store import FoundTables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, NetworkScale, TableRow
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_table

SPACE = CellSpace(channels=4, layers=3, image_size=8)


def convolution(channels: int, out: int, size: int, window: int = 1, groups: int = 1, activation: str = "") -> Kernel:
    attributes = {"group": groups, "strides": [1, 1], "kernel_shape": [window, window], "dilations": [1, 1]}
    return Kernel(
        operator="fake::Conv",
        attributes=json.dumps({**attributes, **({"activation": activation} if activation else {})}),
        inputs=(
            TensorSpec((1, channels, size, size), "float32"),
            TensorSpec((out, channels // groups, window, window), "float32", is_constant=True),
        ),
        outputs=(TensorSpec((1, out, size, size), "float32"),),
        provider="Fake",
    )


def law_ms(kernel: Kernel) -> float:
    """A roofline with a bend, which no sum of constants is: channels that are no multiple of 16 cost a fifth more."""
    work = work_of(kernel)
    ragged = 1.2 if kernel.outputs[0].shape[1] % 16 else 1.0
    return 2e-3 + ragged * 1e-6 * work.madds**0.97 + 2e-7 * (work.read + work.written) + 1e-7 * work.weights


def row(kernel: Kernel, ms: float | None = None) -> TableRow:
    ms = law_ms(kernel) if ms is None else ms
    return TableRow(kernel, ms, 0.99 * ms, 1.01 * ms, 1e-2 + 2 * ms, 1e-2 + 8 * ms, 4, True)


def kernels(seed: int, count: int) -> list[Kernel]:
    generator = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        channels, out = (int(c) for c in generator.integers(1, 40, 2) * 8)
        found[convolution(channels, out, int(generator.choice([7, 14, 28, 56])))] = None
    return list(found)


@pytest.fixture(scope="module")
def learnt() -> KernelPredictor:
    found = KernelPredictor().fit(map(row, kernels(0, 120)))
    found.common_width_ = 0.4
    return found


def table_of(rows: list[TableRow], networks_of: str = MOBILE_NETWORKS) -> LatencyTable:
    table = make_table(SPACE)
    spaces = {SPACE.key: msgspec.structs.replace(table.space_card(SPACE.key), space=networks_of)}
    card = msgspec.structs.replace(table.card, spaces=spaces)
    return LatencyTable(card, {r.kernel: r for r in rows}, table.workload_costs, table.networks)


def test_work_is_counted_by_hand() -> None:
    work = work_of(convolution(16, 32, 10, window=3))
    assert (work.madds, work.read, work.written, work.weights) == (10 * 10 * 32 * 16 * 9, 1600, 3200, 32 * 16 * 9)
    depthwise = work_of(convolution(16, 16, 10, window=5, groups=16))
    assert (depthwise.madds, depthwise.weights) == (10 * 10 * 16 * 25, 16 * 25)
    product = Kernel(
        "Gemm",
        "{}",
        (TensorSpec((2, 8), "float32"), TensorSpec((8, 5), "float32", True)),
        (TensorSpec((2, 5), "float32"),),
        "F",
    )
    assert work_of(product).madds == 2 * 8 * 5
    transposed = msgspec.structs.replace(product, attributes='{"transA": 1}', inputs=(TensorSpec((8, 2), "float32"), None))
    assert work_of(transposed).madds == 2 * 8 * 5


@pytest.mark.parametrize(
    ("operator", "read", "weights", "written", "group", "madds", "family"),
    [
        ("Conv", (1, 8, 20), (16, 8, 3), (1, 16, 18), 1, 18 * 16 * 8 * 3, "Conv window 1-D"),
        ("Conv", (1, 8, 20), (8, 1, 3), (1, 8, 18), 8, 18 * 8 * 3, "Conv depthwise 1-D"),
        ("Conv", (2, 4, 5, 6, 7), (3, 4, 1, 1, 1), (2, 3, 5, 6, 7), 1, 2 * 210 * 3 * 4, "Conv pointwise 3-D"),
        ("ConvTranspose", (1, 8, 5, 5), (8, 4, 2, 2), (1, 4, 10, 10), 1, 25 * 8 * 4 * 4, "ConvTranspose window"),
        ("ConvTranspose", (1, 8, 5, 5), (8, 2, 2, 2), (1, 8, 10, 10), 4, 25 * 8 * 2 * 4, "ConvTranspose grouped"),
        ("ConvTranspose", (1, 8, 5, 5), (8, 1, 2, 2), (1, 8, 10, 10), 8, 25 * 8 * 4, "ConvTranspose depthwise"),
    ],
)
def test_convolutions_of_all_kinds_are_counted(
    operator: str,
    read: tuple[int, ...],
    weights: tuple[int, ...],
    written: tuple[int, ...],
    group: int,
    madds: int,
    family: str,
) -> None:
    inputs = (TensorSpec(read, "float32"), TensorSpec(weights, "float32", is_constant=True))
    kernel = Kernel(operator, json.dumps({"group": group}), inputs, (TensorSpec(written, "float32"),), "F")
    assert work_of(kernel).madds == madds
    assert family_of(kernel) == family
    assert features_of(kernel)[FEATURES.index("window")] == math.prod(weights[2:])


def test_constants_that_are_no_numbers_to_compute_with_are_no_weights() -> None:
    shape = TensorSpec((4,), "int64", is_constant=True, values=(1, 2, 3, 4))
    weights = TensorSpec((16, 8), "int8", is_constant=True)
    kernel = Kernel("Any", "{}", (TensorSpec((1, 8), "float32"), shape, weights), (TensorSpec((1, 16), "float32"),), "F")
    assert kernel.weights == (weights,)
    assert work_of(kernel).weights == 128
    assert kernel.weight_mib == 128 / 2**20


def test_families_part_what_different_laws_rule() -> None:
    families = [
        family_of(kernel)
        for kernel in (
            convolution(16, 16, 8),
            convolution(16, 16, 8, window=3),
            convolution(16, 16, 8, window=3, groups=16),
            convolution(16, 16, 8, window=3, groups=4),
        )
    ]
    assert families == ["fake::Conv pointwise", "fake::Conv window", "fake::Conv depthwise", "fake::Conv grouped"]
    assert features_of(convolution(16, 16, 8)).shape == (len(FEATURES),)


def test_kernels_that_it_has_not_seen(learnt: KernelPredictor) -> None:
    known = {r.identifier for r in kernels(0, 120)}
    others = [k for k in kernels(1, 60) if k.identifier not in known]
    found = [(time.prediction, k) for time, k in zip(learnt.predict(others), others, strict=True) if time.is_seen]
    assert len(found) > 30
    predicted, unseen = zip(*found, strict=True)
    errors = np.array([p.ms / law_ms(k) - 1 for p, k in zip(predicted, unseen, strict=True)])
    assert np.median(np.abs(errors)) < 0.02
    covered = np.mean([p.low_ms <= law_ms(k) <= p.high_ms for p, k in zip(predicted, unseen, strict=True)])
    assert covered > 0.8


def test_the_held_out_errors_are_not_those_of_the_fit(learnt: KernelPredictor) -> None:
    """Rows that no other tells: noise of 30 % can be learnt by heart, not foreseen."""
    generator = np.random.default_rng(0)
    noisy = [row(k, law_ms(k) * math.exp(generator.normal(0, 0.3))) for k in kernels(2, 80)]
    predictor = KernelPredictor().fit(noisy)
    assert predictor.factors_["fake::Conv pointwise"] > 1.3


def test_a_row_that_came_out_as_nothing_spoils_no_other() -> None:
    """Its time is noise around zero; that of the others is exactly a roofline."""

    def roof_ms(kernel: Kernel) -> float:
        work = work_of(kernel)
        return 2e-3 + 1e-6 * work.madds + 2e-7 * (work.read + work.written)

    *exact, spoiled = kernels(0, 101)
    nothing = msgspec.structs.replace(row(spoiled, 0.01), value_ms=0.0, low_ms=0.0, high_ms=2e-3, converged=False)
    predictor = KernelPredictor().fit([*(row(k, roof_ms(k)) for k in exact), nothing])
    assert predictor.families_["fake::Conv pointwise"].roofline_ == pytest.approx([2e-3, 1e-6, 2e-7, 0.0], rel=1e-3, abs=1e-9)
    asked = [spoiled, *kernels(1, 20)]
    assert [found.prediction.ms for found in predictor.predict(asked)] == pytest.approx([roof_ms(k) for k in asked], rel=0.01)


def test_a_family_that_takes_no_time_is_predicted_to_take_none() -> None:
    rows = [msgspec.structs.replace(row(k, 0.01), value_ms=0.0, low_ms=0.0, high_ms=1e-3) for k in kernels(0, 20)]
    assert all(found.prediction.ms < 2e-5 for found in KernelPredictor().fit(rows).predict(kernels(1, 20)))


def test_rows_that_were_measured_badly_count_less_for_the_roofline() -> None:
    """Every fifth is twice as slow as it is, and known to within a factor only."""
    rows = [row(k) for k in kernels(0, 100)]
    bad = [msgspec.structs.replace(r, value_ms=2 * r.value_ms, low_ms=0.0, high_ms=4 * r.value_ms) for r in rows[::5]]
    sure = [msgspec.structs.replace(r, low_ms=0.99 * r.value_ms, high_ms=1.01 * r.value_ms) for r in bad]
    others = [r for index, r in enumerate(rows) if index % 5]
    asked = [r.kernel for r in others]

    def roofline(found: list[TableRow]) -> np.ndarray:
        family = KernelPredictor().fit(found).families_["fake::Conv pointwise"]
        return np.array([work_vector(k) @ family.roofline_ for k in asked])

    right = roofline(others)
    assert np.abs(roofline([*others, *bad]) / right - 1).max() < 0.02
    assert np.abs(roofline([*others, *sure]) / right - 1).max() > 0.05


def work_vector(kernel: Kernel) -> np.ndarray:
    work = work_of(kernel)
    return np.array([1.0, work.madds, work.read + work.written, work.weights])


def test_families_with_too_few_rows_are_not_known(learnt: KernelPredictor) -> None:
    assert not learnt.knows(convolution(16, 16, 8, window=3))
    assert not KernelPredictor().fit(map(row, kernels(0, 5))).knows(kernels(0, 1)[0])


def test_beyond_the_shapes_seen_it_says_so(learnt: KernelPredictor) -> None:
    asked = [convolution(320, 320, 224), convolution(64, 64, 28, activation="Relu"), convolution(64, 64, 28)]
    beyond, other_activation, seen = learnt.predict(asked)
    assert (beyond.is_seen, other_activation.is_seen, seen.is_seen) == (False, False, True)
    factor = learnt.factors_["fake::Conv pointwise"]
    assert seen.prediction.high_ms / seen.prediction.ms == pytest.approx(factor)
    wide, wider = (p.prediction.high_ms / p.prediction.ms for p in (other_activation, beyond))
    assert wide == pytest.approx(BEYOND_FACTOR)
    assert factor < wide < wider


def test_another_type_of_numbers_is_another_family(learnt: KernelPredictor) -> None:
    kernel = convolution(64, 64, 28)
    double = msgspec.structs.replace(
        kernel,
        inputs=(TensorSpec((1, 64, 28, 28), "float64"), kernel.inputs[1]),
        outputs=(TensorSpec((1, 64, 28, 28), "float64"),),
    )
    assert learnt.knows(kernel)
    assert not learnt.knows(double)


def test_its_file_answers_the_same(tmp_path: Path) -> None:
    table = table_of([row(k) for k in kernels(0, 120)])
    card = table.space_card(SPACE.key)
    networks = [Counter(dict.fromkeys(kernels(0, 120)[i : i + 10], 2)) for i in range(0, 100, 10)]
    learnt = learn(table, networks, np.array([card.predict(table.kernel_sum_ms(c)).ms for c in networks]))
    assert learnt.common_width_ < 0.05
    learnt.save(tmp_path / PREDICTOR)
    again = KernelPredictor.load(tmp_path / PREDICTOR, table)
    asked = kernels(1, 20)
    assert again.predict(asked) == learnt.predict(asked)
    with pytest.raises(DocumentError, match="another table"):
        KernelPredictor.load(tmp_path / PREDICTOR, make_table(SPACE))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({"a": 1})], ids=["empty", "half a zip", "a pickle"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / PREDICTOR).write_bytes(content)
    with pytest.raises(DocumentError, match="not a predictor"):
        KernelPredictor.load(tmp_path / PREDICTOR, make_table(SPACE))


def test_other_types_are_not_opened(tmp_path: Path) -> None:
    from skops.io import dumps

    (tmp_path / PREDICTOR).write_bytes(dumps({"run": Path}))
    with pytest.raises(DocumentError):
        KernelPredictor.load(tmp_path / PREDICTOR, make_table(SPACE))


ROWS = [row(k) for k in kernels(0, 120)]
TABLE = table_of(ROWS)


class TestNetworks:
    """``TargetKernels``: measured rows first, learnt ones where asked for, nothing counted as zero."""

    def test_measured_rows_add_up(self) -> None:
        counts = Counter({ROWS[0].kernel: 3, ROWS[1].kernel: 1})
        found = TargetKernels([TABLE]).predict(counts)
        total = TABLE.card.session_ms + 3 * ROWS[0].value_ms + ROWS[1].value_ms
        assert found.kernel_sum_ms == pytest.approx(total, rel=1e-12)
        assert found.prediction.ms == pytest.approx(Calibration.of_table(TABLE).network_ms(total), rel=1e-12)
        assert found.predicted_share_fraction == 0
        assert [share.source for share in found.kernels] == ["measured", "measured"]
        assert found.kernels[0].ms >= found.kernels[1].ms

    def test_the_newest_row_counts(self) -> None:
        newer = table_of([row(ROWS[0].kernel, 7.0)])
        counts = Counter({ROWS[0].kernel: 1, ROWS[1].kernel: 1})
        found = TargetKernels([newer, TABLE]).predict(counts)
        assert {share.each_ms for share in found.kernels} == {7.0, ROWS[1].value_ms}

    def test_a_large_unknown_share_is_refused_by_name(self, learnt: KernelPredictor) -> None:
        known = {r.kernel for r in ROWS}
        unseen = next(k for k in kernels(1, 60) if k not in known and learnt.predict([k])[0].is_seen)
        counts = Counter({ROWS[0].kernel: 1, unseen: 2})
        with pytest.raises(MissingKernelError, match="1 of 2 kernels") as error:
            TargetKernels([TABLE]).predict(Counter({ROWS[0].kernel: 1, unseen: 200}))
        assert unseen.key in str(error.value)
        assert "--profile-missing" in str(error.value)
        found = TargetKernels([TABLE], lambda: learnt).predict(counts)
        assert {share.source for share in found.kernels} == {"measured", "predicted"}
        assert 0 < found.predicted_share_fraction < 1
        alone = TargetKernels([TABLE], lambda: learnt).predict(Counter({unseen: 1}))
        assert alone.prediction.high_ms / alone.prediction.ms > found.prediction.high_ms / found.prediction.ms

    @pytest.mark.parametrize("unlike", [convolution(320, 320, 112), convolution(8, 8, 8, window=3)], ids=["beyond", "family"])
    def test_a_small_unknown_share_is_estimated(self, unlike: Kernel, learnt: KernelPredictor) -> None:
        largest = max(ROWS, key=lambda r: r.value_ms)
        found = TargetKernels([TABLE], lambda: learnt).predict(Counter({largest.kernel: 2000, unlike: 1}))
        [share] = [share for share in found.kernels if share.kernel == unlike]
        assert share.converged is None
        assert 0 < found.predicted_share_fraction < 1 / 3
        assert share.low_ms < law_ms(unlike) < share.high_ms
        alone = TargetKernels([TABLE], lambda: learnt).estimate(Counter({unlike: 1}))
        assert alone.prediction.high_ms / alone.prediction.low_ms > found.prediction.high_ms / found.prediction.low_ms

    def test_kernels_of_an_unknown_kind_are_refused_by_share(self, learnt: KernelPredictor) -> None:
        unlike = convolution(8, 8, 8, window=3)
        target = TargetKernels([TABLE], lambda: learnt)
        largest = max(ROWS, key=lambda r: r.value_ms)
        found = target.predict(Counter({largest.kernel: 2000, unlike: 1}))
        [share] = [share for share in found.kernels if share.kernel == unlike]
        assert share.source == "estimated"
        assert 0 < found.estimated_share_fraction < 1 / 3
        with pytest.raises(MissingKernelError, match=r"9[0-9]%|100%") as error:
            target.predict(Counter({unlike: 1000}))
        assert unlike.key in str(error.value)

    def test_farther_beyond_the_learnt_shapes_less_is_known(self, learnt: KernelPredictor) -> None:
        sizes = [convolution(320, 320, pixels) for pixels in (28, 112, 224, 2240)]
        target = TargetKernels([TABLE], lambda: learnt)
        shares = [target.estimate(Counter({kernel: 1})).kernels[0] for kernel in sizes]
        assert [share.source for share in shares] == ["predicted", "extrapolated", "extrapolated", "estimated"]
        widths = [share.high_ms / share.each_ms for share in shares[:3]]
        assert widths == sorted(set(widths))

    def test_rows_carry_their_intervals_and_whether_they_repeated(self) -> None:
        shaky = msgspec.structs.replace(ROWS[0], high_ms=3 * ROWS[0].value_ms, converged=False)
        counts = Counter({r.kernel: 1 for r in ROWS[:5]})
        calm = TargetKernels([TABLE]).predict(counts)
        found = TargetKernels([table_of([shaky, *ROWS[1:5]])]).predict(counts)
        share = next(s for s in found.kernels if s.kernel == shaky.kernel)
        assert (share.low_ms, share.high_ms, share.converged) == (shaky.low_ms, shaky.high_ms, False)
        assert found.not_converged_share_fraction == pytest.approx(share.ms / found.kernel_sum_ms)
        assert calm.not_converged_share_fraction == 0
        assert found.prediction.high_ms > calm.prediction.high_ms

    def test_beyond_the_sizes_of_the_calibrating_networks_the_interval_is_wider(self) -> None:
        kernel, ms = ROWS[0].kernel, ROWS[0].value_ms
        networks = tuple(
            msgspec.structs.replace(n, kernel_sum_ms=(2 + i) * ms, measured_ms=(2 + i) * ms * (1.1 if i % 2 else 1.0))
            for i, n in enumerate(TABLE.networks)
        )
        target = TargetKernels([LatencyTable(TABLE.card, TABLE.rows, {}, networks)])
        within, beyond, below = (target.predict(Counter({kernel: n})) for n in (4, 40, 1))
        assert (within.is_within_calibration, beyond.is_within_calibration, below.is_within_calibration) == (True, False, False)
        assert (within.calibrated_from_ms, within.calibrated_to_ms) == (2 * ms, (1 + len(networks)) * ms)
        farther = target.predict(Counter({kernel: 4000}))
        widths = [math.log(found.prediction.high_ms / found.prediction.ms) for found in (within, beyond, farther)]
        assert widths == sorted(set(widths))

    def test_networks_of_one_space_tell_less_of_others(self) -> None:
        kernel, ms = ROWS[0].kernel, ROWS[0].value_ms
        networks = tuple(msgspec.structs.replace(n, kernel_sum_ms=(2 + i) * ms) for i, n in enumerate(TABLE.networks))
        of_all_kinds, of_a_space = (replace(table_of(ROWS, kind), networks=networks) for kind in (MOBILE_NETWORKS, SPACE.name))
        own = Calibration(of_a_space, of_a_space.space_card(SPACE.key), is_of_its_kind=True)
        by_all_kinds = TargetKernels([of_all_kinds]).predict(Counter({kernel: 4}))
        by_another = TargetKernels([of_a_space]).predict(Counter({kernel: 4}))
        by_its_own = TargetKernels([of_a_space]).predict(Counter({kernel: 4}), calibration=own)
        assert by_its_own.prediction == by_all_kinds.prediction
        assert by_its_own.is_within_calibration
        assert not by_another.is_within_calibration
        assert by_another.prediction.high_ms > by_its_own.prediction.high_ms

    def test_without_a_measured_network_nothing_tells_the_error(self) -> None:
        bare = LatencyTable(msgspec.structs.replace(TABLE.card, spaces={}), TABLE.rows, {}, ())
        assert not TargetKernels([bare]).is_calibrated
        assert TargetKernels([bare, TABLE]).is_calibrated
        assert not TargetKernels.of(FoundTables()).is_calibrated


@pytest.mark.parametrize("estimator", ["floor", "median"])
def test_rows_and_learnt_times_beside_another_table_are_brought_to_the_speed_of_the_networks(
    estimator: Estimator, tmp_path: Path
) -> None:
    key, plan = (msgspec.structs.replace(part, estimator=estimator) for part in (TABLE.card.key, TABLE.card.plan))
    card = msgspec.structs.replace(TABLE.card, key=key, plan=plan)
    networks = replace(TABLE, card=card, rows={})
    slower = msgspec.structs.replace(card, sentinel_ms=1.1 * card.sentinel_ms, spaces={})
    others = LatencyTable(slower, TABLE.rows, {}, ())
    learnt = KernelPredictor().fit(others.rows.values())
    learnt.learnt_from_, learnt.common_width_ = others.digest, 0.0
    others.save(tmp_path / "others")
    learnt.save(tmp_path / "others" / PREDICTOR)
    target = TargetKernels.of(FoundTables(((tmp_path / "others", others), (tmp_path / "networks", networks))))
    known = {r.kernel for r in ROWS}
    unseen = next(k for k in kernels(1, 60) if k not in known and learnt.predict([k])[0].is_seen)
    assert target.rows[ROWS[0].kernel].value_ms == pytest.approx(ROWS[0].value_ms / 1.1)
    [share] = target.predict(Counter({unseen: 1})).kernels
    [found] = learnt.predict([unseen])
    assert (share.each_ms, share.high_ms) == (
        pytest.approx(found.prediction.ms / 1.1),
        pytest.approx(found.prediction.high_ms / 1.1),
    )


def test_intervals_of_networks_that_nothing_was_learnt_from_hold_nine_in_ten() -> None:
    """Families lean to one side in a network, rows and networks are noisy: none of it is in the predictor's assumptions."""
    generator = np.random.default_rng(0)
    pool = kernels(3, 260)
    rows = [row(k, law_ms(k) * math.exp(generator.normal(0, 0.05))) for k in pool]
    known, unknown = table_of(rows[:200]), pool[200:]
    drawn = [Counter(generator.choice(np.array(pool[:200], object), 8).tolist()) for _ in range(50)]
    fresh = [Counter(generator.choice(np.array(unknown, object), 8).tolist()) for _ in range(300)]

    def measured(networks: list[Counter[Kernel]]) -> np.ndarray:
        sums = [math.fsum(n * law_ms(k) for k, n in counts.items()) for counts in networks]
        return np.array(sums) * np.exp(generator.normal(0, 0.03, len(networks)) + generator.normal(0, 0.05, len(networks)))

    truth = measured(drawn)
    sums = np.array([known.kernel_sum_ms(counts) for counts in drawn])
    space = msgspec.structs.replace(
        known.space_card(SPACE.key),
        space=MOBILE_NETWORKS,
        scale=NetworkScale(1.0),
        interval_factor=conformal_factor(sums, truth),
    )
    card = msgspec.structs.replace(known.card, spaces={SPACE.key: space})
    networks = tuple(
        msgspec.structs.replace(known.networks[0], kernel_sum_ms=float(s), measured_ms=float(ms))
        for s, ms in zip(sums, truth, strict=True)
    )
    table = LatencyTable(card, known.rows, {}, networks)
    target = TargetKernels([table], lambda: learn(table, drawn, truth))
    found = [target.estimate(counts).prediction for counts in fresh]
    covered = np.mean([p.low_ms <= ms <= p.high_ms for p, ms in zip(found, measured(fresh), strict=True)])
    assert 0.87 <= covered <= 0.97
