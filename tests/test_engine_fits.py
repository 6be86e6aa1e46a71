"""The `tflite` and `ncnn` engine sets: stored fits, their held-out errors, and the phones' engines."""

from __future__ import annotations

import numpy as np
import pytest

from hetrl.calibration import ncnn, tflite
from hetrl.calibration.engine_sets import DEVICES, GROUPED_CONV, engine_sets, fits
from hetrl.calibration.roofline import (
    PARAMETERS,
    Group,
    Row,
    cost_of,
    counts,
    family,
    features,
    fit,
    layers,
    leave_one_model_out,
    median_abs,
    predict,
)
from hetrl.device_bridge.quantity import Source
from hetrl.device_bridge.spec import Engine, RooflineCost
from hetrl.device_bridge.surrogate.op_time import roofline_time_ms
from hetrl.errors import UnknownName

ALL = [(engine, name, module) for engine, module in (("ncnn", ncnn), ("tflite", tflite)) for name in module.GROUPS]


def test_ncnn_meets_its_goal_on_at_least_twelve_networks() -> None:
    for group, silicon in (("cpu", "sd855plus:4"), ("cpu", "sd888:8"), ("gpu", "sd855plus"), ("gpu", "sd888")):
        found = fits().held_out["ncnn"][group][silicon]["all"]
        assert found["n"] >= 12
        assert found["median"] <= 0.20


def test_tflite_accelerators_meet_their_goal_per_family() -> None:
    dsp = fits().held_out["tflite"]["dsp, all silicon"]["together"]
    npu = fits().held_out["tflite"]["npu, all silicon"]["together"]
    assert set(dsp) == {"all", "plain", "grouped", "depthwise"}
    assert set(npu) == {"all", "plain", "depthwise"}
    assert all(found["median"] <= 0.25 for found in (*dsp.values(), *npu.values()))
    assert len({*fits().networks["tflite"]["hvx"], *fits().networks["tflite"]["htp"]}) >= 12


@pytest.mark.parametrize(("engine", "name", "module"), ALL)
def test_stored_numbers_are_what_a_refit_gives(engine: str, name: str, module: object) -> None:
    group: Group = module.GROUPS[name]  # type: ignore[attr-defined]
    again = fit(module.rows(group), group)  # type: ignore[attr-defined]
    stored = fits().numbers[engine][name]
    assert set(stored) == set(again) == set(group.silicon)
    for silicon, numbers in again.items():
        assert stored[silicon] == pytest.approx(dict(numbers), rel=2e-3)


def test_stored_errors_are_honest() -> None:
    group = tflite.GROUPS["npu"]
    held = leave_one_model_out(tflite.rows(group), group)
    for silicon, found in fits().held_out["tflite"]["npu"].items():
        mine = [h for h in held if h.row.silicon == silicon]
        assert len(mine) == found["all"]["n"]
        assert median_abs(mine) == pytest.approx(found["all"]["median"], rel=0.02)


def test_rows_are_cleaned() -> None:
    rows = ncnn.rows(ncnn.GROUPS["cpu"])
    assert len({(r.silicon, r.network) for r in rows}) == len(rows)
    assert not {r.network for r in rows} & set(ncnn.LEFT_OUT)
    alone = {r.network for r in tflite.rows(tflite.GROUPS["hvx"])}
    assert not alone & {case.row.network for case in tflite.fallbacks()}
    assert len(list(tflite.fallbacks())) == 3


@pytest.mark.parametrize("module", [ncnn, tflite])
def test_features_are_the_roofline(module: object) -> None:
    file: str = module.LAYERS  # type: ignore[attr-defined]
    values = dict(zip(PARAMETERS, np.linspace(0.1, 2, len(PARAMETERS)).tolist(), strict=True))
    for network, ops in layers(file).items():
        times = roofline_time_ms(ops, cost_of(values, Source.FITTED, ""))
        assert (times > 0).all()
        assert predict(file, network, values) == pytest.approx(float(times @ counts(file)[network]))
        assert (features(file, network, PARAMETERS) >= 0).all()


def test_families() -> None:
    assert family(tflite.LAYERS, "resnet101") == "plain"
    assert family(tflite.LAYERS, "regnet_x_3_2gf") == "grouped"
    assert family(tflite.LAYERS, "mobilenet_v2") == "depthwise"


def test_fit_recovers_a_known_device() -> None:
    group = ncnn.GROUPS["cpu"]
    truth = {name: 0.7 * value for name, value in group.prior.centre.items()}
    rows = [Row("sd888:8", network, predict(group.file, network, truth)) for network in layers(group.file)]
    found = fit(rows, group)["sd888:8"]
    assert all(predict(group.file, r.network, found) == pytest.approx(r.latency_ms, rel=0.03) for r in rows)


def cost(engine: Engine, unit: str) -> RooflineCost:
    found = next(p.cost for p in engine.processors if p.unit == unit)
    assert isinstance(found, RooflineCost)
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_every_phone_has_both_engine_sets(device: str) -> None:
    sets = engine_sets(device)
    assert set(sets) == {"ncnn", "tflite"}
    for name, engine in sets.items():
        assert engine.processors[0].unit == "cpu"
        assert {link.accelerator for link in engine.links} == {p.id for p in engine.processors[1:]}
        assert not any(link.splits for link in engine.links)
        file = {"ncnn": ncnn, "tflite": tflite}[name].LAYERS
        for processor in engine.processors:
            assert isinstance(processor.cost, RooflineCost)
            quantities = [getattr(processor.cost, n) for n in PARAMETERS]
            assert all(q.value > 0 and q.note for q in (*quantities, processor.active_w))
            values = {n: q.value for n, q in zip(PARAMETERS, quantities, strict=True)}
            small, large = (predict(file, n, values) for n in _PAIR[name])
            assert 0 < small < large < 20_000


_PAIR = {"ncnn": ("mobilenet_v3", "resnet50"), "tflite": ("mobilenet_v3_small", "resnet101")}


@pytest.mark.parametrize("device", DEVICES)
def test_more_work_never_takes_less_time(device: str) -> None:
    for engine in engine_sets(device).values():
        for processor in engine.processors:
            assert isinstance(processor.cost, RooflineCost)
            ops = layers(tflite.LAYERS)["resnet18"]
            wider = type(ops)(**{**vars(ops), "out_w": ops.out_w * 2, "in_elements": ops.in_elements * 2})
            assert (roofline_time_ms(wider, processor.cost) >= roofline_time_ms(ops, processor.cost)).all()


def test_who_has_what() -> None:
    units = {d: {p.unit for p in engine_sets(d)["tflite"].processors} for d in DEVICES}
    assert {d for d, u in units.items() if "dsp" in u} == {"d1", "d3", "d4", "d7"}
    assert {d for d, u in units.items() if "npu" in u} == {"d2", "d5"}
    refused = {
        d: next(p for p in engine_sets(d)["tflite"].processors if p.unit == "dsp").unsupported for d in ("d3", "d4")
    }
    assert GROUPED_CONV in refused["d3"]
    assert GROUPED_CONV not in refused["d4"]  # HTP runs them: all layers of RegNet and ResNeXt stayed there
    assert engine_sets("d6")["ncnn"].processors[0].precision == "fp32"


def test_sources_say_what_is_fitted_and_what_is_scaled() -> None:
    assert cost(engine_sets("d4")["ncnn"], "cpu").plain_ms_per_gmac.source is Source.FITTED
    assert cost(engine_sets("d1")["ncnn"], "cpu").plain_ms_per_gmac.source is Source.SCALED
    assert cost(engine_sets("d1")["tflite"], "cpu").plain_ms_per_gmac.source is Source.FITTED
    assert cost(engine_sets("d1")["tflite"], "cpu").grouped_ms_per_gmac.source is Source.ASSUMED
    assert cost(engine_sets("d2")["tflite"], "npu").plain_ms_per_gmac.source is Source.SCALED


def test_faster_silicon_of_a_kind_is_faster() -> None:
    plain = {d: cost(engine_sets(d)["tflite"], "gpu").plain_ms_per_gmac.value for d in ("d3", "d7", "d4")}
    assert plain["d7"] < plain["d3"]
    assert plain["d4"] < plain["d3"]


def test_unknown_device() -> None:
    with pytest.raises(UnknownName):
        engine_sets("d9")
