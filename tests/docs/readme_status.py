"""README's section Status, made from the registries. ``python -m tests.docs.readme_status`` writes it."""

from __future__ import annotations

from pathlib import Path

from mobilenas import config
from mobilenas.core.registry import Registry
from mobilenas.data import DATA
from mobilenas.export.kits import kit_names
from mobilenas.latency import LATENCY_MODELS
from mobilenas.methods import METHODS
from mobilenas.runtimes import RUNTIMES
from mobilenas.search.rankers import RANKERS
from mobilenas.spaces import SPACES
from mobilenas.spaces.published import PUBLISHED

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- made by tests/docs/readme_status.py -->\n", "<!-- end -->\n"


def status() -> str:
    """A table of what can be named on the command line, without what plug-ins add."""
    presets = Path(config.__file__).with_name("presets")
    rows = {
        "Methods": _names(METHODS),
        "Search spaces": _names(SPACES),
        "Rankers": _names(RANKERS),
        "Latency models": _names(LATENCY_MODELS),
        "Runtimes": [f"{name} ({', '.join(RUNTIMES.get(name.strip('`')).precisions)})" for name in _names(RUNTIMES)],
        "Devices": ["`local`", "`ssh://user@host[:port]`", "`adb:SERIAL`", "a name given by `mobilenas devices add`"],
        "Data sets": _names(DATA),
        "Deployment kits": [f"`{name}`" for name in kit_names()],
        "Published networks": _names(PUBLISHED),
        "Presets of `search`": [f"`{path.stem}`" for path in sorted(presets.glob("*.toml"))],
        "Presets of `train`": [f"`{path.stem}`" for path in sorted((presets / "train").glob("*.toml"))],
    }
    lines = [f"| {kind} | {', '.join(names)} |" for kind, names in rows.items()]
    head = f"Version {_version()} is not released.\n\n| What | Names |\n|---|---|\n"
    return head + "\n".join(lines) + "\n"


def shown(text: str) -> str:
    """The section as ``text`` has it."""
    return text.partition(BEGIN)[2].partition(END)[0]


def _names(registry: Registry) -> list[str]:
    return [f"`{name}`" for name in registry if name not in registry.plug_ins]


def _version() -> str:
    import tomllib

    return tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["version"]


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    README.write_text(before.replace(shown(before), status()), encoding="utf-8")
