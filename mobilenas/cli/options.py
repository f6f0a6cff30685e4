"""The options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenas.errors import UsageError

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file of settings.", metavar="FILE")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as --set weights.lr=0.05.", metavar="KEY=VALUE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where to measure: local (this host), ssh://user@host[:port], adb:SERIAL, or a name given by devices add.",
    ),
]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="What runs the network: onnxruntime, ncnn, mnn, tensorrt.")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="Number format: fp32, fp16 or int8, as the runtime has them.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the engine, 1 by default.")]
Estimator = Annotated[
    str | None,
    typer.Option("--estimator", help="What stands for a latency: floor, or median on an idle device of your own."),
]
SpaceName = Annotated[
    str | None,
    typer.Option(
        "--space", help="Search space: cells, nas-bench-201, dense-blocks, dense-small, densenas-mbv2 or densenas-resnet."
    ),
]
Channels = Annotated[int | None, typer.Option("--channels", help="Channels of the deployed network.")]
Layers = Annotated[int | None, typer.Option("--layers", help="Cells of the deployed network.")]
Plan = Annotated[str | None, typer.Option("--plan", help="How much to measure: quick, standard or strict.")]
DataName = Annotated[
    str | None, typer.Option("--data", help="Data set: digits, fashion-mnist, cifar10, cifar100 or image-folder.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")]
Devices = Annotated[int | None, typer.Option("--devices", help="Processes here that share every batch, each with a GPU.")]
ComputePrecision = Annotated[
    str | None, typer.Option("--compute-precision", help="What training computes in: 32, bf16-mixed or 16-mixed.")
]
Run = Annotated[Path, typer.Argument(help="Run directory of a search.", metavar="RUN")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Fill open dimensions of an input, as --shape images=1,3,224,224.", metavar="NAME=SIZES"),
]


def shapes_from_options(texts: list[str] | None) -> dict[str, list[int]] | None:
    """Parse ``NAME=1,3,224,224`` to name -> sizes; raises ``UsageError`` for a size that is no integer above 0."""
    found = {}
    for name, sizes in (named_values("--shape", texts, "images=1,3,224,224") or {}).items():
        text = f"{name}={sizes}"
        for size in sizes.split(","):
            if not (size.isascii() and size.isdigit() and int(size) > 0):
                raise UsageError(
                    f"--shape {text}: {size or 'nothing'!r} is no whole number above 0: put the size that you use there"
                )
        found[name] = [int(size) for size in sizes.split(",")]
    return found or None


def named_values(flag: str, texts: list[str] | None, example: str) -> dict[str, str] | None:
    """Parse ``NAME=VALUE`` texts; ``None`` for none. A name may hold ``=``, a value may not. Raises ``UsageError``."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.rpartition("=")
        if not (name and equals and value):
            raise UsageError(f"{flag} {text}: say the input's name and its value, as {flag} {example}")
        if name in found:
            raise UsageError(f"{flag} {text}: {name} was given already, as {found[name]}")
        found[name] = value
    return found or None
