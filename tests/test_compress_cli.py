"""`hetrl compress`: what it writes, what it says, and one clear line for every mistake."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import hetrl
from hetrl.cli.main import run
from hetrl.compress.calibration import read_samples, seeded_samples
from hetrl.compress.importance import Importance
from hetrl.compress.low_rank import LowRank
from hetrl.compress.quantize import quantize
from hetrl.compress.recipe import Precision, Recipe, apply
from hetrl.compress.running import run_all
from hetrl.errors import MissingExtra, ModelError, UsageError
from hetrl.fidelity import largest_error, seeded_inputs
from hetrl.graph.reader import graph_from_model, load_graph
from hetrl.model_api import compress
from tests.compress_help import decaying, model_of, normal

KEYS = {
    "model", "out", "sha256", "recipe", "parameters", "gmacs", "size_mb", "output_error", "evidence", "numbers",
    "calibration", "groups_pruned", "layers_factored", "finetuned", "scores", "kept_whole",
}  # fmt: skip
Hetrl = Callable[..., tuple[int, str, str]]


def network(batch: int | str = 1) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["stem"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["stem", "one", "zero", "zero", "one"], ["bn"]),
        helper.make_node("Relu", ["bn"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["middle"], pads=[1] * 4),
        helper.make_node("Relu", ["middle"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["deep"], strides=[2, 2]),
        helper.make_node("Relu", ["deep"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], transB=1),
    ]
    weights = {
        "w0": normal(16, 3, 3, 3), "one": np.ones(16, np.float32), "zero": np.zeros(16, np.float32),
        "w1": decaying(32, 16, 3, 3), "w2": decaying(32, 32, 3, 3), "w3": normal(10, 32),
    }  # fmt: skip
    return model_of(nodes, {"x": (batch, 3, 12, 12)}, ["logits"], weights)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), tmp_path / "m.onnx")
    return tmp_path


@pytest.fixture
def command(folder: Path, capfd: pytest.CaptureFixture[str]) -> Hetrl:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(["compress", *arguments])
        return (status, *capfd.readouterr())

    return call


def refused(command: Hetrl, *arguments: str, out: str = "s.onnx") -> str:
    """The one line that a mistake gets."""
    status, printed, complaint = command(*arguments, "--out", out)
    assert status == 2 and printed == "" and complaint.startswith("error: ") and complaint.count("\n") == 1, complaint
    return complaint


def test_all_steps_as_json(command: Hetrl, folder: Path) -> None:
    arguments = ["m.onnx", "--prune", "0.3", "--low-rank", "0.5", "--int8", "--out", "s.onnx", "--json"]
    status, printed, complaint = command(*arguments)
    assert (status, complaint) == (0, "")
    found = json.loads(printed)
    assert found.keys() == KEYS
    assert found["sha256"] == hashlib.sha256((folder / "s.onnx").read_bytes()).hexdigest()
    before, after = load_graph(folder / "m.onnx"), hetrl.load_model("s.onnx")
    assert found["parameters"] == {"before": before.parameters, "after": after.parameters}
    assert found["gmacs"] == {"before": before.macs / 1e9, "after": after.macs / 1e9}
    assert after.macs < 0.5 * before.macs and after.parameters < 0.5 * before.parameters
    assert found["size_mb"]["before"] == pytest.approx((folder / "m.onnx").stat().st_size / 1e6)
    assert found["size_mb"]["after"] == pytest.approx((folder / "s.onnx").stat().st_size / 1e6)
    assert found["evidence"] == "measured" and 0 < found["output_error"] < 3
    assert found["numbers"] == {"stored": "int8", "computed": "int8"}
    assert found["calibration"] == {"source": "seeded random inputs", "samples": 8}
    assert found["groups_pruned"] == 3 and found["layers_factored"] == 2
    reasons = {(kept["step"], kept["name"]): kept["reason"] for kept in found["kept_whole"]}
    assert reasons["low_rank", "stem"] == "the first convolution"
    assert reasons["low_rank", "logits"] == "the classifier" and ("prune", "logits") in reasons
    bytes_ = (folder / "s.onnx").read_bytes()
    assert json.loads(command(*arguments)[1])["sha256"] == found["sha256"]  # what is there is replaced
    assert (folder / "s.onnx").read_bytes() == bytes_


def test_a_table_for_people(command: Hetrl) -> None:
    status, printed, complaint = command("m.onnx", "--low-rank", "0.5", "--bf16", "--out", "s.onnx")
    assert (status, complaint) == (0, "")
    for text in ("parameters", "GMACs", "size in MB", "factored   2 layers", "bfloat16, computed in float32",
                 "on seeded inputs (measured)", "the first convolution", "wrote      s.onnx"):  # fmt: skip
        assert text in printed


def test_each_step_does_what_its_options_say(command: Hetrl, folder: Path) -> None:
    def made(*arguments: str) -> onnx.ModelProto:
        status, _, complaint = command("m.onnx", *arguments, "--out", "s.onnx")
        assert (status, complaint) == (0, "")
        return onnx.load("s.onnx")

    def channels(model: onnx.ModelProto) -> int:
        return next(t.dims[0] for t in model.graph.initializer if t.name == "w1")

    assert channels(made("--prune", "0.3")) == 24
    assert channels(made("--prune", "0.6", "--multiple", "8", "--importance", "bn")) == 16
    assert channels(made("--prune", "0.3", "--importance", "activation", "--seed", "3")) == 24
    convolutions = {"narrow": 5, "tucker": 7, "spatial": 5}
    for scheme, count in convolutions.items():
        model = made("--energy", "0.8", "--low-rank-scheme", scheme)
        assert sum(node.op_type == "Conv" for node in model.graph.node) == count
    assert next(t.dims[0] for t in made("--rank", "3").graph.initializer if t.name == "w1.narrow") == 3
    assert {t.data_type for t in made("--fp16").graph.initializer} == {TensorProto.FLOAT16}


def test_the_error_is_that_of_the_file(command: Hetrl, folder: Path) -> None:
    found = json.loads(command("m.onnx", "--rank", "2", "--out", "s.onnx", "--json", "--seed", "5")[1])
    models = [onnx.load(name) for name in ("m.onnx", "s.onnx")]
    graph = graph_from_model(models[0], name="m")
    errors = []
    for seed in (1005, 1006):
        exact, other = (run_all(model, [seeded_inputs(graph, seed)])[0] for model in models)
        errors.append(largest_error(other, exact))
    assert found["output_error"] == pytest.approx(max(errors), rel=1e-3)


def test_symbolic_batches_stay_symbolic(command: Hetrl, folder: Path) -> None:
    onnx.save(network("N"), folder / "n.onnx")
    assert "--input-shape x:1x3x12x12" in refused(command, "n.onnx", "--int8")
    for step in (["--prune", "0.5"], ["--low-rank", "0.5"], ["--int8"], ["--fp16"]):
        status, _, complaint = command("n.onnx", *step, "--input-shape", "x:2x3x12x12", "--out", "s.onnx")
        assert (status, complaint) == (0, "")
        model = onnx.load("s.onnx")
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
        assert run_all(model, [{"x": normal(5, 3, 12, 12)}])[0]["logits"].shape == (5, 10)


def test_built_in_networks_and_external_weights(command: Hetrl, folder: Path) -> None:
    assert "--seeded-weights SEED" in refused(command, "posenet", "--fp16")
    onnx.save(network(), folder / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    status, printed, _ = command("e.onnx", "--fp16", "--out", "s.onnx", "--json")
    assert status == 0 and json.loads(printed)["output_error"] < 0.01
    assert "would overwrite" in refused(command, "e.onnx", "--fp16", out="e.data")
    (folder / "e.data").unlink()
    assert "--seeded-weights SEED" in refused(command, "e.onnx", "--fp16")
    assert command("e.onnx", "--fp16", "--seeded-weights", "0", "--out", "s.onnx")[0] == 0


# Calibration data


def test_calibration_from_a_file(command: Hetrl, folder: Path) -> None:
    data = normal(6, 3, 12, 12, scale=9.0)
    np.savez(folder / "named.npz", x=data, labels=np.arange(6))
    np.savez(folder / "general.npz", inputs=data.astype(np.float64)[:, None])
    results = []
    for name in ("named.npz", "general.npz"):
        _, printed, _ = command("m.onnx", "--int8", "--calibration-data", name, "--out", "s.onnx", "--json")
        results.append(json.loads(printed))
        assert results[-1]["calibration"] == {"source": "file", "samples": 6}
    assert results[0]["sha256"] == results[1]["sha256"]
    seeded = json.loads(command("m.onnx", "--int8", "--out", "s.onnx", "--json")[1])
    assert seeded["sha256"] != results[0]["sha256"]
    assert command("m.onnx", "--int8", "--calibration", "percentile", "--out", "s.onnx")[0] == 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": normal(2, 3, 12, 12)}, "no array for the input 'x'"),
        ({"x": normal(2, 3, 12, 12), "z": normal(2, 3)}, "no input 'z'"),
        ({"x": normal(2, 3, 13, 12)}, "2x3x13x12"),
        ({"x": normal(2, 12, 12)}, "2x12x12"),
        ({"x": np.zeros((2, 3, 12, 12), np.uint8)}, "is of uint8"),
        ({"x": np.zeros((0, 3, 12, 12), np.float32)}, "has 0 samples"),
        ({"x": np.full((1, 3, 12, 12), np.nan, np.float32)}, "NaN or infinite"),
        ({"x": np.array([{"a": 1}], object)}, "no .npz file of plain arrays"),
    ],
)
def test_calibration_data_that_does_not_fit(
    command: Hetrl, folder: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(folder / "bad.npz", **arrays)
    assert message in refused(command, "m.onnx", "--int8", "--calibration-data", "bad.npz")


def test_files_that_hold_no_calibration_data(command: Hetrl, folder: Path) -> None:
    (folder / "text.npz").write_text("no archive")
    (folder / "zip.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    np.save(folder / "one.npy", normal(1, 3, 12, 12))
    for name in ("text.npz", "zip.npz", "one.npy", "gone.npz"):
        assert name in refused(command, "m.onnx", "--int8", "--calibration-data", name)
    np.savez(folder / "d.npz", x=normal(1, 3, 12, 12))
    assert "nothing is calibrated" in refused(command, "m.onnx", "--fp16", "--calibration-data", "d.npz")


def test_several_inputs_are_as_long(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Add", ["a", "b"], ["y"])], {"a": (2, 3), "b": (2, 1)}, ["y"], {})
    graph, path = graph_from_model(model, name="two"), tmp_path / "d.npz"
    np.savez(path, a=normal(6, 3), b=normal(3, 2, 1))
    found = read_samples(path, graph)
    assert [{n: v.shape for n, v in sample.items()} for sample in found.values] == 3 * [{"a": (2, 3), "b": (2, 1)}]
    for arrays, message in (
        ({"a": normal(6, 3), "b": normal(4, 1)}, "different numbers"),
        ({"a": normal(5, 3), "b": normal(6, 1)}, "multiple of 2"),
        ({"inputs": normal(6, 3)}, "no array for the input 'a'"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UsageError, match=message):
            read_samples(path, graph)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is to be compressed"),
        (["--prune", "0"], "nothing is to be compressed"),
        (["--prune", "1"], "0 <= ratio < 1"),
        (["--prune", "-0.1"], "0 <= ratio < 1"),
        (["--prune", "nan"], "0 <= ratio < 1"),
        (["--prune", "half"], "--prune"),
        (["--prune", "0.5", "--multiple", "0"], "multiples of 0"),
        (["--prune", "0.5", "--importance", "l3"], "unknown importance 'l3'"),
        (["--fp16", "--importance", "l2"], "--importance is for pruning"),
        (["--low-rank", "0"], "0 < keep < 1"),
        (["--low-rank", "1.5"], "0 < keep < 1"),
        (["--energy", "1.5"], "0 < energy <= 1"),
        (["--rank", "0"], "1 or more"),
        (["--low-rank", "0.5", "--energy", "0.9"], "one of --low-rank, --energy, --rank"),
        (["--low-rank", "0.5", "--low-rank-scheme", "tuker"], "did you mean 'tucker'?"),
        (["--int8", "--low-rank-scheme", "tucker"], "--low-rank-scheme is for low rank"),
        (["--int8", "--fp16"], "one of --int8 and --fp16"),
        (["--fp16", "--calibration", "minmax"], "--calibration is for int8"),
        (["--int8", "--calibration", "mean"], "unknown calibration 'mean'"),
        (["--int8", "--seed", "-1"], "--seed -1 is out of range"),
    ],
)
def test_options_that_make_no_sense(command: Hetrl, arguments: list[str], message: str) -> None:
    assert message in refused(command, "m.onnx", *arguments)


def test_places_that_cannot_be_written(command: Hetrl, folder: Path) -> None:
    (folder / "d").mkdir()
    before = (folder / "m.onnx").read_bytes()
    assert "does not exist" in refused(command, "m.onnx", "--fp16", out="gone/s.onnx")
    assert "is a folder" in refused(command, "m.onnx", "--fp16", out="d")
    for out in ("m.onnx", "./d/../m.onnx"):
        assert "would overwrite the model" in refused(command, "m.onnx", "--fp16", out=out)
    assert (folder / "m.onnx").read_bytes() == before and not list(folder.glob("*.part"))


def bad_models() -> dict[str, tuple[Any, str]]:
    nan, training, batch, quantized, half = network(), network(), network(), network(), network()
    next(t for t in nan.graph.initializer if t.name == "w1").raw_data = np.full((32, 16, 3, 3), np.nan, "f4").tobytes()
    training.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    batch.opset_import[0].version = 13
    batch.graph.node[1].output.extend(["mean", "variance", "saved_mean", "saved_variance"])
    batch.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [16]))
    quantized = quantize(quantized, seeded_samples(graph_from_model(quantized, name="m"), 0, 1).values).model
    half = apply(Recipe(precision=Precision.FP16), half).model
    return {
        "nan": (nan, "'w1' have 4608 numbers that are NaN"),
        "training": (training, "training mode; export the model in evaluation mode"),
        "batch": (batch, "training mode; export the model in evaluation mode"),
        "quantized": (quantized, "is quantized already"),
        "half": (half, "half precision"),
        "text": (b"import torch\n", "no ONNX file"),
        "empty": (b"", "is empty"),
    }


def test_models_that_are_not_compressed(command: Hetrl, folder: Path) -> None:
    for name, (model, message) in bad_models().items():
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(data)
        for step in (["--int8"], ["--low-rank", "0.5"]) if name != "half" else (["--int8"],):
            complaint = refused(command, f"{name}.onnx", *step)
            assert (message in complaint and name in complaint) or name == "half", complaint
    assert "does not exist" in refused(command, "gone.onnx", "--int8")
    assert "did you mean 'resnet18'?" in refused(command, "resnet81", "--int8")
    assert not (folder / "s.onnx").exists()


def test_without_onnx_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetrl.compress.running.find_spec", lambda name: None)
    for recipe in (Recipe(precision=Precision.INT8), Recipe(prune=0.5, importance=Importance.ACTIVATION)):
        with pytest.raises(MissingExtra, match=r"hetrl\[host\]"):
            compress("m.onnx", "s.onnx", recipe)
    found = compress("m.onnx", "s.onnx", Recipe(low_rank=LowRank(keep=0.5)))
    assert found.output_error is None and found.evidence is None and Path("s.onnx").exists()


def test_a_recipe_changes_no_model_and_refuses_models_in_memory() -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    recipe = Recipe(prune=0.5, low_rank=LowRank(keep=0.5), precision=Precision.INT8)
    done = apply(recipe, model)
    assert model.SerializeToString(deterministic=True) == before
    assert done.pruning and done.low_rank and done.quantization and not done.half
    with pytest.raises(ModelError, match="quantized already"):
        apply(recipe, done.model)


def test_what_is_written_can_be_moved(command: Hetrl, folder: Path) -> None:
    assert command("m.onnx", "--low-rank", "0.5", "--out", "s.onnx")[0] == 0
    (folder / "elsewhere").mkdir()
    shutil.move("s.onnx", "elsewhere/t.onnx")
    onnx.checker.check_model("elsewhere/t.onnx", full_check=True)
