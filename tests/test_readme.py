"""The commands in the documents work.

In ```console and ```sh blocks, the lines that start with "$ " are commands; a backslash at the end continues one. Those
of one document run in order, in one empty folder that holds a small `model.onnx`. What would install or clone
something is checked, not run. `# exits 1` at the end of a command says that this is the status to expect, and
`<!-- not run: why -->` on the line before a block leaves the block out.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx.parser
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^(?P<not_run><!-- not run: .+? -->\n+)?```(?:console|sh)\n(?P<body>.*?)^```$", re.M | re.S)
RUN = {"hetrl", "cat", "cp", "echo", "head", "ls", "mkdir", "mv", "rm", "tail", "tree", "wc"}
NOT_RUN = {".", "cd", "git", "source"}
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N,4,16,16] x) => (float[N,4,16,16] y)
<float[4,4,3,3] w1 = {%s}, float[4,4,3,3] w2 = {%s}>
{
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1)
    b = Relu(a)
    y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(b, w2)
}
"""


class Command(NamedTuple):
    where: str
    text: str


class Broken(Exception):
    """A command of a document does not work."""


def commands(document: Path) -> Iterator[Command]:
    text = document.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block["not_run"]:
            continue
        body = re.sub(r"\\\n", lambda _: "\\\0", block["body"])  # keeps the line numbers right
        line = text.count("\n", 0, block.start("body")) + 1
        for row in body.split("\n"):
            if row.startswith("$ "):
                yield Command(f"{document.relative_to(ROOT)}:{line}", row[2:].replace("\\\0", " "))
            line += 1 + row.count("\0")


def check(words: list[str], text: str, folder: Path) -> None:
    """Runs one command, or checks what can be checked of one that would install, clone or work for hours."""
    program, *arguments = words
    if program in NOT_RUN:
        return
    if program == "make":
        execute(shlex.join(["make", "-n", *arguments]), ROOT)
    elif program == "pip":
        check_pip(arguments)
    elif program in ("python", "python3"):
        check_python(arguments, text, folder)
    elif program in RUN:
        execute(text, folder)
    else:
        raise Broken(
            f"cannot check {program}: teach tests/test_readme.py, or put <!-- not run: why --> above the block"
        )


def check_python(arguments: list[str], text: str, folder: Path) -> None:
    match arguments:
        case ["-m", "pip", *rest]:
            check_pip(rest)
        case ["-m", "venv" | "pytest", *_]:
            pass
        case ["-m" | "-c", *_]:
            execute(text, folder)
        case [script, *_]:  # an experiment may take hours
            if not (ROOT / script).is_file():
                raise Broken(f"there is no {script}")


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = iter(arguments)
    if next(words, None) != "install":
        raise Broken("only pip install is understood")
    for word in words:
        if word in ("-c", "-r"):
            if not (ROOT / (file := next(words, ""))).is_file():
                raise Broken(f"there is no {file}")
        elif not word.startswith("-"):
            requirement = Requirement("hetrl" + word[1:] if word[0] == "." else word)
            if requirement.name == "hetrl" and not requirement.extras <= set(project["optional-dependencies"]):
                raise Broken(f"no such extra: {word}")


def execute(text: str, folder: Path) -> None:
    exits = re.search(r"# exits (\d+)\s*$", text)
    expected = int(exits[1]) if exits else 0
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != expected:
        raise Broken(f"status {done.returncode}, not {expected}\n{done.stdout}")


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_commands_of_document(name: str, tmp_path: Path) -> None:
    weights = ",".join(f"{0.1 * (i % 7 - 3):.1f}" for i in range(144))
    onnx.save(onnx.parser.parse_model(MODEL % (weights, weights)), tmp_path / "model.onnx")

    broken = None
    for where, line in commands(ROOT / name):
        for text in line.split(" && "):
            try:
                words = shlex.split(text, comments=True)
                while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                    del words[0]
                if words:
                    check(words, text, tmp_path)
            except (Broken, ValueError, subprocess.TimeoutExpired) as error:
                broken = f"{where}: $ {text}\n{error}"
            if broken:
                pytest.fail(broken, pytrace=False)


@pytest.mark.parametrize("number", range(len(re.findall(r"^```python$", (ROOT / "README.md").read_text(), re.M))))
def test_python_of_readme(number: int, tmp_path: Path) -> None:
    code = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)[number]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
