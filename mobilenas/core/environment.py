"""The state of a machine while something is measured on it, and what of it makes the numbers doubtful."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mobilenas.core import documents
from mobilenas.errors import DocumentError, MeasurementError, RunnerError

Gate = Literal["strict", "warn", "off"]
"""What a doubtful environment does: refuse, be said, or nothing."""
FIXED_GOVERNORS = ("performance", "userspace")
"""Clock policies that hold one frequency."""
IDLE_LOAD = 0.3
"""Processes at work, on average over the last minute, of a machine that counts as idle."""


NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a machine while something was measured on it."""

    machine: str
    system: str
    cpu_model: str
    cpu_count: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    governor: str | None
    frequencies_mhz: tuple[NotNegative, ...]
    temperatures_celsius: tuple[float, ...]
    load_average: tuple[NotNegative, NotNegative, NotNegative]
    versions: dict[str, str]


def detect_environment(versions: Mapping[str, str]) -> Environment:
    """Read this host's state; what the system does not tell stays empty."""
    cpuinfo = _read("/proc/cpuinfo") or ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    clocks = [float(line.partition(":")[2]) for line in cpuinfo.splitlines() if line.startswith("cpu MHz")]
    zones = sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    temperatures = [text for zone in zones if (text := _read(str(zone)))]
    return Environment(
        machine=platform.machine(),
        system=platform.platform(),
        cpu_model=models[0] if models else platform.processor() or "unknown",
        cpu_count=os.cpu_count() or 1,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        frequencies_mhz=tuple(clocks),
        temperatures_celsius=tuple(int(text) / 1000 for text in temperatures),
        load_average=os.getloadavg(),
        versions=dict(versions),
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def environment_from_hello(hello: Mapping[str, Any]) -> Environment:
    """The state of the device as its runner told it; a runner that tells none leaves it unknown. Raises ``RunnerError``."""
    versions = {
        "runner": str(hello.get("runner", "unknown")),
        "runner_python": str(hello.get("python", "unknown")),
        "engine": str(hello.get("engine_version", "unknown")),
    }
    state = hello.get("state")
    if state is None:
        return Environment("unknown", "unknown", "unknown", 1, None, (), (), (0.0, 0.0, 0.0), versions)
    try:
        return documents.convert({**state, "versions": versions}, Environment, "state of the device")
    except (DocumentError, TypeError) as error:
        raise RunnerError(f"the runner told a state that is none: {error}") from error


def doubts(environment: Environment) -> tuple[str, ...]:
    """Why numbers measured in ``environment`` may not repeat, in words; empty where nothing speaks against them."""
    found = []
    if environment.governor not in FIXED_GOVERNORS:
        said = environment.governor or "unknown"
        found.append(f"the clock is not fixed (governor {said}; {' and '.join(FIXED_GOVERNORS)} hold one frequency)")
    if environment.load_average[0] > IDLE_LOAD:
        found.append(f"other processes work (load {environment.load_average[0]:.2f} over the last minute)")
    return tuple(found)


def check_environment(environment: Environment, gate: Gate) -> tuple[str, ...]:
    """The doubts that a table is to keep; raises ``MeasurementError`` where the gate is strict and there are any."""
    found = () if gate == "off" else doubts(environment)
    if found and gate == "strict":
        raise MeasurementError(
            f"the environment is not fit for measuring: {'; '.join(found)}. Mend it, or say --env warn to measure all the same"
        )
    return found
