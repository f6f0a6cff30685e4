"""Conformance kits of links and runtimes, as classes to subclass; ``contracts.py`` says how.

Nothing here imports pytest. The runtime's kit really runs the engine, on the device behind ``link``.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod

import msgspec
import numpy as np

from mobilenas import onnx_model
from mobilenas.core.measurement import PLANS, SweepRecord
from mobilenas.core.workload import Blueprint, Kernel, Layer, Workload
from mobilenas.devices.device import LOCAL, find_device
from mobilenas.devices.links import Link
from mobilenas.errors import DeviceTimeoutError, IncompatibleError, LinkError, RunnerError
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.measure import measure
from mobilenas.testing.contracts import expect_error

AWKWARD_ARGUMENTS = ("two words", "a'b\"c", "; echo no", "$HOME", "*", "", "-x", "ä", "line\nbreak", "`id`", "\\")


class LinkContract(ABC):
    """The laws of a link. Override ``make``; the device behind it needs a Python."""

    @abstractmethod
    def make(self) -> Link:
        """A link that is not yet entered."""

    def test_bytes_come_back_as_they_were(self) -> None:
        with self.make() as link:
            for content in (b"", b"\x00\xff\r\n", bytes(range(256)) * 4096):
                link.push({"content.bin": content, "another": b"another"})
                assert link.pull("content.bin") == content

    def test_what_is_kept_travels_once_under_the_name_of_its_content(self) -> None:
        with self.make() as link:
            pair = link.keep([[b"text", b"numbers"]], [".txt", ".bin"])[0]
            assert link.pull(pair) == b"text"
            assert link.pull(pair.replace(".txt", ".bin")) == b"numbers"
            one, two, again = link.keep([[b"one"], [b"two"], [b"one"]], [".bin"])
            assert one == again != two
            link.push({one: b"touched"})
            assert link.keep([[b"one"]], [".bin"]) == [one]
            assert link.pull(one) == b"touched", "it was there already"
            link.remove([one])
            assert link.keep([[b"one"]], [".bin"]) == [one]
            assert link.pull(one) == b"one"

    def test_what_is_not_there_cannot_be_pulled_and_may_be_removed(self) -> None:
        with self.make() as link:
            with expect_error(LinkError, "the file is not on the device"):
                link.pull("missing")
            link.push({"here": b"x"})
            link.remove(["here", "missing"])
            link.remove(["here"])
            with expect_error(LinkError, "the file was removed"):
                link.pull("here")

    def test_each_use_begins_in_an_empty_directory(self) -> None:
        for _ in range(2):
            with self.make() as link:
                link.push({"count.py": b"import os; print(len(os.listdir('.')))"})
                assert self._lines(link, ["count.py"]) == ["1"]

    def test_arguments_reach_the_program_as_they_are(self) -> None:
        with self.make() as link:
            link.push({"echo.py": b"import json, sys; print(json.dumps(sys.argv[1:]))"})
            [line] = self._lines(link, ["echo.py", *AWKWARD_ARGUMENTS])
            assert msgspec.json.decode(line) == list(AWKWARD_ARGUMENTS)

    def test_lines_come_one_by_one_while_the_program_runs(self) -> None:
        """And it is not given up while they come: the limit is one of silence."""
        script = b"import time\nfor i in range(6):\n    print('line', i, flush=True)\n    time.sleep(0.7)\n"
        times: list[float] = []
        with self.make() as link:
            link.push({"slow.py": script})
            link.run([link.python, "slow.py"], timeout_s=3.0, on_line=lambda _: times.append(time.monotonic()))
        assert len(times) == 6
        assert times[5] - times[0] > 1.0, "lines were held back until the end"

    def test_a_failure_carries_its_exit_code_and_last_words(self) -> None:
        with self.make() as link:
            link.push({"fail.py": b"import sys; print('it broke here', file=sys.stderr); sys.exit(7)"})
            with expect_error(RunnerError, "the program ends with 7", "7", "it broke here"):
                link.run([link.python, "fail.py"], timeout_s=60, on_line=lambda _: None)

    def test_a_program_that_does_not_end_is_given_up(self) -> None:
        with self.make() as link:
            link.push({"hang.py": b"import time; time.sleep(600)"})
            begin = time.monotonic()
            with expect_error(DeviceTimeoutError, "the program hangs"):
                link.run([link.python, "hang.py"], timeout_s=1.0, on_line=lambda _: None)
            assert time.monotonic() - begin < 30

    def test_an_error_while_reading_ends_the_run(self) -> None:
        def refuse(line: str) -> None:
            raise ZeroDivisionError

        with self.make() as link:
            link.push({"talk.py": b"import time\nprint('first', flush=True)\ntime.sleep(600)\n"})
            begin = time.monotonic()
            with expect_error(ZeroDivisionError, "the reader refuses the line"):
                link.run([link.python, "talk.py"], timeout_s=300, on_line=refuse)
            assert time.monotonic() - begin < 30

    def _lines(self, link: Link, arguments: list[str]) -> list[str]:
        lines: list[str] = []
        link.run([link.python, *arguments], timeout_s=60, on_line=lines.append)
        return lines


class RuntimeContract(ABC):
    """The laws of a runtime, on the device behind ``link``, which is this host unless overridden. Override ``make``."""

    settings = RunSettings()

    @abstractmethod
    def make(self) -> Runtime:
        """The runtime under test."""

    def link(self) -> Link:
        """A link to a device that has the engine."""
        return find_device(LOCAL).open()

    def test_settings_that_the_engine_lacks_are_refused(self) -> None:
        for settings in (
            msgspec.structs.replace(self.settings, precision="int3"),
            msgspec.structs.replace(self.settings, threads=0),
        ):
            with expect_error(IncompatibleError, f"{settings} is impossible"):
                self.make().check(settings)

    def test_lowering_repeats_and_tells_networks_apart(self) -> None:
        runtime = self.make()
        small, wide = _convolution(8), _convolution(32)
        with self.link() as link:
            first, again, other = runtime.kernels([small, small, wide], link, self.settings)
        assert first == again
        assert first != other
        for kernels in (first, other):
            assert sum(kernels.values()) > 0
            assert all(isinstance(kernel, Kernel) and kernel.provider for kernel in kernels)

    def test_every_kernel_can_be_timed_alone(self) -> None:
        runtime = self.make()
        with self.link() as link:
            [kernels] = runtime.kernels([_convolution(8)], link, self.settings)
            models = {
                f"{kernel.identifier}-{copies}": runtime.kernel_model(kernel, copies)
                for kernel in kernels
                for copies in (2, 40)
            }
            records = self._sweep(runtime, link, {**models, "session": runtime.session_model()})
        assert set(records) == {*models, "session"}
        for kernel in kernels:
            few, many = (min(records[f"{kernel.identifier}-{copies}"].wall_ms) for copies in (2, 40))
            assert 0 < 2 * few < many, f"{kernel.key}: forty copies take less than twice as long as two"

    def test_records_are_whole_and_more_work_takes_longer(self) -> None:
        runtime = self.make()
        plan = PLANS["quick"]
        models = {str(depth): runtime.prepare(_convolution(8, depth), self.settings) for depth in (1, 20)}
        with self.link() as link:
            records = self._sweep(runtime, link, models)
        for record in records.values():
            assert len(record.wall_ms) == len(record.cpu_ms)
            assert len(record.wall_ms) >= plan.samples or sum(record.wall_ms) >= 1000 * plan.maximum_s
            assert all(0 < value < math.inf for value in record.wall_ms)
            assert record.sentinel_ms
            assert all(0 < value < math.inf for value in record.sentinel_ms)
            assert record.first_ms > 0
            assert record.load_ms > 0
        assert min(records["20"].wall_ms) > 1.5 * min(records["1"].wall_ms)

    def test_what_it_computes_repeats_and_depends_on_what_it_is_given(self) -> None:
        runtime, inputs = self.make(), np.random.default_rng(0).standard_normal((3, 1, 3, 16, 16)).astype(np.float32)
        inputs[1] = inputs[0]
        with self.link() as link:
            found = runtime.compute(runtime.prepare(_convolution(8), self.settings), inputs, link, self.settings)
        assert found.shape == (3, 10)
        assert (found[0] == found[1]).all()
        assert (found[0] != found[2]).any()

    def test_measuring_says_which_engine_it_was(self) -> None:
        runtime = self.make()
        plan = msgspec.structs.replace(PLANS["quick"], sweeps=2, maximum_sweeps=2, spread_s=0.0, drift_fraction=100.0)
        with self.link() as link:
            models = {"model": runtime.prepare(_convolution(8), self.settings)}
            measurements, log = measure(models, link, runtime, self.settings, plan)
        assert measurements["model"].sweeps == 2
        assert log.hello["runner"]
        assert log.hello["engine_version"]

    def test_a_model_that_the_engine_refuses_is_named_and_the_others_are_reported(self) -> None:
        runtime = self.make()
        seen: list[str] = []
        with self.link() as link:
            models = {
                "spoiled": PreparedModel(b"not a model at all"),
                "whole": runtime.prepare(_convolution(8), self.settings),
            }
            with expect_error(RunnerError, "the first model is none", "spoiled"):
                runtime.time_models(models, link, self.settings, PLANS["quick"], lambda name, record: seen.append(name))
        assert seen == ["whole"]

    def _sweep(self, runtime: Runtime, link: Link, models: dict[str, PreparedModel]) -> dict[str, SweepRecord]:
        records: dict[str, SweepRecord] = {}
        runtime.time_models(models, link, self.settings, PLANS["quick"], records.__setitem__)
        return records


def _convolution(width: int, depth: int = 1) -> bytes:
    """A network of ``depth`` convolutions of ``width`` channels at 16x16, and a classifier."""
    layers = [Layer("stem", Workload("stem_cifar", 3, width, 16, 16), ("images",))]
    for index in range(depth - 1):
        layers.append(Layer(f"layer{index}", Workload("relu_conv1x1_bn", width, width, 16, 16), (layers[-1].name,)))
    head = Layer("head", Workload("head", width, 10, 16, 16), (layers[-1].name,))
    return onnx_model.compose(Blueprint((*layers, head), (1, 3, 16, 16)))
