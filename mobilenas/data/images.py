"""Images, where they come from, and the facts of their preprocessing; halves for a bilevel search."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from mobilenas.data.pictures import read_rgb
from mobilenas.errors import UsageError


class Preprocessing(msgspec.Struct, frozen=True):
    """How raw pixels become the network's input: ``(pixel / 255 - mean) / std`` per channel, layout NCHW."""

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colour: str
    """``"grey"`` or ``"RGB"``."""


@dataclass(frozen=True)
class DataRequest:
    """What a loader is asked for: where the data set lies, and what the data set leaves open."""

    root: Path
    image_size: int | None = None
    """Pixels."""
    split: float | None = None
    """Share of each class's images that is for validation, of a data set that is not divided; above 0 and below 1."""
    seed: int = 0
    """Of what is drawn by chance."""


class ImageSource(Protocol):
    """Where raw images come from."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, int]:
        """Pixels ``(C, H, W)`` uint8 and label of one image; raises ``DocumentError`` naming a file that is damaged."""
        ...

    def digest(self) -> str:
        """Hexadecimal digits that change when the images or labels do."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out while the images were listed, a sentence each; nothing where all was read."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Pixels ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64."""

    pixels: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])

    def digest(self) -> str:
        return _sha256(self.pixels.contiguous().numpy().data, self.labels.contiguous().numpy().data)


@dataclass(frozen=True)
class InFiles:
    """RGB images of any size, decoded when they are read."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Tensor, int]:
        return read_rgb(self.paths[index]), self.labels[index]

    def digest(self) -> str:
        """Of the files' names, sizes and labels: their contents are not read."""
        folder = os.path.commonpath(self.paths)
        files = zip(self.paths, self.labels, strict=True)
        listed = [f"{os.path.relpath(path, folder)} {os.path.getsize(path)} {label}" for path, label in files]
        return _sha256(os.fsencode("\n".join(listed)))


BatchTransform = Callable[[Tensor, torch.Generator], Tensor]
"""``(B, C, H, W)`` uint8 pixels and random numbers on the CPU -> what a network reads, on the device of the pixels."""


class Images(Dataset[tuple[Tensor, int]]):
    """Images of ``source``, all or those at ``indices``, each passed through ``transform``.

    ``batch_transform`` does the same to many images at once where that is possible, with random numbers of its own.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Tensor], Tensor],
        indices: Tensor | None = None,
        batch_transform: BatchTransform | None = None,
    ) -> None:
        self.source, self.transform, self.batch_transform = source, transform, batch_transform
        self.indices = torch.arange(len(source)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.source.read(int(self.indices[index]))
        return self.transform(pixels), label

    def subset(self, positions: Tensor) -> Images:
        """The images at ``positions`` of this set."""
        return Images(self.source, self.transform, self.indices[positions], self.batch_transform)


@dataclass(frozen=True)
class Shift:
    """How small pictures are augmented: moved by up to ``padding`` pixels each way, over black, and mirrored by ``flip``."""

    padding: int
    flip: bool

    def transforms(self, size: int) -> tuple[Callable[[Tensor], Tensor], ...]:
        """For one image ``(C, size, size)``, by torchvision."""
        from torchvision.transforms import v2

        moved = (v2.RandomCrop(size, padding=self.padding),) if self.padding else ()
        return (*moved, *((v2.RandomHorizontalFlip(),) if self.flip else ()))

    def of_batch(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Of images ``(B, C, H, W)``, each its own way; drawn on the CPU, done where they are."""
        count, channels, height, width = pixels.shape
        top, left = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        mirrored = (torch.rand(count, 1, generator=generator) < 0.5) & self.flip
        rows, columns = top + torch.arange(height), left + torch.arange(width)
        columns = torch.where(mirrored, columns.flip(1), columns)
        padded = functional.pad(pixels, (self.padding,) * 4)
        at = [torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows[:, None, :, None]]
        indices = [index.to(pixels.device, non_blocking=True) for index in (*at, columns[:, None, None, :])]
        return padded[tuple(indices)]


@dataclass(frozen=True)
class ImageData:
    """A classification data set: facts that are known at once, and images that are read when first asked for.

    ``train`` passes through ``augment`` and then ``normalise``, ``test`` through ``fit`` and ``normalise``;
    ``cutout_size`` (pixels) is for training from scratch.
    """

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    read: Callable[[], tuple[ImageSource, ImageSource]]
    """Reads the training and the test images; raises ``MissingDataError`` or ``DocumentError``."""
    augment: tuple[Callable[[Tensor], Tensor], ...] | Shift
    fit: tuple[Callable[[Tensor], Tensor], ...] = ()
    cutout_size: int = 0
    split: float | None = None
    """Share of each class's images that was put aside for ``test``, where the data set does not say which are."""
    reading: str = ""
    """How files became pixels, in words; nothing where there are no files of images."""

    @cached_property
    def _sources(self) -> tuple[ImageSource, ImageSource]:
        return self.read()

    @cached_property
    def train(self) -> Images:
        """The training images, augmented."""
        return Images(self._sources[0], self._transform(self._augment), batch_transform=self._batch_transform(cutout=False))

    @cached_property
    def test(self) -> Images:
        """The test images, as a device would see them."""
        return Images(self._sources[1], self._transform(self.fit))

    @property
    def _augment(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """For one image."""
        return self.augment.transforms(self.preprocessing.image_size) if isinstance(self.augment, Shift) else self.augment

    def _batch_transform(self, cutout: bool) -> BatchTransform | None:
        """For many images; ``None`` where each needs its own."""
        shift, facts = self.augment, self.preprocessing
        if not isinstance(shift, Shift):
            return None
        cut = Cutout(self.cutout_size) if cutout else None

        def transform(pixels: Tensor, generator: torch.Generator) -> Tensor:
            mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (facts.mean, facts.std))
            images = (shift.of_batch(pixels, generator).float() / 255 - mean) / std
            return images if cut is None else cut.of_batch(images, generator)

        return transform

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the data set, a sentence each."""
        return tuple(note for source in self._sources for note in source.notes)

    def digest(self) -> str:
        """Hexadecimal digits that change when any image or label does (of files: their names, sizes and labels)."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return _sha256(*(source.digest().encode() for source in self._sources))[:16]

    def _transform(self, first: tuple[Callable[[Tensor], Tensor], ...]) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2

        facts = self.preprocessing
        normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(facts.mean), list(facts.std))]
        composed: Callable[[Tensor], Tensor] = v2.Compose([*first, *normalise])
        return composed

    def halves(self, seed: int, second: float = 0.5) -> tuple[Images, Images]:
        """Two disjoint random parts of the training images: one for the weights and, ``second`` of all, one for the
        architecture; at least one image each.
        """
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        middle = min(max(1, round(len(order) * (1 - second) - 1e-9)), len(order) - 1)
        return self.train.subset(order[:middle]), self.train.subset(order[middle:])

    def halved(self, seed: int, second: float = 0.5, most: int | None = None) -> ImageData:
        """Return the same data without its test images: the first of the ``halves`` to train on, the second to test on.

        ``most`` limits the number of images to test on.
        """
        train, valid = self.halves(seed, second)

        def read() -> tuple[ImageSource, ImageSource]:
            return Subset(train.source, train.indices), Subset(valid.source, valid.indices[:most])

        return replace(self, read=read)

    def for_training(self, cutout: bool, colour_jitter: tuple[float, ...] | None = None) -> Images:
        """The training images, augmented further for a training from scratch.

        After all other augmentation, ``colour_jitter`` changes brightness, contrast, saturation and hue by up to so much; and
        when all is normalised, ``cutout`` blanks a random square of ``cutout_size`` pixels.
        """
        from torchvision.transforms import v2

        jitter = (v2.ColorJitter(*colour_jitter),) if colour_jitter else ()
        last = (Cutout(self.cutout_size),) if cutout else ()
        transform = v2.Compose([self._transform((*self._augment, *jitter)), *last])
        return Images(self._sources[0], transform, batch_transform=None if jitter else self._batch_transform(cutout))

    def reduced(self, fraction: float, seed: int) -> ImageData:
        """The same data with a random ``fraction`` of its training images; raises ``UsageError`` outside 0 to 1."""
        if not 0 < fraction <= 1:
            raise UsageError(f"data.train_fraction is {fraction}; it must be above 0 and at most 1")
        return self if fraction == 1 else self._reduced(lambda count: max(2, round(fraction * count)), seed)

    def reduced_to(self, images: int, seed: int) -> ImageData:
        """Return the same data with at most so many of its training images, drawn by ``seed``."""
        return self._reduced(lambda count: min(images, count), seed)

    def _reduced(self, count_of: Callable[[int], int], seed: int) -> ImageData:
        def read() -> tuple[ImageSource, ImageSource]:
            train, test = self.read()
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            return Subset(train, order[: count_of(len(train))]), test

        return replace(self, read=read)


@dataclass(frozen=True)
class Subset:
    """The images of ``source`` at ``indices``."""

    source: ImageSource
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def read(self, index: int) -> tuple[Tensor, int]:
        return self.source.read(int(self.indices[index]))

    def digest(self) -> str:
        return _sha256(self.source.digest().encode(), self.indices.numpy().data)


def in_memory(source: ImageSource) -> tuple[Tensor, Tensor] | None:
    """Pixels and labels of ``source``, ``None`` where they are read from files."""
    if isinstance(source, InMemory):
        return source.pixels, source.labels
    if isinstance(source, Subset) and (whole := in_memory(source.source)) is not None:
        return whole[0][source.indices], whole[1][source.indices]
    return None


def _sha256(*parts: bytes | memoryview) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


class Cutout:
    """Zero one square at a random centre, cut at the border (DeVries, Taylor 2017, arXiv 1708.04552)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
        half = self.size // 2
        image = image.clone()
        image[..., max(0, row - half) : row + half, max(0, column - half) : column + half] = 0
        return image

    def of_batch(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Of images ``(B, C, H, W)``, each its own square; drawn on the CPU, done where they are."""
        count, _, height, width = images.shape
        inside = []
        for length in (height, width):
            away = torch.arange(length) - torch.randint(length, (count, 1), generator=generator)
            inside.append((away >= -(self.size // 2)) & (away < self.size // 2))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(square.to(images.device, non_blocking=True), 0.0)
