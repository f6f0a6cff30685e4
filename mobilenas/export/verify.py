"""Do the numbers agree? The same inputs through torch and through the runtime that will serve the model."""

from __future__ import annotations

import msgspec
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from mobilenas.errors import VerificationError
from mobilenas.onnx_model import INPUT_NAME


class Agreement(msgspec.Struct, frozen=True):
    """How an exported model compares with the module it came from."""

    inputs: int
    maximum_difference: float
    """Largest difference of any logit."""
    relative_difference: float
    """The same, relative to the largest logit."""
    top_1_agreement_fraction: float


def compare(module: nn.Module, model: bytes, images: Tensor, tolerance: float) -> Agreement:
    """Run ``images (N, C, H, W)`` one by one through both; raises ``VerificationError`` above ``tolerance``."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    module.eval()
    with torch.no_grad():
        expected = np.concatenate([module(image[None]).numpy() for image in images])
    actual = np.concatenate([session.run(None, {INPUT_NAME: image[None].numpy()})[0] for image in images])
    difference = np.abs(expected - actual)
    agreement = Agreement(
        inputs=len(images),
        maximum_difference=float(difference.max()),
        relative_difference=float(difference.max() / np.abs(expected).max()),
        top_1_agreement_fraction=float((expected.argmax(1) == actual.argmax(1)).mean()),
    )
    if not agreement.relative_difference <= tolerance:
        worst = int(difference.max(axis=1).argmax())
        raise VerificationError(
            f"the exported model differs from torch by {agreement.maximum_difference:.3g} "
            f"({agreement.relative_difference:.2g} of the largest logit; allowed {tolerance:.2g}) on test image {worst}"
        )
    return agreement
