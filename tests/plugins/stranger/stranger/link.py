"""This host at low priority: a link that is another one but for how it runs commands."""

from collections.abc import Callable, Sequence

from mobilenas.devices.links import LocalLink


class NiceLink(LocalLink):
    """Commands give way to everything else on this host."""

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        super().run(["nice", "-n", "10", *argv], timeout_s=timeout_s, on_line=on_line)
