"""Files of every kind that are stored, spoilt in structure: refused in our words or read as what they say."""

from __future__ import annotations

from tests.benchmarks.mutate_documents import KINDS, run


def test_a_hundred_mutations_of_stored_files() -> None:
    """The 3,000 are a command: tests/benchmarks/mutate_documents.py."""
    counts, wrong = run(100, seed=7)
    assert not wrong, "\n".join(wrong)
    assert counts.keys() == {kind.name for kind in KINDS}
    assert sum(found["refused"] for found in counts.values()) > 40
