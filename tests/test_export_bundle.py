"""Bundles are data: whatever is not as the manifest says, or could do harm, is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.export import bundle as bundles
from hetrl.export.bundle import MANIFEST, File, Manifest, Refused, encode_manifest, open_bundle, write_zip
from hetrl.export.onnxruntime import SESSIONS
from hetrl.validating import validate_bundle
from tests.export_help import exported, random_model, random_plans, reseal, shared_plans


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    model = random_model(folder, 5)
    exported(shared_plans(model, 1)[0], model, "onnxruntime", folder / "out")
    return folder / "out"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def refused(path: Path) -> str:
    """Why it is; nothing may have been loaded."""
    found = validate_bundle(path)
    assert not found.ok and [check.ok for check in found.checks] == [False]
    assert found.checks[0].name == "integrity"
    return found.checks[0].detail


def test_it_is_sound_as_it_was_written(made: Path) -> None:
    with open_bundle(made) as bundle:
        assert bundle.manifest.format == "onnxruntime"
        assert {file.path for file in bundle.manifest.files} | {MANIFEST} == {p.name for p in made.iterdir()}


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_is_refused(made: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in made.iterdir())))
    place = made / name
    before = place.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    other = data.draw(st.integers(1, 255))
    try:
        place.write_bytes(before[:at] + bytes([before[at] ^ other]) + before[at + 1 :])
        assert not validate_bundle(made).ok
    finally:
        place.write_bytes(before)


def lose(folder: Path) -> None:
    next(folder.glob("session-*.onnx")).unlink()


def shorten(folder: Path) -> None:
    os.truncate(next(folder.glob("*.bin")), 8)


def add(folder: Path) -> None:
    (folder / "more.py").write_text("raise SystemExit")


def link(folder: Path) -> None:
    place = next(folder.glob("*.bin"))
    place.rename(folder.parent / "elsewhere.bin")
    place.symlink_to(folder.parent / "elsewhere.bin")


def link_a_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/", target_is_directory=True)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def unknown_field(folder: Path) -> None:
    edit(folder, lambda document: document.update(run="rm -rf /"))


def another_promise(folder: Path) -> None:
    edit(folder, lambda document: document.update(tolerance=1e9))


def broken_plan(folder: Path) -> None:
    edit(folder, lambda document: document["plan"].update(segments=[]))


def no_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("{" * 100_000)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose, "lacks 'session-"),
        (shorten, "has 8 bytes"),
        (add, "holds 'more.py', which its manifest does not list"),
        (link, "symbolic link"),
        (link_a_folder, "'more' is a symbolic link"),
        (pipe, "'pipe' is no plain file"),
        (no_manifest, f"has no {MANIFEST}"),
        (unknown_field, "unknown field `run`"),
        (another_promise, "has been changed"),
        (broken_plan, "segments: is empty"),
        (no_json, MANIFEST),
    ],
)
def test_a_damaged_folder_is_refused(copy: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(copy)
    assert reason in refused(copy)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../model.onnx", "a/../../b", "a\\b", "a//b", "./a", "a/.", "a\0b", "C:b"]
)
def test_paths_out_of_the_bundle_are_refused(copy: Path, path: str) -> None:
    manifest = msgspec.json.decode((copy / MANIFEST).read_bytes(), type=Manifest)
    files = (*manifest.files, File(path, 1, "0" * 64))
    (copy / MANIFEST).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
    assert "is no path below a bundle" in refused(copy)


def test_a_link_to_a_bundle_is_refused(copy: Path) -> None:
    (copy.parent / "link").symlink_to(copy)
    assert "is a symbolic link" in refused(copy.parent / "link")


def zipped(copy: Path) -> Path:
    write_zip(copy, copy.parent / "bundle.zip")
    return copy.parent / "bundle.zip"


def test_a_zip_file_is_as_good_as_a_folder(copy: Path) -> None:
    with open_bundle(zipped(copy)) as bundle:
        assert bundle.manifest.format == "onnxruntime"
        unpacked = bundle.folder
    assert not unpacked.exists()


def test_an_archive_that_inflates_is_refused(copy: Path) -> None:
    (copy / "zeros").write_bytes(bytes(4_000_000))
    reseal(copy)
    archive = copy.parent / "bundle.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(copy.iterdir()):
            file.write(path, path.name)
    assert "'zeros' inflates to 4000000 bytes" in refused(archive)


def test_an_archive_beyond_the_limit_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(copy)
    monkeypatch.setattr(bundles, "MAX_BYTES", 1000)
    assert "which is more than it may" in refused(archive)


def test_an_archive_that_lies_about_sizes_is_refused(copy: Path) -> None:
    archive = zipped(copy)
    data = bytearray(archive.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last entry of the directory; its size lies 24 bytes further
    data[at + 24 : at + 28] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    refused(archive)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_an_archive_writes_nothing_outside(copy: Path, name: str) -> None:
    archive = zipped(copy)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "x")
    assert "is no path below a bundle" in refused(archive)
    assert not list(copy.parent.glob("**/escaped"))


def test_a_link_in_an_archive_is_refused(copy: Path) -> None:
    archive = zipped(copy)
    with zipfile.ZipFile(archive, "a") as file:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        file.writestr(entry, "/etc/passwd")
    assert "symbolic link" in refused(archive)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip file at all"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.zip").write_bytes(content)
    assert not validate_bundle(tmp_path / "bundle.zip").ok


class Smuggled:
    """Unpickled, it would leave a file behind."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.place),)


def test_nothing_is_unpickled(copy: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    array = np.empty(1, dtype=object)
    array[0] = Smuggled(str(trap))
    np.save(copy / "sample-input-0.npy", array, allow_pickle=True)
    reseal(copy)
    with pytest.raises(Refused, match=r"sample-input-0.npy is no array"), open_bundle(copy) as bundle:
        from hetrl.export.samples import samples

        samples(bundle)
    assert not validate_bundle(copy).ok
    assert not trap.exists()


def test_weights_outside_of_the_bundle_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    for path in sorted(copy.glob("session-*.onnx")):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = "../secret" if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
    reseal(copy)
    found = validate_bundle(copy)
    assert not found.ok
    assert "which are not in the bundle" in found.checks[-1].detail


@pytest.mark.parametrize("where", ["attribute", "branch", "function", "sparse"])
def test_weights_outside_of_the_bundle_are_refused_wherever_they_hide(copy: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    path = next(iter(sorted(copy.glob("session-*.onnx"))))
    model = onnx.load(path, load_external_data=False)
    away = onnx.TensorProto(name="away", data_type=onnx.TensorProto.FLOAT, dims=[1])
    away.data_location = onnx.TensorProto.EXTERNAL
    away.external_data.add(key="location", value=str(tmp_path / "secret"))
    constant = onnx.helper.make_node("Constant", [], ["away"], name="away", value=away)
    if where == "attribute":
        model.graph.node.insert(0, constant)
    elif where == "branch":
        branch = onnx.helper.make_graph([constant], "inner", [], [onnx.ValueInfoProto(name="away")])
        model.graph.node.insert(
            0, onnx.helper.make_node("If", ["never"], ["z"], then_branch=branch, else_branch=branch)
        )
    elif where == "function":
        model.functions.append(onnx.helper.make_function("d", "F", [], ["away"], [constant], []))
    else:
        sparse = onnx.SparseTensorProto(values=away, dims=[4])
        model.graph.sparse_initializer.append(sparse)
    path.write_bytes(model.SerializeToString())
    reseal(copy)
    found = validate_bundle(copy)
    assert not found.ok
    assert "which are not in the bundle" in found.checks[-1].detail


@pytest.mark.parametrize("change", [{"model": "../x.onnx"}, {"after": [10_000]}, {"duty": 0.0}, {"eval": "1"}])
def test_sessions_that_make_no_sense_are_refused(copy: Path, change: dict[str, object]) -> None:
    document = json.loads((copy / SESSIONS).read_text())
    document["sessions"][0].update(change)
    (copy / SESSIONS).write_text(json.dumps(document))
    reseal(copy)
    assert not validate_bundle(copy).ok


def test_code_in_a_bundle_is_never_run(made: Path, tmp_path: Path) -> None:
    """Even where it is listed: neither as a module of that name, nor as a library beside the models."""
    copy = tmp_path / "bundle"
    shutil.copytree(made, copy)
    for name in ("onnxruntime.py", "numpy.py", "sitecustomize.py", "conftest.py"):
        (copy / name).write_text(f"open({str(tmp_path / 'trap')!r}, 'w')")
    reseal(copy)
    assert validate_bundle(copy, repeats=1).ok
    assert not (tmp_path / "trap").exists()


def test_an_existing_folder_is_never_written_over(tmp_path: Path) -> None:
    from hetrl.errors import UsageError

    model = random_model(tmp_path, 5)
    plan = random_plans(model, 1)[0]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        exported(plan, model, "ncnn", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
