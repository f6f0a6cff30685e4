"""``mobilenas evaluate``: a trained network on test images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from mobilenas import config
from mobilenas.config import EvaluateConfig, TrainConfig
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.text import shell_command
from mobilenas.errors import MissingDataError, VerificationError
from mobilenas.results import EvaluateResult
from mobilenas.workflows.naming import (
    ARCHITECTURE,
    WEIGHTS,
    Listener,
    Silent,
    check_data_fits,
    data_from_config,
    fabric_from_config,
    facts_of,
    network_of,
    space_of,
)


def evaluate(run: Path, cfg: EvaluateConfig, listener: Listener | None = None) -> EvaluateResult:
    """Test the weights of ``run/train``. Raises ``MissingDataError`` if the run was not trained, and ``VerificationError``
    where the network computes numbers that are not finite.
    """
    told = listener or Silent()
    weights, trained_with = run / "train" / WEIGHTS, run / "train" / "config.toml"
    if not weights.exists():
        raise MissingDataError(
            f"{weights}: no such file: train the network first ({shell_command(['mobilenas', 'train', str(run)])})"
        )
    architecture = Architecture.load(run / ARCHITECTURE)
    space = space_of(architecture)
    documents.read_text(trained_with)
    trained = config.load_config(TrainConfig, trained_with, [], {})
    data = data_from_config(config.overridden(trained.data, cfg.data), trained.seed)
    check_data_fits(space, data)
    facts = facts_of(data, told)
    network, _ = network_of(run, space, architecture)
    fabric = fabric_from_config(cfg.compute)
    fabric.to_device(network)
    loader = DataLoader(data.test, cfg.batch, num_workers=trained.data.workers)
    logits, labels = [], []
    with torch.no_grad():
        for index, (images, some) in enumerate(loader):
            told.progress("evaluating", index, len(loader))
            logits.append(network(fabric.to_device(images)).cpu())
            labels.append(some)
    outputs, truth = torch.cat(logits), torch.cat(labels)
    is_finite = outputs.isfinite().all(dim=1)
    if not is_finite.all():
        raise VerificationError(
            f"{weights}: the network computes logits that are not finite for {int((~is_finite).sum())} of {len(truth)} test "
            f"images of {data.name}, so it has no accuracy: train it again, with a lower weights.lr if that happens again"
        )
    hits = outputs.argmax(1) == truth
    by_class = {label: float(hits[truth == label].float().mean()) for label in sorted(set(truth.tolist()))}
    worst = min(by_class, key=lambda label: by_class[label])
    top_5 = (outputs.topk(5).indices == truth[:, None]).any(1).float().mean() if len(data.class_names) > 5 else None
    return EvaluateResult(
        weights=str(weights),
        data=data.name,
        images=len(truth),
        accuracy=float(hits.float().mean()),
        top_5_accuracy=None if top_5 is None else float(top_5),
        cross_entropy=float(functional.cross_entropy(outputs, truth)),
        worst_class=data.class_names[worst],
        worst_class_accuracy=by_class[worst],
        data_set=facts,
    )
