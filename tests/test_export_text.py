"""Formats that describe a plan in text: what they hold is in their own syntax, and is read back."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from hetrl.compression import Compression
from hetrl.condition import Condition
from hetrl.export import band, mace, mnn
from hetrl.export.base import Claims, Exporter
from hetrl.export.expected import predicted
from hetrl.graph.reader import load_graph
from hetrl.plan import Axis
from tests.export_help import random_model, random_plans
from tests.text_help import (
    ALL,
    BRANCH_WEIGHTS,
    BRANCHES,
    CPU,
    D1,
    GPU,
    LITE_CPU,
    LITE_DSP,
    LITE_GPU,
    Layer,
    alone,
    changed,
    checks,
    lowered,
    net,
    placed,
    reasons,
    shared,
    written,
)

each = pytest.mark.parametrize("exporter", ALL, ids=lambda exporter: str(exporter.name))


# What MACE's documentation has for an ONNX model, with other names and numbers.
MACE_DEPLOYMENT = """
library_name: two
target_abis: [arm64-v8a]
model_graph_format: file
model_data_format: file
models:
  two:
    platform: onnx
    model_file_path: /path/to/two.onnx
    model_sha256_checksum: SHA256_OF_THAT_FILE
    subgraphs:
      - input_tensors:
          - data
        input_shapes:
          - 1,4,8,8
        input_data_types:
          - float32
        input_data_formats:
          - NCHW
        output_tensors:
          - "no"
          - "17"
        output_shapes:
          - 1,4,8,8
          - 1,4,8,8
        output_data_types:
          - float32
          - float32
        output_data_formats:
          - NCHW
          - NCHW
    runtime: gpu
    data_type: fp32_fp32
    cl_mem_type: image
    limit_opencl_kernel_time: 1
    opencl_queue_window_size: 4
    quantize: 0
    obfuscate: 0
    winograd: 0
"""


def test_mace_reads_what_a_deployment_file_is(tmp_path: Path) -> None:
    """Output names are such as YAML would read as a truth value, and as a number."""
    layers: list[Layer] = [("Conv", ["data", "w_a"], "no"), ("Conv", ["data", "w_b"], "17")]
    graph = replace(net(layers, ["no", "17"], BRANCH_WEIGHTS), name="two")
    plan = placed(graph, {}, alone(GPU), kernel_slice_ms=1.0, queue_window=4)
    out = written(mace.EXPORTER, plan, graph, tmp_path / "out")
    text = (out / mace.FILE).read_text()
    assert yaml.safe_load(text) == yaml.safe_load(MACE_DEPLOYMENT)
    assert all(check.ok for check in checks(mace.EXPORTER, out))
    assert not changed(mace.EXPORTER, out, mace.FILE, "window_size: 4", "window_size: 16")
    assert not changed(mace.EXPORTER, out, mace.FILE, "    winograd: 0\n", "")


@pytest.mark.parametrize(
    "name", ["input:0", "a b", "yes", "Null", "1e3", "0x1f", "-x", "~", "ß", "#", 'say "hi"', "a: b"]
)
def test_mace_names_survive_yaml(name: str) -> None:
    graph = net([("Conv", ["data", "w_a"], "a")], ["a"], BRANCH_WEIGHTS)
    port = mace.Port(name, (1, 3, 8, 8), "float32")
    model = yaml.safe_load(mace.deployment(placed(graph, {}, alone(CPU)), [port], [port]))["models"]["net"]
    assert model["subgraphs"][0]["input_tensors"] == [name]
    assert model["runtime"] == "cpu" and "cl_mem_type" not in model


def test_mace_refuses_two_processors_and_other_kernel_times() -> None:
    graph = net(BRANCHES[:3], ["b", "down"], BRANCH_WEIGHTS)
    two = placed(graph, {"a": alone(GPU)}, alone(CPU))
    assert "the whole model is on one processor" in reasons(mace.EXPORTER.claims(two, graph))
    sliced = placed(graph, {}, alone(GPU), kernel_slice_ms=2.0)
    assert "to 1 ms, not to 2 ms" in reasons(mace.EXPORTER.claims(sliced, graph))
    assert mace.EXPORTER.claims(replace(sliced, kernel_slice_ms=1.0, queue_window=2), graph) == Claims()


# A configuration of Band's benchmark tool, with every key that its documentation has for one.
BAND_CONFIG = """
{"models": [{"graph": "/data/local/tmp/a.tflite", "period_ms": 30, "batch_size": 3},
            {"graph": "/data/local/tmp/b.tflite", "period_ms": 10, "worker_id": 2}],
 "log_path": "/data/local/tmp/log.json", "schedulers": ["fixed_worker", "round_robin"], "minimum_subgraph_size": 7,
 "subgraph_preparation_type": "merge_unit_subgraph", "execution_mode": "periodic", "cpu_masks": "ALL",
 "num_threads": 1, "planner_cpu_masks": "PRIMARY",
 "workers": [{"device": "CPU", "num_threads": 3, "cpu_masks": "BIG"},
             {"device": "CPU", "num_threads": 4, "cpu_masks": "LITTLE"},
             {"device": "GPU", "num_threads": 1, "cpu_masks": "ALL"}],
 "running_time_ms": 60000, "profile_smoothing_factor": 0.1, "profile_data_path": "/data/local/tmp/profile.json",
 "profile_online": true, "profile_warmup_runs": 10, "profile_num_runs": 20, "allow_work_steal": true,
 "availability_check_interval_ms": 30000, "schedule_window_size": 10}
"""


def test_band_configuration_has_its_keys(tmp_path: Path) -> None:
    known = msgspec.json.decode(BAND_CONFIG, type=band.Config)
    assert msgspec.to_builtins(known).keys() == json.loads(BAND_CONFIG).keys()
    assert band.profile_hash(known.workers) == 3 ^ (0 ^ 3 ^ 2) ^ (0 ^ 4 ^ 1) ^ (1 ^ 1 ^ 0)
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)
    plan = placed(graph, {}, alone(LITE_GPU))
    out = written(band.EXPORTER, plan, graph, tmp_path / "out")
    config, profile = (json.loads((out / file).read_text()) for file in (band.CONFIG, band.PROFILE))
    assert config.keys() == json.loads(BAND_CONFIG).keys()
    assert [worker["device"] for worker in config["workers"]] == ["CPU", "GPU", "DSP"]
    assert config["models"][0]["worker_id"] == 1 and config["schedulers"] == ["fixed_worker"]
    times = profile[config["models"][0]["graph"]]["0"]
    whole = [placed(graph, {}, alone(name)) for name in (LITE_CPU, LITE_GPU, LITE_DSP)]
    engines = tuple(engine for engine in D1.engine("tflite").engines)
    wanted = [predicted(replace(one, engines=engines), graph, D1, Condition()).latency_ms or 0 for one in whole]
    assert times == [round(1000 * latency_ms) for latency_ms in wanted]
    assert all(check.ok for check in checks(band.EXPORTER, out))
    assert not changed(band.EXPORTER, out, band.CONFIG, '"worker_id": 1', '"worker_id": 0')
    assert not changed(band.EXPORTER, out, band.CONFIG, '"worker_id": 1', '"worker_id": 9')
    assert not changed(band.EXPORTER, out, band.CONFIG, '"num_threads": 4,\n   "cpu', '"num_threads": 2,\n   "cpu')
    assert not changed(band.EXPORTER, out, band.CONFIG, '"device": "GPU"', '"device": "TPU"')
    assert not changed(band.EXPORTER, out, band.PROFILE, str(times[1]), "null")


def test_band_profiles_an_unknown_device_itself(tmp_path: Path) -> None:
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)
    out = written(band.EXPORTER, placed(graph, {}, alone(LITE_GPU)), graph, tmp_path / "out", spec=None)
    assert not (out / band.PROFILE).exists()
    assert [check.ok for check in checks(band.EXPORTER, out)] == [True, None]


def test_mnn_gives_each_segment_a_path(tmp_path: Path) -> None:
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)
    plan = placed(graph, {"down": alone(CPU), "b": alone(CPU)}, alone(GPU))
    out = written(mnn.EXPORTER, plan, graph, tmp_path / "out")
    file = msgspec.json.decode((out / mnn.FILE).read_bytes(), type=mnn.Paths)
    assert [(path.backend, path.input_paths, path.output_paths) for path in file.paths] == [
        ("OPENCL", ("data",), ("a",)),
        ("CPU", ("data", "a"), ("down", "b")),
        ("OPENCL", ("b", "down"), ("up",)),
    ]
    raw = json.loads((out / mnn.FILE).read_text())["paths"]
    assert raw[0] | {"inputPaths": [], "outputPaths": []} == {
        "backend": "OPENCL",
        "precision": "high",
        "numThread": 4 + 128,
        "mode": "Tensor",
        "inputPaths": [],
        "outputPaths": [],
    }
    assert all(check.ok for check in checks(mnn.EXPORTER, out))
    assert not changed(mnn.EXPORTER, out, mnn.FILE, '"CPU"', '"OPENCL"')
    assert not changed(mnn.EXPORTER, out, mnn.FILE, '"down"', '"town"')
    assert not changed(mnn.EXPORTER, out, mnn.FILE, '"numThread"', '"threads"')


def test_mnn_reads_past_operators_that_its_converter_drops() -> None:
    layers: list[Layer] = [
        ("Conv", ["data", "w_a"], "a"),
        ("Dropout", ["a"], "dropped"),
        ("Identity", ["dropped"], "same"),
        ("Conv", ["same", "w_b"], "b"),
    ]
    graph = net(layers, ["b"], BRANCH_WEIGHTS)
    paths = mnn.paths_of(placed(graph, {"b": alone(CPU)}, alone(GPU)), graph, 4)
    assert [(path.input_paths, path.output_paths) for path in paths.values()] == [(("data",), ("a",)), (("a",), ("b",))]


def test_mnn_refuses_shares() -> None:
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)
    split = placed(graph, {"a": shared(Axis.HEIGHT, 50)}, alone(GPU))
    assert "cannot be shared along height" in reasons(mnn.EXPORTER.claims(split, graph))
    assert "no dsp" in reasons(mnn.EXPORTER.claims(placed(graph, {}, alone(LITE_DSP)), graph))


@each
def test_the_same_plan_gives_the_same_bytes(exporter: Exporter, tmp_path: Path) -> None:
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)
    plan = placed(graph, {}, alone(GPU))
    folders = [written(exporter, plan, graph, tmp_path / name) for name in ("one", "two")]
    one, two = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert one == two and len(one) >= 3


@each
def test_lowered_plans_are_carried_and_the_best_of_those(exporter: Exporter, tmp_path: Path) -> None:
    """Whatever a random plan holds; none of the random plans that the format carries without loss is faster."""
    model = random_model(tmp_path, 7)
    graph, plans = load_graph(model), random_plans(model, 200)
    best = lowered(exporter, plans[0], graph)
    assert exporter.claims(best, graph).refused == ()
    out = written(exporter, best, graph, tmp_path / "out")
    assert all(check.ok for check in checks(exporter, out))
    latency_ms = predicted(best, graph, D1, Condition()).latency_ms or 0
    for plan in plans:
        claims = exporter.claims(plan, graph)
        if claims == Claims():
            assert latency_ms <= (predicted(plan, graph, D1, Condition()).latency_ms or 0) * (1 + 1e-9)


@each
def test_formats_without_a_model_refuse_a_smaller_one(exporter: Exporter) -> None:
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)
    plan = placed(graph, {}, alone(GPU), compression=Compression(prune_ratio=0.2))
    assert "holds no compressed one" in reasons(exporter.claims(plan, graph))
