"""Data sets: images and their preprocessing facts, halves for a bilevel search, persistent loaders."""

from mobilenas.data.images import (
    Cutout,
    DataRequest,
    ImageData,
    Images,
    ImageSource,
    InFiles,
    InMemory,
    Preprocessing,
    Shift,
    Subset,
)
from mobilenas.data.loader import CyclingLoader, DeviceLoader, check_batch, loader_of
from mobilenas.data.sets import DATA, load_data, synthetic_data

__all__ = [
    "DATA",
    "Cutout",
    "CyclingLoader",
    "DataRequest",
    "DeviceLoader",
    "ImageData",
    "ImageSource",
    "Images",
    "InFiles",
    "InMemory",
    "Preprocessing",
    "Shift",
    "Subset",
    "check_batch",
    "load_data",
    "loader_of",
    "synthetic_data",
]
