"""What a runner may print: one JSON object per line, as export/protocol/report.schema.json says. Nothing else is taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from mobilenas.core import documents
from mobilenas.core.measurement import SweepRecord
from mobilenas.errors import DocumentError, RunnerError

PROTOCOL = 3

Text = Annotated[str, msgspec.Meta(min_length=1)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line: which runner and engine speak, on what."""

    type: Literal["hello"]
    protocol: int
    runner: Text
    engine_version: Text
    providers: tuple[Text, ...]
    python: Text
    state: dict[str, Any] | None = None


class Timing(SweepRecord, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model of a job that times."""

    type: Literal["timing"]
    id: Text
    provider: Text


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One executed node: of each output the element type as the engine names it, and the shape."""

    name: str
    provider: Text
    outputs: tuple[tuple[Text, tuple[int, ...]] | None, ...]
    ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Of one run, by the engine's own profile."""


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a job that lowers: what ran in it, and where the graph lies if the engine has made one of its own."""

    type: Literal["graph"]
    id: Text
    nodes: tuple[Node, ...]
    path: Text | None = None


class Outputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a job that computes: where its results lie."""

    type: Literal["outputs"]
    id: Text
    path: Text


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model that failed; the others go on."""

    type: Literal["error"]
    id: Text
    message: Text
    unavailable: bool = False
    """Whether what the engine would run on is not there."""


class Bye(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line: how many models did not fail."""

    type: Literal["bye"]
    models: int


KINDS: dict[str, type[msgspec.Struct]] = {
    "hello": Hello,
    "timing": Timing,
    "graph": Graph,
    "outputs": Outputs,
    "error": Refused,
    "bye": Bye,
}
ANSWERS = {"time": "timing", "lower": "graph", "compute": "outputs"}
"""What a job of each mode has told of each of its models."""


class Conversation:
    """A runner's reports on one job, in order: hello, ``answer`` or an error on each model, bye.

    Anything else raises ``RunnerError``.
    """

    def __init__(self, runner: str, models: Iterable[str], answer: str) -> None:
        self.runner, self.answer = runner, answer
        self._waiting = dict.fromkeys(models)
        self._given = frozenset(self._waiting)
        self._greeted = self._ended = False
        self._answers = 0

    def take(self, line: str) -> dict[str, Any]:
        """The report in ``line``."""
        report = parse_report(line, self.runner)
        kind, model = report["type"], report.get("id")
        if self._ended:
            raise RunnerError(f"{self.runner} goes on after its bye: {line[:200]!r}")
        if (kind == "hello") is self._greeted:
            raise RunnerError(f"{self.runner} must say hello first, and once; it said {line[:200]!r}")
        if kind not in ("hello", self.answer, "error", "bye"):
            raise RunnerError(f"{self.runner} was asked for a {self.answer} of {model}, and gave a {kind}")
        if model is not None:
            if model not in self._waiting:
                why = "for the second time" if model in self._given else "which it was not given"
                raise RunnerError(f"{self.runner} reported on {model}, {why}")
            del self._waiting[model]
        if kind == "bye" and report["models"] != self._answers:
            raise RunnerError(f"{self.runner} says {report['models']} models did not fail, and reported on {self._answers}")
        self._answers += kind == self.answer
        self._greeted = True
        self._ended = kind == "bye"
        return report

    def check_whole(self) -> None:
        """Raise where the runner has ended before its bye, or left out a model."""
        if not self._ended:
            raise RunnerError(f"{self.runner} ended without saying bye: its report is incomplete")
        if self._waiting:
            first = next(iter(self._waiting))
            raise RunnerError(f"{self.runner} said bye without a word on {len(self._waiting)} models; the first is {first}")


def parse_report(line: str, runner: str) -> dict[str, Any]:
    """One line of a runner as a report; raises ``RunnerError`` for anything outside the protocol."""
    try:
        report = documents.parse_json(line, runner)
    except DocumentError as error:
        raise RunnerError(f"{runner} printed something that is not a report: {line[:200]!r}") from error
    kind = report.get("type") if isinstance(report, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise RunnerError(f"{runner} printed a report of unknown type: {line[:200]!r}")
    if kind == "hello" and report.get("protocol") != PROTOCOL:
        raise RunnerError(f"{runner} speaks protocol {report.get('protocol')!r}, this mobilenas {PROTOCOL}: renew the kit")
    try:
        documents.convert(report, KINDS[kind], f"{runner}: report on {report.get('id', kind)}")
    except DocumentError as error:
        raise RunnerError(str(error)) from error
    found: dict[str, Any] = report
    return found


def timing_from_report(report: dict[str, Any]) -> tuple[str, SweepRecord]:
    """Model name and record of a "timing" report; raises ``RunnerError`` where the clocks tell of other numbers of runs."""
    facts = {key: value for key, value in report.items() if key not in ("type", "id", "provider")}
    try:
        return report["id"], msgspec.convert(facts, SweepRecord)
    except msgspec.ValidationError as error:
        raise RunnerError(f"report on {report['id']}: {error}") from error
