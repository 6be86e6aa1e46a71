"""What `--lower` finds: plans that a format carries, for the objective, at their true price."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

import hetrl
from hetrl.cli.main import run
from hetrl.compression import Compression
from hetrl.device_bridge.spec import load_spec
from hetrl.errors import Infeasible, ModelError
from hetrl.export.bundle import open_bundle
from hetrl.exporting import Asked, Exported, export
from hetrl.objective import Objective
from hetrl.plan import Part, Plan
from hetrl.plan_check import model_ref
from hetrl.validating import validate_bundle
from hetrl.zoo.resolve import resolve_model
from tests.export_help import exported, hand_plan, random_model, random_plans, shared_plans, written

TEXTS = ("codl", "mace", "band", "mnn", "tflite")


def lowered(plan: Plan, folder: Path, format_name: str, asked: Asked) -> tuple[Exported, Plan]:
    """What was said, and the plan that is in the bundle."""
    out = folder / f"out-{format_name}"
    done = export(written(plan, folder), format_name, out, dataclasses.replace(asked, lower=True))
    with open_bundle(out) as bundle:
        return done, bundle.manifest.plan


@pytest.mark.parametrize("format_name", TEXTS)
def test_formats_without_a_model_get_a_plan_for_the_original(format_name: str, tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    small = replace(random_plans(model, 1)[0], compression=Compression(prune_ratio=0.25))
    with pytest.raises(Infeasible, match="--lower"):
        exported(small, model, format_name, tmp_path / "out")
    done, kept = lowered(small, tmp_path, format_name, Asked(model=str(model)))
    assert not kept.compression.changes and any(limit.field == "compression" for limit in done.lowered)
    row = hetrl.measure(str(model), "d1", plan=replace(kept, expected=None))
    assert done.expected is not None and done.expected.latency_ms == row.latency_ms
    assert done.expected.accuracy_drop_pct == 0 and done.given is not None
    assert validate_bundle(tmp_path / f"out-{format_name}").ok


def two_accelerators(folder: Path) -> Path:
    """A device file: d1 with two accelerators like its GPU, that are both an NPU to OpenVINO."""
    phone = load_spec("d1")
    engine = phone.engine("mace")
    gpu = next(p for p in engine.processors if p.unit == "gpu")
    new = tuple(replace(gpu, unit=unit) for unit in ("npu", "dsp"))
    link = engine.links[0]
    links = tuple(replace(link, accelerator=p.id, splits=False) for p in new)
    own = replace(engine, processors=(*engine.processors, *new), links=(*engine.links, *links))
    spec = replace(phone, id="own", engines={"mace": own}, default_engine="mace")
    path = folder / "own.json"
    path.write_bytes(msgspec.json.encode(spec))
    return path


def test_one_of_two_processors_that_are_one_to_the_runtime(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    graph = resolve_model(str(model))
    ids = ("npu/mace/fp32", "dsp/mace/fp32", "cpu/mace/fp32")
    groups = [graph.group_node_ids(group.index) for group in graph.groups]
    like = random_plans(model, 1)[0].segments[0]
    segments = tuple(
        replace(like, nodes=tuple(nodes), parts=(Part(ids[n % 3]),), axis=hetrl.plan.Axis.NONE, memory=None)
        for n, nodes in enumerate(groups)
    )
    plan = Plan(model=model_ref(graph), device="own", engines=("mace",), segments=segments)
    device = str(two_accelerators(tmp_path))
    with pytest.raises(Infeasible, match="there is one NPU"):
        export(written(plan, tmp_path), "openvino", tmp_path / "out", Asked(model=str(model), device=device))
    done, kept = lowered(plan, tmp_path, "openvino", Asked(model=str(model), device=device))
    assert not {"npu/mace/fp32", "dsp/mace/fp32"} <= set(kept.processors)
    row = hetrl.measure(str(model), device, plan=replace(kept, expected=None))
    assert done.expected is not None and done.expected.latency_ms == row.latency_ms


@pytest.mark.parametrize("format_name", ["mace", "tflite", "openvino", "codl"])
def test_frames_are_priced_and_can_be_kept(format_name: str, tmp_path: Path) -> None:
    """resnet18 shared by muLayer drops no frames; the fastest plan on one processor drops half of them."""
    asked = Asked(model="resnet18", seeded_weights=0 if format_name == "openvino" else None, lower=True)
    plan = written(hand_plan("resnet18", "mulayer"), tmp_path)
    free = export(plan, format_name, tmp_path / "free", asked)
    limit = Objective(max_frame_drop_rate=0.05)
    kept = export(plan, format_name, tmp_path / "kept", dataclasses.replace(asked, objective=limit))
    rates = []
    for done in (free, kept):
        assert done.expected is not None and done.given is not None
        with open_bundle(Path(done.out)) as bundle:
            row = hetrl.measure("resnet18", "d1", plan=replace(bundle.manifest.plan, expected=None))
        assert done.expected.frame_drop_rate == row.frame_drop_rate is not None
        assert done.given.frame_drop_rate == 0
        rates.append(row.frame_drop_rate)
    assert rates[0] > 0.05 >= rates[1]


@pytest.mark.parametrize("format_name", ["mnn", "tflite", "band", "mace"])
@pytest.mark.parametrize("window", [None, 1])
def test_settings_that_kept_frames_are_made_up_for(format_name: str, window: int | None, tmp_path: Path) -> None:
    """A queue window of 1 keeps the frames, and most formats lose it; MACE has it, so that such a plan stays."""
    given = replace(hand_plan("resnet18", "mace_gpu_image"), queue_window=window)
    limit = Objective(max_frame_drop_rate=0.02)
    done, kept = lowered(given, tmp_path, format_name, Asked(model="resnet18", objective=limit))
    row = hetrl.measure("resnet18", "d1", plan=replace(kept, expected=None))
    assert row.frame_drop_rate is not None and row.frame_drop_rate <= 0.02
    assert done.expected is None or done.expected.latency_ms == row.latency_ms
    if format_name == "mace" and window:
        assert replace(kept, expected=None) == given


def test_frames_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(written(hand_plan("resnet18", "mulayer"), tmp_path))
    asked = ["export", plan, "--format", "mace", "--lower", "--out"]
    assert run([*asked, str(tmp_path / "free")]) == 0
    assert "frames      54.0 % dropped, predicted; the given plan 0.0 %" in capsys.readouterr().out
    assert run([*asked, str(tmp_path / "kept"), "--max-frame-drop", "5"]) == 0
    assert "dropped" not in capsys.readouterr().out
    assert run([*asked[:4], "--out", str(tmp_path / "third"), "--max-frame-drop", "5"]) == 2
    assert "add --lower" in capsys.readouterr().err


def test_nothing_is_lowered_where_nothing_changes(tmp_path: Path) -> None:
    """The memory type stays in the plan, as times without it are not known: it is left out, and nothing else."""
    done, kept = lowered(hand_plan("resnet18", "mace_gpu_image"), tmp_path, "band", Asked(model="resnet18"))
    assert not done.lowered and {limit.field for limit in done.left_out} == {"segments.memory"}
    assert kept.segments == hand_plan("resnet18", "mace_gpu_image").segments


def test_outputs_that_are_constant_are_mentioned(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["c"], ["k"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y", "k")]
    constant = helper.make_tensor("c", TensorProto.FLOAT, (1, 4), [1.0, 2.0, 3.0, 4.0])
    graph = helper.make_graph(nodes, "constant", ends[:1], ends[1:], [constant])
    path = tmp_path / "constant.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    done = exported(random_plans(path, 1)[0], path, "onnxruntime", tmp_path / "out")
    assert any("'k' is constant" in note for note in done.notes)
    assert "'k' is constant" in (tmp_path / "out" / "README.md").read_text()


def test_text_is_no_input(tmp_path: Path) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER")
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, (4,)) for name in ("x", "y")]
    graph = helper.make_graph([node], "text", ends[:1], ends[1:])
    path = tmp_path / "text.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ModelError, match="is text"):
        exported(random_plans(path, 1)[0], path, "onnxruntime", tmp_path / "out")


def test_reasons_are_said_once(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = shared_plans(model, 1)[0]
    done, _ = lowered(plan, tmp_path, "mace", Asked(model=str(model)))
    assert len(done.lowered) > 5
    readme = (tmp_path / "out-mace" / "README.md").read_text()
    assert readme.count("cannot be shared along") <= 2 and "more: " in readme
    assert "checks that the files say what the plan does" in readme
