"""The data sets by name: where their files lie, how they are augmented, what is said when they are missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mobilenas.core.registry import Registry
from mobilenas.core.resources import user_data_directory
from mobilenas.data.folders import load_image_folder
from mobilenas.data.images import DataRequest, ImageData, ImageSource, InMemory, Preprocessing, Shift
from mobilenas.errors import MissingDataError, UsageError


def load_digits(request: DataRequest) -> ImageData:
    """1,797 grey 8x8 handwritten digits that come with scikit-learn; every fifth one is for testing."""

    def read() -> tuple[ImageSource, ImageSource]:
        from sklearn import datasets

        bunch = datasets.load_digits()
        pixels = torch.as_tensor(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.as_tensor(bunch.target, dtype=torch.int64)
        is_test = torch.arange(len(labels)) % 5 == 0
        return InMemory(pixels[~is_test], labels[~is_test]), InMemory(pixels[is_test], labels[is_test])

    return ImageData(
        name="digits",
        preprocessing=Preprocessing(8, 1, (0.3053,), (0.3762,), "grey"),
        class_names=tuple(str(digit) for digit in range(10)),
        read=read,
        augment=Shift(padding=1, flip=False),
        cutout_size=2,
    )


def load_fashion_mnist(request: DataRequest) -> ImageData:
    """70,000 grey 28x28 pictures of clothes, read by torchvision from ``root/FashionMNIST/raw``.

    If they are not there, the files of Debian's package ``dataset-fashion-mnist`` are used, and else downloaded.
    """
    from torchvision.datasets import FashionMNIST

    def read() -> tuple[ImageSource, ImageSource]:
        raw = request.root / "FashionMNIST" / "raw"
        if not (raw / "train-images-idx3-ubyte").exists():
            _unpack_debian_fashion_mnist(raw)
        try:
            sets = [FashionMNIST(str(request.root), train=is_train, download=True) for is_train in (True, False)]
        except (OSError, RuntimeError, ValueError) as error:
            raise MissingDataError(
                f"Fashion-MNIST is not in {raw}, or damaged, and cannot be downloaded ({error}): run "
                "'apt-get install dataset-fashion-mnist', or put its four idx files there"
            ) from error
        train, test = (InMemory(s.data.unsqueeze(1), s.targets.long()) for s in sets)
        return train, test

    return ImageData(
        name="fashion-mnist",
        preprocessing=Preprocessing(28, 1, (0.2860,), (0.3530,), "grey"),
        class_names=tuple(FashionMNIST.classes),
        read=read,
        augment=Shift(padding=2, flip=True),
        cutout_size=8,
    )


_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def _unpack_debian_fashion_mnist(raw: Path) -> None:
    import gzip

    from mobilenas.core.run_directory import write_atomic

    for packed in sorted(_DEBIAN_FASHION_MNIST.glob("**/*-ubyte.gz")):
        write_atomic(raw / packed.stem, gzip.decompress(packed.read_bytes()))


def load_cifar10(request: DataRequest) -> ImageData:
    """60,000 colour 32x32 pictures of ten kinds (Krizhevsky 2009), in ``root/cifar-10-batches-py`` or downloaded.

    Statistics and augmentation are those of DARTS.
    """
    from torchvision.datasets import CIFAR10

    statistics = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    return _cifar("cifar10", CIFAR10, request, statistics, names)


def load_cifar100(request: DataRequest) -> ImageData:
    """60,000 colour 32x32 pictures of a hundred kinds (Krizhevsky 2009), in ``root/cifar-100-python`` or downloaded."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, request, ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), _CIFAR100_NAMES)


def _cifar(
    name: str, kind: Any, request: DataRequest, statistics: tuple[tuple[float, ...], tuple[float, ...]], class_names: str
) -> ImageData:
    def read() -> tuple[ImageSource, ImageSource]:
        folder = request.root / kind.base_folder
        try:
            sets = [kind(str(request.root), train=is_train, download=True) for is_train in (True, False)]
        except (OSError, RuntimeError) as error:
            bad = _damaged(folder, kind)
            state = f"damaged ({', '.join(bad)})" if bad else "missing"
            raise MissingDataError(
                f"{name} in {folder} is {state} and cannot be downloaded ({error}): unpack {kind.url} in {request.root}, "
                "or name its folder with --set data.root=..."
            ) from error
        pixels = [torch.as_tensor(s.data).permute(0, 3, 1, 2).contiguous() for s in sets]
        train, test = (InMemory(p, torch.as_tensor(s.targets)) for p, s in zip(pixels, sets, strict=True))
        return train, test

    return ImageData(
        name=name,
        preprocessing=Preprocessing(32, 3, *statistics, "RGB"),
        class_names=tuple(class_names.split()),
        read=read,
        augment=Shift(padding=4, flip=True),
        cutout_size=16,
    )


def _damaged(folder: Path, kind: Any) -> list[str]:
    """Files of a CIFAR data set that are there with another content than published."""
    from torchvision.datasets.utils import check_integrity

    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    return [name for name, md5 in listed if (folder / name).exists() and not check_integrity(str(folder / name), md5)]


def synthetic_data(image_shape: tuple[int, int, int, int], classes: int, images: int) -> ImageData:
    """Noise of the image size of ``image_shape`` ``(B, C, H, W)``, flipped as images are, in random classes.

    There are so many training images, and a quarter as many to test on.
    """
    _, channels, size, _ = image_shape

    def read() -> tuple[ImageSource, ImageSource]:
        generator = torch.Generator().manual_seed(0)
        train, test = (
            InMemory(
                torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8),
                torch.randint(0, classes, (count,), generator=generator),
            )
            for count in (images, images // 4)
        )
        return train, test

    return ImageData(
        name="synthetic",
        preprocessing=Preprocessing(size, channels, (0.5,) * channels, (0.25,) * channels, "RGB" if channels == 3 else "grey"),
        class_names=tuple(map(str, range(classes))),
        read=read,
        augment=Shift(padding=0, flip=True),
        cutout_size=size // 2,
    )


_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

DATA: Registry[Callable[[DataRequest], ImageData]] = Registry(
    "data set",
    {
        "digits": load_digits,
        "fashion-mnist": load_fashion_mnist,
        "cifar10": load_cifar10,
        "cifar100": load_cifar100,
        "image-folder": load_image_folder,
    },
)


def load_data(
    name: str, root: Path | None = None, image_size: int | None = None, split: float | None = None, seed: int = 0
) -> ImageData:
    """The data set called ``name``; its images are read when first asked for. Raises ``UnknownNameError`` and, where a
    data set's facts lie in its files, ``MissingDataError`` (how to get it).

    ``root`` is where data sets lie; ``MOBILENAS_DATA``, else the user's data directory, by default. ``split`` is the share for
    validation, drawn by ``seed``, of a data set that is not divided into training and test images.
    """
    folder = root or Path(os.environ.get("MOBILENAS_DATA", user_data_directory() / "data"))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"data.root is {folder}, which is a file; name the folder of data sets")
    data = DATA.get(name)(DataRequest(folder, image_size, split, seed))
    if image_size not in (None, data.preprocessing.image_size):
        raise UsageError(f"data.image_size is {image_size}; {name} has images of {data.preprocessing.image_size} pixels")
    if split != data.split:
        raise UsageError(f"data.split is {split}; {name} has test images of its own: leave data.split out")
    return data
