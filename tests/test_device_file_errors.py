"""Device files that are not well: one clear error each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.calibration.spec_file import encode_spec
from hetrl.device_bridge.plausibility import quantities
from hetrl.device_bridge.quantity import Source
from hetrl.device_bridge.spec import builtin_names, decode_spec, load_spec
from hetrl.errors import SpecError, UnknownName
from tests.surrogate_help import D1

RAW = json.loads(msgspec.json.encode(D1))


def test_device_files_survive_a_round_trip_and_name_their_sources(tmp_path: Path) -> None:
    for name in builtin_names():
        spec = load_spec(name)
        path = tmp_path / f"{name}.json"
        path.write_bytes(encode_spec(spec))
        assert load_spec(str(path)) == spec
        numbers = [quantity for _, _, quantity in quantities(spec)]
        assert len(numbers) > 60
        assert all(number.source in Source and number.note for number in numbers)


def _engine(raw: dict[str, Any]) -> Any:
    return raw["engines"]["mace"]


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a field too many": (lambda r: r.update(colour="red"), "colour"),
    "a field too few": (lambda r: r.pop("soc"), "soc"),
    "another schema": (lambda r: r.update(schema="hetrl.device/2"), "hetrl.device/2"),
    "no name": (lambda r: r.update(id=""), "id"),
    "no such default engine": (lambda r: r.update(default_engine="maze"), "maze"),
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
        "which is no cpu",
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
