"""The data sets by name: where their files lie, how they are augmented, what is said when they are missing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mobilenas.core.documents import is_unicode
from mobilenas.core.registry import Registry
from mobilenas.core.resources import user_data_directory
from mobilenas.data.images import ImageData, ImageSource, InFiles, InMemory, Preprocessing, Shift, opened
from mobilenas.errors import DocumentError, MissingDataError, UsageError


@dataclass(frozen=True)
class DataRequest:
    """What a loader is asked for: where the data set lies, and the image size where the data set leaves it open."""

    root: Path
    image_size: int | None = None


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


def load_image_folder(request: DataRequest) -> ImageData:
    """Images in ``root/train/CLASS/`` and ``root/val/CLASS/`` (or ``test``), one folder per class, as ImageNet has them.

    Statistics are ImageNet's; training images get a random resized crop and a flip, test images are resized to 8/7 of the
    image size and cropped in the middle.
    """
    from PIL import Image
    from torchvision.transforms import v2

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large photographs; far larger is an error
    size = request.image_size or 224
    train_folder = request.root / "train"
    test_folder = next((request.root / n for n in ("val", "test") if (request.root / n).is_dir()), request.root / "val")
    class_names = _class_folders(train_folder)

    def read() -> tuple[ImageSource, ImageSource]:
        if _class_folders(test_folder) != class_names:
            raise DocumentError(
                f"{test_folder} has other class folders than {train_folder}: {_difference(test_folder, class_names)}"
            )
        train, test = (_image_files(folder, class_names) for folder in (train_folder, test_folder))
        return train, test

    return ImageData(
        name="image-folder",
        preprocessing=Preprocessing(size, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"),
        class_names=class_names,
        read=read,
        augment=(v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()),
        fit=(v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)),
        cutout_size=size // 2,
    )


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


def _class_folders(folder: Path) -> tuple[str, ...]:
    found = folder.iterdir() if folder.is_dir() else ()
    names = tuple(sorted(path.name for path in found if path.is_dir() and not path.name.startswith(".")))
    for name in names:
        if not is_unicode(name):
            raise DocumentError(f"{folder}: the name of the class folder {name!r} is not UTF-8 text: rename it")
    if len(names) < 2:
        raise MissingDataError(
            f"{folder} {'has fewer than two class folders' if folder.is_dir() else 'is not a folder'}: an image folder holds "
            "train/CLASS/*.jpg and val/CLASS/*.jpg; name it with --set data.root=..."
        )
    return names


def _difference(folder: Path, class_names: tuple[str, ...]) -> str:
    found = set(_class_folders(folder))
    lacking, extra = sorted(set(class_names) - found), sorted(found - set(class_names))
    return "; ".join(f"{word} {', '.join(names[:5])}" for word, names in (("without", lacking), ("with", extra)) if names)


def _image_files(folder: Path, class_names: tuple[str, ...]) -> InFiles:
    """Every image below ``folder``; its header is read, so that what is no image at all is named before any training.

    An image that is cut off is found, and named, when it is decoded.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = sorted(str(p) for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise MissingDataError(f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    with ThreadPoolExecutor(16) as pool:
        damaged = [damage for damage in pool.map(_damage, paths) if damage]
    if damaged:
        raise DocumentError(
            f"{len(damaged)} of {len(paths)} files in {folder} are not images: {'; '.join(damaged[:5])}"
            f"{'; ...' if len(damaged) > 5 else ''}; remove or replace them"
        )
    return InFiles(tuple(paths), tuple(labels))


def _damage(path: str) -> str | None:
    """Why a file is no image, as far as its header tells."""
    try:
        with opened(path):
            return None
    except DocumentError as error:
        return str(error)


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


def load_data(name: str, root: Path | None = None, image_size: int | None = None) -> ImageData:
    """The data set called ``name``; its images are read when first asked for. Raises ``UnknownNameError`` and, where a
    data set's facts lie in its files, ``MissingDataError`` (how to get it).

    ``root`` is where data sets lie; ``MOBILENAS_DATA``, else the user's data directory, by default.
    """
    folder = root or Path(os.environ.get("MOBILENAS_DATA", user_data_directory() / "data"))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"data.root is {folder}, which is a file; name the folder of data sets")
    data = DATA.get(name)(DataRequest(folder, image_size))
    if image_size not in (None, data.preprocessing.image_size):
        raise UsageError(f"data.image_size is {image_size}; {name} has images of {data.preprocessing.image_size} pixels")
    return data
