"""`hetrl profile --npu-support`: Qualcomm's HTP backend is asked for real, and its answer ends in a device file."""

import importlib.util
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from hetrl.cli.main import run
from hetrl.device_bridge.spec import load_spec
from hetrl.errors import DeviceFailed, MissingExtra, UsageError
from hetrl.support import qnn
from hetrl.support.device_file import with_unsupported
from hetrl.support.qnn import NodeSupport, NpuSupport

needs_backend = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="onnxruntime-qnn is not installed (it has wheels for Linux and Windows only)",
)
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
odd (float[N,4,16,16] x) => (float[N,4,16,16] y)
<float[4,4,3,3] w = {%s}>
{
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
    b = Relu(a)
    c = Sinh(b)
    y = Add(c, b)
}
"""
LOG = """\
[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation PASSED for 1 nodes in OrtNodeUnit (Conv) :
\tOperator type: Conv Node name: hetrl_0_ Node index: 0
[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation FAILED for 2 nodes in OrtNodeUnit (Sinh) :
\tOperator type: Sinh Node name: hetrl_4_ Node index: 4
\tOperator type: QuantizeLinear Node name: hetrl_5_ Node index: 5
\tREASON : Operators of type `Sinh`   are not supported by QNN EP.
[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (Mod) :
\tOperator type: Mod Node name: hetrl_6_ Node index: 6
[V:onnxruntime:, other.cc:1 Something] Operator type: Tan Node name: hetrl_7_ Node index: 7
\tREASON : fmod
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "odd.onnx"
    onnx.save(onnx.parser.parse_model(MODEL % ", ".join(["0.1"] * 144)), path)
    return path


SHAPE = ["--input-shape", "x:1x4x16x16"]


@needs_backend
class TestBackend:
    def test_says_which_operators_it_takes_and_why_not(self, model: Path) -> None:
        answer = qnn.npu_support(str(model), {"x": (1, 4, 16, 16)})
        assert [(node.node, node.op_type, node.taken) for node in answer.nodes] == [
            ("a", "Conv", True), ("b", "Relu", True), ("c", "Sinh", False), ("y", "Add", True),
        ]  # fmt: skip
        assert "`Sinh`" in answer.refused[0].reason and "hetrl_" not in answer.refused[0].reason
        assert answer.unsupported == ("Sinh",)
        assert answer.sometimes == ()
        assert answer.problem == ""
        assert answer.backend.startswith("HTP reference backend of onnxruntime-qnn 2.")

    def test_takes_resnet18_wholly(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["profile", "resnet18", "--npu-support", "--json"]) == 0
        said = json.loads(capfd.readouterr().out)
        assert (said["nodes"], said["taken"], said["refused"]) == (69, 69, [])

    def test_stores_the_refused_types_in_a_copy_of_the_device_file(
        self, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "mine.json"
        before = load_spec("d4")
        command = ["profile", str(model), "--npu-support", *SHAPE, "--device-file", "d4", "--out", str(out)]
        assert run(command) == 0
        assert f"wrote {out}; dsp/tflite/int8 refuses Sinh" in capfd.readouterr().out
        made = load_spec(str(out))
        changed = [p for p in made.engine("tflite").processors if "Sinh" in p.unsupported]
        assert [p.id for p in changed] == ["dsp/tflite/int8"]
        assert "HTP reference backend of onnxruntime-qnn" in made.notes and "asked about odd" in made.notes
        assert load_spec("d4") == before
        assert run(["devices", "check", str(out)]) == 0
        assert run(command) == 2  # never over an existing file

    def test_reads_weights_from_files_beside_the_model(self, model: Path, tmp_path: Path) -> None:
        apart = tmp_path / "apart"
        apart.mkdir()
        made = onnx.load(model)
        weight = made.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight), "w"))  # only raw bytes can be moved out
        onnx.save(made, apart / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        assert qnn.npu_support(str(apart / "m.onnx"), {"x": (1, 4, 16, 16)}).unsupported == ("Sinh",)
        (apart / "w.bin").unlink()
        assert run(["profile", str(apart / "m.onnx"), "--npu-support", *SHAPE]) == 2

    def test_judges_a_quantized_model_operator_by_operator(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> q (float[1,4,8,8] x) => (float[1,4,8,8] y)
                  <float s = {0.1}, uint8 z = {128}>
                  { a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = Relu(b)
                    d = QuantizeLinear(c, s, z) y = DequantizeLinear(d, s, z) }"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "q.onnx")
        assert qnn.npu_support(str(tmp_path / "q.onnx")).refused == ()

    def test_a_model_that_the_runtime_cannot_load_gets_no_answer(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> own (float[1,4] x) => (float[1,4] y)
                  { a = Relu(x) b = mine.Thing(a) y = Relu(b) }"""
        made = onnx.parser.parse_model(text)
        made.graph.value_info.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, (1, 4)))
        onnx.save(made, tmp_path / "own.onnx")
        assert run(["profile", str(tmp_path / "own.onnx"), "--npu-support"]) == DeviceFailed.exit_code
        line = capfd.readouterr().err
        assert line.startswith("error: the HTP backend gives no answer for own: ") and line.count("\n") == 1

    def test_constants_that_are_folded_away_are_not_counted(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> folded (float[1,4,8,8] x) => (float[1,256] y)
                  { s = Shape(x) f = Flatten<axis = 1>(x) r = Relu(f) y = Identity(r) }"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "folded.onnx")
        answer = qnn.npu_support(str(tmp_path / "folded.onnx"))
        assert "Shape" not in {node.op_type for node in answer.refused}


class TestAnswer:
    def test_reasons_belong_to_the_operators_before_them(self) -> None:
        why = "Operators of type `Sinh` are not supported by QNN EP."
        assert qnn.reasons(LOG) == {"hetrl_4_": why, "hetrl_5_": why, "hetrl_6_": "fmod", "hetrl_7_": "fmod"}

    def test_a_type_that_is_taken_elsewhere_is_no_unsupported_type(self) -> None:
        answer = NpuSupport(
            "m",
            "b",
            (
                NodeSupport("a", "Gather", True),
                NodeSupport("b", "Gather", False, "negative"),
                NodeSupport("c", "Loop", False, "no"),
            ),
        )
        assert answer.unsupported == ("Loop",)
        assert answer.sometimes == ("Gather",)
        assert qnn.by_type(answer) == [("Gather", 2, 1, "negative"), ("Loop", 1, 1, "no")]

    def test_a_backend_that_cannot_prepare_the_whole_has_still_judged_every_operator(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = "Failed to finalize QNN graph. Error: QNN_COMMON_ERROR_MEM_ALLOC"
        log = LOG.replace("hetrl_4_", "hetrl_2_")
        monkeypatch.setattr(qnn, "_ask", lambda *_: (qnn.Answer(error=error), log))
        monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
        monkeypatch.setattr("importlib.metadata.version", lambda _: "0")
        answer = qnn.npu_support(str(model), {"x": (1, 4, 16, 16)})
        assert answer.problem == error
        assert [node.node for node in answer.refused] == ["c"]

    def test_a_worker_that_dies_is_a_failed_backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qnn.sys, "executable", "/bin/false")
        answer, _ = qnn._ask(tmp_path / "m.onnx", tmp_path)
        assert answer.error == "its process ended with 1: it printed nothing"


class TestDeviceFile:
    def test_npu_before_dsp_and_nothing_forgotten(self) -> None:
        old = load_spec("d2")
        made, processor = with_unsupported(old, ["Sinh", "Gather"], "asked.")
        assert processor == "npu/tflite/fp16"
        npu = next(p for p in made.engine("tflite").processors if p.id == processor)
        before = next(p for p in old.engine("tflite").processors if p.id == processor)
        assert npu.unsupported == (*before.unsupported, "Sinh")
        assert made.notes.endswith("npu/tflite/fp16: asked.")
        assert msgspec.structs.replace(made, engines=old.engines, notes=old.notes) == old

    def test_an_engine_set_without_npu_or_dsp_is_named(self) -> None:
        with pytest.raises(UsageError, match="engine set 'ncnn' of d4 has no NPU or DSP"):
            with_unsupported(load_spec("d4"), ["Sinh"], "", "ncnn")


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["resnet18"], "add --npu-support"),
            (["resnet81", "--npu-support"], "did you mean 'resnet18'?"),
            (["no.onnx", "--npu-support"], "no.onnx does not exist"),
            (["resnet18", "--npu-support", "--out", "x.json"], "belong together"),
            (["resnet18", "--npu-support", "--device-file", "d4"], "belong together"),
            (["resnet18", "--npu-support", "--engine", "tflite"], "--engine needs a device file"),
            (["resnet18", "--npu-support", "--device-file", "d44", "--out", "x.json"], "did you mean 'd4'?"),
            (["resnet18", "--npu-support", "--device-file", "no.json", "--out", "x.json"], "no.json cannot be read"),
            (["resnet18", "--npu-support", "--device-file", "d8", "--out", "x.json"], "d8 has no NPU or DSP"),
            (["resnet18", "--npu-support", "--device-file", "d4", "--out", "x.toml"], "--out x.json"),
            (["resnet18", "--npu-support", "--device-file", "d4", "--out", "x.json", "--engine", "z"], "engine 'z'"),
        ],
    )
    def test_one_line_and_exit_2(
        self,
        arguments: list[str],
        says: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
        assert run(["profile", *arguments]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert says in err
        assert list(tmp_path.iterdir()) == []

    def test_without_the_extra_its_name_is_said(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(MissingExtra):
            qnn.npu_support("resnet18")
        assert run(["profile", "resnet18", "--npu-support"]) == 2
        assert "pip install 'hetrl[qnn]'" in capfd.readouterr().err


def test_the_models_weights_are_the_same_numbers_for_the_backend(model: Path, tmp_path: Path) -> None:
    """What is handed over differs from the file in names and input sizes only."""
    from hetrl.zoo.resolve import resolve_model

    graph = resolve_model(str(model), {"x": (1, 4, 16, 16)})
    folder = tmp_path / "work"
    folder.mkdir()
    file, weights, ids = qnn._prepared(str(model), graph, folder)
    made, old = onnx.load(file), onnx.load(model)
    assert weights == tmp_path and ids == {0: "a", 1: "b", 2: "c", 3: "y"}
    assert [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim] == [1, 4, 16, 16]
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in old.graph.node]
    np.testing.assert_array_equal(
        numpy_helper.to_array(made.graph.initializer[0]), numpy_helper.to_array(old.graph.initializer[0])
    )
