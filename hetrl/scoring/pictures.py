"""Evaluation data from a folder of pictures, one folder per class, as ImageNet's validation set is unpacked.

Each picture is scaled so that the middle, which is then cut out, is 224/256 of it: for an input of 224 the shorter side
becomes 256 (the usual evaluation of ImageNet networks, Simonyan and Zisserman, ICLR 2015, and torchvision). Numbers of
0 to 1 then lose the mean and are divided by the standard deviation of each channel.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetrl.errors import MissingExtra, UsageError
from hetrl.scoring.data import Rows
from hetrl.scoring.interface import Array, InputSpec, Interface

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")
LISTS = ("classes.txt", "synset_words.txt", "LOC_synset_mapping.txt")
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue, as torchvision has them
IMAGENET_STD = (0.229, 0.224, 0.225)
MARGIN = 256 / 224  # of the scaled picture over the middle that is cut out


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from numbers of 0 to 1, and what they are then divided by, for red, green and blue.

    A model of one channel gets grey pictures and the average of the three numbers.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if {len(self.mean), len(self.std)} != {3} or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise UsageError(
                "pictures need three means and three standard deviations above 0", "such as 0.485,0.456,0.406"
            )


IMAGENET = Normalization()


@dataclass(frozen=True)
class PictureSamples:
    """Pictures that are read when they are needed."""

    files: tuple[Path, ...]
    labels: Array
    classes: int | None
    spec: InputSpec
    normalization: Normalization

    @cached_property
    def key(self) -> str:
        digest = hashlib.sha256(repr((self.spec, self.normalization)).encode())
        digest.update(self.labels.tobytes())
        for file in self.files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def batch(self, rows: Rows) -> dict[str, Array]:
        return {self.spec.name: np.stack([self._read(self.files[row]) for row in rows])}

    def _read(self, file: Path) -> Array:
        from PIL import Image

        channels, height, width, channels_first = picture_shape(self.spec)
        try:
            with Image.open(file) as opened:
                picture = middle(opened.convert("RGB" if channels == 3 else "L"), height, width)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UsageError(f"{file} cannot be read as a picture ({error})", "remove it, or copy it again") from None
        numbers = np.asarray(picture).reshape(height, width, channels)
        if self.spec.dtype.kind not in "iu":
            mean, std = (np.array(part, np.float32) for part in (self.normalization.mean, self.normalization.std))
            if channels == 1:
                mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
            numbers = ((numbers.astype(np.float32) / 255 - mean) / std).astype(self.spec.dtype)
        return numbers.transpose(2, 0, 1) if channels_first else numbers


def read_pictures(folder: Path, wanted: Interface, normalization: Normalization = IMAGENET) -> PictureSamples:
    """Find the pictures of a folder for a model; none is opened yet.

    Class numbers are those of the sorted names of the subfolders, or lines of a file in the folder (`classes.txt`, or
    ImageNet's own lists): one class per line, the subfolder's name first, from class 0 on.

    :raises UsageError: no pictures, or a model that does not take one picture.
    :raises MissingExtra: Pillow is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise MissingExtra("reading pictures", "images") from None
    if len(wanted.inputs) != 1:
        raise UsageError(f"{folder} holds pictures, and the model has {len(wanted.inputs)} inputs", "use an npz file")
    spec = wanted.inputs[0]
    picture_shape(spec)
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    names, classes = _numbers(folder, [path.name for path in folders])
    found = [(file, names[path.name]) for path in folders for file in sorted(path.iterdir()) if _is_picture(file)]
    if not found:
        raise UsageError(f"{folder} has no pictures in folders of classes", "such as val/n01440764/one.JPEG")
    return PictureSamples(
        tuple(file for file, _ in found), np.array([n for _, n in found], np.int64), classes, spec, normalization
    )


def picture_shape(spec: InputSpec) -> tuple[int, int, int, bool]:
    """Channels, height and width that an input wants, and whether channels come first.

    :raises UsageError: it takes no pictures.
    """
    for first in (True, False):
        if len(spec.shape) == 4:
            channels, *sizes = spec.shape[1:] if first else (spec.shape[3], *spec.shape[1:3])
            if channels in (1, 3):
                height, width = sizes
                if height is None or width is None:
                    raise UsageError(
                        f"the model's input {spec.name!r} takes pictures of any size",
                        f"say which: --input-shape {spec.name}:1x{channels}x224x224",
                    )
                return channels, height, width, first
    raise UsageError(f"the model's input {spec.name!r} is {spec.words}, which no picture is", "use an npz file")


def middle(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of a picture, scaled so that it is 224/256 of what it is cut out of."""
    from PIL import Image

    scale = max(MARGIN * height / picture.height, MARGIN * width / picture.width)
    size = (max(width, round(scale * picture.width)), max(height, round(scale * picture.height)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _numbers(folder: Path, names: list[str]) -> tuple[dict[str, int], int | None]:
    """The class number of each subfolder, and how many classes there are."""
    file = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if file is None:
        return {name: number for number, name in enumerate(names)}, len(names)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{file} cannot be read", "one class per line, the subfolder's name first") from None
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines):
        for name in {line, line.partition(" ")[0]}:
            numbers.setdefault(name, number)
    missing = [name for name in names if name not in numbers]
    if missing:
        raise UsageError(f"{file} does not name the folder {missing[0]!r}", "one class per line, from class 0 on")
    return numbers, None


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
