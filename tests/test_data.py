from pathlib import Path

import pytest
import torch

from mobilenas import data
from mobilenas.data import CyclingLoader, load_data
from mobilenas.errors import MissingDataError, UnknownNameError, UsageError


def test_digits_are_split_into_disjoint_halves_and_a_test_set() -> None:
    digits = load_data("digits")
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.class_names) == 10
    halves = digits.halves(seed=0)
    assert sum(len(half) for half in halves) == len(digits.train)
    together = torch.cat([half.pixels for half in halves]).flatten(1).sort(dim=0).values
    assert torch.equal(together, digits.train.pixels.flatten(1).sort(dim=0).values)
    assert not torch.equal(halves[0].pixels[:20], digits.halves(seed=1)[0].pixels[:20])


def test_preprocessing_facts_reproduce_what_the_test_images_are() -> None:
    digits = load_data("digits")
    facts = digits.preprocessing
    expected = (digits.test.pixels[3].float() / 255 - facts.mean[0]) / facts.std[0]
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
        assert torch.equal(loader.next()[1], resumed.next()[1])


def test_bad_names_and_sizes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_data("digit")
    with pytest.raises(UsageError, match="batch"):
        CyclingLoader(load_data("digits").test, 10_000, seed=0)


@pytest.mark.skipif(not list(data._DEBIAN_FASHION_MNIST.glob("*.gz")), reason="needs the Debian package dataset-fashion-mnist")
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

    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", tmp_path)
    monkeypatch.setattr(FashionMNIST, "download", refuse)
    with pytest.raises(MissingDataError, match="dataset-fashion-mnist"):
        load_data("fashion-mnist", tmp_path / "data")
