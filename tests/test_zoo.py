"""The built-in networks: their catalog, their weights, and that they compute what PyTorch computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

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


@pytest.mark.parametrize(
    ("name", "parameters_m", "gmacs"),
    [
        ("vgg16", 138.4, 15.5),
        ("resnet18", 11.7, 1.81),
        ("resnet34", 21.8, 3.66),
        ("resnet50", 25.6, 4.09),
        ("regnetx_1_6gf", 9.19, 1.6),
        ("regnetx_4gf", 22.1, 4.0),
    ],
)
def test_published_numbers(name: str, parameters_m: float, gmacs: float) -> None:
    entry = next(entry for entry in zoo.catalog() if entry.name == name)
    assert entry.parameters / 1e6 == pytest.approx(parameters_m, rel=0.01)
    assert entry.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_the_document_lists_the_catalog() -> None:
    text = (Path(__file__).parents[1] / "docs/zoo.md").read_text(encoding="utf-8")
    for entry in zoo.catalog():
        size = "x".join(map(str, entry.input_shape))
        numbers = f"{entry.parameters / 1e6:.2f} | {entry.macs / 1e9:.2f} | {entry.operators} | {entry.groups}"
        assert f"| {entry.name} | {size} | {numbers} |" in text


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
