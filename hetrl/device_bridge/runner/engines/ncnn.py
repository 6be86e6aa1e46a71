"""ncnn, on the CPU or on a Vulkan device."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from hetrl.device_bridge.runner.engines.base import Array, Engine, Session
from hetrl.device_bridge.runner.job import Piece

_PLAIN_NAME = re.compile(r"[^\s@]{1,200}")  # ncnn's text format parts at blanks, and reads 255 characters
# Layers that only read their input: they may read another owner's memory. What works in place, or hands its input
# on, would write into it.
_READERS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise", "Pooling")
_CHUNK_BYTES = 1 << 20
_ALIGNMENT = 16  # bytes: ncnn starts every channel at a multiple


def library() -> Any:
    """The package.

    Its OpenMP reads this when it is loaded: threads that wait for work spin for a tenth of a millisecond, not for five
    in which they take cores from what follows (the same speed: resnet18 on two cores 18.1 ms, 24.6 without spinning).
    A user who says how threads wait is heeded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import ncnn

    return ncnn


def blob_name(tensor: str) -> str:
    """A tensor's name in ncnn's files: its own, or a digest of one that they cannot hold."""
    if _PLAIN_NAME.fullmatch(tensor):
        return tensor
    return "t@" + hashlib.sha256(tensor.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Ncnn(Engine):
    """A piece's first file is the `.param`, the others one after the other are the `.bin`."""

    name = "ncnn"

    def version(self) -> str:
        return str(library().__version__)

    def devices(self) -> tuple[str, ...]:
        ncnn = library()
        return tuple(str(ncnn.get_gpu_info(n).device_name()) for n in range(ncnn.get_gpu_count()))

    def load(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> Session:
        """See `Engine.load`; precisions are fp32, fp16 and bf16.

        :raises ValueError: a precision or an array's type that ncnn does not have.
        :raises RuntimeError: there is no such Vulkan device, or ncnn does not take the files.
        """
        net = _open_net(piece)
        param, *weights = piece.files
        if net.load_param(str(folder / param)) != 0:
            raise RuntimeError(f"ncnn cannot read {param}")
        with _joined([folder / name for name in weights]) as path:
            if net.load_model(path) != 0:
                raise RuntimeError(f"ncnn cannot read the weights of {param}")
        return NcnnSession(net, piece, inputs, outputs)


@contextmanager
def _joined(files: Sequence[Path]) -> Iterator[str]:
    """The path of a file that holds all of these; in memory, where the system can."""
    if len(files) == 1:
        yield str(files[0])
        return
    joined: IO[bytes]
    if hasattr(os, "memfd_create"):
        joined = os.fdopen(os.memfd_create("weights"), "wb")
        path = f"/proc/self/fd/{joined.fileno()}"
    else:
        joined = tempfile.NamedTemporaryFile()
        path = joined.name
    with joined:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, joined, _CHUNK_BYTES)
        joined.flush()
        yield path


def _open_net(piece: Piece) -> Any:
    ncnn = library()
    if piece.precision not in ("fp32", "fp16", "bf16"):
        raise ValueError(f"ncnn has no precision {piece.precision!r} here; it has fp32, fp16 and bf16")
    net = ncnn.Net()
    net.opt.num_threads = max(1, len(piece.cores))
    half = piece.precision == "fp16"
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = piece.precision == "bf16"
    if piece.device is not None:
        count = ncnn.get_gpu_count()
        if not 0 <= piece.device < count:
            raise RuntimeError(f"there is no Vulkan device {piece.device}; ncnn sees {count}")
        net.opt.use_vulkan_compute = True
        net.set_vulkan_device(piece.device)
    return net


class NcnnSession(Session):
    """A net whose inputs are read from arrays and whose outputs are copied into arrays.

    ncnn works on one sample: arrays have a first size of 1, which its blobs do not have.
    """

    def __init__(self, net: Any, piece: Piece, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        self._net = net
        names = set(net.input_names()), set(net.output_names())
        self._inputs: list[tuple[str, Any]] = []
        self._copies: list[tuple[Array, Array]] = []  # to, from
        readers = {} if piece.device is not None else _readers(net)
        for port, array in zip(piece.reads, inputs, strict=True):
            name = _known(blob_name(port.name), names[0])
            sample = _sample(array)
            if readers.get(name) in _READERS and _laid_out(sample):
                self._inputs.append((name, library().Mat(sample)))
            else:
                blob = _new_blob(sample.shape)
                self._inputs.append((name, blob))
                self._copies.append((np.asarray(blob.numpy()), sample))
        self._outputs = [
            (_known(blob_name(port.name), names[1]), _sample(array))
            for port, array in zip(piece.writes, outputs, strict=True)
        ]

    def run(self) -> None:
        for blob, array in self._copies:
            np.copyto(blob, array)
        extractor = self._net.create_extractor()
        for name, blob in self._inputs:
            if extractor.input(name, blob) != 0:
                raise RuntimeError(f"ncnn refuses the input {name!r}")
        for name, array in self._outputs:
            status, blob = extractor.extract(name)
            if status != 0:
                raise (
                    MemoryError("ncnn ran out of memory")
                    if status == _OUT_OF_MEMORY
                    else RuntimeError(f"ncnn failed at {name!r} with status {status}")
                )
            np.copyto(array, blob.numpy())

    def close(self) -> None:
        self._inputs, self._copies, self._outputs = [], [], []
        self._net.clear()


_OUT_OF_MEMORY = -100  # what ncnn's layers return where an allocation failed


def _known(name: str, names: set[str]) -> str:
    if name not in names:
        raise RuntimeError(f"the ncnn model has no input or output {name!r}; it has {sorted(names)}")
    return name


def _readers(net: Any) -> dict[str, str]:
    """Type of the layer that reads each input."""
    blobs, layers = net.blobs(), net.layers()
    found = {}
    for index, name in zip(net.input_indexes(), net.input_names(), strict=True):
        consumer = blobs[index].consumer
        found[str(name)] = str(layers[consumer].type) if consumer >= 0 else ""
    return found


def _sample(array: Array) -> Array:
    """The array without its batch.

    :raises ValueError: it has one, or is not float32.
    """
    if array.dtype != np.float32 or array.ndim < 2 or array.shape[0] != 1:
        raise ValueError(f"ncnn takes float32 and a batch of 1, not {array.dtype} of shape {array.shape}")
    sample: Array = array[0]
    return sample


def _laid_out(array: Array) -> bool:
    """Whether an array is in memory as ncnn wants a blob."""
    channel_bytes = int(np.prod(array.shape[1:])) * array.itemsize
    return bool(array.ndim == 3 and array.flags.c_contiguous and channel_bytes % _ALIGNMENT == 0)


def _new_blob(shape: tuple[int, ...]) -> Any:
    """A blob in ncnn's own memory, filled through its numpy view."""
    return library().Mat(*shape[::-1])


ENGINE = Ncnn()
