"""The command line reads its options, prints what it promises, and answers mistakes with one line."""

import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hetrl.cli.main import COMMANDS, run
from hetrl.cli.options import input_shapes, run_folder
from hetrl.cli.progress import Lines
from hetrl.errors import DeviceFailed, Infeasible, UsageError
from hetrl.objective import Objective
from hetrl.plan import Evidence, ModelRef, Part, Plan, Segment, encode_plan
from hetrl.progress import Silent
from hetrl.results import Comparison, PolicyLatency, Result, Row
from hetrl.scoring.pictures import IMAGENET_STD, Normalization

HEAVY = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "optuna", "scipy", "onnx", "matplotlib")
CPU = "cpu/mace/fp32"
PLAN = Plan(
    model=ModelRef("vgg16", "0" * 64),
    device="d1",
    engines=("mace",),
    segments=(Segment(nodes=("a",), parts=(Part(CPU),)), Segment(nodes=("b", "c"), parts=(Part(CPU),))),
)
TRAIN_KEYS = {
    "run", "plan", "latency_ms", "best_hand", "exact_ms", "bound_ms", "gap_to_exact", "accuracy_drop_pct",
    "frame_drop_rate", "peak_memory_mb", "energy_mj", "evaluations", "env_steps", "wall_s",
}  # fmt: skip
ROW_KEYS = {
    "policy", "latency_ms", "accuracy_drop_pct", "peak_memory_mb", "model_size_mb", "energy_mj", "frame_drop_rate",
    "fallback_ratio", "processors", "utilization", "keeps_budgets",
}  # fmt: skip
ON_D1 = ["--device", "d1", "--model", "vgg16"]


def row(policy: str, latency_ms: float | None, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "latency_interval_ms": None, "accuracy_drop_pct": 0.0, "peak_memory_mb": 10.0, "model_size_mb": 5.0,
        "energy_mj": None, "frame_drop_rate": 0.25, "fallback_ratio": 0.0, "processors": (CPU,),
        "utilization": {CPU: 1.0}, "keeps_budgets": True, "evidence": Evidence.CALIBRATED,
    }  # fmt: skip
    return Row(policy=policy, latency_ms=latency_ms, **(fields | changes))


ROWS = (row("learned", 10.0), row("exact", 10.0), row("mace_cpu", 20.0))


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "run": "runs/vgg16-d1", "plan_path": "runs/vgg16-d1/plan.json", "plan": PLAN, "device": "d1", "model": "vgg16",
        "engine": "mace", "condition": "cold", "agent": "maskable-ppo", "seed": 0, "latency_ms": 10.0,
        "best_hand": PolicyLatency("mace_cpu", 20.0), "exact_ms": 10.0, "bound_ms": 10.0, "gap_to_exact": 0.0,
        "accuracy_drop_pct": 0.0, "frame_drop_rate": 0.25, "peak_memory_mb": 10.0, "energy_mj": None,
        "evaluations": 5, "env_steps": 100, "wall_s": 1.5, "evidence": Evidence.CALIBRATED, "rows": ROWS,
    }  # fmt: skip
    return Result(**(fields | changes))


class Api:
    """Stands in for `hetrl.api`: notes each call, and answers or raises what it was told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "tune": result(),
            "measure": ROWS[2],
            "compare": Comparison(
                device="d1", model="vgg16", engine="mace", condition="cold", rows=ROWS, winner="learned"
            ),
        }
        module = types.ModuleType("hetrl.api")
        for name in self.answers:
            setattr(module, name, self._call(name))
        monkeypatch.setitem(sys.modules, "hetrl.api", module)

    def _call(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            answer = self.answers[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Api:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HETRL_DEBUG", raising=False)
    return Api(monkeypatch)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, with nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    return err[len("error: ") : -1]


def shell(*args: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


# ---- options -------------------------------------------------------------------------------------------------------


def test_train_hands_every_option_on(api: Api) -> None:
    words = "--engine mace --condition cold,ui=90hz:3ms --agent dqn --budget 7 --seed 3 --max-accuracy-drop 1.5"
    words += " --max-frame-drop 5 --no-seeds --out there --input-shape in:0:1x3x8x8 --input-shape b:4 --quiet"
    words += " --max-output-error 1e-2 --seeded-weights 4 --record all.jsonl"
    words += " --eval-data d.npz --metric top5 --image-mean 0.1,0.2,0.3"
    assert run(["train", *ON_D1, *words.split()]) == 0
    [(name, args, kwargs)] = api.calls
    assert (name, args) == ("tune", ("vgg16", "d1"))
    assert isinstance(kwargs.pop("progress"), Silent)
    assert kwargs == {
        "engine": "mace",
        "condition": "cold,ui=90hz:3ms",
        "agent": "dqn",
        "budget": 7,
        "seed": 3,
        "objective": Objective(max_accuracy_drop_pct=1.5, max_frame_drop_rate=0.05, max_output_error=1e-2),
        "seeds": False,
        "input_shapes": {"in:0": (1, 3, 8, 8), "b": (4,)},
        "seeded_weights": 4,
        "out": Path("there"),
        "resume": None,
        "record": Path("all.jsonl"),
        "eval_data": Path("d.npz"),
        "metric": "top5",
        "normalization": Normalization((0.1, 0.2, 0.3), IMAGENET_STD),
    }


def test_train_leaves_the_defaults_to_the_library(api: Api) -> None:
    assert run(["train", *ON_D1]) == 0
    kwargs = api.calls[0][2]
    assert "budget" not in kwargs
    assert kwargs["objective"] == Objective()
    assert (kwargs["seeds"], kwargs["input_shapes"], kwargs["resume"]) == (True, None, None)
    assert kwargs["out"] == Path("runs/vgg16-d1")


def test_resume_goes_on_in_its_own_folder(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *ON_D1, "--resume", "runs/x"]) == 0
    assert (api.calls[0][2]["resume"], api.calls[0][2]["out"]) == (Path("runs/x"), None)
    capsys.readouterr()
    assert run(["train", *ON_D1, "--resume", "runs/x", "--out", "y"]) == 2
    assert "leave --out away" in error_line(capsys)


def test_a_new_run_takes_a_free_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("my_net-d1", "my_net-d1-2", "my_net-d1-3"):
        folder = run_folder(None, "/models/my net.onnx", "specs/d1.json")
        assert folder == Path("runs") / expected
        folder.mkdir(parents=True)
    assert run_folder(Path("there"), "m", "d1") == Path("there")


def test_compare_and_measure_hand_their_options_on(api: Api) -> None:
    assert run(["compare", *ON_D1, "--plan", "p.json", "--plan", "q.json", "--train", "--budget", "9"]) == 0
    kwargs = api.calls[0][2]
    assert (list(kwargs["plans"]), kwargs["train"], kwargs["budget"]) == ([Path("p.json"), Path("q.json")], True, 9)
    assert run(["measure", *ON_D1, "--policy", "mace_cpu", "--condition", "cold,ui=none"]) == 0
    kwargs = api.calls[1][2]
    assert (kwargs["policy"], kwargs["plan"], kwargs["condition"]) == ("mace_cpu", None, "cold,ui=none")


@pytest.mark.parametrize(
    "texts", [["x"], ["x:"], [":1"], ["x:0"], ["x:1x"], ["x:-1"], ["x:" + 9999 * "9"], ["x:1", "x:2"]]
)
def test_bad_input_shapes(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        input_shapes(texts)


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("zzz", "unknown command 'zzz'; `hetrl --help` lists them"),
        ("plan shwo", "no such command 'shwo'; did you mean 'show'?"),
        ("--versoin", "unknown option '--versoin'; did you mean '--version'?"),
        ("train --modle vgg16", "unknown option '--modle'; did you mean '--model'?"),
        ("train", "missing option '--device'; `hetrl train --help` lists what it takes"),
        ("train --device d1 --model", "option '--model' requires an argument"),
        ("models vgg16", "unexpected extra argument"),
        ("plan show", "missing argument 'FILE'"),
        ("measure --device d1 --model vgg16", "either --policy or --plan"),
        ("measure --device d1 --model vgg16 --policy a --plan b", "either --policy or --plan"),
        ("compare --device d1 --model vgg16 --budget 5", "add --train"),
        ("compare --model vgg16", "missing option '--device'; give --device and --model, or --all"),
        ("compare --device d1", "missing option '--model'"),
        ("compare --device d1 --model vgg16 --jobs 2", "--jobs is for a sweep; add --all"),
        ("compare --device d1 --model vgg16 --devices d1", "--devices is for a sweep; add --all"),
        ("compare --all --device d1", "--device is for one device and model"),
        ("compare --all --explain", "--explain is for one device and model"),
        ("compare --all --plan p.json", "--plan is for one device and model"),
        ("train --device d1 --model vgg16 --budget 0", "--budget 0 is out of range; give 1 to"),
        ("train --device d1 --model vgg16 --budget -3", "--budget -3 is out of range"),
        ("train --device d1 --model vgg16 --budget 99999999999", "is out of range"),
        ("train --device d1 --model vgg16 --budget many", "invalid value for '--budget'"),
        ("train --device d1 --model vgg16 --seed -1", "--seed -1 is out of range; give 0 to 4294967295"),
        ("train --device d1 --model vgg16 --seed 4294967296", "is out of range"),
        ("train --device d1 --model vgg16 --max-accuracy-drop nan", "is no budget; give --max-accuracy-drop"),
        ("train --device d1 --model vgg16 --max-accuracy-drop -1", "is no budget"),
        ("train --device d1 --model vgg16 --max-accuracy-drop 101", "is no budget"),
        ("train --device d1 --model vgg16 --max-frame-drop inf", "a frame drop of inf % is no budget"),
        ("train --device d1 --model vgg16 --max-frame-drop -1", "a frame drop of -1 % is no budget"),
        ("train --device d1 --model vgg16 --max-frame-drop 101", "a frame drop of 101 % is no budget"),
        ("train --device d1 --model vgg16 --condition clod", "unknown condition 'clod'; did you mean 'cold'?"),
        ("measure --device d1 --model vgg16 --policy x --condition cold,ui=9", "write ui=60hz:4ms"),
        ("train --device d1 --model vgg16 --input-shape 1x3", "write it like data:1x3x224x224"),
    ],
)
def test_mistakes_take_one_line_and_reach_nothing(
    api: Api, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    assert run(words.split()) == 2
    assert told in error_line(capsys)
    assert not api.calls
    assert not os.listdir()


@pytest.mark.parametrize("json_option", [[], ["--json"]])
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("wrong [red]value[/red]", "try\nthis\x1b[31m"), 2, "wrong [red]value[/red]; try\\nthis\\x1b[31m"),
        (Infeasible("no plan keeps the budgets"), 1, "no plan keeps the budgets"),
        (DeviceFailed("d1 does not answer"), 3, "d1 does not answer"),
        (PermissionError(13, "Permission denied", "there"), 2, "there: permission denied"),
        (ZeroDivisionError("division by zero"), 70, "internal error, ZeroDivisionError: division by zero; please"),
    ],
)
def test_errors_of_the_library(
    api: Api, capsys: pytest.CaptureFixture[str], json_option: list[str], error: Exception, code: int, told: str
) -> None:
    api.answers["tune"] = error
    assert run(["train", *ON_D1, *json_option]) == code
    assert error_line(capsys).startswith(told)


def test_debugging_shows_the_traceback(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRL_DEBUG", "1")
    api.answers["tune"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        run(["train", *ON_D1])


def test_interrupts_exit_with_130(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["tune"] = KeyboardInterrupt()
    assert run(["train", *ON_D1]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    api.answers["tune"] = result(interrupted=True)
    assert run(["train", *ON_D1]) == 130
    assert "runs/vgg16-d1/plan.json" in capsys.readouterr().out
    assert run(["train", *ON_D1, "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["plan"] == "runs/vgg16-d1/plan.json"


@pytest.mark.parametrize(
    ("error", "code"), [("lost: adb went away", 3), ("timeout: 60 s", 3), ("unsupported: no npu", 1)]
)
def test_a_measurement_without_numbers(api: Api, capsys: pytest.CaptureFixture[str], error: str, code: int) -> None:
    api.answers["measure"] = row("mace_cpu", None, error=error)
    assert run(["measure", *ON_D1, "--policy", "mace_cpu", "--json"]) == code
    assert error_line(capsys) == error


# ---- what is printed -----------------------------------------------------------------------------------------------


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_json(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "train", *ON_D1)
    assert found.keys() >= TRAIN_KEYS
    assert found["plan"] == "runs/vgg16-d1/plan.json"
    assert found["best_hand"] == {"policy": "mace_cpu", "latency_ms": 20.0}
    assert (found["evidence"], found["energy_mj"]) == ("calibrated", None)
    api.answers["tune"] = result(run=None, plan_path=None)
    assert document(capsys, "train", *ON_D1)["plan"]["schema"] == "hetrl.plan/1"


def test_compare_json(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", *ON_D1)
    assert [line["policy"] for line in found["rows"]] == ["learned", "exact", "mace_cpu"]
    assert all(line.keys() >= ROW_KEYS for line in found["rows"])


def test_compare_hands_a_question_on(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", *ON_D1, "--explain", "--against", "mace_cpu")
    kwargs = api.calls[0][2]
    assert (kwargs["explain"], kwargs["against"]) == (True, "mace_cpu")
    assert (found["explain"], found["bound_ms"], found["winner"]) == (None, None, "learned")
    assert run(["compare", *ON_D1, "--explain"]) == 0
    assert "no slower plan that keeps the budgets" in capsys.readouterr().out


def test_budgets_that_no_plan_keeps_are_told_after_the_table(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    lost = tuple(msgspec.structs.replace(r, keeps_budgets=False) for r in ROWS)
    told = msgspec.structs.replace(
        api.answers["compare"], rows=lost, winner=None, infeasible="none of 3 plans keeps frame drops at most 5 %"
    )
    api.answers["compare"] = told
    for words in ([], ["--json"]):
        assert run(["compare", *ON_D1, *words]) == 1
        out, err = capsys.readouterr()
        assert "mace_cpu" in out
        assert err == "error: none of 3 plans keeps frame drops at most 5 %\n"


def test_measure_json(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "measure", *ON_D1, "--policy", "mace_cpu")
    assert found.keys() >= ROW_KEYS | {"latency_interval_ms", "segments", "fallbacks", "evidence"}


def test_train_tables(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["tune"] = result(rows=ROWS[::-1])
    assert run(["train", *ON_D1]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vgg16 on d1, mace, cold"
    assert [line.split()[0] for line in lines[4:7]] == ["learned", "exact", "mace_cpu"]
    assert all("calibrated" in line for line in lines[4:7])
    assert "latency    10.00 ms (calibrated), 2.00x the speed of the best hand policy (mace_cpu)" in lines
    assert "next       hetrl plan show runs/vgg16-d1/plan.json" in lines
    assert lines[-1].split() == ["hetrl", "compare", *ON_D1, "--plan", "runs/vgg16-d1/plan.json"]
    asked = ["--engine", "tflite", "--condition", "sigma1", "--max-accuracy-drop", "1.5", "--max-frame-drop", "0"]
    assert run(["train", *ON_D1, *asked]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[2:-2] == [*ON_D1, *asked]


def test_policies_json_names_the_engine_set_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    found = {line["id"]: line["engine"] for line in document(capsys, "policies")["policies"]}
    assert (found["mace_cpu"], found["tflite_dsp"], found["ncnn_gpu"], found["codl_image"]) == (
        "mace", "tflite", "ncnn", None,
    )  # fmt: skip


def test_compare_and_measure_tables(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *ON_D1]) == 0
    assert "2.00x the speed of one processor (cpu/mace/fp32)" in capsys.readouterr().out
    assert run(["measure", *ON_D1, "--policy", "mace_cpu"]) == 0
    assert "calibrated" in capsys.readouterr().out


def test_output_survives_a_narrow_encoding(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run(["compare", *ON_D1]) == 0
    assert b"mace_cpu" in raw.getvalue()


def test_plan_show(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.json").write_bytes(encode_plan(PLAN))
    assert run(["plan", "show", "p.json"]) == 0
    shown = capsys.readouterr().out
    assert PLAN.key in shown and "2 segments on cpu/mace/fp32, none of them split" in shown
    found = document(capsys, "plan", "show", "p.json")
    assert found["key"] == PLAN.key
    assert msgspec.convert(found["plan"], Plan, strict=False) == PLAN


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "p.json: cannot be read"),
        (b"", "p.json: is empty"),
        (b"\xff\xfe", "p.json"),
        (b"[" * 100_000, "p.json: expected `object`"),
        (b"{}", "missing required field"),
        (encode_plan(PLAN).replace(b'"b"', b'"a"'), "segments overlap"),
        (encode_plan(PLAN).replace(b"hetrl.plan/1", b"hetrl.plan/9"), "schema"),
    ],
)
def test_bad_plan_files(api: Api, capsys: pytest.CaptureFixture[str], content: bytes | None, told: str) -> None:
    if content is not None:
        Path("p.json").write_bytes(content)
    assert run(["plan", "show", "p.json"]) == 2
    assert told in error_line(capsys)


@pytest.mark.parametrize("command", ["devices", "models", "policies"])
def test_lists(capsys: pytest.CaptureFixture[str], command: str) -> None:
    [things] = document(capsys, command).values()
    names = [thing.get("id") or thing["name"] for thing in things]
    assert names
    assert run([command]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["plan", "show"]])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(" ".join(["Usage: hetrl", *command]))


def test_help_names_the_library_s_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    from hetrl.api import DEFAULT_AGENT, DEFAULT_BUDGET, REAL_BUDGET

    assert run(["train", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Plans to measure at most ({DEFAULT_BUDGET}; {REAL_BUDGET} on real devices)." in shown
    assert f"[default: {DEFAULT_AGENT}]" in shown


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["plan"]):
        assert run(words) == 0
        assert capsys.readouterr().out.startswith("Usage: hetrl")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hetrl ")


def test_progress_in_a_log_is_a_line_for_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start(200, "maskable-ppo")
    for done in range(1, 201):
        lines.update(done, 12.3456)
    lines.stop()
    lines.start(200, "maskable-ppo")
    lines.update(3, None)
    lines.stop()
    out, err = capsys.readouterr()
    assert out == ""
    *err_lines, begin, end = err.splitlines()
    assert len(err_lines) == 11
    assert begin == "maskable-ppo: 200 evaluations ahead"
    assert end.startswith("maskable-ppo: 3/200 evaluations, best -, ")
    assert err_lines[-1].startswith("maskable-ppo: 200/200 evaluations, best 12.3 ms, ")


# ---- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--help", "--version", "devices", "models", "policies", "plan show p.json"])
def test_light_commands_import_nothing_heavy(tmp_path: Path, words: str) -> None:
    (tmp_path / "p.json").write_bytes(encode_plan(PLAN))
    code = (
        "import sys; from hetrl.cli.main import run; "
        f"status = run({words.split()!r}); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); "
        "sys.exit(status)"
    )
    done = shell("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = (
        "import sys; from hetrl.cli import output; from hetrl.cli.main import run; sys.stdin.read(); "
        "sys.exit(run(['devices', '--json']))"
    )
    root = str(Path(__file__).resolve().parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    with process:
        process.stdout.close()  # before anything is written: the process still waits for its stdin
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_the_console_script(tmp_path: Path) -> None:
    done = shell("-m", "hetrl.cli.main", "trian", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: unknown command 'trian'; did you mean 'train'?\n",
    )
