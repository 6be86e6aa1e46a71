"""Bundles whose files place operators, share them or ask for threads otherwise than their plan; sealed anew."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import hetrl.export.loaders.openvino_bundle as loader
from hetrl.partition.ncnn_layer import NO_VULKAN
from hetrl.plan import Plan
from hetrl.validating import Validation, validate_bundle
from tests.export_help import exported, random_model, random_plans, reseal, shared_plans
from tests.test_quantized_models import narrow_weights


def shared(model: Path) -> Plan:
    return next(p for p in shared_plans(model, 20) if len(p.processors) == 2)


def unshared(model: Path) -> Plan:
    return next(p for p in random_plans(model, 60) if len(p.processors) == 2 and not p.splits and not p.caps)


def altered(
    choose: Callable[[Path], Plan], format_name: str, folder: Path, alter: Callable[[Path, Any], None], sidecar: str
) -> Validation:
    """What is said of a bundle after a change; before it, it was right.

    :param alter: gets the folder and the sidecar's document, to be changed in place.
    """
    model, out = random_model(folder, 5), folder / "out"
    exported(choose(model), model, format_name, out)
    assert validate_bundle(out, repeats=1).ok
    document = json.loads((out / sidecar).read_text())
    alter(out, document)
    (out / sidecar).write_text(json.dumps(document))
    reseal(out)
    return validate_bundle(out, repeats=1)


def swap_halves(out: Path, document: Any) -> None:
    providers = {entry["processor"]: entry["providers"] for entry in document["sessions"]}
    for entry in document["sessions"]:
        if entry["share_pct"] < 100:
            entry["processor"] = next(name for name in providers if name != entry["processor"])
            entry["providers"] = providers[entry["processor"]]
            entry["share_pct"] = 100 - entry["share_pct"]


def change_a_share(out: Path, document: Any) -> None:
    next(entry for entry in document["sessions"] if entry["share_pct"] < 100)["share_pct"] = 7


def put_all_on_one(out: Path, document: Any) -> None:
    """With other names for nodes, which no check may rely on."""
    for file in out.glob("session-*.onnx"):
        model = onnx.load(file, load_external_data=False)
        for number, node in enumerate(model.graph.node):
            node.name = f"node{number}"
        file.write_bytes(model.SerializeToString())
    first = document["sessions"][0]
    for entry in document["sessions"]:
        entry |= {key: first[key] for key in ("processor", "providers")}


def leave_out_a_session(out: Path, document: Any) -> None:
    del document["sessions"][-1]
    read = {port["tensor"] for entry in document["sessions"] for port in entry["writes"]}
    document["outputs"] = [sorted(read)[0]]


@pytest.mark.parametrize(
    ("choose", "alter"),
    [
        (shared, swap_halves),
        (shared, change_a_share),
        (unshared, put_all_on_one),
        (unshared, leave_out_a_session),
    ],
)
def test_sessions_of_another_plan(choose: Callable[[Path], Plan], alter: Any, tmp_path: Path) -> None:
    assert not altered(choose, "onnxruntime", tmp_path, alter, "sessions.json").ok


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 20_000},
        {"threads": -5},
        {"duty": 1e-7},
        {"duty": 0.5},
        {"cores": [10**9]},
        {"cores": [-1]},
        {"segment": -1},
        {"segment": 10**6},
    ],
)
def test_sessions_that_ask_for_other_numbers(change: dict[str, object], tmp_path: Path) -> None:
    found = altered(unshared, "onnxruntime", tmp_path, lambda _, d: d["sessions"][0].update(change), "sessions.json")
    assert not found.ok and found.checks[-1].name == "loads", found.checks


def mask(out: Path, change: Callable[[str, int], int]) -> None:
    """:param change: of a layer's name and feature mask."""
    lines = (out / "model.param").read_text().splitlines()
    for number, line in enumerate(lines[2:], 2):
        given = re.search(r" 31=(\d+)$", line)
        new = change(line.split()[1], int(given[1]) if given else 0)
        lines[number] = re.sub(r" 31=\d+$", "", line) + (f" 31={new}" if new else "")
    (out / "model.param").write_text("\n".join(lines) + "\n")


def all_on_the_gpu(out: Path, document: Any) -> None:
    mask(out, lambda name, old: 0)


def inverted(out: Path, document: Any) -> None:
    """Of the shared layers, whose names are hashes."""
    mask(out, lambda name, old: old ^ NO_VULKAN if name.startswith("t@") else old)


def operators_forgotten(out: Path, document: Any) -> None:
    inputs = {entry["tensor"] for entry in document["inputs"]}
    last = sorted({re.sub(r"@\d+\.\d+$", "", name) for name in document["operators"]} - inputs)[-1]
    document["operators"] = {
        name: layer for name, layer in document["operators"].items() if name != last and not name.startswith(f"{last}@")
    }


def other_layers(out: Path, document: Any) -> None:
    document["operators"] = dict.fromkeys(document["operators"], "nobody")


def no_vulkan(out: Path, document: Any) -> None:
    document["use_vulkan"] = not document["use_vulkan"]


@pytest.mark.parametrize("choose", [shared, unshared])
@pytest.mark.parametrize("alter", [all_on_the_gpu, operators_forgotten, other_layers, no_vulkan])
def test_nets_of_another_plan(choose: Callable[[Path], Plan], alter: Any, tmp_path: Path) -> None:
    assert not altered(choose, "ncnn", tmp_path, alter, "ncnn.json").ok


def test_masks_of_shared_layers_count(tmp_path: Path) -> None:
    found = altered(shared, "ncnn", tmp_path, inverted, "ncnn.json")
    assert not found.ok and "is not where the plan has it" in str(found.checks)


@pytest.mark.parametrize("change", [{"threads": 100_000}, {"threads": 0}, {"threads": -1}, {"powersave": 9}])
def test_nets_that_ask_for_other_numbers(change: dict[str, int], tmp_path: Path) -> None:
    found = altered(unshared, "ncnn", tmp_path, lambda _, document: document.update(change), "ncnn.json")
    assert not found.ok and found.checks[-1].name == "loads", found.checks


def swapped_devices(out: Path, document: Any) -> None:
    other = dict(zip(("CPU", "GPU"), ("GPU", "CPU"), strict=True))
    document["operators"] = {
        name: other[device] if re.search(r"@\d+\.\d+$", name) else device
        for name, device in document["operators"].items()
    }


def renamed_and_swapped(out: Path, document: Any) -> None:
    new = {name: f"layer{number}" for number, name in enumerate(document["operators"])}
    text = (out / "model.xml").read_text()
    text = re.sub(r'(<layer id="\d+" name=")([^"]*)"', lambda m: f'{m[1]}{new[m[2]]}"', text)
    (out / "model.xml").write_text(text)
    other = dict(zip(("CPU", "GPU"), ("GPU", "CPU"), strict=True))
    document["operators"] = {new[name]: other[device] for name, device in document["operators"].items()}


def one_forgotten(out: Path, document: Any) -> None:
    del document["operators"][sorted(document["operators"])[0]]


@pytest.mark.parametrize(
    ("choose", "alter"), [(shared, swapped_devices), (unshared, renamed_and_swapped), (unshared, one_forgotten)]
)
def test_affinities_of_another_plan(choose: Callable[[Path], Plan], alter: Any, tmp_path: Path) -> None:
    found = altered(choose, "openvino", tmp_path, alter, "affinity.json")
    assert not found.ok and "does not take" not in str(found.checks), found.checks


def test_operators_that_no_plan_has_stay_with_their_own(tmp_path: Path) -> None:
    """What widens int8 weights is on the device of the convolution that reads them."""
    model = narrow_weights(tmp_path / "m.onnx")
    plan = unshared(model)
    exported(plan, model, "openvino", tmp_path / "out")
    assert validate_bundle(tmp_path / "out", repeats=1).ok
    document = json.loads((tmp_path / "out" / "affinity.json").read_text())
    devices = [device["name"] for device in document["devices"]]
    added = [n for n in document["operators"] if n.split(".")[0] in {"convert", "subtract", "multiply"} or n == "wide"]
    assert added
    for name in added:
        document["operators"][name] = devices[1 - devices.index(document["operators"][name])]
    for count in range(1, 9):
        (tmp_path / "out" / "affinity.json").write_text(json.dumps(document | {"submodels": count}))
        reseal(tmp_path / "out")
        found = validate_bundle(tmp_path / "out", repeats=1)
        assert not found.ok and "that it touches" in str(found.checks)


def test_affinities_that_openvino_does_not_keep_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is right; the runtime puts every operator on one device."""
    model = random_model(tmp_path, 5)
    plan = unshared(model)
    exported(plan, model, "openvino", tmp_path / "out")
    real = loader.json.loads

    def forgetful(text: str) -> Any:
        document = real(text)
        first = document["devices"][0]["name"]
        return document | {"operators": dict.fromkeys(document["operators"], first)}

    monkeypatch.setattr(loader.json, "loads", forgetful)
    found = validate_bundle(tmp_path / "out", repeats=1)
    monkeypatch.undo()
    assert not found.ok and "in one piece" in str(found.checks), found.checks
