"""A phone over adb: the real Android daemon, killed and restarted, with a full disk and hostile names."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetrl.condition import Condition, parse_condition
from hetrl.device_bridge.adb import system
from hetrl.device_bridge.adb.adb import Adb
from hetrl.device_bridge.adb.benchncnn import Benchncnn, BenchRun, BenchSettings, NcnnModel
from hetrl.device_bridge.adb.device import AdbDevice, Protocol
from hetrl.device_bridge.adb.frames import FrameStats, frame_stats, reset_frames
from hetrl.device_bridge.adb.opening import open_adb
from hetrl.device_bridge.adb.termux import TermuxChannel
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import ChannelLost
from hetrl.errors import DeviceFailed, PlanError, UsageError
from hetrl.measurement import Failure, MeasurementError
from hetrl.plan import Cap, Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.zoo import resolve_model
from tests.daemons.adbd import Adbd, running_adbd
from tests.daemons.disks import tiny_disk
from tests.daemons.processes import alive
from tests.daemons.sshd import running_sshd
from tests.surrogate_help import D1, chain_graph
from tests.tiny_models import save_tiny_cnn

QUICK = BenchSettings(loops=3, threads=1, powersave=0, timeout_s=60)
HOSTILE = "we ird;'\"$(touch pwned)`touch pwned`\n*é"


def param(layer: str = "c") -> str:
    """A convolution and a ReLU on an image of 3 channels."""
    return f"7767517\n3 3\nInput data 0 1 data\nConvolution {layer} 1 1 data a 0=8 1=3 6=216\nReLU r 1 1 a out 31=16\n"


CPU = NcnnModel(param(), (32, 24, 3), False)


@pytest.fixture(scope="module")
def adbd(tmp_path_factory: pytest.TempPathFactory) -> Generator[Adbd, None, None]:
    with running_adbd(tmp_path_factory.mktemp("adbd")) as daemon:
        yield daemon


@pytest.fixture
def adb(adbd: Adbd, tmp_path: Path) -> Adb:
    phone = Adb(adbd.serial, folder=str(tmp_path / "work"), program=str(adbd.adb))
    phone.connect()
    return phone


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=3)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_every_argument_arrives_as_it_is(adb: Adb, words: Sequence[str]) -> None:
    answer = adb.shell(["printf", "%s\\0", "begin", *words])
    assert answer.stdout == "".join(f"{word}\0" for word in ("begin", *words))
    assert (answer.code, answer.stderr) == (0, "")


def test_output_errors_and_exit_status_come_apart(adb: Adb) -> None:
    answer = adb.shell(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (answer.code, answer.stdout, answer.stderr) == (3, "out\n", "err\n")
    assert adb.shell(["no-such-program"]).code == 127
    assert adb.shell(["printf", "no newline\nhetrl-exit=0"]).stdout == "no newline\nhetrl-exit=0"


@pytest.mark.parametrize("argv", [[], ["-x"], ["echo", "a\0b"]])
def test_what_is_no_command_is_refused(adb: Adb, argv: list[str]) -> None:
    with pytest.raises(ValueError, match="is no command"):
        adb.shell(argv)


def test_files_arrive_once_and_come_back(adb: Adb, adbd: Adbd, tmp_path: Path) -> None:
    file = tmp_path / HOSTILE
    file.write_bytes(os.urandom(2_000_000))
    there = Path(adb.push(file))
    assert there.parent == tmp_path / "work" and there.read_bytes() == file.read_bytes()
    before = there.stat()
    again = Adb(adbd.serial, folder=str(tmp_path / "work"), program=str(adbd.adb))
    assert again.push(file) == str(there) and adb.push(file) == str(there)
    assert there.stat().st_ino == before.st_ino and there.stat().st_ctime_ns == before.st_ctime_ns
    adb.pull(there.name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in there.parent.iterdir()) == [there.name]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", ["../a", "a/b", "/etc/passwd", "-rf", ".a", "a b", "a;id", "$(id)", "a\nb", "é", ""])
def test_a_hostile_file_name_is_refused(adb: Adb, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a file"):
        adb.pull(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hostile_work_folder_is_only_a_folder(adbd: Adbd, tmp_path: Path) -> None:
    phone = Adb(adbd.serial, folder=str(tmp_path / HOSTILE), program=str(adbd.adb))
    phone.connect()
    there = phone.push(adbd.benchncnn)
    assert Path(there).parent == tmp_path / HOSTILE
    assert isinstance(Benchncnn(phone, adbd.benchncnn, QUICK).run(CPU), BenchRun | MeasurementError)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    "layer", ["$(touch${IFS}pwned)", "`touch${IFS}pwned`", ";touch${IFS}pwned;", "../../pwned", "'\"é"]
)
def test_hostile_names_inside_a_model_are_only_names(adb: Adb, adbd: Adbd, tmp_path: Path, layer: str) -> None:
    answer = Benchncnn(adb, adbd.benchncnn, QUICK).run(NcnnModel(param(layer), (32, 24, 3), False))
    assert isinstance(answer, BenchRun)
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    assert all(len(path.stem) == 32 for path in (tmp_path / "work").iterdir())


@pytest.mark.parametrize("serial", ["", "-s", "a;id", "$(id)", "a b", "a\nb", "../a", "é"])
def test_a_hostile_serial_is_refused(serial: str) -> None:
    with pytest.raises(UsageError, match="is no serial"):
        Adb(serial)


@pytest.mark.parametrize(
    "package", ["a;id", "$(id).a", "com.example\n.app", "../com.example", "-com.example", "com. example"]
)
def test_a_hostile_package_is_refused(adb: Adb, package: str) -> None:
    with pytest.raises(UsageError, match="is no app's package"):
        frame_stats(adb, package)


class TestBenchncnn:
    def test_a_model_is_measured(self, adb: Adb, adbd: Adbd, tmp_path: Path) -> None:
        bench = Benchncnn(adb, adbd.benchncnn, QUICK)
        for uses_gpu in (False, True):
            answer = bench.run(NcnnModel(param(), (32, 24, 3), uses_gpu))
            assert isinstance(answer, BenchRun), answer
            assert 0 < answer.min_ms <= answer.avg_ms <= answer.max_ms
        assert len(list((tmp_path / "work").iterdir())) == 2  # the program and the model, each once

    @pytest.mark.parametrize(
        ("text", "kind", "words"),
        [
            ("kill -9 $$", Failure.OUT_OF_MEMORY, "was killed"),
            ("kill -11 $$", Failure.CRASHED, "ended with 139"),
            ("echo bad model >&2; exit 1", Failure.CRASHED, "bad model"),
            ("echo '   squeezenet  min =   1.00  max =   1.00  avg =   1.00'", Failure.UNSUPPORTED, "too old"),
            ("true", Failure.UNSUPPORTED, "said nothing"),
        ],
    )
    def test_what_goes_wrong_is_a_value(self, adb: Adb, tmp_path: Path, text: str, kind: Failure, words: str) -> None:
        answer = Benchncnn(adb, program(tmp_path / "bench", text), QUICK).run(CPU)
        assert isinstance(answer, MeasurementError)
        assert answer.kind is kind and words in answer.message

    def test_a_program_for_another_processor(self, adb: Adb, tmp_path: Path) -> None:
        file = tmp_path / "bench"
        file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
        answer = Benchncnn(adb, file, QUICK).run(CPU)
        assert isinstance(answer, MeasurementError)
        assert answer.kind is Failure.UNSUPPORTED and "built for this phone" in answer.message

    def test_one_that_hangs_is_ended_on_the_phone(self, adb: Adb, tmp_path: Path) -> None:
        hanging = program(tmp_path / "bench", f"echo $$ > {tmp_path}/pid; exec sleep 600")
        began = time.monotonic()
        answer = Benchncnn(adb, hanging, BenchSettings(timeout_s=1)).run(CPU)
        assert isinstance(answer, MeasurementError)
        assert answer.kind is Failure.TIMEOUT and time.monotonic() - began < 5
        assert not alive(int((tmp_path / "pid").read_text()))

    def test_a_program_that_is_not_there(self, adb: Adb, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            Benchncnn(adb, tmp_path / "nothing", QUICK).run(CPU)


def test_what_a_phone_is(adb: Adb, tmp_path: Path) -> None:
    fake_system(tmp_path / "root")
    assert system.capabilities(adb, str(tmp_path / "root")) == system.Capabilities(
        soc="SM8150",
        board="msmnile",
        model="Test Phone",
        abi="arm64-v8a",
        android="13",
        cores=(system.Core(0, 1785.6), system.Core(1, 2841.6), system.Core(2, None)),
        memory_mb=8e6 * 1024 / 1e6,
        gpu="Adreno640v2",
    )
    assert system.capabilities(adb).gpu == "Adreno (TM) 640"  # from SurfaceFlinger, where the driver hides it
    real = system.capabilities(adb)
    assert len(real.cores) >= 1 and real.memory_mb is not None and real.memory_mb > 100


def test_how_a_phone_fares(adb: Adb, tmp_path: Path) -> None:
    fake_system(tmp_path / "root")
    assert system.telemetry(adb, str(tmp_path / "root")) == system.Telemetry(
        zones=(system.Zone("cpu-0-0-usr", 41.5), system.Zone("battery", 28.0)),
        clocks_mhz=((0, 1785.6), (1, 825.6)),
        gpu_busy=0.25,
        battery=system.Battery(0.85, 28.5, True),
        memory_free_mb=3e6 * 1024 / 1e6,
    )
    (tmp_path / "root/sys/class/kgsl/kgsl-3d0/gpubusy").unlink()
    assert system.telemetry(adb, str(tmp_path / "root")).gpu_busy is None
    for path, content in (("sys/kernel/ged/hal/gpu_utilization", "12 0 88"), ("sys/kernel/gpu/gpu_busy", "37%")):
        write(tmp_path / "root" / path, content)
        assert system.telemetry(adb, str(tmp_path / "root")).gpu_busy == float(content[:2]) / 100


def fake_system(root: Path) -> None:
    for path, content in {
        "sys/devices/system/cpu/possible": "0-2",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1785600",
        "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "2841600",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1785600",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "825600",
        "sys/class/thermal/thermal_zone0/type": "cpu-0-0-usr",
        "sys/class/thermal/thermal_zone0/temp": "41500",
        "sys/class/thermal/thermal_zone1/type": "battery",
        "sys/class/thermal/thermal_zone1/temp": "28000",
        "sys/class/kgsl/kgsl-3d0/gpu_model": "Adreno640v2",
        "sys/class/kgsl/kgsl-3d0/gpubusy": "  250000 1000000",
        "proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    3000000 kB",
    }.items():
        write(root / path, content)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def test_frames_of_an_app(adb: Adb) -> None:
    assert reset_frames(adb, "com.example.app")
    assert frame_stats(adb, "com.example.app") == FrameStats(120, 6, (8.0, 20.0))
    assert not reset_frames(adb, "com.example.other")
    assert frame_stats(adb, "com.example.other") is None


class TestLost:
    def test_adbd_killed_in_the_middle_and_restarted(self, adb: Adb, adbd: Adbd) -> None:
        threading.Timer(0.5, adbd.kill).start()
        began = time.monotonic()
        try:
            with pytest.raises(ChannelLost, match="was lost"):
                adb.shell(["sleep", "60"], timeout_s=30)
            assert time.monotonic() - began < 10
            with pytest.raises(ChannelLost, match=r"offline.*adb disconnect .*adb connect"):
                adb.shell(["true"])
        finally:
            threading.Timer(1.0, adbd.start).start()
        adb.reconnect()  # waits for it
        assert adb.shell(["echo", "back"]).stdout == "back\n"

    def test_one_that_stays_away_is_given_up(self, adbd: Adbd, adb: Adb) -> None:
        gone = Adb("127.0.0.1:1", program=str(adbd.adb), patience_s=1.0)
        began = time.monotonic()
        with pytest.raises(ChannelLost, match="refuses the connection"):
            gone.reconnect()
        assert 1.0 <= time.monotonic() - began < 10

    @pytest.mark.parametrize(
        ("serial", "words"), [("nosuchphone", "is not there; `adb devices`"), ("127.0.0.1:1", "refuses the connection")]
    )
    def test_one_that_never_was(self, adbd: Adbd, serial: str, words: str) -> None:
        with pytest.raises(DeviceFailed, match=words) as caught:
            Adb(serial, program=str(adbd.adb)).connect()
        assert "\n" not in str(caught.value)

    def test_no_adb_here(self) -> None:
        with pytest.raises(DeviceFailed, match="no-such-adb is not installed; sudo apt install adb"):
            Adb("X1", program="no-such-adb").connect()

    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "confirm the question"),
            ("error: device offline", "offline; `adb reconnect`"),
            ("* daemon not running\ncannot connect to daemon", "`adb start-server` says why"),
            ("error: insufficient permissions", "was lost"),
        ],
    )
    def test_other_words_of_adb(self, tmp_path: Path, said: str, words: str) -> None:
        stand_in = program(tmp_path / "adb", f"echo {said!r} >&2; exit 1")
        with pytest.raises(DeviceFailed, match=words):
            Adb("X1", program=str(stand_in)).connect()

    def test_a_full_disk_is_said(self, adbd: Adbd, adb: Adb, tmp_path: Path) -> None:
        (tmp_path / "big").write_bytes(os.urandom(5_000_000))
        with tiny_disk(tmp_path / "tiny") as disk:
            phone = Adb(adbd.serial, folder=str(disk), program=str(adbd.adb))
            with pytest.raises(ChannelLost, match=r"is full; .* rm -r .*tiny. makes room"):
                phone.push(tmp_path / "big")
            assert list(disk.iterdir()) == []
            answer = Benchncnn(phone, tmp_path / "big", QUICK).run(CPU)
            assert isinstance(answer, MeasurementError) and "is full" in answer.message


class TestDevice:
    def device(self, adb: Adb, bench: Path, app: str | None = None, runs: int = 2) -> AdbDevice:
        graph = chain_graph(2)

        def convert(plan: Plan) -> NcnnModel:
            if plan.splits:
                raise PlanError("segments", "a split of a test")
            return NcnnModel(param(), (32, 24, 3), any(p.startswith("gpu/") for p in plan.processors))

        protocol = Protocol(runs=runs, pause_s=0.0, app=app)
        return AdbDevice(D1, graph, "ncnn", adb, Benchncnn(adb, bench, QUICK), convert, protocol)

    def plan(self, device: AdbDevice, *processors: str) -> Plan:
        groups = [device.graph.group_node_ids(group) for group in range(2)]
        segments = tuple(Segment(nodes=nodes, parts=(Part(p),)) for nodes, p in zip(groups, processors, strict=True))
        return Plan(model=model_ref(device.graph), device="d1", engines=("ncnn",), segments=segments)

    def test_a_plan_is_measured(self, adb: Adb, adbd: Adbd) -> None:
        device = self.device(adb, adbd.benchncnn, "com.example.app", runs=5)
        answer = device.measure(self.plan(device, "cpu/ncnn/fp16", "gpu/ncnn/fp16"), Condition())
        assert answer.ok, answer.error
        assert answer.evidence.value == "measured" and len(answer.samples_ms) == 5
        assert answer.latency_ms == sorted(answer.samples_ms)[2]
        assert answer.latency_interval_ms == (min(answer.samples_ms), max(answer.samples_ms))
        assert answer.frame_drop_rate == 0.05
        assert not device.describe().deterministic and adb.serial in device.describe().description

    def test_few_samples_have_no_interval(self, adb: Adb, adbd: Adbd) -> None:
        device = self.device(adb, adbd.benchncnn)
        answer = device.measure(self.plan(device, "cpu/ncnn/fp16", "cpu/ncnn/fp16"), Condition())
        assert answer.ok and answer.latency_interval_ms is None and answer.frame_drop_rate is None

    def test_what_cannot_be_measured_says_so(self, adb: Adb, adbd: Adbd) -> None:
        device = self.device(adb, adbd.benchncnn)
        plan = self.plan(device, "cpu/ncnn/fp16", "cpu/ncnn/fp16")
        capped = Plan(
            model=plan.model, device="d1", engines=("ncnn",), segments=plan.segments, caps=(Cap("cpu/ncnn/fp16", 0.5),)
        )
        for what, condition in ((plan, "cold,competitors=2"), (plan, "sigma2"), (capped, "cold")):
            answer = device.measure(what, parse_condition(condition))
            assert answer.error is not None and answer.error.kind is Failure.UNSUPPORTED

    def test_an_app_that_does_not_run(self, adb: Adb, adbd: Adbd) -> None:
        device = self.device(adb, adbd.benchncnn, "com.example.other")
        answer = device.measure(self.plan(device, "cpu/ncnn/fp16", "cpu/ncnn/fp16"), Condition())
        assert answer.error is not None and "does not run" in answer.error.message

    def test_a_phone_that_restarts_is_measured_again(self, adb: Adb, adbd: Adbd, tmp_path: Path) -> None:
        """The program takes the phone down the first time it runs."""
        mark = tmp_path / "mark"
        slow = program(
            tmp_path / "bench",
            f'[ -e {mark} ] && exec {adbd.benchncnn} "$@"\n: > {mark}; sleep 60',
        )
        device = self.device(adb, slow)

        def restart() -> None:
            while not mark.exists():
                time.sleep(0.02)
            adbd.kill()
            time.sleep(1.0)
            adbd.start()

        other = threading.Thread(target=restart)
        other.start()
        answer = device.measure(self.plan(device, "cpu/ncnn/fp16", "cpu/ncnn/fp16"), Condition())
        other.join()
        assert answer.ok, answer.error
        assert device.reconnects == 1 and "came back 1 times" in device.notes[0]

    def test_a_phone_that_is_gone_is_a_failed_measurement(self, adbd: Adbd, adb: Adb) -> None:
        gone = Adb("127.0.0.1:1", program=str(adbd.adb), patience_s=0.0)
        device = self.device(gone, adbd.benchncnn)
        answer = device.measure(self.plan(device, "cpu/ncnn/fp16", "cpu/ncnn/fp16"), Condition())
        assert answer.error is not None and answer.error.kind is Failure.LOST
        assert "\n" not in answer.error.message


def test_termux_is_ssh_through_a_forwarded_port(adb: Adb, adbd: Adbd, tmp_path: Path) -> None:
    home = tmp_path / "sshd"
    home.mkdir()
    runner = tmp_path / "stand-in.pyz"
    runner.write_text("import sys\nprint('hello', flush=True)\nsys.stdin.read()\n")
    with running_sshd(home) as sshd:
        config = tmp_path / "config"
        config.write_text(sshd.client_config("user_key", "phones"))
        channel = TermuxChannel(
            adb,
            sshd.user,
            port=sshd.port,
            python=sys.executable,
            folder=str(tmp_path / "termux"),
            config=config,
            archive=runner,
        )
        store = BlobStore(tmp_path / "store")
        name = store.put(b"data", ".bin")
        channel.push([name], store)
        assert (tmp_path / "termux/blobs" / name).read_bytes() == b"data"
        for _ in range(2):
            process = channel.spawn()
            assert process.stdout is not None and process.stdout.readline() == b"hello\n"
            process.communicate(timeout=10)
            adbd.kill()  # the phone restarts; the forwarded port is forgotten
            adbd.start()
            adb.reconnect()
        assert f"hetrl-{adb.serial}" in (home / "phones").read_text()
        channel.close()
        channel.close()


def test_a_real_model_goes_to_a_phone_by_its_address(
    adb: Adb, adbd: Adbd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `--device adb:...` to a measurement, as the command line does it."""
    monkeypatch.setenv("PATH", f"{adbd.adb.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("hetrl.device_bridge.adb.opening.Adb", lambda serial: Adb(serial, folder=str(tmp_path / "w")))
    monkeypatch.setattr("hetrl.device_bridge.adb.opening.Protocol", lambda app: Protocol(runs=1, pause_s=0.0, app=app))
    graph = resolve_model(str(save_tiny_cnn(tmp_path / f"{HOSTILE}.onnx")))
    with open_adb(f"{adb.serial}?benchncnn={adbd.benchncnn}&app=com.example.app", graph, None) as device:
        assert device.spec.soc == "SM8150"
        for processor in ("cpu/ncnn/fp16", "gpu/ncnn/fp16"):
            nodes = tuple(n for group in range(len(graph.groups)) for n in graph.group_node_ids(group))
            segment = Segment(nodes=nodes, parts=(Part(processor),))
            plan = Plan(model=model_ref(graph), device=device.spec.id, engines=("ncnn",), segments=(segment,))
            answer = device.measure(plan, device.default_condition)
            assert answer.ok, answer.error
            assert answer.frame_drop_rate == 0.05
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    assert all(len(path.stem) == 32 for path in (tmp_path / "w").iterdir())
    with pytest.raises(UsageError, match="needs ncnn's benchncnn"):
        open_adb(adb.serial, graph, None)
