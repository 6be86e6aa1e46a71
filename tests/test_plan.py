"""The plan file: canonical bytes, its JSON Schema, and one clear error for everything that is wrong with one."""

from __future__ import annotations

import json
import math
import string
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.compression import Compression
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import PlanError
from hetrl.plan import (
    Axis,
    Cap,
    Evidence,
    Expected,
    MadeBy,
    Memory,
    ModelRef,
    Part,
    Plan,
    Segment,
    decode_plan,
    encode_plan,
    json_schema,
    load_plan,
)
from hetrl.testing.devices import whole_model_plans
from hetrl.testing.models import random_graph
from tests.surrogate_help import D1, chain_graph

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
SCHEMA_FILE = resources.files("hetrl") / "schema" / "plan-1.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_bytes()))
replace = msgspec.structs.replace

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
words = st.text(string.ascii_lowercase + string.digits + "_.-", min_size=1, max_size=6)
numbers = st.floats(0, 1e6, allow_nan=False)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
expectations = st.builds(
    Expected,
    condition=words,
    latency_ms=numbers,
    accuracy_drop_pct=numbers,
    frame_drop_rate=st.none() | st.floats(0, 1),
    peak_memory_mb=numbers,
    energy_mj=st.none() | numbers,
    evidence=st.sampled_from(Evidence),
)
makers = st.builds(MadeBy, method=ids, search=st.none() | ids, seed=st.none() | st.integers(0, 99))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    engines = draw(st.lists(words, min_size=1, max_size=2, unique=True))
    processors = [f"{unit}/{engine}/fp32" for unit in ("cpu", "gpu", "npu") for engine in engines]
    nodes = draw(st.lists(ids, min_size=1, max_size=12, unique=True))
    segments = []
    while nodes:
        taken, nodes = nodes[: (size := draw(st.integers(1, 4)))], nodes[size:]
        used = draw(st.lists(st.sampled_from(processors), min_size=1, max_size=3, unique=True))
        cuts = sorted(draw(st.sets(st.integers(1, 99), min_size=len(used) - 1, max_size=len(used) - 1)))
        shares = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        axis = draw(st.sampled_from([Axis.HEIGHT, Axis.OUTPUT_CHANNELS])) if cuts else Axis.NONE
        parts = tuple(Part(p, s) for p, s in zip(used, shares, strict=True))
        segments.append(
            Segment(nodes=tuple(taken), parts=parts, axis=axis, memory=draw(st.none() | st.sampled_from(Memory)))
        )
    capped = draw(st.lists(st.sampled_from(processors), max_size=2, unique=True))
    return Plan(
        model=ModelRef(draw(ids), draw(hashes), draw(st.none() | hashes)),
        device=draw(ids),
        engines=tuple(engines),
        segments=tuple(segments),
        compression=Compression(draw(st.floats(0, 1, exclude_max=True))),
        caps=tuple(Cap(p, draw(st.floats(0.01, 1))) for p in capped),
        queue_window=draw(st.none() | st.integers(1, 1024)),
        kernel_slice_ms=draw(st.none() | st.floats(0.01, 1000)),
        expected=draw(st.none() | expectations),
        made_by=draw(
            st.none() | st.builds(MadeBy, method=ids, search=st.none() | ids, seed=st.none() | st.integers(0, 99))
        ),
    )


@given(plans())
def test_a_plan_survives_the_round_trip_with_the_same_bytes(plan: Plan) -> None:
    data = encode_plan(plan)
    assert decode_plan(data) == plan
    assert encode_plan(decode_plan(data)) == data
    spread = json.dumps(json.loads(data), indent=3, sort_keys=True).encode()
    assert encode_plan(decode_plan(spread)) == data  # however somebody formatted it
    VALIDATOR.validate(json.loads(data))


@given(plans(), plans())
def test_the_key_is_that_of_what_a_plan_does(plan: Plan, other: Plan) -> None:
    bare = replace(plan, expected=None, made_by=None)
    assert plan.key == bare.key == replace(bare, expected=other.expected, made_by=other.made_by).key
    for name in ("model", "device", "segments", "compression", "caps", "queue_window", "kernel_slice_ms"):
        if name == "segments" and plan.engines != other.engines:
            continue
        changed = replace(plan, **{name: getattr(other, name)})
        assert (changed.key == plan.key) == (getattr(other, name) == getattr(plan, name))


def test_numbers_that_are_equal_are_written_the_same() -> None:
    plan = replace(PLAN, compression=Compression(0), caps=(Cap(CPU, 1),), kernel_slice_ms=4)
    same = replace(PLAN, compression=Compression(-0.0), caps=(Cap(CPU, 1.0),), kernel_slice_ms=4.0)
    assert plan == same
    assert encode_plan(plan) == encode_plan(same) == encode_plan(decode_plan(encode_plan(plan)))


def test_the_schema_file_is_in_step() -> None:
    canonical = msgspec.json.format(msgspec.json.encode(json_schema()), indent=1) + b"\n"
    assert SCHEMA_FILE.read_bytes() == canonical, "write json_schema() to hetrl/schema/plan-1.schema.json"
    jsonschema.Draft202012Validator.check_schema(json_schema())


GRAPH = chain_graph(4)
DEVICE = SurrogateDevice(D1, GRAPH)
PLAN = whole_model_plans(DEVICE)[0]
HALVES = (Part(GPU, 50), Part(CPU, 50))
ONE = PLAN.segments[0]
MODEL = PLAN.model

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"model": ModelRef("m", "abc")}, "model.structure_sha256"),
    ({"model": ModelRef("m", "A" * 64)}, "model.structure_sha256"),
    ({"model": ModelRef("m", "a" * 64, "b" * 63)}, "model.weights_sha256"),
    ({"device": ""}, "device"),
    ({"engines": ()}, "engines"),
    ({"engines": ("mace", "mace")}, "engines"),
    ({"engines": ("ncnn",)}, "segments[0].parts[0].processor"),
    ({"segments": ()}, "segments"),
    ({"segments": (ONE, replace(ONE, nodes=()))}, "segments[1].nodes"),
    ({"segments": (ONE, replace(ONE, nodes=("other", "l2")))}, "segments[1].nodes"),  # overlap
    ({"segments": (replace(ONE, nodes=("l0", "l0")),)}, "segments[0].nodes"),
    ({"segments": (replace(ONE, parts=()),)}, "segments[0].parts"),
    ({"segments": (replace(ONE, parts=(Part("cpu"),)),)}, "segments[0].parts[0].processor"),
    ({"segments": (replace(ONE, parts=(Part("CPU/mace/fp32"),)),)}, "segments[0].parts[0].processor"),
    ({"segments": (replace(ONE, parts=(Part(CPU, 0), Part(GPU, 100))),)}, "segments[0].parts[0].share_pct"),
    ({"segments": (replace(ONE, parts=(Part(CPU, 101),)),)}, "segments[0].parts[0].share_pct"),
    ({"segments": (replace(ONE, parts=(Part(CPU, 50), Part(CPU, 50)), axis=Axis.HEIGHT),)}, "segments[0].parts"),
    ({"segments": (replace(ONE, parts=(Part(CPU, 50), Part(GPU, 49)), axis=Axis.HEIGHT),)}, "segments[0].parts"),
    ({"segments": (replace(ONE, parts=(Part(CPU, 99),)),)}, "segments[0].parts"),
    ({"segments": (replace(ONE, parts=HALVES),)}, "segments[0].axis"),
    ({"segments": (replace(ONE, axis=Axis.HEIGHT),)}, "segments[0].axis"),
    ({"caps": (Cap(CPU, 0.5), Cap(CPU, 0.5))}, "caps"),
    ({"caps": (Cap(GPU, 0.5), Cap(CPU, 0.0))}, "caps[1].duty"),
    ({"caps": (Cap(CPU, math.inf),)}, "caps[0].duty"),
    ({"queue_window": 0}, "queue_window"),
    ({"queue_window": 1025}, "queue_window"),
    ({"kernel_slice_ms": 0.0}, "kernel_slice_ms"),
    ({"kernel_slice_ms": math.nan}, "kernel_slice_ms"),
]


@pytest.mark.parametrize(("fields", "field"), BROKEN)
def test_a_broken_invariant_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError) as caught:
        replace(PLAN, **fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ") and "\n" not in str(caught.value)


GOOD = encode_plan(PLAN).decode()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"device": "d1"', '"device": 1', "device"),
        ('"device": "d1"', '"device": "d1", "run": "rm -rf /"', "plan.json"),
        ('"schema": "hetrl.plan/1"', '"schema": "hetrl.plan/2"', "schema"),
        ('"share_pct": 100', '"share_pct": 100.5', "segments[0].parts[0].share_pct"),
        ('"share_pct": 100', '"share_pct": true', "segments[0].parts[0].share_pct"),
        ('"share_pct": 100', '"share_pct": 90', "segments[0].parts"),
        ('"share_pct": 100', '"shares": 100', "segments[0].parts[0]"),
        ('"axis": "none"', '"axis": "depth"', "segments[0].axis"),
        ('"memory": null', '"memory": "texture"', "segments[0].memory"),
        ('"prune_ratio": 0.0', '"prune_ratio": NaN', "plan.json"),
        ('"prune_ratio": 0.0', '"prune_ratio": 1e999', "compression.prune_ratio"),
        ('"queue_window": null', '"queue_window": 99999999999999999999', "queue_window"),
        ('"name"', '"nom"', "model"),
        ('"device": "d1"', '"device": "d1', "plan.json"),
    ],
)
def test_a_malformed_file_names_its_field(old: str, new: str, field: str) -> None:
    assert old in GOOD
    with pytest.raises(PlanError) as caught:
        decode_plan(GOOD.replace(old, new).encode(), "plan.json")
    assert caught.value.field == field and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"PK\x03\x04", b"[" * 100_000, b'"\\ud800"'])
def test_what_is_no_plan_at_all_is_a_plan_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises(PlanError, match=r"plan\.json"):
        load_plan(tmp_path / "plan.json")


@given(st.binary(max_size=30), st.integers(0, 10**6), st.integers(0, 30))
@settings(max_examples=200)
def test_no_damage_is_anything_but_a_plan_error(junk: bytes, place: int, length: int) -> None:
    whole = GOOD.encode()
    at = place % len(whole)
    try:
        plan = decode_plan(whole[:at] + junk + whole[at + length :])
    except PlanError as error:
        assert error.field and error.exit_code == 2
    else:
        assert decode_plan(encode_plan(plan)) == plan


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read.*hetrl train"):
        load_plan(tmp_path / "missing.json")
    with pytest.raises(PlanError, match=r"is a folder.*hetrl train"):
        load_plan(tmp_path)
    (tmp_path / "plan.json").touch()
    with pytest.raises(PlanError, match=r"is a folder.*give .*/plan.json"):
        load_plan(tmp_path)


def test_plans_of_devices_are_valid_under_the_schema() -> None:
    from hetrl.agents.policies import policy_catalog

    device = SurrogateDevice(D1, random_graph(5, 6))
    for policy in policy_catalog():
        if not policy.applies(device):
            continue
        document = json.loads(encode_plan(policy.plan(device)))
        VALIDATOR.validate(document)
        assert not VALIDATOR.is_valid(document | {"extra": 1})
        assert not VALIDATOR.is_valid(document | {"device": 1})
