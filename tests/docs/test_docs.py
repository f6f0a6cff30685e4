"""What the documentation shows is true: examples load, links resolve, commands exist."""

import re
import typing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mobilenas import cli
from mobilenas.cli.jobs import search
from mobilenas.config import SearchConfig, TrainConfig, load_config
from mobilenas.core.registry import Registry
from mobilenas.data import DATA
from mobilenas.latency import LATENCY_MODELS
from mobilenas.methods import METHODS
from mobilenas.runtimes import RUNTIMES
from mobilenas.spaces import SPACES
from tests.docs.readme_status import README, shown, status

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *ROOT.glob("export/*.md"), *ROOT.glob("latency_tables/*.md")]
)
GROUPS = {group.typer_instance.info.name for group in cli.app.registered_groups if group.typer_instance}


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_example_loads(path: Path) -> None:
    kind = SearchConfig if "search" in path.name else TrainConfig
    assert load_config(kind, path, [], {}) != kind()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_flags_exist(page: Path) -> None:
    for block in re.findall(r"```(?:sh|bash|shell|console)?\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").removeprefix(".venv/bin/").split("#")[0].split()
            if len(words) < 2 or words[0] != "mobilenas" or words[1].startswith("-"):
                continue
            named = words[1:3] if words[1] in GROUPS else words[1:2]
            shown = CliRunner().invoke(cli.app, [*named, "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0, line
            for flag in re.findall(r"(?<!\S)(--[a-z-]+)", " ".join(words)):
                assert flag in shown.output, line


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "how-to").glob("*.md")), ids=lambda p: p.name)
def test_how_tos_show_the_code_that_is_tested(page: Path) -> None:
    """Every listing with a file's name is that file of the stranger's package; every entry point is one of its own."""
    stranger = ROOT / "tests" / "plugins" / "stranger"
    shown = re.findall(r"```python\n# (stranger/\S+)\n(.*?)```", page.read_text(), re.S)
    for name, code in shown:
        assert code.strip() == (stranger / name).read_text().strip(), f"{page.name} shows another {name} than is tested"
    known = (stranger / "stranger-1.0.dist-info" / "entry_points.txt").read_text().replace('"', "")
    points = re.findall(r'entry-points\."(\S+)"\]\n(.*?)\n', page.read_text())
    for group, line in points:
        assert f"[{group}]\n{line.replace(chr(34), '')}" in known
    assert bool(points) == page.name.startswith("add-a-")
    assert bool(shown) == page.name.startswith(("add-a-", "write-a-"))


def test_readme_tells_what_the_registries_hold() -> None:
    assert shown(README.read_text(encoding="utf-8")) == status(), "run python -m tests.docs.readme_status"


HELP = typing.get_type_hints(search, include_extras=True)


@pytest.mark.parametrize(
    ("option", "names"),
    [("runtime", RUNTIMES), ("space", SPACES), ("data", DATA), ("method", METHODS), ("latency_model", LATENCY_MODELS)],
)
def test_help_names_all_that_there_is(option: str, names: Registry) -> None:
    said = typing.get_args(HELP[option])[1].help
    assert set(re.findall(r"[a-z][a-z0-9-]*", said)) >= set(names) - set(names.plug_ins)


def test_help_of_device_names_every_kind_of_address() -> None:
    said = typing.get_args(HELP["device"])[1].help
    for kind in ("local", "ssh://user@host[:port]", "adb:SERIAL", "devices add"):
        assert kind in said
