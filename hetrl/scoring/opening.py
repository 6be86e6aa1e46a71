"""`--eval-data`: which kind of data it is."""

from __future__ import annotations

from pathlib import Path

from hetrl.scoring.arrays import read_arrays
from hetrl.scoring.data import EvalData, whole
from hetrl.scoring.interface import Interface
from hetrl.scoring.pictures import IMAGENET, Normalization, read_pictures


def open_data(path: str | Path, wanted: Interface, normalization: Normalization = IMAGENET) -> EvalData:
    """All samples of an npz file, or of a folder with a subfolder of pictures for each class.

    :param wanted: what the model takes (`interface(model)`).
    :param normalization: of pictures.
    :raises UsageError: no data, or data that do not fit the model.
    :raises MissingExtra: pictures, and Pillow is not installed.
    """
    path = Path(path)
    return whole(read_pictures(path, wanted, normalization) if path.is_dir() else read_arrays(path, wanted))
