"""The command line with the real library: a plan is learned, shown and measured; bad input takes one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hetrl import zoo
from hetrl.cli.main import run
from hetrl.plan import ModelRef, Part, Plan, Segment, encode_plan

CPU = "cpu/mace/fp32"
OTHER = Plan(
    model=ModelRef("other", "0" * 64),
    device="d1",
    engines=("mace",),
    segments=(Segment(nodes=("a",), parts=(Part(CPU),)),),
)


def small_model() -> bytes:
    weights = [numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4, 16, 16)) for name in "xy"]
    graph = helper.make_graph(nodes, "small", tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str], None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HETRL_DEBUG", raising=False)
    Path("small.onnx").write_bytes(small_model())
    Path("other.json").write_bytes(encode_plan(OTHER))

    def check(words: str, told: str) -> None:
        before = sorted(os.listdir())
        for options in ([], ["--json"]):
            assert run([*words.split(), *options]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith("error: ") and err.count("\n") == 1
            assert told in err
        assert sorted(os.listdir()) == before

    return check


def test_a_plan_is_learned_shown_measured_and_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.onnx").write_bytes(small_model())
    on = ["--device", "d1", "--model", "small.onnx"]

    def ask(*words: str) -> Any:
        assert run([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    learned = ask("train", *on, "--budget", "12", "--quiet")
    assert learned["plan"] == "runs/small-d1/plan.json"
    assert learned["latency_ms"] <= learned["best_hand"]["latency_ms"]
    assert learned["evidence"] == "predicted"
    shown = ask("plan", "show", learned["plan"])
    assert shown["plan"]["expected"]["latency_ms"] == pytest.approx(learned["latency_ms"], rel=1e-5)
    row = ask("measure", *on, "--plan", learned["plan"])
    assert row["latency_ms"] == learned["latency_ms"]
    assert [segment["id"] for segment in row["segments"]] == [f"s{i}" for i in range(len(shown["plan"]["segments"]))]
    rows = {row["policy"]: row for row in ask("compare", *on, "--plan", learned["plan"])["rows"]}
    assert rows["learned"]["latency_ms"] == learned["latency_ms"]
    assert rows["exact"]["latency_ms"] == learned["exact_ms"]
    for words in (["measure", *on, "--plan", learned["plan"]], ["compare", *on], ["plan", "show", learned["plan"]]):
        assert run(words) == 0
        assert "predicted" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train --budget 3 --quiet", "compare", "measure --policy mace_cpu"])
def test_bad_models(refuse: Callable[[str, str], None], command: str) -> None:
    whole = zoo.build("resnet18").SerializeToString()
    Path("empty.onnx").write_bytes(b"")
    Path("text.onnx").write_text("import torch\n", encoding="utf-8")
    Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    Path("folder.onnx").mkdir()
    for model, told in {
        "gone.onnx": "gone.onnx does not exist",
        "folder.onnx": "folder.onnx is a folder",
        "empty.onnx": "empty.onnx is empty",
        "text.onnx": "text.onnx is no ONNX file",
        "cut.onnx": "truncated",
        "vgg61": "unknown model 'vgg61'; did you mean 'vgg16'?",
    }.items():
        refuse(f"{command} --device d1 --model {model}", told)


@pytest.mark.parametrize("command", ["train --budget 3 --quiet", "compare", "measure --policy mace_cpu"])
def test_bad_devices(refuse: Callable[[str, str], None], command: str) -> None:
    Path("bad.json").write_text('{"schema": "hetrl.device/1"}', encoding="utf-8")
    Path("text.json").write_text("phone", encoding="utf-8")
    for device, told in {
        "d11": "unknown device 'd11'; did you mean 'd1'?",
        "gone.json": "gone.json cannot be read",
        "bad.json": "bad.json is no device file",
        "text.json": "text.json is no device file",
    }.items():
        refuse(f"{command} --device {device} --model small.onnx", told)
    refuse(f"{command} --device d1 --model small.onnx --engine maze", "unknown engine 'maze'; did you mean 'mace'?")
    refuse(f"{command} --device d1 --model small.onnx --input-shape z:1x4x16x16", "'z'")
    refuse(f"{command} --device d1 --model small.onnx --condition clod", "unknown condition 'clod'")


def test_unknown_policy_and_agent(refuse: Callable[[str, str], None]) -> None:
    refuse("measure --device d1 --model small.onnx --policy mace_cup", "did you mean 'mace_cpu'?")
    refuse("train --device d1 --model small.onnx --agent maskable-pop --quiet", "did you mean 'maskable-ppo'?")
    refuse("compare --device d1 --model small.onnx --train --agent nothing --quiet", "unknown agent 'nothing'")


@pytest.mark.parametrize("command", ["compare", "measure"])
def test_bad_plans(refuse: Callable[[str, str], None], command: str) -> None:
    twice = msgspec.to_builtins(OTHER)
    twice["segments"] *= 2
    Path("twice.json").write_bytes(msgspec.json.encode(twice))
    Path("text.json").write_text("phone", encoding="utf-8")
    for plan, told in {
        "gone.json": "gone.json: cannot be read",
        "text.json": "text.json: is no JSON",
        "other.json": "the plan is for another model ('other')",
        "twice.json": "segments overlap",
    }.items():
        refuse(f"{command} --device d1 --model small.onnx --plan {plan}", told)


def test_bad_run_folders(refuse: Callable[[str, str], None]) -> None:
    Path("file").write_text("", encoding="utf-8")
    refuse("train --device d1 --model small.onnx --budget 3 --quiet --out file", "file")
    refuse("train --device d1 --model small.onnx --budget 3 --quiet --resume gone", "gone")
