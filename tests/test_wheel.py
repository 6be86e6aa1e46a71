"""The wheel holds all of hetrl and nothing else, and works from any folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"agents", "device_bridge", "envs"}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a clone would hold it: a file that .gitignore hides must be missed here, not by a user."""
    copy = tmp_path_factory.mktemp("wheel") / "source"
    if not (ROOT / ".git").exists():  # an unpacked archive
        hidden = (".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
        return shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*hidden))
    listed = run(
        # CI often runs as another user than the one who cloned
        *("git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
    )
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    out = source.parent / "out"
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, source, cwd=source.parent)
    (built,) = out.glob("hetrl-*.whl")
    return built


def test_the_links_open_the_folders_of_the_package() -> None:
    for name in LINKS:
        assert (ROOT / name).is_symlink()
        assert os.readlink(ROOT / name) == f"hetrl/{name}"


def test_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    assert {name.split("/")[0] for name in names} == {"hetrl", f"hetrl-{wheel.name.split('-')[1]}.dist-info"}

    wanted = {
        path.relative_to(source).as_posix()
        for path in (source / "hetrl").rglob("*")
        if path.suffix in (".py", ".json", ".csv") or path.name == "py.typed"
    }
    assert wanted == {name for name in names if name.startswith("hetrl/")}
    for part in ("device_bridge/specs", "schema"):
        assert any(name.startswith(f"hetrl/{part}/") and name.endswith(".json") for name in names), part
    assert any(name.startswith("hetrl/zoo/") and name.endswith(".json") for name in names)
    assert "hetrl/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_installed_wheel_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    assert not LINKS & {path.name for path in target.iterdir()}

    code = "import hetrl, importlib.metadata as m, json; print(json.dumps([hetrl.__file__, m.version('hetrl')]))"
    file, version = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target)))
    assert Path(file).is_relative_to(target)
    assert version == wheel.name.split("-")[1]
