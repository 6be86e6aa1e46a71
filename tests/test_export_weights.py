"""Which weights a bundle holds: the file's, other ones, drawn ones, those that compression left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from msgspec import UNSET
from msgspec.structs import replace

from hetrl.compression import Compression
from hetrl.errors import ModelError, UsageError
from hetrl.export.bundle import open_bundle
from hetrl.export.samples import samples
from hetrl.exporting import Asked, export
from hetrl.fidelity import largest_error
from hetrl.graph.reader import load_graph
from hetrl.partition import FileSource, seeded_inputs
from hetrl.plan import Axis, Evidence, Expected, Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.testing.models import random_blueprint
from hetrl.validating import validate_bundle
from tests.export_help import random_model, reseal, shared_plans, written

CPU, OTHER = "cpu/onnxruntime/fp32", "cpu/openvino/fp32"


def bundle_outputs(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with open_bundle(folder) as bundle:
        return samples(bundle)


def outputs_of(model: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_the_sample_is_the_original_models(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    export(written(shared_plans(model, 1)[0], tmp_path), "openvino", tmp_path / "out", Asked(model=str(model)))
    inputs, outputs = bundle_outputs(tmp_path / "out")
    assert largest_error(outputs_of(model, inputs), outputs) == 0


@pytest.mark.parametrize("format_name", ["onnxruntime", "openvino", "ncnn"])
@pytest.mark.parametrize("compression", [Compression(prune_ratio=0.5), Compression(prune_ratio=0.25, low_rank=0.5)])
def test_what_compression_leaves_is_exported(format_name: str, compression: Compression, tmp_path: Path) -> None:
    model = tmp_path / "wide.onnx"
    random_blueprint(1, 8, unsupported=False, size=24).save(model, 0)
    splits = compression.low_rank is UNSET  # an operator that low rank makes two is not shared
    plan = next(p for p in shared_plans(model, 60) if bool(p.splits) is splits)
    smaller = replace(plan, compression=compression)
    whole = export(written(plan, tmp_path), format_name, tmp_path / "whole", Asked(model=str(model)))
    done = export(written(smaller, tmp_path), format_name, tmp_path / "out", Asked(model=str(model)))
    assert done.bytes < whole.bytes
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert found.ok, found.checks


@pytest.mark.parametrize("kind", ["onnx", "npz"])
def test_weights_from_a_file_of_their_own(kind: str, tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    bare = tmp_path / "bare.onnx"
    random_blueprint(5, 8, unsupported=False).save(bare, None)
    plan = written(shared_plans(bare, 1)[0], tmp_path)
    with pytest.raises(ModelError, match="--weights FILE"):
        export(plan, "ncnn", tmp_path / "out", Asked(model=str(bare)))
    weights = model
    if kind == "npz":
        source = FileSource(model)
        tensors = source.model.graph.initializer
        kinds = [onnx.helper.tensor_dtype_to_np_dtype(t.data_type) for t in tensors]
        arrays = {t.name: source.weights(t).view(k).reshape(tuple(t.dims)) for t, k in zip(tensors, kinds, strict=True)}
        weights = tmp_path / "weights.npz"
        np.savez(weights, **arrays)
    export(plan, "onnxruntime", tmp_path / "out", Asked(model=str(bare), weights=weights))
    assert validate_bundle(tmp_path / "out", repeats=1).ok
    inputs, outputs = bundle_outputs(tmp_path / "out")
    assert largest_error(outputs_of(model, inputs), outputs) == 0


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = written(shared_plans(model, 1)[0], tmp_path)
    name = onnx.load(model, load_external_data=False).graph.initializer[0].name
    np.savez(tmp_path / "w.npz", **{name: np.zeros((1, 2), np.float32)})
    with pytest.raises(ModelError, match=r"not float32 \["):
        export(plan, "ncnn", tmp_path / "out", Asked(model=str(model), weights=tmp_path / "w.npz"))
    with pytest.raises(UsageError, match="either given or drawn"):
        asked = Asked(model=str(model), weights=tmp_path / "w.npz", seeded_weights=0)
        export(plan, "ncnn", tmp_path / "out", asked)


def test_a_compressed_model_that_was_measured_is_the_one_that_is_exported(tmp_path: Path) -> None:
    """Its weights were fitted to data: pruning the original anew would give another model."""
    from hetrl.compress.variant import compressed_model

    model = tmp_path / "wide.onnx"
    random_blueprint(1, 8, unsupported=False, size=24).save(model, 0)
    graph = load_graph(model)
    compression = Compression(prune_ratio=0.5)
    made = compressed_model(FileSource(model), graph, compression)
    for tensor in made.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.25)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(made, tmp_path / "model.onnx")
    sha256 = hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    plan = replace(shared_plans(model, 1)[0], compression=replace(compression, artefact_sha256=sha256))
    export(written(plan, tmp_path), "openvino", tmp_path / "out", Asked(model=str(model)))
    inputs, outputs = bundle_outputs(tmp_path / "out")
    assert largest_error(outputs_of(tmp_path / "model.onnx", inputs), outputs) < 1e-5
    assert validate_bundle(tmp_path / "out", repeats=1).ok
    (tmp_path / "model.onnx").write_bytes(b"another one")
    with pytest.raises(ModelError, match="is not the compressed model"):
        export(written(plan, tmp_path), "openvino", tmp_path / "again", Asked(model=str(model)))
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelError, match="--compressed FILE"):
        export(written(plan, tmp_path), "openvino", tmp_path / "again", Asked(model=str(model)))


@pytest.mark.parametrize("format_name", ["onnxruntime", "openvino"])
def test_a_plan_of_this_computer_with_two_engines(format_name: str, tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    graph = load_graph(model)
    middle = len(graph.groups) // 2
    groups = [range(middle), range(middle, len(graph.groups))]
    segments = tuple(
        Segment(nodes=tuple(n for g in part for n in graph.group_node_ids(g)), parts=(Part(where),), axis=Axis.NONE)
        for part, where in zip(groups, (CPU, OTHER), strict=True)
    )
    ref = model_ref(graph)
    plan = Plan(model=ref, device="host", engines=("onnxruntime", "openvino"), segments=segments)
    done = export(written(plan, tmp_path), format_name, tmp_path / "out", Asked(model=str(model)))
    found = validate_bundle(tmp_path / "out", repeats=2)
    assert found.ok, found.checks
    if format_name == "openvino":
        assert any("another instance of the plugin CPU" in note for note in done.notes)
    else:
        assert {moved.processor for moved in found.moved} == {OTHER}
    promise = Expected(
        condition="cold,ui=none",
        latency_ms=1e6,
        accuracy_drop_pct=0.0,
        frame_drop_rate=None,
        peak_memory_mb=None,
        energy_mj=None,
        evidence=Evidence.MEASURED,
    )
    reseal(tmp_path / "out", machine="another one, 128 cores", expected=promise)
    checks = {check.name: check for check in validate_bundle(tmp_path / "out", repeats=1).checks}
    assert checks["latency"].ok is None and "this is another computer" in checks["latency"].detail
    assert seeded_inputs(graph, 0).keys() == bundle_outputs(tmp_path / "out")[0].keys()


@pytest.mark.parametrize(("promised_ms", "kept"), [(1e6, True), (1e-6, False)])
def test_a_bundle_of_this_computer_is_held_to_its_promise(promised_ms: float, kept: bool, tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    graph = load_graph(model)
    whole = tuple(node for group in graph.groups for node in graph.group_node_ids(group.index))
    expected = Expected(
        condition="cold,ui=none",
        latency_ms=promised_ms,
        accuracy_drop_pct=0.0,
        frame_drop_rate=None,
        peak_memory_mb=None,
        energy_mj=None,
        evidence=Evidence.MEASURED,
    )
    segment = Segment(nodes=whole, parts=(Part(CPU),))
    plan = Plan(model=model_ref(graph), device="host", engines=("onnxruntime",), segments=(segment,), expected=expected)
    export(written(plan, tmp_path), "onnxruntime", tmp_path / "out", Asked(model=str(model)))
    found = validate_bundle(tmp_path / "out", repeats=5)
    assert {check.name: check.ok for check in found.checks}["latency"] is kept and found.ok is kept
