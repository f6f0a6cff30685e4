"""Runners that misbehave, driven by the path of all numbers: refused, never a wrong row, and what was good is kept."""

import json
from pathlib import Path

import msgspec
import pytest

from mobilenas.core.measurement import PLANS
from mobilenas.core.run_directory import Journal
from mobilenas.devices.device import find_device
from mobilenas.errors import CrashError, MobileNASError, RunnerError
from mobilenas.runtimes.base import PreparedModel, RunSettings
from mobilenas.runtimes.measure import measure
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.runtimes.reports import PROTOCOL

PLAN = msgspec.structs.replace(PLANS["quick"], sweeps=2, maximum_sweeps=3, spread_s=0.0)
MODELS = {name: PreparedModel(b"") for name in ("a", "b")}
HELLO = {
    "type": "hello",
    "protocol": PROTOCOL,
    "runner": "scripted",
    "engine_version": "1",
    "providers": ["scripted"],
    "python": "3",
}
GOOD = {
    "type": "timing",
    "wall_ms": [1.0] * 60,
    "cpu_ms": [1.0] * 60,
    "sentinel_ms": [0.1],
    "first_ms": 2.0,
    "load_ms": 3.0,
    "peak_memory_mib": None,
}


class Scripted(OnnxRuntime):
    """Its runner times every model as 1 ms, but prints ``wrong`` for the model ``b``; ``then`` is what it does next."""

    def __init__(self, folder: Path, wrong: str | None, then: str = "", greets: bool = True, forgotten: int = 0) -> None:
        self.path = folder / "scripted_runner.py"
        hello = HELLO if greets else None
        good = {**GOOD, "provider": "scripted"}
        self.path.write_text(
            "import json, os, sys\n"
            f"wrong, done = {wrong!r}, 0\n"
            f"hello = {hello!r}\n"
            "if hello: print(json.dumps(hello), flush=True)\n"
            "for model in json.load(open('job.json'))['models']:\n"
            "    if model['id'] == 'b' and wrong is not None:\n"
            "        sys.stdout.write(wrong)\n"
            "        sys.stdout.flush()\n"
            f"        {then or 'continue'}\n"
            f"    print(json.dumps({{**{good!r}, 'id': model['id']}}), flush=True)\n"
            "    done += 1\n"
            f"print(json.dumps({{'type': 'bye', 'models': done + {forgotten}}}))\n"
        )

    @property
    def runner_file(self) -> Path:
        return self.path


def timing(**changed: object) -> str:
    """A report on the model b as JSON, with Python's NaN and Infinity where asked for."""
    return json.dumps({**GOOD, "id": "b", "provider": "scripted", **changed}) + "\n"


def test_a_runner_that_is_killed_once_blames_no_model(tmp_path: Path) -> None:
    """Whatever it was killed for, the model that it was at is tried again, after the others."""
    once = "import pathlib; mark = pathlib.Path(%r); seen = mark.exists(); mark.touch(); seen or os.kill(os.getpid(), 11)"
    seen: list[str] = []
    runtime = Scripted(tmp_path, "", once % str(tmp_path / "mark"))
    models = {**MODELS, "c": PreparedModel(b"c")}
    with find_device("local").open() as link:
        runtime.time_models(models, link, RunSettings(), PLAN, lambda name, record: seen.append(name))
    assert (tmp_path / "mark").exists(), "it was killed before it had reported on b"
    assert seen == ["a", "c", "b"]


def test_a_runner_killed_after_its_last_report_is_run_again(tmp_path: Path) -> None:
    once = "import pathlib; mark = pathlib.Path(%r); seen = mark.exists(); mark.touch(); seen or os.kill(os.getpid(), 11)"
    seen: list[str] = []
    runtime = Scripted(tmp_path, timing(), once % str(tmp_path / "mark"))
    with find_device("local").open() as link:
        runtime.time_models(MODELS, link, RunSettings(), PLAN, lambda name, record: seen.append(name))
    assert sorted(seen) == ["a", "b"]


WRONG = {
    "garbage": "Segmentation fault (core dumped)\n",
    "half a line": timing()[:60] + "\n",
    "not a number": timing(wall_ms=[float("nan")] * 60),
    "infinite": timing(wall_ms=[float("inf")] * 60),
    "zero": timing(wall_ms=[0.0] * 60),
    "negative": timing(wall_ms=[-1.0] * 60),
    "one negative": timing(wall_ms=[*[1.0] * 59, -1.0]),
    "text": timing(wall_ms=["1.0"] * 60),
    "no times": timing(wall_ms=[], cpu_ms=[]),
    "no such field": timing(wall_ms=None),
    "clocks of other lengths": timing(cpu_ms=[1.0] * 59),
    "no sentinel": timing(sentinel_ms=[]),
    "a sentinel that took no time": timing(sentinel_ms=[0.1, 0.0]),
    "a sentinel that is no number": timing(sentinel_ms=[float("nan")]),
    "memory that is no number": timing(peak_memory_mib="much"),
    "negative memory": timing(peak_memory_mib=-1.0),
    "a negative CPU time": timing(cpu_ms=[-1.0] * 60),
    "a first run that took no time": timing(first_ms=0.0),
    "a model that loads in negative time": timing(load_ms=-3.0),
    "no name": timing(id=None),
    "a name that is a list": timing(id=["b"]),
    "a field that nobody knows": timing(median_ms=1.0),
    "an error without a name": '{"type": "error", "message": "unsupported"}\n',
    "a graph where times were asked for": '{"type": "graph", "id": "b", "path": "b.onnx", "nodes": []}\n',
    "a graph of nothing": '{"type": "graph", "id": "b"}\n',
    "a second hello": json.dumps(HELLO) + "\n",
    "a bye too early": '{"type": "bye", "models": 1}\n',
    "nothing": "",
    "a report of no kind": '{"type": "surprise"}\n',
    "a list": "[1.0, 2.0]\n",
    "an error of the engine": '{"type": "error", "id": "b", "message": "unsupported"}\n',
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_time_is_refused_and_measured_anew(wrong: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    with find_device("local").open() as link:
        with pytest.raises(RunnerError) as caught:
            measure(MODELS, link, Scripted(tmp_path, wrong), RunSettings(), PLAN, journal=journal)
        assert caught.value.exit_code == 4
        recorded = [entry["model"] for entry in journal.read() if "record" in entry]
        assert "b" not in recorded
        found, _ = measure(MODELS, link, Scripted(tmp_path, None), RunSettings(), PLAN, journal=journal)
    assert all(found[name].value_ms == 1.0 and found[name].converged for name in MODELS)


@pytest.mark.parametrize("then", ["sys.exit(3)", "os.abort()", "os.close(1); os._exit(0)"], ids=["exit", "crash", "silent end"])
def test_a_runner_that_ends_in_the_middle_is_no_whole_sweep(then: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    with find_device("local").open() as link:
        with pytest.raises(MobileNASError) as caught:
            measure(
                MODELS, link, Scripted(tmp_path, '{"type": "timing", "id": "b"', then), RunSettings(), PLAN, journal=journal
            )
        assert caught.value.exit_code == 4
        assert "b" not in [entry["model"] for entry in journal.read() if "record" in entry]
        found, _ = measure(MODELS, link, Scripted(tmp_path, None), RunSettings(), PLAN, journal=journal)
    assert found["b"].value_ms == 1.0


@pytest.mark.parametrize("then", ["os.kill(os.getpid(), 11)", "import time; time.sleep(60)"], ids=["signal 11", "silence"])
def test_a_model_at_which_the_runner_ends_or_hangs_is_refused_and_the_others_go_on(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenas.runtimes.base.SILENCE_S", 2.0)
    models = {name: PreparedModel(name.encode()) for name in ("a", "b", "c", "d")}
    seen: list[str] = []
    with find_device("local").open() as link, pytest.raises(RunnerError, match="refused 1 of 4 models; first: b: ") as caught:
        Scripted(tmp_path, "", then).time_models(models, link, RunSettings(), PLAN, lambda name, record: seen.append(name))
    assert list(caught.value.refused) == ["b"]
    assert ("signal 11" if "11" in then else "nothing said for 2 s") in caught.value.refused["b"]
    assert seen == ["a", "c", "d"]


def test_a_runner_that_ends_at_every_model_is_given_up(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, "", "os.abort()")
    scripted.path.write_text(scripted.path.read_text().replace("== 'b'", "!= ''"))
    models = {name: PreparedModel(name.encode()) for name in "abcdefgh"}
    with find_device("local").open() as link, pytest.raises(CrashError, match="signal 6"):
        scripted.time_models(models, link, RunSettings(), PLAN, lambda name, record: None)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (timing() + timing(wall_ms=[9.0] * 60), "on b, for the second time"),
        (timing() + timing(id="c"), "on c, which it was not given"),
        ("", "without a word on 1 models; the first is b"),
    ],
    ids=["twice", "unknown", "left out"],
)
def test_a_runner_reports_once_on_each_model_that_it_was_given(wrong: str, words: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    with find_device("local").open() as link:
        with pytest.raises(RunnerError, match=words):
            measure(MODELS, link, Scripted(tmp_path, wrong), RunSettings(), PLAN, journal=journal)
        assert "c" not in [entry.get("model") for entry in journal.read()]
        found, _ = measure(MODELS, link, Scripted(tmp_path, None), RunSettings(), PLAN, journal=journal)
    assert found["b"].value_ms == 1.0


def test_a_runner_that_does_not_say_which_engine_it_drives_is_refused(tmp_path: Path) -> None:
    with find_device("local").open() as link, pytest.raises(RunnerError, match="must say hello first"):
        measure(MODELS, link, Scripted(tmp_path, None, greets=False), RunSettings(), PLAN)


def test_a_runner_that_has_lost_count_is_refused(tmp_path: Path) -> None:
    with find_device("local").open() as link, pytest.raises(RunnerError, match="says 3 models did not fail, and reported on 2"):
        measure(MODELS, link, Scripted(tmp_path, None, forgotten=1), RunSettings(), PLAN)


def test_lowering_that_leaves_out_a_model_or_its_nodes_is_refused(tmp_path: Path) -> None:
    with find_device("local").open() as link:
        [name] = link.keep([[b""]], [".onnx"])
    graph = {"type": "graph", "id": name}
    for wrong in ("", json.dumps(graph) + "\n", json.dumps({**graph, "path": 3, "nodes": []}) + "\n"):
        runner = Scripted(tmp_path, wrong)
        runner.path.write_text(runner.path.read_text().replace("== 'b'", "!= ''"))
        with find_device("local").open() as link, pytest.raises(RunnerError):
            runner.kernels([b""], link, RunSettings())
