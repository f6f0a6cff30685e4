"""``mobilenas train``: an architecture is trained from scratch."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import torch

from mobilenas import config
from mobilenas.config import TrainConfig
from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import check_batch, synthetic_data
from mobilenas.errors import DivergedError
from mobilenas.results import TrainPlan, TrainResult
from mobilenas.search.checkpoints import not_finite, save_tensors
from mobilenas.search.parts import check_parts, told_where_memory_runs_out
from mobilenas.search.processes import Processes
from mobilenas.search.retrain import Trainer, TrainReport
from mobilenas.search.task import Classification
from mobilenas.workflows.launch import MAY_DIFFER, end_if_not_first, local_rank, processes_of, writing
from mobilenas.workflows.naming import (
    ARCHITECTURE,
    RESULT,
    WEIGHTS,
    Listener,
    Silent,
    check_data_fits,
    data_from_config,
    default_run,
    fabric_from_config,
    facts_of,
    space_of,
    train_settings,
)

SYNTHETIC_IMAGES = 1024
"""At least: one batch of them."""
ON_NOISE = "train-on-noise"
"""Folder of trainings that tell nothing of the network but its speed: no command takes their weights."""


def train(run: Path, cfg: TrainConfig, listener: Listener | None = None) -> TrainResult:
    """Train the architecture of ``run`` from scratch into ``run/train``; on noise, for its speed only, beside it.

    Of several processes the first one writes and returns; the others end here with ``SystemExit``.
    """
    with processes_of("train", cfg, run) as processes:
        return _train(run, cfg, (processes.is_first and listener) or Silent(), processes)


def train_plan(architecture: Architecture, cfg: TrainConfig) -> TrainPlan:
    """What ``train`` would do, and the memory it would take; nothing is trained or written."""
    trainer = _trainer(architecture, default_run("train"), cfg, Silent(), Processes())
    check_batch(trainer.data.train, cfg.data.batch, cfg.compute.devices)
    own = cfg.data.batch // cfg.compute.devices
    check_parts(cfg.compute.accumulate, own)
    images = -(-own // cfg.compute.accumulate)
    return TrainPlan(
        fingerprint=architecture.fingerprint,
        images=len(trainer.data.train),
        epochs=cfg.epochs,
        batch=cfg.data.batch,
        parts=cfg.compute.accumulate,
        memory=trainer.memory_of(images),
    )


def _trainer(architecture: Architecture, run: Path, cfg: TrainConfig, told: Listener, processes: Processes) -> Trainer:
    """What trains ``architecture`` into ``run``, before its first step."""
    space = space_of(architecture)
    if cfg.synthetic:
        classes = space.options["classes"]
        assert isinstance(classes, int)
        data = synthetic_data(space.image_shape, classes, max(SYNTHETIC_IMAGES, cfg.data.batch))
    else:
        data = data_from_config(cfg.data, cfg.seed)
    check_data_fits(space, data)
    torch.manual_seed(cfg.seed)
    network = space.build(architecture, auxiliary=cfg.auxiliary_weight > 0)
    fabric = fabric_from_config(cfg.compute, local_rank())
    check_batch(data.train, cfg.data.batch, processes.size)

    def on_epoch(report: TrainReport) -> None:
        told.progress("training", report.epoch + 1, report.epochs)
        told.note(
            f"epoch {report.epoch + 1}/{report.epochs}: cross entropy {report.train_cross_entropy:.3f}, "
            f"test accuracy {report.test_accuracy:.1%}, {report.images_per_s:.0f} images/s"
        )

    return Trainer(
        network=network,
        data=data,
        task=Classification(cfg.label_smoothing),
        settings=train_settings(cfg, cfg.seed),
        fabric=fabric,
        directory=RunDirectory(run / (ON_NOISE if cfg.synthetic else "train")),
        processes=processes,
        on_epoch=on_epoch,
        on_note=told.note,
    )


def _train(run: Path, cfg: TrainConfig, told: Listener, processes: Processes) -> TrainResult:
    begin = time.monotonic()
    architecture = Architecture.load(run / ARCHITECTURE)
    with told_where_memory_runs_out():
        trainer = _trainer(architecture, run, cfg, told, processes)
    directory = trainer.directory
    facts = facts_of(trainer.data, told)
    inputs = {"architecture": architecture.fingerprint, "data.root": facts.digest}
    with writing(processes, directory, config.dump_config(cfg), inputs, MAY_DIFFER):
        with told_where_memory_runs_out():
            report = trainer.run()
        end_if_not_first(processes)
        weights = directory.path / WEIGHTS
        tensors = {k: v for k, v in trainer.trained.state_dict().items() if not k.startswith("auxiliary.")}
        if bad := not_finite(tensors):
            raise DivergedError(
                f"after {cfg.epochs} epochs {len(bad)} tensors of the network hold numbers that are not finite, the first one "
                f"{bad[0]}; they are not written: train again with a lower weights.lr, now {cfg.weights.lr:g}"
            )
        sha256 = save_tensors(weights, tensors, {"fingerprint": architecture.fingerprint})
        result = TrainResult(
            weights=str(weights),
            sha256=sha256,
            fingerprint=architecture.fingerprint,
            test_accuracy=report.test_accuracy,
            top_5_accuracy=report.top_5_accuracy,
            train_accuracy=report.train_accuracy,
            epochs=cfg.epochs,
            duration_s=time.monotonic() - begin,
            data=facts,
        )
        directory.write_document(RESULT, {"schema": "mobilenas/train-result@1", **msgspec.to_builtins(result)})
    return result
