"""Random mobile networks: reproducible, of all blocks, and each runs in the engine."""

import random

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mobilenas import onnx_model
from mobilenas.network import count_madds, count_params
from mobilenas.profiling import networks
from mobilenas.profiling.networks import ACTIVATIONS, BLOCKS, MobileNetworks, random_network


def test_an_architecture_is_its_seed() -> None:
    source = MobileNetworks()
    one, other = (source.draw(random.Random(seed)) for seed in (1, 2))
    assert source.model_for_timing(one) == source.model_for_lowering(one)
    assert one != other
    assert source.madds(one) != source.madds(other)


def test_a_batch_is_in_the_model() -> None:
    source = MobileNetworks(batch=4)
    architecture = source.draw(random.Random(0))
    shape = onnx.load_from_string(source.model_for_timing(architecture)).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 4
    assert source.key == "mobile-networks-b4"


def test_networks_are_small_enough_to_be_mobile() -> None:
    madds = []
    for seed in range(40):
        with torch.device("meta"):
            module, image_size = random_network(random.Random(seed))
        madds.append(count_madds(module, (1, 3, image_size, image_size)))
    assert 2e7 < sorted(madds)[20] < 1e9


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_block_has_the_shape_that_it_was_asked_for(kind: str, activation: str) -> None:
    generator = random.Random(0)
    for before, after, stride in ((16, 16, 1), (16, 24, 2), (10, 26, 1), (6, 22, 2), (8, 8, 1)):
        block = BLOCKS[kind](generator, before, after, stride, ACTIVATIONS[activation]).eval()
        with torch.no_grad():
            _, channels, height, _ = block(torch.zeros(1, before, 12, 12)).shape
        assert channels == after
        assert height == 12 // stride


def test_what_torch_does_not_export_means_the_same_in_the_engine() -> None:
    """Sums of lists and normalisations over channels, as other frameworks write them."""
    layers = [nn.Conv2d(3, 12, 3), networks._Residual(nn.Conv2d(12, 12, 1), is_sum=True), networks._LocalResponseNorm()]
    module = nn.Sequential(*layers, networks._Affine(12)).eval()
    images = 5 * torch.randn(1, 3, 9, 9)
    model = onnx_model.slim(onnx_model.onnx_from_module(module, [images]))
    assert {"Sum", "LRN", "Mul", "Add"} <= {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [ours] = session.run(None, {onnx_model.INPUT_NAME: images.numpy()})
    with torch.no_grad():
        assert ours == pytest.approx(module(images).numpy(), abs=1e-5)


def test_half_of_the_networks_are_as_large_as_published_ones() -> None:
    with torch.device("meta"):
        mebibytes = sorted(count_params(random_network(random.Random(seed))[0]) / 2**18 for seed in range(60))
    assert mebibytes[12] < 2
    assert mebibytes[42] > 5


def test_campaigns_of_another_generator_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MobileNetworks().options
    monkeypatch.setattr(networks, "GENERATOR", networks.GENERATOR + 1)
    assert MobileNetworks().options != before, "options are part of a campaign's name"


def test_dense_layers_are_torchvisions() -> None:
    from torchvision.models.densenet import DenseNet

    torch.manual_seed(0)
    theirs = DenseNet(growth_rate=8, block_config=(3,), num_init_features=12).features.denseblock1.eval()
    ours = networks._DenseLayers(3, 12, 8).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(1, 12, 6, 6)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
