"""The composition root: the only place where names become objects. One function per command, callable from Python."""

from mobilenas.workflows.naming import (
    Listener,
    Silent,
    Target,
    data_from_config,
    default_run,
    search_config_of,
    space_from_config,
    space_of,
)
from mobilenas.workflows.run_describe import describe, draw, find_network, make_run, run_of
from mobilenas.workflows.run_evaluate import evaluate
from mobilenas.workflows.run_export import export
from mobilenas.workflows.run_measure import measure
from mobilenas.workflows.run_predict import predict
from mobilenas.workflows.run_profile import campaign_from_config, profile
from mobilenas.workflows.run_search import latency_model, method_from_config, search, search_plan, supernet_size
from mobilenas.workflows.run_sweep import sweep
from mobilenas.workflows.run_train import train, train_plan
from mobilenas.workflows.run_transfer import transfer, transfer_from_config
from mobilenas.workflows.run_verify import verify

__all__ = [
    "Listener",
    "Silent",
    "Target",
    "campaign_from_config",
    "data_from_config",
    "default_run",
    "describe",
    "draw",
    "evaluate",
    "export",
    "find_network",
    "latency_model",
    "make_run",
    "measure",
    "method_from_config",
    "predict",
    "profile",
    "run_of",
    "search",
    "search_config_of",
    "search_plan",
    "space_from_config",
    "space_of",
    "supernet_size",
    "sweep",
    "train",
    "train_plan",
    "transfer",
    "transfer_from_config",
    "verify",
]
