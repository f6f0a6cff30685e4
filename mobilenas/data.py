"""Data sets: images and their preprocessing facts, halves for a bilevel search, persistent loaders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenas.core.registry import Registry
from mobilenas.core.resources import user_data_directory
from mobilenas.errors import DocumentError, MissingDataError, UsageError


class Preprocessing(msgspec.Struct, frozen=True):
    """How raw pixels become the network's input: ``(pixel / 255 - mean) / std`` per channel, layout NCHW."""

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colour: str
    """``"grey"`` or ``"RGB"``."""


class ImageSource(Protocol):
    """Where raw images come from."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, int]:
        """Pixels ``(C, H, W)`` uint8 and label of one image; raises ``DocumentError`` naming a file that is damaged."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Pixels ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])


@dataclass(frozen=True)
class InFiles:
    """RGB images of any size, decoded when they are read."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        try:
            with Image.open(self.paths[index]) as image:
                return pil_to_tensor(image.convert("RGB")), self.labels[index]
        except (OSError, SyntaxError, ValueError) as error:
            raise DocumentError(f"{self.paths[index]}: not a whole image: {error}") from error


class Images(Dataset[tuple[Tensor, int]]):
    """Images of ``source``, all or those at ``indices``, each passed through ``transform``."""

    def __init__(self, source: ImageSource, transform: Callable[[Tensor], Tensor], indices: Tensor | None = None) -> None:
        self.source, self.transform = source, transform
        self.indices = torch.arange(len(source)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.source.read(int(self.indices[index]))
        return self.transform(pixels), label

    def subset(self, positions: Tensor) -> Images:
        """The images at ``positions`` of this set."""
        return Images(self.source, self.transform, self.indices[positions])

    def with_transform(self, transform: Callable[[Tensor], Tensor]) -> Images:
        """The same images under another transform."""
        return Images(self.source, transform, self.indices)


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
    augment: tuple[Callable[[Tensor], Tensor], ...]
    fit: tuple[Callable[[Tensor], Tensor], ...] = ()
    cutout_size: int = 0

    @cached_property
    def _sources(self) -> tuple[ImageSource, ImageSource]:
        return self.read()

    @cached_property
    def train(self) -> Images:
        """The training images, augmented."""
        return Images(self._sources[0], self._transform(self.augment))

    @cached_property
    def test(self) -> Images:
        """The test images, as a device would see them."""
        return Images(self._sources[1], self._transform(self.fit))

    def _transform(self, first: tuple[Callable[[Tensor], Tensor], ...]) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2

        facts = self.preprocessing
        normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(facts.mean), list(facts.std))]
        composed: Callable[[Tensor], Tensor] = v2.Compose([*first, *normalise])
        return composed

    def halves(self, seed: int) -> tuple[Images, Images]:
        """Two disjoint random halves of the training images: one for the weights, one for the architecture."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        middle = len(order) // 2
        return self.train.subset(order[:middle]), self.train.subset(order[middle:])

    def with_cutout(self) -> Images:
        """The training images, with a random square of ``cutout_size`` pixels blanked as the last augmentation."""
        plain, cutout = self.train.transform, Cutout(self.cutout_size)
        return self.train.with_transform(lambda image: cutout(plain(image)))

    def reduced(self, fraction: float, seed: int) -> ImageData:
        """The same data with a random ``fraction`` of its training images; raises ``UsageError`` outside 0 to 1."""
        if not 0 < fraction <= 1:
            raise UsageError(f"data.train_fraction is {fraction}; it must be above 0 and at most 1")
        if fraction == 1:
            return self

        def read() -> tuple[ImageSource, ImageSource]:
            train, test = self.read()
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            return Subset(train, order[: max(2, round(fraction * len(train)))]), test

        return replace(self, read=read)


@dataclass(frozen=True)
class Subset:
    """The images of ``source`` at ``indices``."""

    source: ImageSource
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Tensor, int]:
        return self.source.read(int(self.indices[index]))


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
    """Batches without end. Order and augmentation of each image follow from ``seed`` and the number of the pass alone.

    So neither the number of ``workers`` nor an interruption changes a batch: ``load_state`` goes on with the very next.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, workers: int = 0) -> None:
        if batch_size < 1 or batch_size > len(images):
            raise UsageError(f"data.batch is {batch_size}; it must be 1 to {len(images)}, the number of images here")
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._pass, self._position = 0, 0
        self._loader: DataLoader[Any] = DataLoader(
            _SeededImages(images),
            batch_sampler=_Batches(self),
            num_workers=workers,
            persistent_workers=workers > 0,
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
        return next(self._iterator)

    def batches(self) -> list[list[tuple[int, int]]]:
        """The batches that are left of this pass, as (index, seed of its augmentation) pairs."""
        seed = self._seed * 1_000_003 + self._pass
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(seed)).tolist()
        keyed = [(index, seed * 1_000_003 + index) for index in order]
        return [keyed[n * self._batch_size : (n + 1) * self._batch_size] for n in range(self._position, len(self))]

    def state(self) -> dict[str, int]:
        """Pass and position within it."""
        return {"pass": self._pass, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        """Go to where ``state`` was taken."""
        self._pass, self._position, self._iterator = state["pass"], state["position"], None


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


# ---- the data sets ---------------------------------------------------------------------------------------------------------


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
        augment=_crop(8, padding=1),
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
        augment=(*_crop(28, padding=2), _flip()),
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
        augment=(*_crop(32, padding=4), _flip()),
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
    from torchvision.transforms import v2

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
        augment=(v2.RandomResizedCrop(size, antialias=True), _flip()),
        fit=(v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)),
        cutout_size=size // 2,
    )


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()
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
    """Every image below ``folder``, its header read: damaged files are named before anything is trained."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = sorted(str(p) for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise MissingDataError(f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    with ThreadPoolExecutor(16) as pool:
        damaged = [path for path, is_image in zip(paths, pool.map(_has_image_header, paths), strict=True) if not is_image]
    if damaged:
        raise DocumentError(
            f"{len(damaged)} of {len(paths)} files in {folder} are not images: {', '.join(damaged[:5])}"
            f"{', ...' if len(damaged) > 5 else ''}; remove or replace them"
        )
    return InFiles(tuple(paths), tuple(labels))


def _has_image_header(path: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError):
        return False


def _crop(size: int, padding: int) -> tuple[Callable[[Tensor], Tensor], ...]:
    from torchvision.transforms import v2

    return (v2.RandomCrop(size, padding=padding),)


def _flip() -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    flip: Callable[[Tensor], Tensor] = v2.RandomHorizontalFlip()
    return flip


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
    default = Path(os.environ.get("MOBILENAS_DATA", user_data_directory() / "data"))
    data = DATA.get(name)(DataRequest(root or default, image_size))
    if image_size not in (None, data.preprocessing.image_size):
        raise UsageError(f"data.image_size is {image_size}; {name} has images of {data.preprocessing.image_size} pixels")
    return data
