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


def compare(module: nn.Module, model: bytes, images: Tensor, tolerance: float, batch: int = 1) -> Agreement:
    """Run ``images (N, C, H, W)`` through both, ``batch`` at a time; raises ``VerificationError`` above ``tolerance``."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    module.eval()
    with torch.no_grad():
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        expected = np.concatenate([module(part).numpy() for part in parts])
    actual = np.concatenate([session.run(None, {INPUT_NAME: part.numpy()})[0] for part in parts])
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
