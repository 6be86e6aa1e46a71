"""The fit behind the shipped device file: its rows, its errors, and the file itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.calibration import rows
from hetrl.calibration.fit import DEVICE_PRIOR, Fit, engine_of, fit_singles, power_w, sharing_lines, tables_of_rows
from hetrl.calibration.predict import STRATEGIES, CellError, by_strategy, errors, ideal_ms, mean_abs
from hetrl.calibration.spec_file import encode_spec
from hetrl.device_bridge.spec import CpuCost, GpuCost, Source, builtin_names, decode_spec, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import SpecError, UnknownName
from hetrl.graph import OpKind
from hetrl.plan import Evidence
from hetrl.testing.devices import whole_model_plans
from hetrl.testing.models import random_graph
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, D1, measured

RAW = json.loads(msgspec.json.encode(D1))


@cache
def shipped_fit() -> Fit:
    """The numbers of the shipped device file, as the fit that they came from."""
    engine = D1.engine()
    cpu, gpu = (p.cost for p in engine.processors)
    (link,) = engine.links
    assert isinstance(cpu, CpuCost) and isinstance(gpu, GpuCost)
    own = {
        "cpu_ms_per_gmac": cpu.ms_per_gmac,
        "cpu_ms_per_mb": cpu.ms_per_mb,
        "gpu_ms_per_gmac": gpu.ms_per_gmac,
        "gpu_ms_per_mb": gpu.ms_per_mb,
        "gpu_launch_ms": gpu.launch_ms,
    }
    shared = {
        "cpu_direct": cpu.direct_factor,
        "cpu_stride2": cpu.stride2_factor,
        "adreno.gpu_1x1": gpu.factor_1x1,
        "adreno.gpu_large": gpu.large_kernel_factor,
    }
    sharing = {
        "map_ms": link.map_ms,
        "map_rate": link.map_ms_per_melem,
        "sync_ms": link.sync_ms,
        "image_rate": link.image_ms_per_melem,
    }
    return Fit(
        device={"d1": {name: number.value for name, number in own.items()}},
        shared={name: number.value for name, number in shared.items()},
        sharing={name: number.value for name, number in sharing.items()},
        unfriendly={"d1": gpu.unfriendly_factor.value},
        contention=link.contention.value,
    )


@cache
def in_sample() -> list[CellError]:
    return errors(shipped_fit(), [cell for cell in rows.cells() if cell.device == "d1"])


def test_the_rows_are_complete() -> None:
    cells = rows.cells()
    assert len(cells) == len({(c.device, c.model, c.strategy) for c in cells}) > 90
    assert {c.strategy for c in cells} == set(STRATEGIES)
    assert {c.device for c in cells} == {"d1", "d3", "d4", "d5"}
    assert all(math.isfinite(c.latency_ms) and c.latency_ms > 0 for c in cells)
    assert len(rows.ratios()) > 400 and all(0 < r.gpu_ratio < 1 for r in rows.ratios())
    assert {kind for kind, _, _ in rows.sharing_points()} == {"map", "transform", "presync"}
    assert {system for system, _ in rows.powers_w()} >= {"MACE(CPU)", "MACE(GPU)", "CoDL"}


@pytest.mark.parametrize(
    ("model", "operators", "gmacs"),
    [("vgg16", 21, 15.5), ("yolov2", 27, 17.5), ("retinaface", 87, 89.4)],
)
def test_a_measured_network_has_the_published_size(model: str, operators: int, gmacs: float) -> None:
    items = rows.workload_of_rows(model).items
    macs = sum(i.weight_elements * i.geometry.out_h * i.geometry.out_w for i in items)
    assert len(items) == operators
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.15)
    assert {i.geometry.kind for i in items} <= {OpKind.CONV, OpKind.POOL, OpKind.GEMM}


def test_the_device_file_is_the_engine_of_its_fit() -> None:
    engine = msgspec.structs.replace(engine_of(shipped_fit(), "d1"), calibrated_models=D1.engine().calibrated_models)
    again = encode_spec(msgspec.structs.replace(D1, engines={"mace": engine}))
    assert again == (resources.files("hetrl.device_bridge") / "specs" / "d1.json").read_bytes()


def test_the_errors_in_sample_are_those_that_are_published() -> None:
    assert mean_abs(in_sample()) <= 0.07
    assert mean_abs([r for r in in_sample() if r.cell.strategy != "codl_buffer"]) <= 0.055
    found = by_strategy(in_sample())
    limits = {"mace_cpu": 3, "mace_gpu": 4, "mulayer": 9, "codl_image": 5, "codl_buffer": 19, "ideal": 9}  # percent
    assert {s for s, limit in limits.items() if 100 * found[s] > limit} == set()


def test_the_strategies_of_each_network_come_out_in_the_measured_order() -> None:
    pairs = [
        (a.cell.latency_ms < b.cell.latency_ms) == (a.predicted_ms < b.predicted_ms)
        for a in in_sample()
        for b in in_sample()
        if a.cell.model == b.cell.model and a.cell.latency_ms * 1.15 < b.cell.latency_ms
    ]
    assert len(pairs) > 40 and sum(pairs) / len(pairs) >= 0.95


def test_ideal_is_a_lower_bound_of_every_strategy() -> None:
    for model in {r.cell.model for r in in_sample()}:
        ideal = ideal_ms(tables_of_rows(model, engine_of(shipped_fit(), "d1")))
        assert all(r.predicted_ms >= ideal * (1 - 1e-9) for r in in_sample() if r.cell.model == model)


def test_sharing_data_costs_the_published_lines() -> None:
    lines = sharing_lines()
    assert lines["map_rate"] == pytest.approx(0.214, rel=0.02)
    assert lines["image_rate"] == pytest.approx(0.327, rel=0.02)
    assert lines["map_ms"] == pytest.approx(0.011, abs=0.002)
    assert lines["sync_ms"] == pytest.approx(0.544, abs=0.002)


def test_power_adds_up_to_what_was_measured() -> None:
    power = power_w()
    mean = {s: np.mean([w for system, w in rows.powers_w() if system == s]) for s in ("MACE(CPU)", "MACE(GPU)", "CoDL")}
    assert power["idle_w"] + power["cpu_w"] == pytest.approx(mean["MACE(CPU)"])
    assert power["idle_w"] + power["gpu_w"] == pytest.approx(mean["MACE(GPU)"])
    assert sum(power.values()) == pytest.approx(mean["CoDL"])
    assert min(power.values()) > 0


def test_a_refit_gives_the_shipped_numbers() -> None:
    fit = fit_singles(rows.cells())
    assert fit.device["d1"] == pytest.approx(shipped_fit().device["d1"], rel=2e-3)
    for name, value in shipped_fit().shared.items():
        assert fit.shared[name] == pytest.approx(value, rel=2e-3)
    assert set(fit.device["d1"]) == set(DEVICE_PRIOR)


def test_only_measured_networks_count_as_calibrated() -> None:
    known, unknown = resolve_model("vgg16"), random_graph(0, 4)
    for graph, evidence in ((known, Evidence.CALIBRATED), (unknown, Evidence.PREDICTED)):
        device = SurrogateDevice(D1, graph)
        assert measured(device, whole_model_plans(device)[0]).evidence is evidence
        assert device.measure(whole_model_plans(device)[1], COLD).evidence is evidence


def test_device_files_survive_a_round_trip_and_name_their_sources(tmp_path: Path) -> None:
    for name in builtin_names():
        spec = load_spec(name)
        path = tmp_path / f"{name}.json"
        path.write_bytes(encode_spec(spec))
        assert load_spec(str(path)) == spec
        costs = [processor["cost"] for processor in _engine(json.loads(encode_spec(spec)))["processors"]]
        numbers = [number for cost in costs for number in cost.values() if isinstance(number, dict)]
        assert len(numbers) > 10
        assert all(Source(number["source"]) and number["note"] for number in numbers)


def _engine(raw: dict[str, Any]) -> Any:
    return raw["engines"]["mace"]


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a field too many": (lambda r: r.update(colour="red"), "colour"),
    "a field too few": (lambda r: r.pop("soc"), "soc"),
    "another schema": (lambda r: r.update(schema="hetrl.device/2"), "hetrl.device/2"),
    "no name": (lambda r: r.update(id=""), "id"),
    "no such default engine": (lambda r: r.update(default_engine="ncnn"), "ncnn"),
    "a negative number": (lambda r: r["idle_w"].update(value=-1), "idle_w"),
    "a word for a number": (lambda r: r["idle_w"].update(value="much"), "idle_w"),
    "an unknown source": (lambda r: r["ram_gb"].update(source="guessed"), "ram_gb"),
    "an unknown cost model": (lambda r: _engine(r)["processors"][1]["cost"].update(form="magic"), "magic"),
    "no processor": (lambda r: _engine(r).update(processors=[]), "1 to 6 processors"),
    "a processor twice": (lambda r: _engine(r)["processors"].append(_engine(r)["processors"][1]), "once"),
    "a processor of another engine": (lambda r: _engine(r)["processors"][1].update(engine="ncnn"), "another engine"),
    "a name that no plan can have": (lambda r: _engine(r)["processors"][1].update(unit="The GPU"), "The GPU"),
    "no cpu": (lambda r: [p.update(unit="dsp") for p in _engine(r)["processors"][:1]], "no cpu"),
    "a link to nowhere": (lambda r: _engine(r)["links"][0].update(accelerator="npu/mace/int8"), "npu/mace/int8"),
    "a processor without a link": (lambda r: _engine(r).update(links=[]), "must link"),
    "a link twice": (lambda r: _engine(r)["links"].append(_engine(r)["links"][0]), "must link"),
    "a link the wrong way": (
        lambda r: _engine(r)["links"][0].update(accelerator="cpu/mace/fp32", host="gpu/mace/fp32"),
        "must link",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_device_file_is_one_clear_error(case: str, tmp_path: Path) -> None:
    change, named = MALFORMED[case]
    raw = json.loads(json.dumps(RAW))
    change(raw)
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    assert named in str(caught.value) and "phone.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_and_names_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="d1"):
        load_spec("d11")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(str(tmp_path / "missing.json"))
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(f"{tmp_path}/")
    with pytest.raises(UnknownName, match="mace"):
        D1.engine("maze")


@given(st.binary(max_size=60), st.integers(0, 10**6), st.integers(0, 40))
def test_no_damage_to_a_device_file_is_anything_but_a_spec_error(junk: bytes, place: int, length: int) -> None:
    whole = msgspec.json.encode(D1)
    at = place % len(whole)
    for data in (junk, whole[:at] + junk + whole[at + length :]):
        try:
            decode_spec(data, "damaged")
        except SpecError as error:
            assert str(error).startswith("damaged is no device file")
