"""Batches without end, that follow from a seed alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenas.data.images import Images
from mobilenas.errors import DocumentError, UsageError


def check_batch(images: Images, batch_size: int, processes: int = 1) -> None:
    """Raise ``UsageError`` if there are fewer ``images`` than one batch takes, or one where BatchNorm needs several.

    Each of several ``processes`` takes as many of every batch.
    """
    if not 2 * processes <= batch_size <= len(images):
        raise UsageError(
            f"data.batch is {batch_size}; it must be at least {2 * processes}, for BatchNorm, and at most {len(images)}, the "
            "number of images here"
        )
    if batch_size % processes:
        raise UsageError(f"data.batch is {batch_size}; {processes} processes cannot share it equally")


class CyclingLoader:
    """Batches without end. Order and augmentation of each image follow from ``seed`` and the number of the pass alone.

    So neither the number of ``workers`` nor an interruption changes a batch: ``load_state`` goes on with the very next. Of
    several processes each reads the ``part`` of every batch that is its own.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, workers: int = 0, part: slice = slice(None)) -> None:
        check_batch(images, batch_size)
        self._images, self._batch_size, self._seed, self._part = images, batch_size, seed, part
        self._pass, self._position = 0, 0
        self._loader: DataLoader[Any] = DataLoader(
            _SeededImages(images),
            batch_sampler=_Batches(self),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # of its own: the default one's state belongs to whoever trains
        )
        self._iterator: Iterator[list[Tensor]] | None = None

    def __len__(self) -> int:
        """Batches in one pass; what is left over is dropped."""
        return len(self._images) // self._batch_size

    def next(self) -> list[Tensor]:
        """The next ``[images (B, C, H, W), labels (B,)]``."""
        if self._position == len(self):
            self._pass, self._position, self._iterator = self._pass + 1, 0, None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        self._position += 1
        try:
            return next(self._iterator)
        except DocumentError as error:  # of a worker: its message is a traceback whose last line is what was said
            raise DocumentError(str(error).strip().splitlines()[-1].removeprefix("mobilenas.errors.DocumentError: ")) from None

    def batches(self) -> list[list[tuple[int, int]]]:
        """The batches that are left of this pass, as (index, seed of its augmentation) pairs."""
        seed = self._seed * 1_000_003 + self._pass
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(seed)).tolist()
        keyed = [(index, seed * 1_000_003 + index) for index in order]
        batches = range(self._position, len(self))
        return [keyed[n * self._batch_size : (n + 1) * self._batch_size][self._part] for n in batches]

    def state(self) -> dict[str, int]:
        """Pass and position within it."""
        return {"pass": self._pass, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        """Go to where ``state`` was taken."""
        self._pass, self._position, self._iterator = state["pass"], state["position"], None


def _leave_signals_to_the_parent(worker: int) -> None:
    """A terminal or a supervisor signals the whole group: the parent finishes its step, saves and ends the workers itself."""
    os.setpgrp()


@dataclass(frozen=True)
class _Batches:
    """The batch sampler of a cycling loader: each iteration is what is left of the current pass."""

    loader: CyclingLoader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.loader.batches())


class _SeededImages(Dataset[tuple[Tensor, int]]):
    """Images by (index, seed): the seed decides the augmentation, and the default generator is left as it was."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(seed % 2**63)
        try:
            return self._images[index]
        finally:
            generator.set_state(before)
