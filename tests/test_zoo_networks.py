"""The built-in networks do what they should: the measured convolutions, PyTorch's numbers, activations near one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from hetrl import zoo
from hetrl.calibration.rows import workload_of_rows
from hetrl.graph import Geometry, OpKind

MEASURED = ("fst", "posenet", "retinaface", "vgg16", "yolov2")
HEAVY = 0.05e9  # multiply-accumulates
# Beside the measured operators: every second pixel, for three shortcuts and the coarsest level.
EXTRA_POOLS = {"retinaface": [(256, 80), (512, 40), (1024, 20), (256, 10)]}
SMALL = {"fst": (48, 64), "retinaface": (128, 128), "vgg16": (32, 32), "yolov2": (128, 128)}


def _shape(g: Geometry) -> tuple[Any, ...]:
    padded = (g.in_h + g.pad_top + g.pad_bottom, g.in_w + g.pad_left + g.pad_right)
    return g.kind, g.kernel_h, g.stride_h, g.groups, g.in_channels, g.out_channels, (g.out_h, g.out_w), padded


def _macs(g: Geometry) -> int:
    return g.in_channels // g.groups * g.out_channels * g.kernel_h * g.kernel_w * g.out_h * g.out_w


@pytest.mark.parametrize("name", MEASURED)
def test_heavy_convolutions_are_the_measured_ones(name: str) -> None:
    network = [node.geometry for node in zoo.resolve_model(name).nodes]
    rows = [item.geometry for item in workload_of_rows(name).items]
    heavy = [
        Counter(_shape(g) for g in side if g.kind is OpKind.CONV and _macs(g) >= HEAVY) for side in (network, rows)
    ]
    assert heavy[0] == heavy[1]
    assert heavy[0].total() >= 13


@pytest.mark.parametrize("name", MEASURED)
def test_every_measured_operator_is_in_the_network_in_order(name: str) -> None:
    kinds = (OpKind.CONV, OpKind.POOL, OpKind.GEMM)
    network = [node.geometry for node in zoo.resolve_model(name).nodes if node.geometry.kind in kinds]
    subsampling = [g for g in network if g.kind is OpKind.POOL and g.kernel_h == 1]
    assert [(g.in_channels, g.out_h) for g in subsampling] == EXTRA_POOLS.get(name, [])
    rows = [_shape(item.geometry) for item in workload_of_rows(name).items]
    assert [_shape(g) for g in network if g not in subsampling] == rows


class _Residual(nn.Module):
    """Convolutions with normalization and, but for the last, Relu, named as in the zoo; (channels, kernel, stride)."""

    def __init__(self, channels: int, layers: list[tuple[int, int, int]], group_width: int = 0) -> None:
        super().__init__()
        self.depth = len(layers)
        width, stride = channels, 1
        for number, (out, kernel, step) in enumerate(layers, 1):
            groups = width // group_width if group_width and kernel == 3 else 1
            conv = nn.Conv2d(width, out, kernel, step, kernel // 2, groups=groups, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
            width, stride = out, stride * step
        self.downsample = nn.Sequential()
        if stride > 1 or width != channels:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = x
        for number in range(1, self.depth + 1):
            branch = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(branch))
            branch = torch.relu(branch) if number < self.depth else branch
        return torch.relu(branch + self.downsample(x))


class _ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], *, bottleneck: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths, 1):
            width = 32 << stage
            blocks = nn.Sequential()
            for block in range(depth):
                stride = 2 if block == 0 and stage > 1 else 1
                basic = [(width, 3, stride), (width, 3, 1)]
                layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)] if bottleneck else basic
                blocks.append(_Residual(channels, layers))
                channels = layers[-1][0]
            self.add_module(f"layer{stage}", blocks)
        self.logits = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        result: torch.Tensor = self.logits(x.mean((2, 3)))
        return result


class _RegNetX(nn.Module):
    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], group_width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 32, 3, 2, 1, bias=False))
        self.stem.add_module("bn", nn.BatchNorm2d(32))
        channels = 32
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = nn.Sequential()
            for block in range(depth):
                layers = [(width, 1, 1), (width, 3, 2 if block == 0 else 1), (width, 1, 1)]
                blocks.append(_Residual(channels, layers, group_width))
                channels = width
            self.add_module(f"stage{stage}", blocks)
        self.logits = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for stage in range(1, 5):
            x = self.get_submodule(f"stage{stage}")(x)
        result: torch.Tensor = self.logits(x.mean((2, 3)))
        return result


class _Vgg16(nn.Module):
    """For inputs of 32x32, which leave one pixel to the dense layers."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for stage, (depth, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
            for layer in range(1, depth + 1):
                self.add_module(f"conv{stage}_{layer}", nn.Conv2d(channels, width, 3, 1, 1))
                channels = width
        self.fc6, self.fc7, self.logits = nn.Linear(512, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
            for layer in range(1, depth + 1):
                x = torch.relu(self.get_submodule(f"conv{stage}_{layer}")(x))
            x = nn.functional.max_pool2d(x, 2)
        result: torch.Tensor = self.logits(torch.relu(self.fc7(torch.relu(self.fc6(x.flatten(1))))))
        return result


TORCH = {
    "resnet18": lambda: _ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet34": lambda: _ResNet((3, 4, 6, 3), bottleneck=False),
    "resnet50": lambda: _ResNet((3, 4, 6, 3), bottleneck=True),
    "regnetx_1_6gf": lambda: _RegNetX((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "regnetx_4gf": lambda: _RegNetX((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "vgg16": _Vgg16,
}


def _all_tensors(model: onnx.ModelProto, data: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The outputs first, then the output of every other operator."""
    outputs = [output.name for output in model.graph.output]
    inner = [
        node.output[0] for node in model.graph.node if node.op_type != "Constant" and node.output[0] not in outputs
    ]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return dict(zip([*outputs, *inner], session.run(None, {"data": data}), strict=True))


@pytest.mark.parametrize("name", zoo.names())
def test_runs_with_activations_near_one_and_as_torch(name: str) -> None:
    size = SMALL.get(name, (64, 64))
    model = zoo.build(name, seeded_weights=0, size=size)
    onnx.checker.check_model(model)
    data = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
    found = _all_tensors(model, data)
    spread = {tensor: float(value.std()) for tensor, value in found.items()}
    assert {tensor: std for tensor, std in spread.items() if not 0.1 <= std <= 10} == {}
    if name in TORCH:
        module = TORCH[name]().eval()
        weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
        missing, unexpected = module.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all(key.endswith("num_batches_tracked") for key in missing)
        with torch.no_grad():
            expected = module(torch.from_numpy(data)).numpy()
        assert np.abs(found["logits"] - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("name", zoo.names())
def test_a_size_changes_no_layer(name: str) -> None:
    """The same weights, except where a dense layer reads the whole map."""
    usual, small = (zoo.build(name, size=size) for size in (None, SMALL.get(name, (64, 64))))
    assert [node.name for node in usual.graph.node] == [node.name for node in small.graph.node]
    same = [a.dims == b.dims for a, b in zip(usual.graph.initializer, small.graph.initializer, strict=True)]
    assert same.count(False) == (1 if name == "vgg16" else 0)
