"""MACE on a Hexagon: the engine set `mace_dsp`, whose DSP's numbers are TFLite's by assumption."""

from __future__ import annotations

import msgspec
import pytest

import hetrl
from hetrl.accuracy import INT8_DROP_PCT
from hetrl.agents.policies import find_policy, policy_catalog
from hetrl.cli.main import run
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import builtin_names, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.objective import Objective
from hetrl.testing.models import UNSUPPORTED
from hetrl.zoo.builder import Builder
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import graph_of, latency_ms, measured

SET = "mace_dsp"
PHONES = ("d1", "d3", "d4", "d7")  # Snapdragons; the others are Kirins and an Exynos
CPU, DSP = "cpu/mace_dsp/fp32", "dsp/mace_dsp/int8"


def quantities(part: msgspec.Struct) -> dict[str, Quantity]:
    found = {name: getattr(part, name) for name in part.__struct_fields__}
    return {name: value for name, value in found.items() if isinstance(value, Quantity)}


def test_phones_with_a_dsp_that_tflite_drives_have_the_set() -> None:
    assert tuple(name for name in builtin_names() if SET in load_spec(name).engines) == PHONES
    for name in builtin_names():
        dsp = any(p.unit == "dsp" for p in load_spec(name).engine("tflite").processors)
        assert dsp == (name in PHONES)


@pytest.mark.parametrize("name", PHONES)
def test_its_numbers_are_maces_and_tflites_and_say_so(name: str) -> None:
    spec = load_spec(name)
    engine, tflite = spec.engine(SET), spec.engine("tflite")
    cpu, dsp = engine.processors
    assert (cpu.id, dsp.id) == (CPU, DSP)
    assert cpu.cost == spec.engine("mace").processors[0].cost
    old = next(p for p in tflite.processors if p.unit == "dsp")
    assert dsp.unsupported == old.unsupported
    link = next(x for x in tflite.links if x.accelerator == old.id)
    for mine, its in ((dsp.cost, old.cost), (dsp, old), (engine.links[0], link)):
        for field, number in quantities(mine).items():
            assert number.value == quantities(its)[field].value
            assert number.source is Source.ASSUMED
            assumed = quantities(its)[field].source is Source.ASSUMED
            assert assumed or ("TFLite's rows" in number.note and "hexagon-nn" in number.note)
    assert not engine.links[0].splits
    assert not engine.calibrated_models and not engine.seen_models


@pytest.mark.parametrize("name", PHONES)
@pytest.mark.parametrize("model", ["resnet18", "vgg16", "regnetx_1_6gf"])
def test_the_whole_network_runs_on_the_dsp_as_tflites_would(name: str, model: str) -> None:
    device, tflite = (SurrogateDevice(load_spec(name), resolve_model(model), e) for e in (SET, "tflite"))
    plan = find_policy("mace_dsp").plan(device)
    (segment,) = plan.segments
    assert segment.processors == (DSP,)
    answer = measured(device, plan)
    assert answer.evidence == "predicted"
    delegated = find_policy("tflite_dsp").plan(tflite)
    refuses = model == "regnetx_1_6gf" and name != "d4"  # convolutions in groups
    assert bool(answer.fallbacks) == refuses
    if not refuses:  # the same library does the same work
        assert latency_ms(tflite, delegated) == pytest.approx(answer.latency_ms)


def test_what_hexagon_nn_refuses_runs_on_the_cpu() -> None:
    net = Builder("refused")
    x = net.input("x", (1, 8, 24, 24))
    for number in range(3):
        x = net.conv(x, f"l{number}", 8, 3)
        if number == 1:
            x = net.activation(x, "refused", UNSUPPORTED)
    spec = load_spec("d1")
    engine = spec.engine(SET)
    cpu, dsp = engine.processors
    dsp = msgspec.structs.replace(dsp, unsupported=(*dsp.unsupported, UNSUPPORTED))
    engine = msgspec.structs.replace(engine, processors=(cpu, dsp))
    device = SurrogateDevice(
        msgspec.structs.replace(spec, engines={SET: engine}, default_engine=SET), graph_of(net.finish(x))
    )
    answer = measured(device, find_policy("mace_dsp").plan(device))
    (fallback,) = answer.fallbacks
    assert fallback.cost_ms > 0
    assert [s.processors for s in answer.segments] == [(DSP,), (CPU,), (DSP,)]


def test_int8_is_priced_and_never_calibrated() -> None:
    row = hetrl.measure("vgg16", "d1", policy="mace_dsp", engine=SET)
    assert row.accuracy_drop_pct == INT8_DROP_PCT and not row.keeps_budgets
    assert row.evidence == "predicted"
    allowed = Objective(max_accuracy_drop_pct=1.0)
    assert hetrl.measure("vgg16", "d1", policy="mace_dsp", engine=SET, objective=allowed).keeps_budgets
    assert hetrl.measure("vgg16", "d1", policy="mace_cpu", engine=SET).evidence == "predicted"
    assert (
        hetrl.measure("vgg16", "d1", policy="mace_cpu", engine=SET).latency_ms
        == hetrl.measure("vgg16", "d1", policy="mace_cpu").latency_ms
    )


def test_which_policies_apply() -> None:
    device = SurrogateDevice(load_spec("d1"), resolve_model("resnet18"), SET)
    able = {policy.id for policy in policy_catalog() if policy.applies(device)}
    assert {"mace_cpu", "mace_dsp", "nn_stretch_cpu_dsp", "ort_greedy", "onert_heft", "band_heft"} <= able
    assert not {i for i in able if i.startswith(("tflite", "ncnn", "codl", "mulayer", "mace_gpu"))}
    assert not {"nn_stretch_cpu_gpu", "nn_stretch_cpu_gpu_dsp"} & able
    for name in able:
        measured(device, find_policy(name).plan(device))


@pytest.mark.parametrize(
    ("phone", "policy", "engine", "said"),
    [
        ("d1", "mace_dsp", None, "needs dsp, which d1 (mace) lacks; choose --engine mace_dsp"),
        ("d1", "mace_gpu_image", SET, "needs gpu, which d1 (mace_dsp) lacks; choose --engine mace"),
        ("d5", "mace_dsp", None, "needs dsp, which d5 (mace) lacks; `hetrl devices` lists processors"),
        ("d1", "tflite_dsp", SET, "choose --engine tflite"),
    ],
)
def test_where_it_cannot_run_the_error_says_what_to_type(
    phone: str, policy: str, engine: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["measure", "--device", phone, "--model", "vgg16", "--policy", policy]
    assert run([*words, *(["--engine", engine] if engine else [])]) == 2
    assert said in capsys.readouterr().err
