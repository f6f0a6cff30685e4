"""Configurations: precedence, strictness, and the round trips through TOML and through a command line."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenas import cli, config, workflows
from mobilenas.cli import jobs
from mobilenas.config import (
    DataConfig,
    DataSetConfig,
    DeviceConfig,
    ProfileConfig,
    SearchConfig,
    SpaceConfig,
    TrainConfig,
    VerifyConfig,
    command_line,
    dump_config,
    load_config,
    load_preset,
)
from mobilenas.errors import UsageError
from mobilenas.methods import METHODS
from mobilenas.spaces.base import SupernetPlan
from mobilenas.supernet import ArchitectureParameters

spaces = st.builds(
    SpaceConfig,
    options=st.fixed_dictionaries(
        {},
        optional={
            "channels": st.integers(1, 99),
            "image_size": st.integers(8, 99),
            "stem": st.sampled_from(["cifar", "imagenet"]),
            "operators": st.just(("none", "skip_connect")),
        },
    ),
)
devices = st.builds(
    DeviceConfig, name=st.sampled_from(["local", "my phone", "a'b"]), threads=st.integers(1, 8), batch=st.integers(1, 4)
)


def data_sets(kind: type[DataSetConfig]) -> st.SearchStrategy[Any]:
    roots, sizes = st.sampled_from([None, "my photos"]), st.sampled_from([None, 64])
    return st.builds(kind, name=st.sampled_from(["digits", "other"]), root=roots, image_size=sizes)


searches = st.builds(
    SearchConfig,
    space=spaces,
    device=devices,
    data=data_sets(DataConfig),
    latency_budget=st.sampled_from([None, "5ms", "40%"]),
    seed=st.integers(0, 9),
    measure=st.booleans(),
)
profiles = st.builds(ProfileConfig, space=spaces, device=devices, data=data_sets(DataSetConfig))


def parsed(command: str) -> Any:
    """The configuration that the command line makes of ``command``, without running it."""
    _, verb, *arguments = shlex.split(command)
    group = typer.main.get_command(cli.app)
    options = group.commands[verb].make_context(verb, arguments).params  # type: ignore[attr-defined]
    caught: list[Any] = []
    kind = {"profile": ProfileConfig, "search": SearchConfig}[verb]
    original = jobs.load_config

    def keep(*loaded: Any, **apart: Any) -> Any:
        caught.append(original(*loaded, **apart))
        raise KeyboardInterrupt

    jobs.load_config = keep  # type: ignore[assignment]
    try:
        getattr(jobs, verb)(**options)
    except KeyboardInterrupt:
        pass
    finally:
        jobs.load_config = original
    assert isinstance(caught[0], kind)
    return caught[0]


@settings(deadline=None)  # a shared machine may pause at any time
@given(st.one_of(searches, profiles))
def test_a_printed_command_says_the_same_configuration(config: ProfileConfig | SearchConfig) -> None:
    verb = "search" if isinstance(config, SearchConfig) else "profile"
    assert parsed(command_line(verb, config)) == config


@given(st.one_of(searches, profiles))
def test_toml_says_the_same_configuration(tmp_path_factory: pytest.TempPathFactory, config: Any) -> None:
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_text(dump_config(config))
    assert load_config(type(config), file, [], {}) == config


def test_a_command_leaves_defaults_out_but_names_the_data_set() -> None:
    assert command_line("profile", ProfileConfig()) == "mobilenas profile --data digits"
    kernels = ProfileConfig(kernels=1500)
    assert command_line("profile", kernels) == "mobilenas profile --kernels 1500"
    assert parsed(command_line("profile", kernels)) == kernels


def test_sets_and_flags_are_stronger_than_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("epochs = 3\nseed = 4\n[weights]\nlr = 0.5\n")
    config = load_config(TrainConfig, file, ["weights.lr=0.25"], {"epochs": 7, "seed": None})
    assert (config.epochs, config.seed, config.weights.lr) == (7, 4, 0.25)
    assert config.weights.momentum == 0.9, "what the file does not say stays as by default"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["weights.lrr=1"], "lr"),
        (["epochs"], "key=value"),
        (["epochs=many"], "epochs"),
        (["epochs.more=1"], "epochs is a value"),
        (["epochs=1\nseed=7"], "--set epochs: .*also sets seed"),
        (["seed=" + "9" * 5000], "--set seed: a number is too long"),
        (["seed=" + "[" * 20_000], "--set seed: nested too deeply"),
        (["weights.lr=nan"], "--set weights.lr: .* is nan"),
        (["epochs=0"], "epochs`, found 0"),
        (["data.workers=99999"], "<= 1024"),
        (["compute.threads=99999"], "<= 1024"),
        (["epochs=1", "epochs=2"], "--set epochs=1 and --set epochs=2 contradict each other"),
        (["weights={lr=1}", "weights.lr=2"], "--set weights={lr=1} and --set weights.lr=2 contradict each other"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_settings_are_usage_errors(sets: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_config(TrainConfig, None, sets, {})


@pytest.mark.parametrize(
    ("sets", "flags", "said"),
    [
        (["space.options.channels=8"], {"space.options.channels": 4}, "--channels 4 and --set space.options.channels=8"),
        (["space.options={layers=3}"], {"space.options.channels": 4}, "--channels 4 and --set space.options={layers=3}"),
        (["epochs=1"], {"epochs": 3}, "--epochs 3 and --set epochs=1"),
        (["measure=true"], {"measure": False}, "measure False and --set measure=true"),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(sets: list[str], flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(SearchConfig, None, sets, flags)
    assert str(error.value) == f"{said} contradict each other: leave one of them out"


def test_settings_may_be_said_twice_and_next_to_each_other() -> None:
    sets = ["epochs=3", "weights={lr=1.0}", "weights.momentum=0.5", "weights.lr=1", "space.options.layers=3"]
    found = load_config(SearchConfig, None, sets, {"epochs": 3, "space.options.channels": 4})
    assert (found.epochs, found.weights.lr, found.weights.momentum) == (3, 1.0, 0.5)
    assert found.space.options == {"channels": 4, "layers": 3}


@pytest.mark.parametrize("text", ["5", "0.5", "5000"])
def test_a_budget_that_is_a_number_says_the_accepted_form(text: str) -> None:
    with pytest.raises(UsageError, match=r"found .*5ms, 800us .* 40%"):
        load_config(SearchConfig, None, [f"latency_budget={text}"], {})


def test_every_flag_in_a_printed_command_is_a_setting() -> None:
    from mobilenas.config import _FLAGS, flat

    kinds = (ProfileConfig, SearchConfig, VerifyConfig)
    known = {key for kind in kinds for key in flat(tomllib.loads(dump_config(kind())))}
    optional = {
        "latency_budget",
        "budget_statistic",
        "table",
        "output",
        "data",
        "kernels",
        "measure_networks",
        "space.options.channels",
        "space.options.layers",
    }
    assert set(_FLAGS) <= known | optional


PRESETS = sorted((Path(config.__file__).parent / "presets").glob("*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_makes_a_method_that_can_search_its_space(path: Path) -> None:
    method = next(m for m in METHODS if path.stem.startswith(f"{m}-"))
    preset = load_preset(method, path.stem.removeprefix(f"{method}-"))
    found = load_config(SearchConfig, None, [], {}, preset)
    assert found.method == method
    made = workflows.method_from_config(found)
    space = workflows.space_from_config(found.space, None, 1)
    made.check(space)
    assert path.read_text().startswith("# ")
    size = workflows.supernet_size(found, space)
    stages = made.stages(space, size, found.epochs, 0)
    stage, more = next(stages), True
    while more:  # every stage can be built
        with torch.device("meta"):
            space.supernet(SupernetPlan(stage.size, stage.decisions, made.switches.partial_channels))
        try:
            stage = stages.send(ArchitectureParameters(stage.decisions, torch.Generator(), space.decisions))
        except StopIteration:
            more = False


def test_every_method_has_presets() -> None:
    for method in set(METHODS) - {"random"}:  # which has nothing to set
        names = {path.stem.removeprefix(f"{method}-") for path in PRESETS if path.stem.startswith(f"{method}-")}
        assert "quick" in names, method
        assert ("imagenet100" if method == "dense-nas" else "cifar10") in names, method


def test_what_is_said_goes_before_a_preset() -> None:
    preset = load_preset("pc-darts", "cifar10")
    found = load_config(SearchConfig, None, ["weights.lr=0.5"], {"epochs": 3}, preset)
    assert (found.epochs, found.weights.lr, found.weights.min_lr, found.supernet.channels) == (3, 0.5, 0.0, 16)


@pytest.mark.parametrize(
    ("setting", "available"),
    [
        ("watch", "off, restore, warn"),
        ("derivation", "logits, parameters, perturbation"),
        ("device.estimator", "floor, median"),
        ("weights.schedule", "cosine, exponential, linear"),
        ("budget_statistic", "floor, median, p90"),
    ],
)
def test_a_value_that_is_none_of_few_is_refused_with_the_few(setting: str, available: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_config(SearchConfig, None, [f"{setting}=other"], {})
    assert "'other'" in str(refused.value)
    assert f"available: {available}" in str(refused.value)
