"""Batches without end, that follow from a seed alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenas.data.images import Images, Subset, in_memory
from mobilenas.errors import DocumentError, IncompatibleError, UsageError


def check_batch(images: Images, batch_size: int, processes: int = 1) -> None:
    """Raise ``UsageError`` if there are fewer ``images`` than one batch takes, or one where BatchNorm needs several.

    Each of several ``processes`` takes as many of every batch.
    """
    fewest, count = 2 * processes, len(images)
    if count < fewest:
        raise UsageError(
            f"data.batch is {batch_size}; no batch is possible: {_counted(images)}, and BatchNorm needs {fewest}. "
            f"{_more_images(images, fewest)}"
        )
    if not fewest <= batch_size <= count:
        nearest = min(max(batch_size, fewest), count)
        raise UsageError(
            f"data.batch is {batch_size}; it must be at least {fewest}, for BatchNorm, and at most {count}, as "
            f"{_counted(images)}. Say --set data.batch={nearest - nearest % processes}"
        )
    if batch_size % processes:
        raise UsageError(
            f"data.batch is {batch_size}; {processes} processes cannot share it equally: say --set "
            f"data.batch={batch_size - batch_size % processes}"
        )


def _counted(images: Images) -> str:
    """Format how many images there are, and what limits their number."""
    source, count = images.source, len(images)
    drawn = len(source)
    whole = len(source.source) if isinstance(source, Subset) else drawn
    steps = [f"of {whole:,} training images"]
    if drawn < whole:
        steps.append(f"data.train_fraction leaves {drawn:,}")
    if count < drawn:
        steps.append(f"{count:,} are in this part (validation_fraction divides them between weights and architecture)")
    return ", ".join(steps) if len(steps) > 1 else f"there are {whole:,} training images"


def _more_images(images: Images, fewest: int) -> str:
    """Format the settings with which a batch is possible."""
    source = images.source
    if isinstance(source, Subset) and len(images) * len(source.source) >= fewest * len(source):
        part = len(images) * len(source.source) // len(source)
        return f"Say --set data.train_fraction=1 --set data.batch={part - part % fewest or fewest}"
    return "Add images, or name another data set with --data"


class CyclingLoader:
    """Batches without end. Order and augmentation of each image follow from ``seed`` and the number of the pass alone.

    So neither the number of ``workers`` nor an interruption changes a batch: ``load_state`` goes on with the very next. Of
    several processes each reads the ``part`` of every batch that is its own.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, workers: int = 0, part: slice = slice(None)) -> None:
        check_batch(images, batch_size)
        self._images, self._batch_size, self._seed, self._part = images, batch_size, seed, part
        self._pass, self._position = 0, 0
        self._iterator: Iterator[list[Tensor]] | None = None
        self._loader = self._make_loader(workers)

    def _make_loader(self, workers: int) -> Iterable[list[Tensor]]:
        return DataLoader(
            _SeededImages(self._images),
            batch_sampler=_Batches(self),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # of its own: the default one's state belongs to whoever trains
        )

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

    @property
    def _pass_seed(self) -> int:
        return self._seed * 1_000_003 + self._pass

    def batches(self) -> list[list[int]]:
        """The whole batches that are left of this pass, by index of their images."""
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(self._pass_seed)).tolist()
        return [order[n * self._batch_size : (n + 1) * self._batch_size] for n in range(self._position, len(self))]

    def keyed(self) -> list[list[tuple[int, int]]]:
        """This process's part of them, as (index, seed of its augmentation) pairs."""
        seed = self._pass_seed * 1_000_003
        return [[(index, seed + index) for index in batch[self._part]] for batch in self.batches()]

    def state(self) -> dict[str, int]:
        """Pass and position within it."""
        return {"pass": self._pass, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        """Go to where ``state`` was taken."""
        self._pass, self._position, self._iterator = state["pass"], state["position"], None


class DeviceLoader(CyclingLoader):
    """The same batches of images that live on ``device``, whole, and are augmented there, all of a batch at once.

    Every image is drawn its own augmentation, by other random numbers than a ``CyclingLoader``'s. Raises ``IncompatibleError``
    for images that are read from files, or augmented one by one.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, device: torch.device, part: slice = slice(None)) -> None:
        held = in_memory(images.source)
        if held is None or images.batch_transform is None:
            raise IncompatibleError(
                "data.on_device is for data sets of small pictures (digits, fashion-mnist, cifar10, cifar100) without "
                "colour_jitter; leave it out, and say data.workers"
            )
        self._transform = images.batch_transform
        self._pixels, self._labels = (tensor[images.indices].to(device) for tensor in held)
        super().__init__(images, batch_size, seed, part=part)

    def _make_loader(self, workers: int) -> Iterable[list[Tensor]]:
        return _OnDevice(self)

    def made(self) -> Iterator[list[Tensor]]:
        """The batches that are left of this pass."""
        return (self._made(number, batch) for number, batch in enumerate(self.batches(), self._position))

    def _made(self, number: int, batch: list[int]) -> list[Tensor]:
        generator = torch.Generator().manual_seed((self._pass_seed * 1_000_003 + number) % 2**63)
        indices = torch.tensor(batch).to(self._pixels.device)
        images = self._transform(self._pixels[indices], generator)
        return [images[self._part], self._labels[indices[self._part]]]


@dataclass(frozen=True)
class _OnDevice:
    """What a device's loader iterates over: each iteration is what is left of the current pass."""

    loader: DeviceLoader

    def __iter__(self) -> Iterator[list[Tensor]]:
        return self.loader.made()


def loader_of(
    images: Images, batch_size: int, seed: int, workers: int, part: slice, device: torch.device | None
) -> CyclingLoader:
    """A loader of ``images`` that live on ``device``, or where they are by default."""
    if device is not None and workers:
        raise IncompatibleError(f"data.workers is {workers} with data.on_device: nothing is loaded there, leave it out")
    if device is None:
        return CyclingLoader(images, batch_size, seed, workers, part)
    return DeviceLoader(images, batch_size, seed, device, part)


def _leave_signals_to_the_parent(worker: int) -> None:
    """A terminal or a supervisor signals the whole group: the parent finishes its step, saves and ends the workers itself."""
    os.setpgrp()


@dataclass(frozen=True)
class _Batches:
    """The batch sampler of a cycling loader: each iteration is what is left of the current pass."""

    loader: CyclingLoader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.loader.keyed())


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
