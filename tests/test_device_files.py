"""A user's own device: template, check, and use."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

import hetrl
from hetrl.cli.main import run
from hetrl.device_bridge.plausibility import MEANINGS, check_spec, quantities
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import builtin_names, load_spec


@pytest.mark.parametrize("name", builtin_names())
def test_shipped_device_files_are_plausible(name: str) -> None:
    spec = load_spec(name)
    assert not check_spec(spec)
    for path, field, quantity in quantities(spec):
        assert field in MEANINGS, path
        assert quantity.note, path


def test_error_tables_have_one_meaning_and_are_checked() -> None:
    spec = load_spec("d1")
    errors = [(path, quantity) for path, field, quantity in quantities(spec) if field == "errors"]
    kept = [q for engine in spec.engines.values() for table in engine.errors.values() for q in table.values()]
    assert [quantity for _, quantity in errors] == kept
    assert "engines.mace.errors.unseen.split" in dict(errors)
    engine = spec.engine("mace")
    for value, plausible in ((0.3, True), (0.0, False), (9.0, False)):
        table = {"unseen": {"split": Quantity(value, Source.ASSUMED)}}
        changed = msgspec.structs.replace(engine, errors=table)
        found = check_spec(msgspec.structs.replace(spec, engines={"mace": changed}))
        assert [f.field for f in found] == ([] if plausible else ["engines.mace.errors.unseen.split"])
        assert all("measured / predicted" in f.problem for f in found)


def test_template_is_a_working_device_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    assert run(["devices", "init", str(file)]) == 0
    assert run(["devices", "init", str(file)]) == 2  # never overwrites
    capsys.readouterr()
    assert run(["devices", "check", str(file), "--json"]) == 1  # nothing of it is measured yet
    found = json.loads(capsys.readouterr().out)
    assert [f["field"] for f in found["findings"]] == ["engines"]
    row = hetrl.measure("resnet18", str(file), policy="codl_image")
    assert row.latency_ms == hetrl.measure("resnet18", "d1", policy="codl_image").latency_ms
    assert row.evidence == "predicted"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ms_per_gmac = { value = 2", "ms_per_gmac = { value = 22222", "processors[0].cost.ms_per_gmac"),
        ("contention = { value = 0", "contention = { value = 7", "links[0].contention"),
    ],
)
def test_implausible_numbers_are_named(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    run(["devices", "init", str(file)])
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert run(["devices", "check", str(file)]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("change", [("idle_w = {", "idle = {"), ("value = 8.0", "value = -8.0"), ("[[", "[["[:1])])
def test_malformed_files_are_one_error(
    change: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    run(["devices", "init", str(file)])
    file.write_text(file.read_text().replace(*change, 1))
    assert run(["devices", "check", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
