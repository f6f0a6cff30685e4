"""A pool and a convolution: an operator that search spaces can be told of by its name."""

from torch import nn

from mobilenas.core.workload import Workload
from mobilenas.ops import Operator


def build(workload: Workload, affine: bool) -> nn.Module:
    """``(B, C, H, W) -> (B, C', H / stride, W / stride)``."""
    norm = nn.BatchNorm2d(workload.out_channels, affine=affine, track_running_stats=affine)
    convolution = nn.Conv2d(workload.in_channels, workload.out_channels, 1, bias=False)
    return nn.Sequential(nn.MaxPool2d(3, workload.stride, 1), convolution, norm)


def madds(workload: Workload) -> int:
    return workload.out_height * workload.out_width * workload.in_channels * workload.out_channels


def params(workload: Workload) -> int:
    return workload.out_channels * (workload.in_channels + 2)


MAX_POOL_CONV = Operator("max_pool_conv", build, madds, params)
