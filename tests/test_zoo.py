"""The built-in networks: their catalog, their weights, and that they compute what PyTorch computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from hetrl import zoo
from hetrl.errors import ModelError, UnknownName
from hetrl.graph import format_shape, load_graph
from hetrl.graph.reader import graph_from_model


@pytest.mark.parametrize("entry", zoo.catalog(), ids=lambda entry: entry.name)
def test_catalog_matches_the_built_network(entry: zoo.Entry) -> None:
    graph = zoo.resolve_model(entry.name)
    assert graph.name == entry.name
    assert graph.inputs == (entry.input_name,)
    assert graph.tensor_by_name[entry.input_name].shape == entry.input_shape
    assert graph.parameters == entry.parameters
    assert graph.macs == entry.macs
    assert len(graph.nodes) == entry.operators
    assert len(graph.groups) == entry.groups
    assert graph.warnings == ()
    assert entry.source


def test_published_numbers() -> None:
    entries = {entry.name: entry for entry in zoo.catalog()}
    assert round(entries["vgg16"].parameters / 1e6, 2) == 138.36
    assert round(entries["vgg16"].macs / 1e9, 2) == 15.47
    assert round(entries["resnet18"].parameters / 1e6, 2) == 11.69
    assert round(entries["resnet18"].macs / 1e9, 2) == 1.81


@pytest.mark.parametrize("name", zoo.names())
def test_weightless_models_are_small_and_valid(name: str) -> None:
    model = zoo.build(name)
    assert model.ByteSize() < 100_000
    assert zoo.build(name) == model


def test_seeded_weights_change_no_structure(tmp_path: Path) -> None:
    bare = zoo.resolve_model("resnet18")
    model = zoo.build("resnet18", seeded_weights=3)
    onnx.checker.check_model(model, full_check=True)
    assert graph_from_model(model, name="other").structure_hash == bare.structure_hash
    zoo.save("resnet18", tmp_path / "net.onnx", seeded_weights=3)
    saved = load_graph(tmp_path / "net.onnx", hash_weights=True)
    assert saved.structure_hash == bare.structure_hash
    inline = tmp_path / "inline.onnx"
    inline.write_bytes(model.SerializeToString())
    assert saved.weights_hash == load_graph(inline, hash_weights=True).weights_hash is not None
    assert load_graph(inline).weights_hash is None
    (tmp_path / "net.onnx.weights").unlink()
    gone = load_graph(tmp_path / "net.onnx", hash_weights=True)
    assert (gone.structure_hash, gone.weights_hash) == (bare.structure_hash, None)


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (zoo.build("resnet18", seeded_weights=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_resolve(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown model 'vgg61'; did you mean 'vgg16'"):
        zoo.resolve_model("vgg61")
    with pytest.raises(UnknownName, match="unknown model 'zzz'"):
        zoo.build("zzz")
    with pytest.raises(ModelError, match="does not exist"):
        zoo.resolve_model("gone.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        zoo.resolve_model(tmp_path)
    zoo.save("vgg16", tmp_path / "copy")
    copy = zoo.resolve_model(str(tmp_path / "copy"))
    assert copy.structure_hash == zoo.resolve_model("vgg16").structure_hash
    assert format_shape(copy.tensor_by_name["data"].shape) == "1x3x224x224"


def test_light_imports_stay_light() -> None:
    code = (
        "import sys; import hetrl.graph, hetrl.zoo; hetrl.zoo.catalog(); "
        "print([m for m in ('onnx', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.downsample(x))


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.logits = nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        result: torch.Tensor = self.logits(x.mean((2, 3)))
        return result


def test_resnet18_equals_torch_and_its_activations_stay_near_one() -> None:
    model = zoo.build("resnet18", seeded_weights=0)
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    torch_model = _ResNet18().eval()
    missing, unexpected = torch_model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert sum(p.numel() for p in torch_model.parameters()) == 11_689_512

    data = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(data)).numpy()
    layers = [node.output[0] for node in model.graph.node if node.output[0] != "logits"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in layers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    logits, *outputs = session.run(None, {"data": data})
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-4
    spread = {name: float(output.std()) for name, output in zip(layers, outputs, strict=True)}
    assert {name: std for name, std in spread.items() if not 0.1 <= std <= 10} == {}
