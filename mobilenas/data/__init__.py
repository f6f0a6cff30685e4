"""Data sets: images and their preprocessing facts, halves for a bilevel search, persistent loaders."""

from mobilenas.data.images import Cutout, ImageData, Images, ImageSource, InFiles, InMemory, Preprocessing, Subset
from mobilenas.data.loader import CyclingLoader, check_batch
from mobilenas.data.sets import DATA, DataRequest, load_data, synthetic_data

__all__ = [
    "DATA",
    "Cutout",
    "CyclingLoader",
    "DataRequest",
    "ImageData",
    "ImageSource",
    "Images",
    "InFiles",
    "InMemory",
    "Preprocessing",
    "Subset",
    "check_batch",
    "load_data",
    "synthetic_data",
]
