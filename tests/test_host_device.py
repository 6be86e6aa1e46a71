"""A machine with a runner as a device: what it is made of, what it can be asked, that it keeps the seam's promises."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import msgspec
import onnx
import pytest

from hetrl.cli.main import run
from hetrl.compression import Compression
from hetrl.condition import Condition, Ui, parse_condition
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.host.device import RunnerDevice
from hetrl.device_bridge.host.opening import calibrated_path, known_spec, open_host
from hetrl.device_bridge.host.processors import machine_spec, refreshed
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.runner.protocol import EngineState, Hello
from hetrl.errors import DeviceFailed, ModelError, UnknownName, UsageError
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure
from hetrl.plan import Axis, Cap, Part, Plan
from hetrl.testing.devices import DeviceConformance, whole_model_plans
from hetrl.zoo.resolve import resolve_model
from tests.host_help import quick_host
from tests.surrogate_help import chain_graph
from tests.tiny_models import save_tiny_cnn

Refuse = Callable[..., None]
ALL = ("onnxruntime", "openvino", "ncnn")


def hello(
    cores: int = 2,
    engines: tuple[str, ...] = ALL,
    flags: tuple[str, ...] = (),
    vulkan: tuple[str, ...] = (),
    memory_mb: float | None = 16000.0,
) -> Hello:
    """A runner's greeting that nobody sent."""
    states = [
        EngineState(name, "1.0" if name in engines else None, "" if name in engines else "not installed",
                    vulkan if name == "ncnn" else ())
        for name in ALL
    ]  # fmt: skip
    return Hello(
        pid=1,
        python="3.11.2",
        platform="Linux-6.1",
        machine="x86_64",
        cpu_model="Made Up 9000",
        cores=tuple(range(cores)),
        memory_mb=memory_mb,
        engines=tuple(states),
        caps=(),
        temperatures_c=(),
        clocks_mhz=(),
        killed_for_memory=0,
        cpu_flags=flags,
    )


def sets(greeting: Hello) -> dict[str, list[str]]:
    spec = machine_spec(greeting, "host")
    return {name: [p.id for p in engine.processors] for name, engine in spec.engines.items()}


class TestProcessors:
    def test_one_core_has_no_halves(self) -> None:
        assert sets(hello(cores=1)) == {
            "host": ["cpu/onnxruntime/fp32", "cpu/openvino/fp32", "cpu/ncnn/fp32"],
            "onnxruntime": ["cpu/onnxruntime/fp32"],
            "openvino": ["cpu/openvino/fp32"],
            "ncnn": ["cpu/ncnn/fp32"],
        }

    @pytest.mark.parametrize(
        ("cores", "first", "second"), [(2, (0,), (1,)), (3, (0,), (1, 2)), (8, (0, 1, 2, 3), (4, 5, 6, 7))]
    )
    def test_only_halves_share_an_operator(self, cores: int, first: tuple[int, ...], second: tuple[int, ...]) -> None:
        engine = machine_spec(hello(cores=cores), "host").engine()
        by_id = {p.id: p for p in engine.processors}
        assert (by_id["cpu0/onnxruntime/fp32"].cores, by_id["cpu1/onnxruntime/fp32"].cores) == (first, second)
        assert by_id["cpu/onnxruntime/fp32"].cores == by_id["cpu/ncnn/fp32"].cores == tuple(range(cores))
        splitting = [(link.host, link.accelerator) for link in engine.links if link.splits]
        assert splitting == [("cpu0/onnxruntime/fp32", "cpu1/onnxruntime/fp32")]
        for link in engine.links:
            assert link.splits != by_id[link.host].shares_cores(by_id[link.accelerator])

    def test_more_cores_are_believed_to_be_faster(self) -> None:
        costs = [machine_spec(hello(cores=n), "host").engine("openvino").processors[0].cost for n in (1, 8)]
        rates = [cost.plain_ms_per_gmac.value for cost in costs]  # type: ignore[union-attr]
        assert rates[0] == pytest.approx(8 * rates[1])

    @pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", "bf16"])
    def test_bf16_where_the_cpu_calculates_in_it(self, flag: str) -> None:
        low = "cpu/openvino/bf16"
        found = sets(hello(flags=("avx2", flag)))
        assert low in found["host"] and found["openvino"] == ["cpu/openvino/fp32", low]
        assert low not in sets(hello(flags=("avx2", "avx512_vnni")))["host"]
        assert "openvino" not in sets(hello(flags=(flag,), engines=("onnxruntime", "ncnn")))

    def test_a_vulkan_device_that_is_a_program_borrows_the_cores(self) -> None:
        greeting = hello(vulkan=("AMD Radeon (RADV)", "llvmpipe (LLVM 15.0.6, 256 bits)"))
        spec = machine_spec(greeting, "host")
        real, soft = (p for p in spec.engine("ncnn").processors if p.unit.startswith("gpu"))
        cpu = next(p for p in spec.engine("ncnn").processors if p.is_cpu)
        assert (real.id, real.number, real.cores) == ("gpu/ncnn/fp32", 0, ())
        assert (soft.id, soft.number, soft.cores) == ("gpu1/ncnn/fp32", 1, (0, 1))
        assert soft.shares_cores(cpu) and not real.shares_cores(cpu)
        splits = {link.accelerator: link.splits for link in spec.engine("ncnn").links}
        assert splits == {real.id: True, soft.id: False}

    def test_one_engine_needs_no_set_of_everything(self) -> None:
        assert sets(hello(engines=("ncnn",))) == {"ncnn": ["cpu/ncnn/fp32"]}
        spec = machine_spec(hello(engines=("onnxruntime",)), "host")
        assert spec.default_engine == "onnxruntime" and len(spec.engine().processors) == 3

    def test_no_engine_is_said_with_the_reasons(self) -> None:
        with pytest.raises(
            DeviceFailed, match=r"board has no engine.*ncnn: not installed.*pip install 'hetrl\[host\]'"
        ):
            machine_spec(hello(engines=()), "board")

    @pytest.mark.parametrize("memory_mb", [None, 2000.0])
    def test_memory_may_be_unknown(self, memory_mb: float | None) -> None:
        assert machine_spec(hello(memory_mb=memory_mb), "host").ram_gb.value == (memory_mb or 1000) / 1000

    def test_a_calibrated_file_counts_while_the_machine_is_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        now = machine_spec(hello(), "ssh://me@board:22")
        assert known_spec(now) is now
        path = calibrated_path(now.id)
        assert path.parent == tmp_path / "hetrl" / "devices" and "/" not in path.name
        path.parent.mkdir(parents=True)
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(now, id="old", notes="calibrated")))
        assert known_spec(now) == msgspec.structs.replace(now, notes="calibrated")
        fewer = machine_spec(hello(cores=1), now.id)
        assert known_spec(fewer) is fewer
        other = msgspec.structs.replace(now, soc="another CPU")
        assert refreshed(now, other) is other


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Generator[RunnerDevice, None, None]:
    folder = tmp_path_factory.mktemp("host")
    graph = resolve_model(str(save_tiny_cnn(folder / "tiny.onnx")))
    with quick_host(folder), open_host("", graph, None) as device:
        yield device


class TestConformance(DeviceConformance):
    """The shipped suite, on three processors: what they are is tested above."""

    @pytest.fixture
    def device(self, host: RunnerDevice) -> Device:
        return host

    @pytest.fixture
    def plans(self, host: RunnerDevice) -> list[Plan]:
        return [p for p in whole_model_plans(host) if not p.processors[0].startswith(("cpu0", "cpu1"))][:3]


class TestAsked:
    @pytest.fixture
    def plan(self, host: RunnerDevice) -> Plan:
        return whole_model_plans(host)[0]

    def test_it_is_what_it_says(self, host: RunnerDevice, plan: Plan) -> None:
        info = host.describe()
        assert info.id == "host" and not info.deterministic and info.engines == ("host",)
        assert host.default_condition == Condition(ui=None) and host.notes == ()
        measured = host.measure(plan, host.default_condition)
        assert measured.evidence == "measured" and len(measured.samples_ms) >= 3 and measured.energy_mj is None
        assert measured.output_error is not None and measured.output_error < 1e-3
        assert measured.peak_memory_mb is not None and measured.peak_memory_mb > 1

    @pytest.mark.parametrize("text", ["sigma2", "sigma0", "cold,cache_hit=0.5", "cold,suspended=0.5"])
    def test_a_state_it_cannot_be_put_into_is_one_clear_error(self, host: RunnerDevice, plan: Plan, text: str) -> None:
        with pytest.raises(
            UsageError, match=r"host cannot be put into the condition .*; a real device takes"
        ) as caught:
            host.measure(plan, parse_condition(text))
        assert "\n" not in str(caught.value)

    def test_competitors_and_a_screen(self, host: RunnerDevice, plan: Plan) -> None:
        beside = host.measure(plan, Condition(competitors=1, ui=None))
        assert beside.ok and beside.frame_drop_rate is None
        drawn = host.measure(plan, Condition(ui=Ui(rate_hz=60, render_ms=1)))
        assert drawn.frame_drop_rate is not None and 0 <= drawn.frame_drop_rate <= 1
        assert sum(drawn.samples_ms) >= 250  # long enough to count frames

    def test_a_cap_idles_after_each_segment(self, host: RunnerDevice, plan: Plan) -> None:
        [processor] = plan.processors
        capped = host.measure(msgspec.structs.replace(plan, caps=(Cap(processor, 0.25),)), Condition(ui=None))
        assert capped.latency_ms is not None
        [busy] = capped.utilization
        assert busy.processor == processor and busy.busy <= 0.3
        last = capped.segments[-1]  # of one run, which may have begun late on a busy machine
        assert last.end_ms - last.start_ms <= 0.3 * capped.latency_ms

    def test_what_cannot_run_is_a_failed_measurement(self, host: RunnerDevice, plan: Plan) -> None:
        answer = host.measure(branches(plan, host.graph), Condition(ui=None))
        assert answer.error is not None and answer.error.kind is Failure.UNSUPPORTED

    def test_a_pruned_plan_runs_the_pruned_model(self, host: RunnerDevice, plan: Plan) -> None:
        small = msgspec.structs.replace(plan, compression=Compression(0.5))
        pieces = [host._model.job(p, host._targets).pieces for p in (plan, small)]
        weights = [sum(host._model._store.path(name).stat().st_size for name in p[0].files) for p in pieces]
        assert weights[1] < 0.7 * weights[0]
        answer = host.measure(small, Condition(ui=None))
        assert answer.ok and answer.output_error is not None and answer.output_error < 1e-5
        whole, pruned = host.compare([plan, small], Condition(ui=None))
        assert whole.ok and pruned.ok and len(whole.samples_ms) == len(pruned.samples_ms)  # in the same rounds

    def test_outputs_may_be_off_by_as_much_as_was_asked_for(self, host: RunnerDevice, plan: Plan) -> None:
        elsewhere = next(p for p in whole_model_plans(host) if p.processors == ("cpu/ncnn/fp32",))
        assert host.allowing(None) is host
        strict = host.allowing(1e-12).measure(elsewhere, Condition(ui=None))
        assert strict.error is not None and strict.error.kind is Failure.WRONG_OUTPUT
        assert host.allowing(0.5).measure(elsewhere, Condition(ui=None)).ok

    def test_comparisons_are_of_the_same_rounds_and_one_may_fail(self, host: RunnerDevice, plan: Plan) -> None:
        whole = whole_model_plans(host)[:2]
        both = host.compare(whole, Condition(ui=None))
        assert len({len(answer.samples_ms) for answer in both}) == 1 and all(answer.ok for answer in both)
        first, failed, last = host.compare([whole[0], branches(plan, host.graph), whole[1]], Condition(ui=None))
        assert first.ok and last.ok and failed.error is not None
        wrong = next(p for p in whole_model_plans(host) if p.processors == ("cpu/ncnn/fp32",))
        first, failed, last = host.allowing(1e-12).compare([whole[0], wrong, whole[0]], Condition(ui=None))
        assert failed.error is not None and failed.error.kind is Failure.WRONG_OUTPUT
        assert len(first.samples_ms) == len(last.samples_ms) >= 3  # still of the same rounds
        assert host.compare([], Condition(ui=None)) == []


def branches(plan: Plan, graph: OperatorGraph) -> Plan:
    """The plan with its first fusion group as branches: another network, for which there are no weights."""
    (segment,) = plan.segments
    cut = len(graph.groups[0].nodes)
    parts = (Part("cpu1/onnxruntime/fp32", 50), Part("cpu0/onnxruntime/fp32", 50))
    first = msgspec.structs.replace(segment, nodes=segment.nodes[:cut], parts=parts, axis=Axis.BRANCHES)
    rest = msgspec.structs.replace(segment, nodes=segment.nodes[cut:])
    return msgspec.structs.replace(plan, segments=(first, rest))


class TestOpening:
    def test_an_engine_set_is_chosen_by_name(self, tmp_path: Path) -> None:
        graph = resolve_model(str(save_tiny_cnn(tmp_path / "tiny.onnx")))
        with quick_host(tmp_path):
            with open_device("host", graph, "ncnn") as device:
                assert {p.split("/")[1] for p in device.describe().processors} == {"ncnn"}
            with pytest.raises(UnknownName, match="unknown engine 'abacus'"):
                open_device("host", graph, "abacus")

    @pytest.mark.parametrize("address", ["host:foo", "host:/dev/null"])
    def test_host_takes_no_address(self, address: str) -> None:
        with pytest.raises(UsageError, match=r"is no device; write --device host, or ssh://"):
            open_device(address, chain_graph(2))

    def test_a_model_without_a_file_has_no_weights(self, tmp_path: Path) -> None:
        with quick_host(tmp_path), pytest.raises((UsageError, ModelError), match="made in memory"):
            open_device("host", chain_graph(2))


class TestCommandLine:
    """What is wrong takes one line, and the exit status says whose fault it was."""

    @pytest.fixture
    def refuse(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Generator[Refuse, None, None]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HETRL_DEBUG", raising=False)
        save_tiny_cnn(tmp_path / "tiny.onnx")

        def check(words: str, told: str, status: int = 2) -> None:
            command = ["train", "--model", "tiny.onnx", "--budget", "6", "--quiet", *words.split()]
            assert run(command) == status, words
            out, err = capsys.readouterr()
            assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err, err
            assert not (tmp_path / "runs").exists()

        with quick_host(tmp_path):
            yield check

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("--device host --max-output-error 0", "an output error of 0 is no limit; give --max-output-error 1e-3"),
            ("--device host --max-output-error nan", "an output error of nan is no limit"),
            ("--device host --max-output-error -1e-3", "an output error of -0.001 is no limit"),
            ("--device host --max-output-error inf", "an output error of inf is no limit"),
            ("--device host --seeded-weights some", "invalid value for '--seeded-weights'"),
            ("--device host:foo", "host:foo is no device; write --device host"),
            ("--device hots", "unknown device 'hots'"),
            ("--device ssh://-oProxyCommand=x", "'-oProxyCommand=x' is no host; write ssh://user@board"),
            ("--device ssh://host:99999", "99999 is no port"),
            ("--device ssh:", "'ssh:' is no address of a board"),
            ("--device ssh://board?python=;id", "no path of an interpreter"),
            ("--device replay:missing", "missing cannot be read"),
            ("--device replay:", "replay names no file; write replay:FILE"),
            ("--device replay:tiny.onnx", "tiny.onnx is damaged"),
            ("--device adb:", "adb:SERIAL"),
            ("--device adb:-s", "is no serial of an Android device"),
            ("--device adb:X1?app=;id", "is no app's package"),
        ],
    )
    def test_a_mistake_is_found_before_anything_runs(self, refuse: Refuse, words: str, told: str) -> None:
        refuse(words, told)

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("--condition sigma2", "host cannot be put into the condition sigma2; a real device takes competitors=N"),
            ("--engine abacus", "unknown engine 'abacus'"),
        ],
    )
    def test_what_only_the_machine_knows(self, refuse: Refuse, words: str, told: str) -> None:
        refuse(f"--device host {words}", told)

    def test_a_board_that_does_not_answer(self, refuse: Refuse) -> None:
        if shutil.which("ssh") is None:
            pytest.skip("needs OpenSSH's client")
        refuse("--device ssh://me@127.0.0.1:1", "ssh://me@127.0.0.1:1 refuses the connection", 3)

    def test_a_model_without_weights_needs_a_seed(self, refuse: Refuse, tmp_path: Path) -> None:
        model = onnx.load(tmp_path / "tiny.onnx")
        onnx.save(model, tmp_path / "tiny.onnx", save_as_external_data=True, location="weights", size_threshold=0)
        (tmp_path / "weights").unlink()
        refuse(
            "--device host",
            "tiny.onnx has no weights (not in weights, beside it), without which it cannot run; "
            "draw them with --seeded-weights",
        )
        words = "search --sampler random --model tiny.onnx --device host --seeded-weights 0 --budget 4 --quiet"
        assert run(words.split()) == 0
