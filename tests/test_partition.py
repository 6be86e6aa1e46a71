"""Plans as submodels: whatever the plan, the outputs are those of the whole model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from onnx import helper

from hetrl.compression import Compression
from hetrl.device_bridge.blobs import BlobStore
from hetrl.errors import MissingExtra, ModelError, PlanError
from hetrl.graph.reader import graph_from_model, load_graph
from hetrl.partition import (
    BlueprintSource,
    FileSource,
    Partitioner,
    largest_error,
    open_source,
    reference_outputs,
    require_engines,
    seeded_inputs,
)
from hetrl.plan import Axis, Cap, Part, Segment
from hetrl.testing.models import random_blueprint, random_decisions
from tests.partition_help import (
    CPU,
    CPU0,
    CPU1,
    OPENVINO,
    TARGETS,
    execute,
    host_space,
    partitioner_of,
    plan_by_hand,
    save_model,
    split_everything,
)
from tests.tiny_models import save_tiny_cnn

TOLERANCE = 1e-5  # of the largest value; the project's own bound is 1e-3
seeds = st.integers(0, 10**6)
shares = st.integers(1, 9).map(lambda tenth: 10 * tenth)


def error_of(path: Path, axis: Axis, share_pct: int, *, chain: bool = False) -> float:
    """Of a file's model, every group split by itself, or all groups as one chain."""
    partitioner = partitioner_of(path, seeded_weights=1)
    graph = partitioner.graph
    plan = split_everything(graph, axis, share_pct)
    if chain:
        everything = range(len(graph.groups))
        plan = plan_by_hand(graph, [(everything, {CPU1: share_pct, CPU0: 100 - share_pct})], axis)
    assert plan.splits, "a test of splits needs something that can be split"
    inputs = seeded_inputs(graph, 0)
    job = partitioner.job(plan, TARGETS)
    return largest_error(
        execute(job, partitioner.store, inputs), reference_outputs(FileSource(path, seeded_weights=1), inputs)
    )


@given(seeds)
@settings(max_examples=20)
def test_random_plans_of_random_models_compute_what_the_model_does(seed: int) -> None:
    blueprint = random_blueprint(seed % 200, 3 + seed % 9)
    graph = graph_from_model(blueprint.model, name="random")
    source = BlueprintSource(blueprint, graph.name, seed)
    space = host_space(graph)
    decisions = random_decisions(space, seed, 2)
    inputs = seeded_inputs(graph, seed)
    reference = reference_outputs(source, inputs)
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        partitioner = Partitioner(source, graph, store)
        for column in decisions.T:
            outputs = execute(partitioner.job(space.plan(column), TARGETS), store, inputs)
            assert largest_error(outputs, reference) < TOLERANCE


windows = st.fixed_dictionaries(
    {
        "kernel": st.integers(1, 4),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "pads": st.tuples(*[st.integers(0, 3)] * 4),
        "auto_pad": st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
        "op_type": st.sampled_from(["Conv", "Conv", "Grouped", "Depthwise", "MaxPool", "AveragePool"]),
        "ceil_mode": st.integers(0, 1),
        "count_include_pad": st.integers(0, 1),
        "relu": st.booleans(),
    }
)


def window_node(name: str, x: str, window: dict, weights: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """A convolution or a pool over 8 channels."""
    kernel, kind = window["kernel"], window["op_type"]
    attributes = {"kernel_shape": [kernel] * 2, "strides": [window["stride"]] * 2}
    if kind != "AveragePool" and window["auto_pad"] in ("NOTSET", "VALID"):
        attributes["dilations"] = [window["dilation"]] * 2
    if window["auto_pad"] == "NOTSET":
        # ONNX Runtime takes no pool whose padding is as large as its kernel.
        largest = 3 if "Pool" not in kind else kernel - 1
        attributes["pads"] = [min(pad, largest) for pad in window["pads"]]
        if "Pool" in kind and window["ceil_mode"] and window["stride"] <= kernel:
            # Where a window begins in the padding behind, onnx and ONNX Runtime do not agree on sizes.
            attributes["pads"][2:] = [0, 0]
            attributes["ceil_mode"] = 1
    else:
        attributes["auto_pad"] = window["auto_pad"]
    if kind == "AveragePool":
        attributes["count_include_pad"] = window["count_include_pad"]
    if "Pool" in kind:
        nodes = [helper.make_node(kind, [x], [name], **attributes)]
    else:
        groups = {"Conv": 1, "Grouped": 2, "Depthwise": 8}[kind]
        random = np.random.default_rng(len(weights))
        weights[f"{name}.w"] = random.normal(size=(8, 8 // groups, kernel, kernel)).astype(np.float32)
        nodes = [helper.make_node("Conv", [x, f"{name}.w"], [name], group=groups, **attributes)]
    if window["relu"]:
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
    return nodes


@given(st.lists(windows, min_size=1, max_size=3), shares, st.integers(9, 17), st.booleans())
@settings(max_examples=60)
def test_height_splits_of_any_windows(layers: list[dict], share_pct: int, size: int, chain: bool) -> None:
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    for number, window in enumerate(layers):
        nodes += window_node(f"l{number}", nodes[-1].output[0] if nodes else "x", window, weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        try:
            graph = load_graph(save_model(path, nodes, (1, 8, size, size), **weights))
            reference = reference_outputs(FileSource(path), seeded_inputs(graph, 0))
        except Exception:  # windows larger than what is left, and what else ONNX Runtime itself refuses
            reject()
        rows = [graph.tensor_by_name[group.outputs[0]].shape[2] for group in graph.groups]
        assume(all(group.splits_height for group in graph.groups))
        assume(all(-(-size * share_pct // 100) < size for size in rows))
        assume(all(np.isfinite(value).all() for value in reference.values()))  # a pool of padding alone is -inf
        assert error_of(path, Axis.HEIGHT, share_pct, chain=chain) < TOLERANCE


def test_a_chain_whose_middle_leaves_and_whose_operand_is_a_residual(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.normal(size=(8, 8, 3, 3)).astype(np.float32) for i in range(3)}
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], **same),
        helper.make_node("Conv", ["a", "w1"], ["b"], strides=[2, 2], **same),
        helper.make_node("Conv", ["b", "w2"], ["c"], **same),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("GlobalAveragePool", ["a"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    path = save_model(tmp_path / "m.onnx", nodes, (1, 8, 13, 13), **weights)
    partitioner = partitioner_of(path)
    graph = partitioner.graph
    chain = [g.index for g in graph.groups if g.splits_height]
    rest = [g.index for g in graph.groups if not g.splits_height]
    inputs = seeded_inputs(graph, 0)
    reference = reference_outputs(FileSource(path), inputs)
    for share_pct in (20, 50, 80):
        placed = [(chain, {CPU1: share_pct, CPU0: 100 - share_pct}), (rest, OPENVINO)]
        job = partitioner.job(plan_by_hand(graph, placed, Axis.HEIGHT), TARGETS)
        assert {port.tensor for port in job.pieces[0].writes} == {"a", "d"}
        assert largest_error(execute(job, partitioner.store, inputs), reference) < TOLERANCE


def channel_model(kind: str, path: Path) -> Path:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    image, row = (1, 8, 6, 6), (2, 24)
    node = helper.make_node
    if kind == "residual":
        nodes = [node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), node("Add", ["c", "x"], ["s"])]
        nodes.append(node("PRelu", ["s", "slope"], ["y"]))
        return save_model(path, nodes, image, w=normal(8, 8, 3, 3), b=normal(8), slope=normal(8, 1, 1))
    if kind == "depthwise multiplier":
        nodes = [node("Conv", ["x", "w"], ["y"], group=8)]
        return save_model(path, nodes, image, w=normal(24, 1, 3, 3))
    if kind == "transposed":
        nodes = [node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2])]
        return save_model(path, nodes, image, w=normal(8, 12, 3, 3), b=normal(12))
    if kind == "pool, norm and scale":
        norm = {"scale": normal(8), "shift": normal(8), "mean": normal(8), "var": normal(8) ** 2 + 1}
        nodes = [node("MaxPool", ["x"], ["p"], kernel_shape=[3, 3])]
        nodes += [node("BatchNormalization", ["p", *norm], ["n"]), node("Mul", ["n", "factor"], ["m"])]
        nodes.append(node("Clip", ["m", "low"], ["y"]))
        low = np.array(-1, np.float32)
        return save_model(path, nodes, image, **norm, factor=normal(1, 8, 1, 1), low=low)
    if kind == "matmul":
        nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
        return save_model(path, nodes, (2, 5, 16), w=normal(16, 20), b=normal(20))
    transposed = int(kind == "gemm transposed")
    weight = normal(20, 24) if transposed else normal(24, 20)
    bias = normal(20) if transposed else normal(2, 20)
    nodes = [node("Gemm", ["x", "w", "b"], ["g"], transB=transposed, alpha=0.5, beta=2.0), node("Relu", ["g"], ["y"])]
    return save_model(path, nodes, row, w=weight, b=bias)


KINDS = [
    "residual",
    "depthwise multiplier",
    "transposed",
    "pool, norm and scale",
    "matmul",
    "gemm",
    "gemm transposed",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share_pct", [30, 50])
def test_channel_splits(kind: str, share_pct: int, tmp_path: Path) -> None:
    path = channel_model(kind, tmp_path / "m.onnx")
    assert error_of(path, Axis.OUTPUT_CHANNELS, share_pct) < TOLERANCE


def test_a_part_of_the_channels_reads_and_weighs_its_part_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 16, 3, 3)).astype(np.float32)
    path = save_model(tmp_path / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], (1, 16, 9, 9), w=weight)
    partitioner = partitioner_of(path)
    job = partitioner.job(split_everything(partitioner.graph, Axis.OUTPUT_CHANNELS, 25), TARGETS)
    assert [(port.axis, port.start, port.stop) for piece in job.pieces for port in piece.writes] == [
        (1, 0, 16),
        (1, 16, 64),
    ]
    lengths = []
    for piece in job.pieces:
        model = onnx.load(partitioner.store.path(piece.files[0]), load_external_data=False)
        lengths += [int(e.value) for t in model.graph.initializer for e in t.external_data if e.key == "length"]
        assert partitioner.store.path(piece.files[0]).stat().st_size < 1000
    assert lengths == [weight.nbytes // 4, 3 * weight.nbytes // 4]
    assert len({name for piece in job.pieces for name in piece.files[1:]}) == 1  # one file of weights


def test_one_processor_is_one_piece_and_neighbours_are_merged(tmp_path: Path) -> None:
    partitioner = partitioner_of(save_tiny_cnn(tmp_path / "m.onnx"))
    graph = partitioner.graph
    every = range(len(graph.groups))
    job = partitioner.job(plan_by_hand(graph, [([group], CPU) for group in every]), TARGETS)
    assert len(job.pieces) == 1
    assert [port.tensor for port in job.pieces[0].reads + job.pieces[0].writes] == ["data", "logits"]
    back = [(every[:1], CPU0), (every[1:2], CPU1), (every[2:3], CPU0), (every[3:], CPU0)]
    job = partitioner.job(plan_by_hand(graph, back), TARGETS)
    assert [(piece.segment, piece.after) for piece in job.pieces] == [(0, ()), (1, (0,)), (2, (1,))]


def fork(path: Path) -> Path:
    weights = {f"w{i}": np.random.default_rng(i).normal(size=(8, 8, 3, 3)).astype(np.float32) for i in range(5)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["stem"], pads=[1] * 4),
        helper.make_node("Conv", ["stem", "w1"], ["left1"], pads=[1] * 4),
        helper.make_node("Conv", ["left1", "w2"], ["left2"], pads=[1] * 4),
        helper.make_node("Conv", ["stem", "w3"], ["right"], pads=[1] * 4),
        helper.make_node("Concat", ["left2", "right"], ["y"], axis=1),
    ]
    return save_model(path, nodes, (1, 8, 16, 16), **weights)


def test_branches_of_an_overlapping_plan_wait_for_their_operands_and_their_turn_alone(tmp_path: Path) -> None:
    path = fork(tmp_path / "m.onnx")
    partitioner = partitioner_of(path)
    graph = partitioner.graph
    number = {node: graph.group_of_node[graph.node_index[node]] for node in ("stem", "left1", "left2", "right", "y")}
    placed = [
        ([number["stem"], number["left1"], number["left2"]], CPU0),
        ([number["right"]], CPU1),
        ([number["y"]], CPU0),
    ]
    side = partitioner.job(plan_by_hand(graph, placed, overlap=True), TARGETS)
    made = {port.tensor: index for index, piece in enumerate(side.pieces) for port in piece.writes}
    assert made == {"stem": 0, "left2": 1, "right": 2, "y": 3}  # the stem is handed over before the left branch
    assert [piece.after for piece in side.pieces] == [(), (0,), (0,), (1, 2)]
    serial = partitioner.job(plan_by_hand(graph, placed), TARGETS)
    assert [piece.after for piece in serial.pieces] == [(), (0,), (1,)]
    inputs = seeded_inputs(graph, 0)
    for job in (side, serial):
        assert (
            largest_error(execute(job, partitioner.store, inputs), reference_outputs(FileSource(path), inputs))
            < TOLERANCE
        )


def test_pieces_on_the_same_cores_take_turns_in_an_overlapping_plan(tmp_path: Path) -> None:
    partitioner = partitioner_of(fork(tmp_path / "m.onnx"))
    graph = partitioner.graph
    number = {node: graph.group_of_node[graph.node_index[node]] for node in ("stem", "left1", "left2", "right", "y")}
    left = [number["left1"], number["left2"]]
    placed = [([number["stem"]], CPU0), (left, CPU), ([number["right"]], OPENVINO), ([number["y"]], CPU0)]
    job = partitioner.job(plan_by_hand(graph, placed, overlap=True), TARGETS)
    assert [piece.after for piece in job.pieces] == [(), (0,), (0, 1), (0, 1, 2)]


def test_channels_that_a_part_made_wait_for_that_part_alone(tmp_path: Path) -> None:
    weights = {name: np.ones(shape, np.float32) for name, shape in (("w", (16, 8, 1, 1)), ("v", (16, 1, 3, 3)))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["y"], group=16)]
    partitioner = partitioner_of(save_model(tmp_path / "m.onnx", nodes, (1, 8, 9, 9), **weights))
    both = {CPU1: 50, CPU0: 50}
    plan = plan_by_hand(partitioner.graph, [([0], both), ([1], both)], overlap=True)
    assert [piece.after for piece in partitioner.job(plan, TARGETS).pieces] == [(), (), (0,), (1,)]


def test_caps_become_duties(tmp_path: Path) -> None:
    partitioner = partitioner_of(save_tiny_cnn(tmp_path / "m.onnx"))
    groups = range(len(partitioner.graph.groups))
    plan = plan_by_hand(partitioner.graph, [(groups[:2], CPU0), (groups[2:], CPU1)])
    plan = msgspec.structs.replace(plan, caps=(Cap(CPU1, 0.25),))
    assert [piece.duty for piece in partitioner.job(plan, TARGETS).pieces] == [1.0, 0.25]


def test_plans_for_other_networks_and_devices_are_refused(tmp_path: Path) -> None:
    partitioner = partitioner_of(save_tiny_cnn(tmp_path / "m.onnx"))
    graph = partitioner.graph
    plan = plan_by_hand(graph, [(range(len(graph.groups)), CPU)])
    with pytest.raises(PlanError, match="compression"):
        partitioner.job(msgspec.structs.replace(plan, compression=Compression(0.1)), TARGETS)
    parts = (Part(CPU1, 50), Part(CPU0, 50))
    branches = Segment(nodes=graph.group_node_ids(0), parts=parts, axis=Axis.BRANCHES)
    with pytest.raises(PlanError, match="branches"):
        partitioner.job(msgspec.structs.replace(plan, segments=(branches,)), TARGETS)
    with pytest.raises(PlanError, match="cpu/onnxruntime/fp32"):
        partitioner.job(plan, {CPU0: TARGETS[CPU0]})
    with pytest.raises(PlanError, match="nothing to do"):
        partitioner.job(plan_by_hand(graph, [([0], {CPU1: 99, CPU0: 1}), ([1, 2, 3], CPU0)]), TARGETS)


def test_weights_are_stored_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny_cnn(tmp_path / "m.onnx")
    first = partitioner_of(path)
    plan = plan_by_hand(first.graph, [(range(len(first.graph.groups)), CPU)])
    files = first.job(plan, TARGETS).files

    def refuse(self: FileSource, tensor: onnx.TensorProto) -> None:
        raise AssertionError("the weights were read again")

    monkeypatch.setattr(FileSource, "weights", refuse)
    assert partitioner_of(path).job(plan, TARGETS).files == files


def test_changed_weights_are_read_again(tmp_path: Path) -> None:
    path = save_tiny_cnn(tmp_path / "m.onnx")
    before = partitioner_of(path)
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w1"))
    onnx.save(model, path)
    after = partitioner_of(path)
    plan = plan_by_hand(before.graph, [(range(len(before.graph.groups)), CPU)])
    inputs = seeded_inputs(before.graph, 0)
    outputs = [execute(p.job(plan, TARGETS), p.store, inputs)["logits"] for p in (before, after)]
    assert np.abs(outputs[0]).max() > 0
    assert np.abs(outputs[1]).max() == 0


def test_a_model_whose_weights_are_missing_needs_a_seed(tmp_path: Path) -> None:
    path = save_tiny_cnn(tmp_path / "m.onnx")
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(model, location="gone.bin", size_threshold=0)
    onnx.save(model, path)
    (tmp_path / "gone.bin").unlink()
    with pytest.raises(ModelError, match="--seeded-weights SEED"):
        partitioner_of(path)
    with pytest.raises(ModelError, match="--seeded-weights SEED"):
        open_source("resnet18")
    outputs = []
    for seed in (1, 1, 2):
        partitioner = partitioner_of(path, seed)
        plan = plan_by_hand(partitioner.graph, [(range(len(partitioner.graph.groups)), CPU)])
        inputs = seeded_inputs(partitioner.graph, 0)
        outputs.append(execute(partitioner.job(plan, TARGETS), partitioner.store, inputs))
        assert largest_error(outputs[-1], reference_outputs(FileSource(path, seed), inputs)) < TOLERANCE
    assert largest_error(outputs[1], outputs[0]) == 0
    assert largest_error(outputs[2], outputs[0]) > 0.01


def test_a_missing_engine_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_engines(["onnxruntime", "openvino"])
    monkeypatch.setattr("hetrl.partition.reference.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="hetrl\\[host\\]"):
        require_engines(["openvino"])


def test_external_weights_are_taken_from_their_file(tmp_path: Path) -> None:
    inline = save_tiny_cnn(tmp_path / "m.onnx")
    outside = tmp_path / "outside.onnx"
    model = onnx.load(inline)
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    partitioner = partitioner_of(outside)
    plan = plan_by_hand(partitioner.graph, [([0, 1], CPU0), ([2, 3], OPENVINO)])
    inputs = seeded_inputs(partitioner.graph, 0)
    outputs = execute(partitioner.job(plan, TARGETS), partitioner.store, inputs)
    assert largest_error(outputs, reference_outputs(FileSource(inline), inputs)) < TOLERANCE
