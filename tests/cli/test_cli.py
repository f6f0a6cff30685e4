import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mobilenas import cli, workflows
from mobilenas.data import load_data
from mobilenas.errors import UsageError
from mobilenas.latency.table import ModelFlags, NetworkScale
from mobilenas.results import ProfileResult
from tests.conftest import CONFIG, SMALL
from tests.test_data import image_folder


def mobilenas(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mobilenas", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "--latency-budget", "5"], "unit"),
        (["search", "--latency-budget", "0ms"], "above 0"),
        (["search", "--latency-budget", "-1ms"], "positive"),
        (["search", "--latency-budget", "5mss"], "5ms"),
        (["search", "--latency-budget", "140%"], "100%"),
        (["search", "--set", "epoch=3"], "epochs"),
        (["search", "--set", "epochs"], "key=value"),
        (["search", "--set", "epochs=many"], "epochs"),
        (["search", "--config", "absent.toml"], "absent.toml"),
        (["search", "--set", "compute.accelerator=abacus"], "abacus"),
        (["search", "--method", "dart"], "darts"),
        (["profile", "--space", "cell", "--dry-run"], "cells"),
        (["profile", "--set", "space.options.chanels=4", "--dry-run"], "channels"),
        (["profile", "--channels", "0", "--dry-run"], "at least 2"),
        (["profile", "--plan", "fast", "--dry-run"], "quick"),
        (["profile", "--device", "phone", "--dry-run"], "local"),
        (["profile", "--data", "digit", "--dry-run"], "digits"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_2(arguments, said, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mobilenas", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


def test_search_without_a_table_names_the_profile_command() -> None:
    result = CliRunner().invoke(cli.app, ["search", "--latency-budget", "40%", "-o", "unused"])
    assert result.exception is not None
    assert "measure one: mobilenas profile --data digits" in str(result.exception)
    assert result.exception.exit_code == 3


def test_train_of_a_run_that_is_not_there_is_exit_3() -> None:
    result = CliRunner().invoke(cli.app, ["train", "nowhere"])
    assert result.exception is not None
    assert result.exception.exit_code == 3


def test_dry_run_says_what_it_would_measure_and_measures_nothing(home) -> None:
    result = CliRunner().invoke(cli.app, ["profile", "--data", "digits", "--plan", "standard", "--dry-run", "--json"])
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert plan["networks_measured"] == 55
    assert plan["sweeps"] >= 6
    assert not home.exists()


def test_a_dry_run_counts_the_kernels_of_the_measured_networks_and_how_long_they_take(home) -> None:
    plans = {}
    for kernels in (50, 2000):
        arguments = ["profile", "--kernels", str(kernels), "--plan", "quick", "--dry-run", "--json"]
        plans[kernels] = json.loads(CliRunner().invoke(cli.app, arguments).stdout)
    assert plans[50]["networks_measured"] == 25 + 14
    assert plans[50]["kernels_likely"] == 580 + 25 * 30, "all that drawn and published networks are made of"
    assert plans[2000]["kernels_likely"] == 2000
    least_s = 4 * 0.057 * 1330  # measured on one core of an AMD EPYC: 0.057 s for a sweep of one kernel
    assert least_s < plans[50]["estimated_s"] < plans[2000]["estimated_s"] < 3600


def test_kernels_alone_means_the_default_campaign() -> None:
    assert cli.with_default_values(["profile", "--kernels", "--json"]) == ["profile", "--kernels", "default", "--json"]
    assert cli.with_default_values(["profile", "--kernels"]) == ["profile", "--kernels", "default"]
    for said in (["profile", "--kernels", "800"], ["profile", "--kernels", "-5"], ["profile", "--kernels=9", "-q"]):
        assert cli.with_default_values(said) == said


def test_the_number_of_kernels_is_a_number_or_default(home) -> None:
    for wrong in ("many", "-5", "0", "1.5"):
        assert CliRunner().invoke(cli.app, ["profile", "--kernels", wrong, "--dry-run"]).exception is not None
    assert not home.exists()
    assert not home.exists()


def test_help_loads_no_torch() -> None:
    code = "import sys; from mobilenas import cli; import mobilenas.latency; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "profile" in mobilenas("--help").stdout


def test_env_is_one_json_object() -> None:
    done = mobilenas("env", "--json")
    facts = json.loads(done.stdout)
    assert facts["onnxruntime"] != "not installed"


def test_usage_error_carries_its_exit_code() -> None:
    assert UsageError("x").exit_code == 2


def test_no_colour_where_none_is_wanted() -> None:
    """Plain text in a pipe; on a terminal with NO_COLOR a drawn table, but no colour. The bar is what has colours."""
    plain = mobilenas("devices", "list").stdout
    assert "\x1b" not in plain
    assert "local" in plain
    code = (
        "import os, pty, sys\n"
        'talk = \'from mobilenas.console import ConsoleListener as C\\nwith C() as t: t.progress("x", 1, 2); t.note("done")\'\n'
        "sys.exit(pty.spawn([sys.executable, '-c', talk]) >> 8)"
    )
    coloured = []
    for environment in ({"NO_COLOR": "1"}, {}):
        inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        wanted = {**inherited, "TERM": "xterm-256color", **environment}
        done = subprocess.run([sys.executable, "-c", code], env=wanted, capture_output=True, text=True, check=True)
        assert "done" in done.stdout
        coloured.append(re.search(r"\x1b\[[0-9;]*[34]\d", done.stdout) is not None)
    assert coloured == [False, True]


def test_printed_commands_name_the_image_folder(command, tmp_path, monkeypatch) -> None:
    """As printed they work: the space has the images' size and classes, and the folder is found again."""
    root = image_folder(tmp_path / "my photos")
    data = ("--data", "image-folder", "--set", f"data.root={root}", "--set", "data.image_size=16")
    missing = command("search", "--latency-budget", "40%", *data, *SMALL, "-o", "out")
    assert missing.code == 3
    printed = shlex.split(missing.err.rpartition("measure one: mobilenas ")[2])
    planned = command(*printed, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    space = workflows.space_from_config(CONFIG.space, load_data("image-folder", root, 16), 1)
    assert json.loads(planned.out)["networks_of"] == space.key

    small = ("--set", "supernet.channels=2", "--set", "supernet.layers=3", "--set", "data.batch=2", "--epochs", "1")
    searched = command("search", *data, *SMALL, *small, "-q", "-o", "out")
    assert searched.code == 0, searched.err
    printed = shlex.split(searched.out.rpartition("next: mobilenas ")[2])
    trained = command(*printed, "--epochs", "1", "--set", "data.batch=2", "-q")
    assert trained.code == 0, trained.err

    result = ProfileResult(
        "t", 1, 0, NetworkScale(1.0), 0.01, 0.1, 0.1, 0.1, 0.1, 0.1, 25, 0, (), None, ModelFlags(1, 0, 0, 0, 0), None, 1.0
    )
    monkeypatch.setattr(workflows, "profile", lambda cfg, told: result)
    profiled = command("profile", *data, *SMALL)
    printed = shlex.split(profiled.out.rpartition("next: mobilenas ")[2])
    check = command(*printed, "-o", "other")
    assert check.code == 3, "no table is there, but the images are"
    assert "no latency table" in check.err
    assert space.key in check.err
