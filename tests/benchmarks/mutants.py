"""Change one thing in the code at a time, and see whether a test that runs the changed line fails.

python tests/benchmarks/mutants.py --sample 200 --cpu-hours 3 --output runs/mutants

A seeded sample of mutants of ``TARGETS``. Each is imported from its changed syntax tree in a forked child, so that no file of
the checkout is ever touched, and is given only the tests that run its line, the fastest first. Which tests run which line is
recorded once, by coverage, and again after any source or test has changed. What was found is in a journal: the same command
goes on where it stopped. A mutant that no test kills either changes nothing that matters, or tells of a test that is missing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("mobilenas/latency", "mobilenas/search", "mobilenas/methods", "mobilenas/runtimes/base.py")
MARKERS = "not serial and not gpu and not device and not arm64"
SLOW_S = 20.0
"""A test that takes longer is left out, unless no other runs the line."""
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
TYPING = "TYPE_CHECKING"
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change: ``number`` is that of the node in the order of ``ast.walk``, ``change`` that among the node's changes."""

    path: str
    number: int
    change: int
    line: int
    was: str
    now: str

    @property
    def key(self) -> str:
        """What it is called in the journal; another one once its file has changed."""
        return f"{self.path}:{self.line}:{self.number}.{self.change}:{digest([ROOT / self.path])[:8]}"


def digest(paths: Sequence[Path]) -> str:
    """Of the contents of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


# ---- changes -------------------------------------------------------------------------------------------------------------


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[place] = other()
                yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _other_values(node.value))
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield changed
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break) or _is_call(node):
        yield ast.Pass()


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield)


def _other_values(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (1.25 * value if value else 1.0, 0.8 * value if value else -1.0)


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    if isinstance(node.func, ast.Name) and node.func.id in SWAPPED:
        yield ast.Call(ast.Name(SWAPPED[node.func.id], ast.Load()), node.args, node.keywords)
    for place, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict"):  # two that are as long by construction
            yield ast.Call(node.func, node.args, node.keywords[:place] + node.keywords[place + 1 :])


def _is_named(node: ast.AST, part: str, *names: str) -> bool:
    """Whether a part of the node is one of these names."""
    found = getattr(node, part, None)
    return isinstance(found, ast.Name) and found.id in names


def left_alone(tree: ast.AST) -> set[int]:
    """Nodes that run nothing or only word a message: annotations, decorators, texts, what only a type checker reads."""
    alone: set[int] = set()

    def leave(*nodes: ast.AST | None) -> None:
        alone.update(id(inside) for node in nodes if node is not None for inside in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            leave(*node.decorator_list)
        if isinstance(node, ast.FunctionDef):
            leave(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            leave(node.annotation)
        elif isinstance(node, ast.JoinedStr) or _is_named(node, "func", "field", "TypeVar") or _is_named(node, "test", TYPING):
            leave(node)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            leave(node.value)  # a name for a type
    return alone


def changed_tree(source: str, number: int, change: int) -> ast.Module:
    """The syntax tree with one change."""
    tree = ast.parse(source)
    target = list(ast.walk(tree))[number]
    other = list(changes_of(target))[change]

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return ast.copy_location(other, node) if node is target else self.generic_visit(node)

    return ast.fix_missing_locations(Replace().visit(tree))


def mutants_of(path: Path) -> list[Mutant]:
    """All mutants of a file."""
    source = path.read_text()
    tree = ast.parse(source)
    alone, found = left_alone(tree), []
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in alone or not hasattr(node, "lineno"):
            continue
        for change, other in enumerate(changes_of(node)):
            was, now = (" ".join(ast.unparse(each).splitlines()[0].split()) for each in (node, other))
            found.append(Mutant(str(path.relative_to(ROOT)), number, change, node.lineno, was, now))
    return found


# ---- which tests run which lines -----------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A pytest plug-in that tells coverage which test runs, and keeps how long each took and whether it passed."""

    recorded: coverage.Coverage
    ends: float
    took_s: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.recorded.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took_s[report.nodeid] = self.took_s.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if time.monotonic() > self.ends:
            pytest.exit("the time for the map is over", 0)


def record(tests: Sequence[str], markers: str, files: Sequence[Path], minutes: float) -> dict[str, Any]:
    """Run the tests once; line by line of each file the tests that ran it, and how long each of those took."""
    recorded = coverage.Coverage(data_file=None, config_file=False, include=[str(path) for path in files])
    recorded.start()
    recorder = Recorder(recorded, time.monotonic() + 60 * minutes)
    pytest.main([*QUIET, "-m", markers, *tests], plugins=[recorder])
    recorded.stop()
    data, lines = recorded.get_data(), {}
    for path in files:
        found = data.contexts_by_lineno(str(path))
        lines[str(path.relative_to(ROOT))] = {
            line: sorted(set(names) - {""} - recorder.failed) for line, names in found.items()
        }
    return {"took_s": recorder.took_s, "lines": lines}


QUIET = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "--no-header", "--tb=no")


def coverage_map(output: Path, tests: Sequence[str], markers: str, files: Sequence[Path], minutes: float) -> dict[str, Any]:
    """The map that is there, if nothing has changed since; else a new one, made in a child of its own."""
    path, state = output / "map.json", digest([*ROOT.glob("mobilenas/**/*.py"), *ROOT.glob("tests/**/test_*.py")])
    if path.exists() and (kept := json.loads(path.read_text()))["state"] == state:
        return kept
    child = os.fork()
    if child == 0:
        try:
            path.write_text(json.dumps({"state": state, **record(tests, markers, files, minutes)}))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(child, 0)
    return dict(json.loads(path.read_text()))


def tests_of(mutant: Mutant, known: dict[str, Any]) -> list[str]:
    """The tests that run a mutant's line, the fastest first; those of its file, where the line only runs when it is imported.

    Together they took ``seconds`` of ``known`` without it at most.
    """
    lines, took_s = known["lines"].get(mutant.path, {}), known["took_s"]
    if str(mutant.line) not in lines:
        return []
    names = lines[str(mutant.line)] or sorted({name for tests in lines.values() for name in tests})
    names = sorted(names, key=lambda name: took_s[name])
    chosen: list[str] = []
    for name in [name for name in names if took_s[name] <= SLOW_S] or names[:1]:
        if chosen and sum(took_s[each] for each in chosen) + took_s[name] > known["seconds"]:
            break
        chosen.append(name)
    return chosen


# ---- running them --------------------------------------------------------------------------------------------------------


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a changed syntax tree, and leaves all others to Python."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.path = mutant, ROOT / mutant.path
        self.module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: Any) -> bytes:
        return Path(path).read_bytes()

    def get_code(self, fullname: str) -> Any:
        return compile(changed_tree(self.path.read_text(), self.mutant.number, self.mutant.change), str(self.path), "exec")


def run(mutant: Mutant, tests: Sequence[str], limit_s: float) -> str:
    """``killed``, ``survived``, or ``timeout``, which counts as killed."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        code = 1
        try:
            sys.meta_path.insert(0, Changed(mutant))
            code = int(pytest.main([*QUIET, "-x", *tests]))
        finally:
            os._exit(code)
    try:
        return _ended(child, limit_s)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise


def _ended(child: int, limit_s: float) -> str:
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def cpu_s() -> float:
    """CPU time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judge(sample: Sequence[Mutant], known: dict[str, Any], journal: Path, ends: float, cpu_limit_s: float) -> None:
    """Run what the journal lacks, until the time or the CPU time is over, and write each result down at once."""
    entries = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done, before_s = {entry["key"] for entry in entries}, sum(entry["cpu_s"] for entry in entries)
    began_s = cpu_s()
    for mutant in sample:
        used_s = cpu_s() - began_s
        if mutant.key in done or time.monotonic() > ends or before_s + used_s > cpu_limit_s:
            continue
        tests = tests_of(mutant, known)
        limit_s = 30 + 3 * sum(known["took_s"][name] for name in tests)
        result = run(mutant, tests, limit_s) if tests else "uncovered"
        entry = {"key": mutant.key, "result": result, "tests": len(tests), "cpu_s": cpu_s() - began_s - used_s}
        with journal.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{result:9} {mutant.path}:{mutant.line}  {mutant.was}  ->  {mutant.now}", flush=True)


def report(sample: Sequence[Mutant], known: dict[str, Any], journal: Path) -> str:
    """How many were killed, and every survivor with its change and the tests that ran it."""
    entries = {entry["key"]: entry for entry in map(json.loads, journal.read_text().splitlines())}
    results = [(mutant, entries[mutant.key]["result"]) for mutant in sample if mutant.key in entries]
    counts = {kind: sum(result == kind for _, result in results) for kind in ("killed", "timeout", "survived", "uncovered")}
    words = [f"{len(results)} of {len(sample)} mutants: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())]
    for mutant, result in results:
        if result in ("survived", "uncovered"):
            tests = tests_of(mutant, known)
            line = (ROOT / mutant.path).read_text().splitlines()[mutant.line - 1].strip()
            words.append(f"\n{result} {mutant.path}:{mutant.line}  {line}\n  {mutant.was}\n  {mutant.now}")
            words += [f"    {name}" for name in tests[:5]] + ([f"    and {len(tests) - 5} more"] if len(tests) > 5 else [])
    return "\n".join(words)


def load_libraries() -> None:
    """Import what takes long and is not ours: forked children have it at once."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch", "lightning_fabric", "torchvision", "onnx", "scipy.optimize", "sklearn.gaussian_process"):
            importlib.import_module(name)


def main() -> None:
    """Record, draw, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-hours", type=float, default=3.0)
    parser.add_argument("--minutes", type=float, default=1e6, help="of this sitting; the same command goes on")
    parser.add_argument("--map-minutes", type=float, default=1e6, help="of recording which tests run which lines")
    parser.add_argument("--seconds", type=float, default=45.0, help="that the tests of one mutant took together, at most")
    parser.add_argument("--markers", default=MARKERS, help="which tests are taken, as pytest's -m says")
    parser.add_argument("--first", default="", help="parts of paths, separated by commas: their mutants go first")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "mutants")
    parser.add_argument("tests", nargs="*", default=["tests"], help="from which tests are taken")
    arguments = parser.parse_args()
    ends = time.monotonic() + 60 * arguments.minutes
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = sorted(
        f for target in TARGETS for f in ([ROOT / target] if target.endswith(".py") else (ROOT / target).glob("**/*.py"))
    )
    load_libraries()
    known = coverage_map(arguments.output, arguments.tests, arguments.markers, files, arguments.map_minutes)
    known["seconds"] = arguments.seconds
    everything = [mutant for path in files for mutant in mutants_of(path)]
    sample = random.Random(arguments.seed).sample(everything, min(arguments.sample, len(everything)))
    first = [part for part in arguments.first.split(",") if part]
    sample.sort(key=lambda mutant: not any(part in mutant.path for part in first))
    journal = arguments.output / "journal.jsonl"
    judge(sample, known, journal, ends, 3600 * arguments.cpu_hours)
    print(report(sample, known, journal))


if __name__ == "__main__":
    main()
