import hashlib
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenas import data
from mobilenas.data import Cutout, CyclingLoader, DeviceLoader, Shift, load_data, sets
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError, UnknownNameError, UsageError


def test_digits_are_split_into_disjoint_halves_and_a_test_set() -> None:
    digits = load_data("digits")
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.class_names) == 10
    halves = digits.halves(seed=0)
    assert sum(len(half) for half in halves) == len(digits.train)
    together = torch.cat([half.indices for half in halves]).sort().values
    assert torch.equal(together, torch.arange(len(digits.train)))
    assert not torch.equal(halves[0].indices[:20], digits.halves(seed=1)[0].indices[:20])


def test_preprocessing_facts_reproduce_what_the_test_images_are() -> None:
    digits = load_data("digits")
    facts = digits.preprocessing
    pixels, label = digits.test.source.read(3)
    expected = (pixels.float() / 255 - facts.mean[0]) / facts.std[0]
    assert digits.test[3][1] == label
    assert torch.allclose(digits.test[3][0], expected, atol=1e-6)


def test_cutout_blanks_at_most_its_square() -> None:
    image = torch.ones(1, 8, 8)
    torch.manual_seed(0)
    blanked = [int((data.Cutout(2)(image) == 0).sum()) for _ in range(50)]
    assert max(blanked) == 4
    assert min(blanked) >= 1
    assert image.min() == 1


def test_loader_goes_on_with_the_very_next_batch() -> None:
    images = load_data("digits").test
    loader = CyclingLoader(images, 100, seed=3)
    for _ in range(5):  # into the second pass
        loader.next()
    resumed = CyclingLoader(images, 100, seed=3)
    resumed.load_state(loader.state())
    for _ in range(4):
        for tensor, again in zip(loader.next(), resumed.next(), strict=True):
            assert torch.equal(tensor, again)


def test_workers_and_interruptions_change_no_batch_and_no_random_state() -> None:
    images = load_data("digits").train
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plain, several = CyclingLoader(images, 400, seed=3), CyclingLoader(images, 400, seed=3, workers=2)
    for step in range(7):
        if step == 4:  # in mid-pass
            resumed = CyclingLoader(images, 400, seed=3, workers=1)
            resumed.load_state(several.state())
            several = resumed
        for tensor, again in zip(plain.next(), several.next(), strict=True):
            assert torch.equal(tensor, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_pass_has_its_own_order_and_augmentation() -> None:
    images = load_data("digits").train
    loader = CyclingLoader(images, len(images), seed=0)
    first, second = loader.next(), loader.next()
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[1].sort().values, second[1].sort().values)
    sums = [images.flatten(1).sum(1).sort().values for images, _ in (first, second)]
    assert not torch.allclose(*sums), "the same crops in both passes"


def test_bad_names_and_sizes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_data("digit")
    with pytest.raises(UsageError, match="batch"):
        CyclingLoader(load_data("digits").test, 10_000, seed=0)


@pytest.mark.skipif(not list(sets._DEBIAN_FASHION_MNIST.glob("*.gz")), reason="needs the Debian package dataset-fashion-mnist")
def test_fashion_mnist_from_debians_files(tmp_path: Path) -> None:
    fashion = load_data("fashion-mnist", tmp_path)
    assert (len(fashion.train), len(fashion.test)) == (60_000, 10_000)
    assert fashion.preprocessing.image_size == 28
    image, label = fashion.train[0]
    assert image.shape == (1, 28, 28)
    assert 0 <= label < 10


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    def refuse(self: FashionMNIST) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(sets, "_DEBIAN_FASHION_MNIST", tmp_path)
    monkeypatch.setattr(FashionMNIST, "download", refuse)
    with pytest.raises(MissingDataError, match="dataset-fashion-mnist"):
        len(load_data("fashion-mnist", tmp_path / "data").train)


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "cifar100"])
def test_facts_are_known_without_the_images(name: str, tmp_path: Path) -> None:
    facts = load_data(name, tmp_path)
    assert len(facts.class_names) == len(set(facts.class_names)) == (100 if name == "cifar100" else 10)
    assert len(facts.preprocessing.mean) == len(facts.preprocessing.std) == facts.preprocessing.channels
    assert not list(tmp_path.iterdir())


def test_statistics_are_those_of_the_training_images() -> None:
    digits = load_data("digits")
    pixels = torch.stack([digits.train.source.read(index)[0] for index in range(len(digits.train))]).float() / 255
    assert float(pixels.mean()) == pytest.approx(digits.preprocessing.mean[0], abs=1e-4)
    assert float(pixels.std()) == pytest.approx(digits.preprocessing.std[0], abs=1e-4)


def test_a_share_of_the_training_images() -> None:
    digits = load_data("digits")
    reduced = digits.reduced(0.25, seed=1)
    assert len(reduced.train) == round(0.25 * len(digits.train))
    assert len(reduced.test) == len(digits.test)
    with pytest.raises(UsageError, match="train_fraction"):
        digits.reduced(0.0, seed=1)


def cifar10_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few random images in the published format, with the checksums that torchvision is to expect."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def entry(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch() -> dict[str, object]:
        return {"data": generator.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}

    monkeypatch.setattr(CIFAR10, "train_list", [entry(f"data_batch_{i}", batch()) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [entry("test_batch", batch())])
    name, md5 = entry("batches.meta", {"label_names": load_data("cifar10", root).class_names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder


def test_cifar10_in_its_published_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar10_files(tmp_path, monkeypatch)
    data = load_data("cifar10", tmp_path)
    assert (len(data.train), len(data.test)) == (20, 4)
    image, label = data.train[3]
    assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.float32, 9)
    raw = pickle.loads((folder / "test_batch").read_bytes())["data"][0].reshape(3, 32, 32)
    assert torch.equal(data.test.source.read(0)[0], torch.as_tensor(raw)), "channels first, red plane first"


def test_damaged_or_missing_cifar_says_which_file_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def refuse(self: CIFAR10) -> None:
        raise RuntimeError("no network")

    folder = cifar10_files(tmp_path, monkeypatch)
    monkeypatch.setattr(CIFAR10, "download", refuse)
    (folder / "data_batch_2").write_bytes(b"x")
    with pytest.raises(MissingDataError, match=r"damaged \(data_batch_2\).*unpack"):
        len(load_data("cifar10", tmp_path).train)
    with pytest.raises(MissingDataError, match=r"missing.*cifar-10-python"):
        len(load_data("cifar10", tmp_path / "elsewhere").train)


def image_folder(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.{'png' if index else 'jpg'}")
    return root


def test_image_folder(tmp_path: Path) -> None:
    data = load_data("image-folder", image_folder(tmp_path), 32)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (6, 4)
    assert [data.test[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 32, 32)
    assert torch.equal(data.test[1][0], data.test[1][0]), "test images are not augmented"


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b"nonsense"), DocumentError, r"1 of 6 .*cat/1\.png"),
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b""), DocumentError, r"1 of 6 .*cat/1\.png"),
        (lambda root: shutil.rmtree(root / "val"), MissingDataError, "val is not a folder"),
        (lambda root: shutil.rmtree(root / "train"), MissingDataError, "train is not a folder.*data.root"),
        (lambda root: (root / "val" / "dog").rename(root / "val" / "dogs"), DocumentError, "without dog; with dogs"),
        (lambda root: [p.unlink() for p in (root / "val" / "dog").iterdir()], MissingDataError, "dog holds no image"),
    ],
)
def test_a_bad_image_folder_is_named(tmp_path: Path, spoil: Any, kind: type[Exception], said: str) -> None:
    root = image_folder(tmp_path)
    spoil(root)
    with pytest.raises(kind, match=said):
        data = load_data("image-folder", root, 32)
        len(data.train)


def png_header(width: int, height: int) -> bytes:
    """A file that says it is a grey image of this size."""
    facts = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", facts), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = (struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_an_image_far_too_large_is_named_before_it_is_decoded(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    file = root / "train" / "cat" / "1.png"
    file.write_bytes(png_header(60_000, 60_000))
    with pytest.raises(DocumentError, match=r"1 of 6 .*cat/1\.png.*3600000000 pixels"):
        len(load_data("image-folder", root, 32).train)
    with pytest.raises(DocumentError, match=r"cat/1\.png.*3600000000 pixels"):
        data.InFiles((str(file),), (0,)).read(0)


def test_a_large_photograph_is_an_image(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "train" / "cat" / "1.png").write_bytes(png_header(10_000, 10_000))
    assert len(load_data("image-folder", root, 32).train) == 6, "and no warning, which would be an error here"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    image = os.fsencode(root / "train" / "cat" / "1.png")
    os.rename(image, image.replace(b"1.png", b"\xff.png"))
    assert load_data("image-folder", root, 32).digest()
    os.rename(root / "train" / "cat", os.fsencode(root / "train") + b"/\xff")
    with pytest.raises(DocumentError, match=r"class folder .*not UTF-8"):
        load_data("image-folder", root, 32)


def test_a_truncated_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    file = root / "train" / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:900])
    data = load_data("image-folder", root, 32)
    with pytest.raises(DocumentError, match=r"cat/1\.png: not a whole image"):
        data.train[1]


def test_an_image_size_is_only_for_image_folders() -> None:
    with pytest.raises(UsageError, match=r"data\.image_size is 32; digits has images of 8"):
        load_data("digits", image_size=32)


def test_a_truncated_image_is_named_by_a_worker_too(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    file = root / "train" / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:900])
    for workers in (0, 2):
        loader = CyclingLoader(load_data("image-folder", root, 32).train, 6, seed=0, workers=workers)
        with pytest.raises(DocumentError) as error:
            loader.next()
        assert str(error.value).startswith(str(file)), "one line, no traceback of a worker"
        assert "\n" not in str(error.value)


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    ramp = (np.arange(40 * 40, dtype=np.uint32).reshape(40, 40) * 65535 // 1599).astype(np.uint16)
    Image.fromarray(ramp).save(root / "train" / "cat" / "0.png")
    (root / "train" / "cat" / "0.jpg").unlink()
    source = load_data("image-folder", root, 32).train.source
    pixels, _ = source.read(0)
    assert pixels.shape == (3, 40, 40)
    assert torch.equal(pixels[0], torch.as_tensor(np.round(ramp / 257).astype(np.uint8)))


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    assert load_data("image-folder", root, 32).class_names == ("cat", "dog")


def test_a_batch_on_the_device_is_what_each_of_its_images_may_become_alone() -> None:
    pixels = torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8)
    shift = Shift(padding=2, flip=True)
    shifted = shift.of_batch(pixels, torch.Generator().manual_seed(0))
    drawn = set()
    for image, found in zip(pixels, shifted, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        possible = {
            (top, left, flip): window.flip(-1) if flip else window
            for top in range(5) for left in range(5) for flip in (False, True)
            for window in [padded[:, top : top + 6, left : left + 5]]
        }  # fmt: skip
        [key] = [key for key, window in possible.items() if torch.equal(window, found)]
        drawn.add(key)
    assert len(drawn) > 20, "each its own way"
    assert torch.equal(Shift(0, flip=False).of_batch(pixels, torch.Generator()), pixels)


def test_cutout_of_a_batch_blanks_a_square_of_each() -> None:
    torch.manual_seed(0)
    ones = torch.ones(1000, 1, 9, 7)
    cut = Cutout(4).of_batch(ones, torch.Generator().manual_seed(0))
    alone = [Cutout(4)(image) for image in ones]
    for image in cut[:50]:
        rows, columns = (image[0] == 0).any(1).nonzero().flatten(), (image[0] == 0).any(0).nonzero().flatten()
        assert (image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
        assert int((image == 0).sum()) == len(rows) * len(columns)
    counts = [set((images == 0).sum(dim=(1, 2, 3)).tolist()) for images in (cut, torch.stack(alone))]
    assert counts[0] == counts[1] == {4, 6, 8, 9, 12, 16}
    assert float(cut.mean()) == pytest.approx(float(torch.stack(alone).mean()), abs=0.02)


def test_a_loader_on_the_device_goes_on_with_the_very_next_batch_and_shares_it_among_processes() -> None:
    images = load_data("digits").for_training(cutout=True)
    loader = DeviceLoader(images, 100, 3, torch.device("cpu"))
    batches = [loader.next() for _ in range(2 * len(loader) + 3)]
    resumed = DeviceLoader(images, 100, 3, torch.device("cpu"))
    resumed.load_state({"pass": 1, "position": 4})
    halves = [DeviceLoader(images, 100, 3, torch.device("cpu"), part) for part in (slice(0, 50), slice(50, 100))]
    for number, (pixels, labels) in enumerate(batches):
        parts = [half.next() for half in halves]
        assert torch.equal(torch.cat([part[0] for part in parts]), pixels)
        if number >= len(loader) + 4:
            again = resumed.next()
            assert torch.equal(again[0], pixels)
            assert torch.equal(again[1], labels)
    plain = CyclingLoader(images, 100, 3)
    assert all(torch.equal(plain.next()[1], labels) for _, labels in batches), "the same images in the same order"
    assert pixels.dtype == torch.float32
    first = torch.cat([pixels for pixels, _ in batches[: len(loader)]])
    passed = torch.cat([plain.next()[0] for _ in range(len(plain))])
    assert float(first.mean()) == pytest.approx(float(passed.mean()), abs=0.02)
    assert float(first.std()) == pytest.approx(float(passed.std()), abs=0.02)
    reduced = load_data("digits").reduced(0.5, seed=1).train
    assert len(DeviceLoader(reduced, 10, 0, torch.device("cpu"))) == len(reduced) // 10


def test_what_cannot_live_on_the_device_is_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"data\.on_device"):
        DeviceLoader(load_data("digits").for_training(False, (0.4, 0.4, 0.4, 0.1)), 100, 3, torch.device("cpu"))
