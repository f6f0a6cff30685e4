"""A run directory in a few lines: search, training, export and later measurements. Reads documents, loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mobilenas.core import documents
from mobilenas.core.outcomes import Count, NotNegative, PositiveMilliseconds, SearchOutcome, TrainResult
from mobilenas.core.run_directory import RunDirectory, Status, read_status
from mobilenas.errors import DocumentError


@dataclass(frozen=True)
class Summary:
    """``document`` is for ``--json``, ``rows`` are names and values for people."""

    document: dict[str, Any]
    rows: list[tuple[str, str]]


class _Searched(SearchOutcome, frozen=True, kw_only=True):
    method: str
    fingerprint: str
    params: Count
    madds: Count
    epochs: Count
    duration_s: NotNegative
    collapsed: bool = False


class _Epoch(msgspec.Struct):
    epoch: Count
    epochs: Count
    train_cross_entropy: NotNegative


class _Measured(msgspec.Struct):
    value_ms: PositiveMilliseconds


class _Agreement(msgspec.Struct):
    maximum_difference: NotNegative | None


class _Engine(msgspec.Struct):
    runtime: str
    measured: _Measured | None


class _Exported(msgspec.Struct):
    model: str
    agreement: _Agreement
    engines: tuple[_Engine, ...]


class _Verified(msgspec.Struct):
    measured: _Measured
    device: str
    budget_met: bool | None
    record: str


def summarise(run: Path) -> Summary:
    """Read what there is of ``run``; raises ``DocumentError`` if it is no run directory or a document is damaged."""
    directory = RunDirectory(run)
    if not (run / "config.toml").exists():
        what = "is a file" if run.is_file() else "has no config.toml"
        raise DocumentError(f"{run} {what}: a run is a folder; name what search was given as --output")
    status, training = read_status(run), read_status(run / "train")
    document: dict[str, Any] = {
        "run": str(run),
        "status": status.word if status else "unknown",
        "status_reason": status.reason if status else "",
        "train_status": training.word if training else None,
        "train_status_reason": training.reason if training else "",
        "config": documents.parse_toml(documents.read_text(run / "config.toml"), str(run / "config.toml")),
        "epochs": directory.metrics.read(),
        "search": _document(run / "result.json"),
        "train": _document(run / "train" / "result.json"),
        "export": _document(run / "export" / "report.json"),
        "verified": [_document(path) for path in sorted((run / "verified").glob("*.json"))],
    }
    rows = [("status", _status_words(status) if status else "unknown")]
    if training and training.word != "ok":
        rows.append(("training", _status_words(training)))
    for name, tell in (("search", _search_rows), ("train", _train_rows), ("export", _export_rows)):
        if document[name] is not None:
            rows += _told(run, name, tell, document[name])
    if document["epochs"] and document["search"] is None:
        rows += _told(run, "metrics.jsonl", _epoch_rows, document["epochs"][-1])
    for verification in document["verified"]:
        rows += _told(run, "verified", _verified_rows, verification)
    return Summary(document, rows)


def _status_words(status: Status) -> str:
    return ": ".join(filter(None, (status.word, " ".join(status.reason.split()))))


def _document(path: Path) -> Any:
    return documents.parse_json(documents.read_text(path), str(path)) if path.exists() else None


def _told(run: Path, name: str, tell: Callable[[Any], list[tuple[str, str]]], document: Any) -> list[tuple[str, str]]:
    try:
        return tell(document)
    except DocumentError as error:
        raise DocumentError(f"{run}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DocumentError(f"{run}: the document of {name} lacks what it should hold ({error!r})") from error


def _beside(budget: dict[str, Any], name: str) -> str:
    """A latency, and how far over its budget it is."""
    return f"{budget[name]:.4g} ms ({budget[name] / budget['target_ms'] - 1:+.1%} of the budget)"


def _search_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    documents.convert(result, SearchOutcome, "the result of the search")
    if result.keys() == {"schema", "budgets"}:
        return [("method", "none: a run made of a network that was there")]
    documents.convert(result, _Searched, "the result of the search")
    rows = [
        ("method", f"{result['method']}, {result['epochs']} epochs, {result['duration_s']:.0f} s"),
        ("network", f"{result['fingerprint']}, {result['params']:,} parameters, {result['madds']:,} MAdds"),
    ]
    if result.get("collapsed"):
        before = "; the network is of an epoch before" if result.get("restored", True) else ""
        rows.append(("doubt", f"the search collapsed into skips{before}"))
    for budget in result["budgets"]:
        rows += [
            ("budget", f"{budget['target_ms']:.4g} ms ({budget['text']})"),
            (
                "table",
                f"{_beside(budget, 'table_ms')}, within {budget['table_low_ms']:.4g} to {budget['table_high_ms']:.4g} ms",
            ),
            ("measured", "not verified on target" if budget["measured_ms"] is None else _beside(budget, "measured_ms")),
        ]
    return rows


def _epoch_rows(epoch: dict[str, Any]) -> list[tuple[str, str]]:
    documents.convert(epoch, _Epoch, "metrics.jsonl")
    return [("epoch", f"{epoch['epoch'] + 1} of {epoch['epochs']}, cross entropy {epoch['train_cross_entropy']:.3f}")]


def _train_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    where = "the result of the training"
    documents.convert(documents.check_schema(result, "train-result", 1, where), TrainResult, where)
    return [("trained", f"{result['epochs']} epochs, test accuracy {result['test_accuracy']:.2%}")]


def _export_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    documents.convert(result, _Exported, "the report of the export")
    difference = result["agreement"]["maximum_difference"]
    off = "logits that are no numbers" if difference is None else f"largest difference from torch {difference:.2g}"
    rows = [("exported", f"{result['model']}, {off}")]
    for engine in result["engines"]:
        if engine["measured"] is not None:
            rows.append(("measured, exported", f"{engine['measured']['value_ms']:.4g} ms by {engine['runtime']}"))
    return rows


def _verified_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    documents.convert(result, _Verified, "the record of a verification")
    met = {None: "", True: ", the budget is met", False: ", over the budget"}[result["budget_met"]]
    return [("verified", f"{result['measured']['value_ms']:.4g} ms on {result['device']}{met} ({result['record']})")]
