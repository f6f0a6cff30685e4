"""A process that another one has started beside itself (``launch``), to which it says on standard input what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from mobilenas.config import SearchConfig, TrainConfig
from mobilenas.core.system import resource_error
from mobilenas.errors import MobileNASError
from mobilenas.workflows.run_search import search
from mobilenas.workflows.run_train import train


def main() -> None:
    """Do it, and say what went wrong in one line."""
    job = msgspec.json.decode(sys.stdin.buffer.read())
    folder = Path(job["folder"])
    try:
        if job["verb"] == "search":
            search(msgspec.convert(job["config"], SearchConfig), folder)
        else:
            train(folder, msgspec.convert(job["config"], TrainConfig))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        known = error if isinstance(error, MobileNASError) else resource_error(error)
        if known is None:
            raise
        print(known, file=sys.stderr)
        sys.exit(known.exit_code)


if __name__ == "__main__":
    main()
