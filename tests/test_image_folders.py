"""Pictures as files of other people have them: pixel modes, EXIF, links, odd files, folders that are not divided."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from mobilenas.data import check_batch, load_data
from mobilenas.data.pictures import read_rgb
from mobilenas.errors import DocumentError, MissingDataError, UsageError

GENERATOR = np.random.default_rng(0)
RGB = GENERATOR.integers(0, 256, (6, 5, 3), dtype=np.uint8)
RED = np.full((4, 4, 3), (255, 0, 0), np.uint8)


def read(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    """What the pixels ``(H, W, 3)`` of ``image``, saved as ``path``, are read as."""
    image.save(path, **options)
    return read_rgb(str(path)).permute(1, 2, 0).numpy()


def folder(root: Path, counts: dict[str, int]) -> Path:
    """Small pictures, so many in each folder below ``root``."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(RGB).save(root / name / f"{index}.png")
    return root


def divided(root: Path) -> Path:
    return folder(root, {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/dog": 2})


# ---- pixel modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_modes_are_converted_to_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert(mode)
    assert np.array_equal(read(image, tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "tif"), ("YCbCr", "tif"), ("CMYK", "jpg"), ("LAB", "tif")])
def test_colour_spaces_give_the_colour_they_name(mode: str, ending: str, tmp_path: Path) -> None:
    image = Image.fromarray(RED)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    found = read(image if mode == "LAB" else image.convert(mode), tmp_path / f"a.{ending}")
    assert np.abs(found.astype(int) - RED).max() <= 8


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_in_any_byte_order(dtype: str, ending: str, tmp_path: Path) -> None:
    values = np.array([[0, 1, 128, 129, 256, 32768, 65407, 65535]], np.uint16)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    image = Image.frombytes(mode, (8, 1), values.astype(dtype).tobytes())
    assert read(image, tmp_path / f"a.{ending}")[0, :, 0].tolist() == np.round(values[0] / 257).astype(int).tolist()


def test_sixteen_bits_of_a_portable_greymap(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    assert read_rgb(str(tmp_path / "a.pgm"))[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
    ],
)
def test_transparency_is_laid_over_white(mode: str, pixel: tuple, expected: tuple, tmp_path: Path) -> None:
    assert tuple(read(Image.new(mode, (2, 2), pixel), tmp_path / "a.png")[0, 0]) == expected


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7)), ("P", 7), ("I;16", 7)])
def test_a_transparent_colour_is_white(mode: str, key: object, tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1), key)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 9)
    found = read(image, tmp_path / "a.png", transparency=key)
    assert (found[0, 0] == 255).all()
    assert (found[0, 1] < 255).all()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "pixel mode F"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "pixel mode I "),
        (Image.fromarray(np.full((4, 4), 70, np.int32)), "pixel mode I "),
    ],
    ids=["floats", "integers", "small integers"],
)
def test_a_mode_without_a_known_range_is_refused_by_name(image: Image.Image, said: str, tmp_path: Path) -> None:
    root = divided(tmp_path)
    image.save(root / "train" / "cat" / "a.tif")
    with pytest.raises(DocumentError, match=f"1 of 7 .*a.tif: {said}"):
        len(load_data("image-folder", root, 32).train)
    with pytest.raises(DocumentError, match=said):
        read_rgb(str(root / "train" / "cat" / "a.tif"))


def test_white_as_zero_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="white as zero"):
        read(Image.new("I;16", (2, 2)), tmp_path / "a.tif", tiffinfo={262: 0})


# ---- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("ending", "mode"), [("png", "RGB"), ("tif", "RGB"), ("webp", "RGB"), ("png", "I;16")])
def test_exif_orientation_is_obeyed(ending: str, mode: str, orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(RGB) if mode == "RGB" else Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 257)
    tags = image.getexif()
    tags[0x0112] = orientation
    found = read(image, tmp_path / f"a.{ending}", exif=tags, **({"lossless": True} if ending == "webp" else {}))
    with Image.open(tmp_path / f"a.{ending}") as saved:
        expected = ImageOps.exif_transpose(saved)
        assert expected.size == ((5, 6) if orientation < 5 else (6, 5))
        assert np.array_equal(found[:, :, 0], np.asarray(expected)[..., 0] if mode == "RGB" else np.asarray(expected) // 257)


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :12] = 250
    image = Image.fromarray(pixels)
    tags = image.getexif()
    tags[0x0112] = 6
    found = read(image, tmp_path / "a.jpg", exif=tags, quality=95)
    assert found.shape == (64, 40, 3)
    assert found[:10].min() > 200 > 50 > found[14:].max(), "the bright stripe is at the top"


# ---- what is not read, links, several pictures -----------------------------------------------------------------------


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    root = divided(tmp_path)
    for name in ("a.heic", "b.heic", "notes.txt", "README", "._0.png", ".hidden.png"):
        (root / "train" / "cat" / name).write_bytes(b"x")
    (root / "train" / "stray.png").write_bytes(b"x")
    os.mkfifo(root / "train" / "dog" / "pipe.png")
    (root / "train" / "dog" / "gone.png").symlink_to("nowhere.png")
    hidden = root / "train" / "cat" / ".thumbnails"
    hidden.mkdir()
    shutil.copy(root / "train" / "cat" / "0.png", hidden)
    data = load_data("image-folder", root, 32)
    assert (len(data.train), len(data.test)) == (6, 4)
    [note] = data.notes
    assert "7 entries are not read: 2 .heic, 2 broken links or no regular files" in note
    assert "1 .txt" in note
    assert "1 outside the class folders" in note
    assert "1 without a known ending" in note
    assert data.reduced(0.5, 0).notes == data.notes


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root, pool = divided(tmp_path / "data"), folder(tmp_path / "pool", {"more": 2, "bird": 2})
    (root / "train" / "cat" / "linked").symlink_to(pool / "more")
    (root / "train" / "cat" / "again").symlink_to(pool / "more")
    (root / "train" / "cat" / "one.png").symlink_to(pool / "bird" / "0.png")
    (root / "train" / "cat" / "up").symlink_to("..")
    (root / "train" / "cat" / "self").symlink_to("self")
    for part in ("train", "val"):
        (root / part / "bird").symlink_to(pool / "bird")
    data = load_data("image-folder", root, 32)
    assert data.class_names == ("bird", "cat", "dog")
    assert [data.train.source.labels.count(label) for label in range(3)] == [2, 6, 3]
    assert "2 links to a folder that is read already or lies above" in data.notes[0]


def test_the_first_of_several_pictures_is_read_and_said(tmp_path: Path) -> None:
    root = divided(tmp_path)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(root / "val" / "cat" / "a.gif", save_all=True, append_images=frames[1:])
    data = load_data("image-folder", root, 32)
    assert read_rgb(str(root / "val" / "cat" / "a.gif"))[:, 0, 0].tolist() == [255, 0, 0]
    assert [note.partition(": ")[2] for note in data.notes] == ["1 files hold several pictures; the first of each is read"]


def test_a_document_that_calls_itself_a_picture_is_not_opened(tmp_path: Path) -> None:
    root = divided(tmp_path)
    (root / "train" / "cat" / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(DocumentError, match=r"1 of 7 .*a\.jpg"):
        len(load_data("image-folder", root, 32).train)


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user for whom folders can be locked")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1, "train/cat/locked": 1})
    (root / "train" / "cat" / "locked").chmod(0)
    with pytest.raises(DocumentError, match="locked"):
        len(load_data("image-folder", root, 32).train)


# ---- a share for validation ------------------------------------------------------------------------------------------


def test_a_share_of_each_class_is_for_validation(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 10, "dog": 5, "eel": 2})
    data = load_data("image-folder", root, 32, split=0.2, seed=1)
    train, test = data.train.source, data.test.source
    assert [test.labels.count(label) for label in range(3)] == [2, 1, 1]
    assert sorted((*train.paths, *test.paths)) == sorted(str(path) for path in root.rglob("*.png"))
    again, other = (load_data("image-folder", root, 32, split=0.2, seed=seed) for seed in (1, 2))
    assert again.digest() == data.digest() != other.digest()
    assert again.test.source.paths == test.paths != other.test.source.paths


def test_a_class_of_one_image_cannot_be_divided(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 3, "dog": 1})
    with pytest.raises(DocumentError, match="class dog has 1 image"):
        len(load_data("image-folder", root, 32, split=0.5).train)


def test_what_is_divided_already_is_not_divided_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.split is 0\.2.*leave data\.split out"):
        load_data("image-folder", divided(tmp_path), 32, split=0.2)
    with pytest.raises(UsageError, match=r"data\.split is 0\.2; digits has test images"):
        load_data("digits", split=0.2)


def test_a_folder_that_is_not_divided_says_what_to_say(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 3, "dog": 3})
    with pytest.raises(MissingDataError, match=r"class folders only \(cat, dog\): say --set data\.split=0\.2"):
        load_data("image-folder", root, 32)
    assert len(load_data("image-folder", root, 32, split=0.2).train) == 4
    shutil.move(str(root / "cat"), root / "train" / "cat")
    shutil.move(str(root / "dog"), root / "train" / "dog")
    with pytest.raises(MissingDataError, match=rf"--set data\.root={root / 'train'} --set data\.split=0\.2"):
        len(load_data("image-folder", root, 32).train)
    assert len(load_data("image-folder", root / "train", 32, split=0.2).train) == 4


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_impossible_says_what_made_it_so() -> None:
    digits = load_data("digits")
    few = digits.reduced(2 / len(digits.train), 0)
    for half in few.halves(0):
        with pytest.raises(UsageError) as error:
            check_batch(half, 1024)
        for said in ("no batch is possible", "of 1,437 training images", "train_fraction leaves 2", "1 are in this part"):
            assert said in str(error.value)
        assert "--set data.train_fraction=1 --set data.batch=718" in str(error.value)
    with pytest.raises(UsageError, match=r"at most 718, as of 1,437.*--set data.batch=718"):
        check_batch(digits.halves(0)[0], 1024)
    with pytest.raises(UsageError, match=r"at most 1437, as there are 1,437 training images\. Say --set data.batch=1436"):
        check_batch(digits.train, 1500, processes=4)
    with pytest.raises(UsageError, match="Add images"):
        check_batch(digits.train.subset(torch.arange(1)), 4)
