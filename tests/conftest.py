"""What all tests share: a home of their own, so that nothing of the user's is read or written."""

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # libraries deprecate each other while they are imported
    import lightning_fabric  # noqa: F401
    import torchvision  # noqa: F401


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
