"""Data sets: images in memory, halves for a bilevel search, persistent loaders, and the preprocessing facts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenas.core.registry import Registry
from mobilenas.core.resources import user_data_directory
from mobilenas.errors import MissingDataError, UsageError


class Preprocessing(msgspec.Struct, frozen=True):
    """How raw pixels become the network's input: ``(pixel / 255 - mean) / std`` per channel, layout NCHW."""

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colour: str
    """``"grey"`` or ``"RGB"``."""


class Images(Dataset[tuple[Tensor, int]]):
    """Pixels ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64 in memory, each image passed through ``transform``."""

    def __init__(self, pixels: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])

    def subset(self, indices: Tensor) -> Images:
        """The images at ``indices``."""
        return Images(self.pixels[indices], self.labels[indices], self.transform)

    def with_transform(self, transform: Callable[[Tensor], Tensor]) -> Images:
        """The same images under another transform."""
        return Images(self.pixels, self.labels, transform)


@dataclass(frozen=True)
class ImageData:
    """A classification data set. ``train`` is augmented, ``test`` is not; ``cutout_size`` (pixels) is for retraining."""

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    cutout_size: int

    def halves(self, seed: int) -> tuple[Images, Images]:
        """Two disjoint random halves of the training images: one for the weights, one for the architecture."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        middle = len(order) // 2
        return self.train.subset(order[:middle]), self.train.subset(order[middle:])

    def with_cutout(self) -> Images:
        """The training images, with a random square of ``cutout_size`` pixels blanked as the last augmentation."""
        plain, cutout = self.train.transform, Cutout(self.cutout_size)
        return self.train.with_transform(lambda image: cutout(plain(image)))


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


class CyclingLoader:
    """Batches without end; each pass has its own order, drawn from ``seed`` and the pass's number.

    ``state`` and ``load_state`` let a resumed run go on with the very next batch.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, workers: int = 0) -> None:
        if batch_size < 1 or batch_size > len(images):
            raise UsageError(f"data.batch is {batch_size}; it must be 1 to {len(images)}, the number of images here")
        self._seed, self._pass, self._position = seed, 0, 0
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=self._generator,
        )
        self._iterator: Iterator[list[Tensor]] | None = None

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self._loader)

    def next(self) -> list[Tensor]:
        """The next ``[images (B, C, H, W), labels (B,)]``."""
        if self._iterator is None or self._position == len(self):
            self._pass += self._iterator is not None
            self._position = 0
            self._begin_pass()
        assert self._iterator is not None
        self._position += 1
        return next(self._iterator)

    def _begin_pass(self) -> None:
        self._generator.manual_seed(self._seed * 1_000_003 + self._pass)
        self._iterator = iter(self._loader)

    def state(self) -> dict[str, int]:
        """Pass and position within it."""
        return {"pass": self._pass, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        """Go to where ``state`` was taken; batches on the way are drawn again, so restore random states afterwards."""
        self._pass = state["pass"]
        self._begin_pass()
        self._position = 0
        for _ in range(state["position"]):
            self.next()


def _standard_data(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    class_names: tuple[str, ...],
    *,
    padding: int,
    flip: bool,
    cutout_size: int,
) -> ImageData:
    """Normalise by the training images' own statistics; augment by a padded random crop and, if asked, a flip."""
    from torchvision.transforms import v2

    pixels = train[0].float() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    size, channels = train[0].shape[-1], train[0].shape[1]
    preprocessing = Preprocessing(size, channels, tuple(mean.tolist()), tuple(std.tolist()), "grey" if channels == 1 else "RGB")
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist())]
    augment = [v2.RandomCrop(size, padding=padding), *([v2.RandomHorizontalFlip()] if flip else [])]
    return ImageData(
        name,
        Images(*train, v2.Compose([*augment, *normalise])),
        Images(*test, v2.Compose(normalise)),
        class_names,
        preprocessing,
        cutout_size,
    )


def load_digits(root: Path) -> ImageData:
    """1,797 grey 8x8 handwritten digits that come with scikit-learn; every fifth one is for testing."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    pixels = torch.as_tensor(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    is_test = torch.arange(len(labels)) % 5 == 0
    names = tuple(str(digit) for digit in range(10))
    train, test = (pixels[~is_test], labels[~is_test]), (pixels[is_test], labels[is_test])
    return _standard_data("digits", train, test, names, padding=1, flip=False, cutout_size=2)


def load_fashion_mnist(root: Path) -> ImageData:
    """70,000 grey 28x28 pictures of clothes, read by torchvision from ``root/FashionMNIST/raw``.

    If they are not there, the files of Debian's package ``dataset-fashion-mnist`` are used, and else downloaded.
    """
    from torchvision.datasets import FashionMNIST

    raw = root / "FashionMNIST" / "raw"
    if not (raw / "train-images-idx3-ubyte").exists():
        _unpack_debian_fashion_mnist(raw)
    try:
        sets = [FashionMNIST(str(root), train=is_train, download=True) for is_train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise MissingDataError(
            f"Fashion-MNIST is not in {raw} and cannot be downloaded ({error}): run "
            "'apt-get install dataset-fashion-mnist', or put its four idx files there"
        ) from error
    train, test = ((s.data.unsqueeze(1), s.targets.long()) for s in sets)
    return _standard_data("fashion-mnist", train, test, tuple(sets[0].classes), padding=2, flip=True, cutout_size=8)


_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def _unpack_debian_fashion_mnist(raw: Path) -> None:
    import gzip

    from mobilenas.core.run_directory import write_atomic

    for packed in sorted(_DEBIAN_FASHION_MNIST.glob("**/*-ubyte.gz")):
        write_atomic(raw / packed.stem, gzip.decompress(packed.read_bytes()))


DATA: Registry[Callable[[Path], ImageData]] = Registry("data set", {"digits": load_digits, "fashion-mnist": load_fashion_mnist})


def load_data(name: str, root: Path | None = None) -> ImageData:
    """The data set called ``name``; raises ``UnknownNameError`` or ``MissingDataError`` (how to get it).

    ``root`` is where data sets lie; ``MOBILENAS_DATA``, else the user's data directory, by default.
    """
    default = Path(os.environ.get("MOBILENAS_DATA", user_data_directory() / "data"))
    return DATA.get(name)(root or default)
