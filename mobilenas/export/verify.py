"""Do the numbers agree? The same inputs through torch and through the engine that will serve the model."""

from __future__ import annotations

import math

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
    maximum_difference: float | None
    """Largest difference of any logit; ``None`` if a logit is no number."""
    relative_difference: float | None
    """The same, relative to the largest logit."""
    top_1_agreement_fraction: float
    tolerance: float
    """Largest relative difference that is allowed."""
    torch_accuracy: float | None = None
    accuracy: float | None = None
    """Share of these images whose class is right, by torch and by the model; ``None`` where classes are not known."""

    @property
    def is_within(self) -> bool:
        """Whether no logit is further off than allowed; not if one is no number."""
        return self.relative_difference is not None and self.relative_difference <= self.tolerance

    def check(self, what: str) -> None:
        """Raise ``VerificationError`` if a logit is further off than allowed."""
        if not self.is_within:
            off = "makes logits that are no numbers"
            if self.maximum_difference is not None:
                largest = f"{self.relative_difference:.2g} of the largest logit; allowed {self.tolerance:.2g}"
                off = f"differs from torch by {self.maximum_difference:.3g} ({largest})"
            raise VerificationError(
                f"{what} {off}, same class for {self.top_1_agreement_fraction:.0%} of {self.inputs} images: its files are "
                "called unverified"
            )


def logits_of(module: nn.Module, images: Tensor, batch: int) -> np.ndarray:
    """``(N, classes)`` of ``images (N, C, H, W)``, ``batch`` at a time."""
    module.eval()
    with torch.no_grad():
        return np.concatenate([module(part).numpy() for part in _parts(images, batch)])


def onnx_logits_of(model: bytes, images: Tensor, batch: int) -> np.ndarray:
    """The same by ONNX Runtime, in this process."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT_NAME: part.numpy()})[0] for part in _parts(images, batch)])


def _parts(images: Tensor, batch: int) -> list[Tensor]:
    return [images[start : start + batch] for start in range(0, len(images), batch)]


def compare(expected: np.ndarray, found: np.ndarray, tolerance: float, labels: np.ndarray | None = None) -> Agreement:
    """Of logits ``(N, classes)``; ``labels`` ``(N,)`` are the right classes."""
    difference, largest = float(np.abs(expected - found).max()), float(np.abs(expected).max())
    is_number = math.isfinite(difference)
    return Agreement(
        inputs=len(expected),
        maximum_difference=difference if is_number else None,
        relative_difference=(difference / largest if largest else difference) if is_number else None,
        top_1_agreement_fraction=float((expected.argmax(1) == found.argmax(1)).mean()),
        tolerance=tolerance,
        torch_accuracy=None if labels is None else float((expected.argmax(1) == labels).mean()),
        accuracy=None if labels is None else float((found.argmax(1) == labels).mean()),
    )
