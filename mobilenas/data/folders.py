"""Image folders: which files of a folder are images of which class, what is left out, and a share for validation."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from mobilenas.core.documents import is_unicode
from mobilenas.data.images import DataRequest, ImageData, ImageSource, InFiles, Preprocessing
from mobilenas.data.pictures import ENDINGS, READING, header
from mobilenas.errors import DocumentError, MissingDataError, UsageError

TRAIN, TESTS = "train", ("val", "test")
_HOLDS = "an image folder holds train/CLASS/*.jpg and val/CLASS/*.jpg, or, with --set data.split=0.2, CLASS/*.jpg"
_WHERE = "say where it is with --set data.root=DIR"


def load_image_folder(request: DataRequest) -> ImageData:
    """Load images from ``root/train/CLASS/`` and ``root/val/CLASS/`` (or ``test``), one folder per class as in ImageNet.

    With ``request.split`` load them from ``root/CLASS/``, of which that share of each class is for validation.

    Statistics are ImageNet's; training images get a random resized crop and a flip, test images are resized to 8/7 of the
    image size and cropped in the middle. Links are followed, hidden files and folders left out. Raises ``MissingDataError``
    where there are no such folders, and ``UsageError`` for a split of what is split already.
    """
    from torchvision.transforms import v2

    warnings.filterwarnings("ignore", module=r"PIL\.")  # large photographs, odd EXIF: what is wrong enough is an error
    size, root, split, seed = request.image_size or 224, request.root, request.split, request.seed
    train_folder = root / TRAIN
    test_folder = next((root / name for name in TESTS if (root / name).is_dir()), root / TESTS[0])
    is_split = train_folder.is_dir() and test_folder.is_dir()
    if split is not None and is_split:
        raise UsageError(
            f"data.split is {split:g}, and {root} has {TRAIN} and {test_folder.name} already: leave data.split out"
        )
    class_names = _class_names(root if split is not None else train_folder, root)

    def read() -> tuple[ImageSource, ImageSource]:
        if split is not None:
            return _divided(_image_files(root, class_names), class_names, split, seed)
        if (found := _class_names(test_folder, root)) != class_names:
            raise DocumentError(f"{test_folder} has other class folders than {train_folder}: {_difference(found, class_names)}")
        return _image_files(train_folder, class_names), _image_files(test_folder, class_names)

    return ImageData(
        name="image-folder",
        preprocessing=Preprocessing(size, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"),
        class_names=class_names,
        read=read,
        augment=(v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()),
        fit=(v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)),
        cutout_size=size // 2,
        split=split,
        reading=READING,
    )


def _class_names(folder: Path, root: Path) -> tuple[str, ...]:
    names = _folders(folder)
    for name in names:
        if not is_unicode(name):
            raise DocumentError(f"{folder}: the name of the class folder {name!r} is not UTF-8 text: rename it")
    if len(names) >= 2:
        return names
    lacks = "has fewer than two class folders" if folder.is_dir() else "is not a folder"
    hint = ""
    if folder.name in TESTS and len(_folders(root / TRAIN)) >= 2:
        hint = f"; to take a share of the training images instead, say --set data.root={root / TRAIN} --set data.split=0.2"
    elif folder.name == TRAIN and len(others := _folders(root)) >= 2:
        hint = f"; {root} has class folders only ({', '.join(others[:5])}): say --set data.split=0.2"
    raise MissingDataError(f"{folder} {lacks}: {_HOLDS}; {_WHERE}{hint}")


def _folders(folder: Path) -> tuple[str, ...]:
    """List the names of folders, or links to folders, that are not hidden."""
    names = os.listdir(folder) if folder.is_dir() else []
    return tuple(sorted(name for name in names if not name.startswith(".") and os.path.isdir(folder / name)))


def _difference(found: Sequence[str], class_names: Sequence[str]) -> str:
    lacking, extra = sorted(set(class_names) - set(found)), sorted(set(found) - set(class_names))
    return "; ".join(f"{word} {', '.join(names[:5])}" for word, names in (("without", lacking), ("with", extra)) if names)


def _image_files(folder: Path, class_names: Sequence[str]) -> InFiles:
    """Find every image below ``folder``, and read its header, so that what is no image is named before any training.

    An image that is cut off is found, and named, when it is decoded. What is not read is counted in the notes.
    """
    left_out: Counter[str] = Counter()
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(_files_below(folder / name, left_out))
        if not found:
            raise MissingDataError(f"{folder / name} holds no image ({', '.join(ENDINGS)})")
        paths += found
        labels += [label] * len(found)
    for entry in os.listdir(folder):
        if not entry.startswith(".") and not os.path.isdir(folder / entry):
            left_out["outside the class folders"] += 1
    with ThreadPoolExecutor(16) as pool:
        headers = list(pool.map(header, paths))
    refused = [each.refused for each in headers if each.refused]
    if refused:
        raise DocumentError(
            f"{len(refused)} of {len(paths)} files in {folder} cannot be read as images: {'; '.join(refused[:5])}"
            f"{'; ...' if len(refused) > 5 else ''}; remove or replace them"
        )
    return InFiles(tuple(paths), tuple(labels), _notes(folder, left_out, sum(each.holds_several for each in headers)))


def _notes(folder: Path, left_out: Counter[str], several: int) -> tuple[str, ...]:
    notes = []
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items(), key=lambda item: (-item[1], item[0])))
        notes.append(f"{folder}: {left_out.total()} entries are not read: {kinds}")
    if several:
        notes.append(f"{folder}: {several} files hold several pictures; the first of each is read")
    return tuple(notes)


def _files_below(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yield the image files of a class, through links too, but never from a folder twice or from one above it."""
    whole = folder.resolve()
    yield from _walk(str(folder), {_identity(str(place)) for place in (whole, *whole.parents)}, left_out)


def _walk(folder: str, seen: set[tuple[int, int]], left_out: Counter[str]) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DocumentError(f"{folder}: cannot be listed: {error.strerror}") from error
    for name in names:
        path, ending = os.path.join(folder, name), os.path.splitext(name)[1].lower()
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            if (identity := _identity(path)) in seen:
                left_out["links to a folder that is read already or lies above"] += 1
                continue
            seen.add(identity)
            yield from _walk(path, seen, left_out)
        elif not os.path.isfile(path):
            left_out["broken links or no regular files"] += 1
        elif ending not in ENDINGS:
            left_out[ending if is_unicode(ending) and ending else "without a known ending"] += 1
        else:
            yield path


def _identity(path: str) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _divided(files: InFiles, class_names: Sequence[str], split: float, seed: int) -> tuple[InFiles, InFiles]:
    """Split into training images and a share ``split`` of each class, at least one, for validation; drawn by ``seed``.

    Raises ``DocumentError`` for a class of one image.
    """
    is_held_out = torch.zeros(len(files), dtype=torch.bool)
    labels = torch.tensor(files.labels)
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(class_names):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DocumentError(f"data.split: the class {name} has {len(members)} image; a share for validation needs two")
        count = min(max(1, round(split * len(members))), len(members) - 1)
        is_held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    train, held_out = (
        replace(files, paths=tuple(files.paths[i] for i in chosen), labels=tuple(files.labels[i] for i in chosen))
        for chosen in ((~is_held_out).nonzero().flatten().tolist(), is_held_out.nonzero().flatten().tolist())
    )
    return train, replace(held_out, notes=())
