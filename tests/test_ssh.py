"""A board over ssh: a real sshd on loopback, killed and restarted, with full disks and hostile names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import ChannelLost
from hetrl.device_bridge.host.opening import open_machine
from hetrl.device_bridge.runner_archive import build_runner_archive
from hetrl.device_bridge.ssh import far_end
from hetrl.device_bridge.ssh.address import SshAddress
from hetrl.device_bridge.ssh.channel import SshChannel
from hetrl.device_bridge.ssh.connection import SshConnection
from hetrl.errors import DeviceFailed, UsageError
from hetrl.plan import Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.zoo import resolve_model
from tests.daemons.disks import tiny_disk
from tests.daemons.processes import alive
from tests.daemons.sshd import Sshd, running_sshd
from tests.tiny_models import save_tiny_cnn

MakeChannel = Callable[..., SshChannel]

# A runner that says who it is, then answers every line; "sleep" makes it hang for longer than any test.
STAND_IN = """\
import json, os, sys, time
print(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:]]), flush=True)
for line in sys.stdin:
    if line.strip() == "sleep":
        time.sleep(600)
    print("got " + line.strip(), flush=True)
"""
HOSTILE = "we ird;'\"$(touch pwned)`touch pwned`\n*é"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Generator[Sshd, None, None]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as daemon:
        yield daemon


@pytest.fixture
def make(sshd: Sshd, tmp_path: Path) -> Generator[MakeChannel, None, None]:
    """Channels with a work folder of the test's own and the stand-in as runner."""
    stand_in = tmp_path / "stand-in.pyz"
    stand_in.write_text(STAND_IN)
    made: list[SshChannel] = []

    def channel(**changes: object) -> SshChannel:
        options: dict[str, object] = {"folder": str(tmp_path / "work"), "config": sshd.config, "archive": stand_in}
        address = changes.pop("address", sshd.address(sys.executable))
        made.append(SshChannel(address, **(options | changes)))  # type: ignore[arg-type]
        return made[-1]

    yield channel
    for each in made:
        each.close()


def end(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    process.communicate()
    return process.returncode


def hello(process: subprocess.Popen[bytes]) -> tuple[int, str, list[str]]:
    assert process.stdout is not None
    pid, folder, arguments = json.loads(process.stdout.readline())
    return pid, folder, arguments


def ask(process: subprocess.Popen[bytes], line: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()
    return process.stdout.readline().decode().strip()


def test_a_runner_is_started_and_speaks(make: MakeChannel, tmp_path: Path) -> None:
    process = make().spawn()
    _, folder, arguments = hello(process)  # its first line, whatever the login shell printed before
    assert (folder, arguments) == (str(tmp_path / "work"), ["blobs"])
    assert ask(process, "one") == "got one"
    end(process)


def test_the_real_runner_says_hello_from_the_archive(make: MakeChannel) -> None:
    process = make(archive=None).spawn()
    answer = json.loads(ask(process, '{"id": 1, "do": "hello", "engines": true}'))
    assert answer["id"] == 1
    assert "onnxruntime" in json.dumps(answer["ok"])
    end(process)


def test_the_archive_is_a_function_of_the_source_alone(tmp_path: Path) -> None:
    first = build_runner_archive(tmp_path / "a")
    code = (
        f"from hetrl.device_bridge.runner_archive import *; print(build_runner_archive(Path({str(tmp_path / 'b')!r})))"
    )
    second = Path(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    )
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


def test_files_arrive_once(make: MakeChannel, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    names = [store.put(os.urandom(size), ".bin") for size in (0, 1, 3_000_000)]
    make().push([*names, names[0]], store)
    blobs = tmp_path / "work" / "blobs"
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == {n: store.path(n).read_bytes() for n in names}
    before = {path.name: path.stat().st_ino for path in blobs.iterdir()}

    channel = make()  # another process, another day
    more = store.put(b"more", ".onnx")
    channel.push([*names, more], store)
    channel.push([*names, more], store)
    after = {path.name: path.stat().st_ino for path in blobs.iterdir()}
    assert after == before | {more: after[more]}


def test_a_file_that_arrives_damaged_is_not_kept(tmp_path: Path) -> None:
    program = Path(far_end.__file__).read_text()
    for sent, reason in ((b"a.bin 3\nabc\n" + b"0" * 64 + b"\n", "damaged"), (b"a.bin 9\nabc", "ended within")):
        command = [sys.executable, "-c", program, "receive", str(tmp_path)]
        said = subprocess.run(command, input=sent, capture_output=True, check=True).stdout.decode()
        assert reason in json.loads(said.splitlines()[-1])["error"]
        assert list(tmp_path.iterdir()) == []


def test_what_was_half_received_is_forgotten(tmp_path: Path) -> None:
    for name in (".half-1-old", ".half-2-new"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".half-1-old", (0, 0))
    command = [sys.executable, "-c", Path(far_end.__file__).read_text(), "receive", str(tmp_path)]
    subprocess.run(command, input=b"", capture_output=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == [".half-2-new"]


@pytest.mark.parametrize(
    "name", ["../a", "a/b", "/etc/passwd", "-rf", ".bashrc", "a b", "a;id", "$(id)", "a\nb", "é", ""]
)
def test_a_hostile_file_name_is_refused(make: MakeChannel, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a file"):
        make().push([name], BlobStore(tmp_path / "store"))


@pytest.mark.parametrize("name", ["../pwned", ".pwned", "/tmp/pwned", ".."])
def test_the_far_end_refuses_them_too(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "blobs"
    folder.mkdir()
    command = [sys.executable, "-c", Path(far_end.__file__).read_text(), "receive", str(folder)]
    said = subprocess.run(command, input=f"{name} 0\n\n".encode(), capture_output=True, check=True).stdout.decode()
    assert "is no file's name" in json.loads(said.splitlines()[-1])["error"]
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_hostile_work_folder_is_only_a_folder(make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    channel = make(folder=str(tmp_path / HOSTILE))
    channel.push([store.put(b"data", ".bin")], store)
    process = channel.spawn()
    assert hello(process)[1] == str(tmp_path / HOSTILE)
    end(process)
    assert sorted(path.name for path in (tmp_path / HOSTILE).iterdir()) == ["blobs", "runner"]
    assert not list(tmp_path.rglob("pwned")) and not Path.home().joinpath("pwned").exists()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=3))
def test_every_argument_arrives_as_it_is(sshd: Sshd, words: list[str]) -> None:
    done = shared_connection(sshd).run('printf "%s\\0" begin "$@"', words, 20.0)
    assert done.stdout.partition("begin\0")[2] == "".join(f"{word}\0" for word in words)


@cache
def shared_connection(sshd: Sshd) -> SshConnection:
    return SshConnection(sshd.address(sys.executable), sshd.config)


def test_sshd_killed_in_the_middle_and_restarted(make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
    channel = make()
    store = BlobStore(tmp_path / "store")
    process = channel.spawn()
    hello(process)
    assert process.stdin is not None
    process.stdin.write(b"sleep\n")
    process.stdin.flush()
    try:
        sshd.kill()
        assert process.wait(timeout=10) == 255
        process.communicate()
    finally:
        threading.Timer(1.0, sshd.start).start()
    again = channel.spawn()  # waits for it
    assert hello(again)[0] != 0
    assert ask(again, "one") == "got one"
    assert channel.reconnects == 1
    channel.push([store.put(b"data", ".bin")], store)
    assert channel.reconnects == 1
    end(again)


def test_a_command_that_hangs_is_abandoned_with_its_connection(sshd: Sshd) -> None:
    connection = SshConnection(sshd.address(sys.executable), sshd.config)
    for feed in (None, lambda stream: stream.write(bytes(10_000_000))):
        began = time.monotonic()
        with pytest.raises(ChannelLost, match="did not answer within 1 s"):
            connection.run("sleep 60", [], 1.0, feed)
        assert time.monotonic() - began < 5.0
    assert connection.run("echo well", [], 20.0).stdout.endswith("well\n")
    connection.close()


def test_a_board_that_stays_away_is_given_up(make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
    channel = make(patience_s=1.0)
    channel.connect()
    sshd.kill()
    try:
        began = time.monotonic()
        with pytest.raises(ChannelLost, match="refuses the connection"):
            channel.spawn()
        assert 1.0 <= time.monotonic() - began < 10.0
    finally:
        sshd.start()


def test_a_runner_that_hangs_is_ended_before_the_next_one(make: MakeChannel) -> None:
    channel, other = make(), make()
    process, bystander = channel.spawn(), other.spawn()
    hung = hello(process)[0]
    neighbour = hello(bystander)[0]
    assert process.stdin is not None
    process.stdin.write(b"sleep\n")
    process.stdin.flush()
    end(process)  # here; there it goes on
    assert alive(hung)
    again = channel.spawn()
    assert hello(again)[0] != hung
    assert not alive(hung)
    assert alive(neighbour)  # another channel's
    end(again)
    end(bystander)


def test_no_connection_and_no_process_stays_behind(make: MakeChannel, sshd: Sshd) -> None:
    channel = make()
    process = channel.spawn()
    pid = hello(process)[0]
    process.communicate(timeout=10)  # closes its stdin
    assert process.returncode == 0
    folder = channel._connection.socket_folder
    assert folder.exists() and folder.stat().st_mode & 0o077 == 0
    channel.close()
    channel.close()
    assert not folder.exists() and not alive(pid)
    with pytest.raises(ChannelLost, match="was closed"):
        channel.spawn()


def test_a_full_disk_is_said(make: MakeChannel, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    small, big = store.put(os.urandom(100), ".bin"), store.put(os.urandom(5_000_000), ".bin")
    with tiny_disk(tmp_path / "tiny") as disk:
        channel = make(folder=str(disk))
        with pytest.raises(ChannelLost, match=r"No space left.*rm -r .*makes room"):
            channel.push([small, big], store)
        assert [path.name for path in (disk / "blobs").iterdir()] == [small]
        end(channel.spawn())  # the rest works on


class TestWhatIsWrongIsSaidInOneLine:
    def expect(self, channel: SshChannel, message: str, hint: str) -> None:
        with pytest.raises(DeviceFailed) as caught:
            channel.connect()
        assert message in caught.value.message
        assert caught.value.hint is not None and hint in caught.value.hint
        assert "\n" not in str(caught.value)

    def test_nobody_listens(self, make: MakeChannel) -> None:
        self.expect(
            make(address=SshAddress("127.0.0.1", "user", 1)), "refuses the connection", "ssh -p 1 user@127.0.0.1"
        )

    def test_no_such_host(self, make: MakeChannel) -> None:
        self.expect(
            make(address=SshAddress("no.such.host.invalid")), "no.such.host.invalid", "ssh no.such.host.invalid"
        )

    def test_no_key_is_taken(self, make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text(sshd.client_config("other_key", "known_hosts"))
        self.expect(make(config=config), "takes none of your keys", "ssh-copy-id -p")

    def test_the_host_is_unknown(self, make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text(sshd.client_config("user_key", "nothing"))
        self.expect(make(config=config), "is not among your known hosts", "asks to add it")

    def test_the_host_has_another_key(self, make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
        other = (sshd.folder / "other_key.pub").read_text()
        (sshd.folder / "wrong_hosts").write_text(f"[127.0.0.1]:{sshd.port} {other}")
        config = tmp_path / "config"
        config.write_text(sshd.client_config("user_key", "wrong_hosts"))
        self.expect(make(config=config), "shows another key than before", f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'")

    def test_no_python(self, make: MakeChannel, sshd: Sshd) -> None:
        self.expect(make(address=sshd.address("/no/python")), "/no/python is not on", "?python=/path/to/python")

    def test_an_old_python(self, make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
        code = "import sys; sys.version_info = (3, 7, 3); program = sys.argv[2]; del sys.argv[1:3]; exec(program)"
        python = script(tmp_path / "python3.7", f'exec {sys.executable} -c "{code}" "$@"')
        self.expect(make(address=sshd.address(python)), "is Python 3.7.3, older than 3.11", "?python=/path/to/python")

    def test_a_python_without_numpy(self, make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
        python = script(tmp_path / "bare", f'exec {sys.executable} -I -S "$@"')
        self.expect(make(address=sshd.address(python)), "lacks numpy", "-m pip install numpy onnxruntime")

    def test_a_python_that_does_not_work(self, make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
        python = script(tmp_path / "broken", "echo Illegal instruction >&2; exit 132")
        self.expect(make(address=sshd.address(python)), "does not work (Illegal instruction)", "ssh -p")

    def test_a_folder_that_nobody_may_write(self, make: MakeChannel) -> None:
        self.expect(make(folder="/proc/hetrl"), "/proc/hetrl", "df /proc/hetrl")

    def test_no_ssh_here(self, make: MakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
        channel = make()
        monkeypatch.setenv("PATH", "/nowhere")
        self.expect(channel, "ssh is not installed", "apt install openssh-client")


def script(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def test_a_board_that_stops_answering_is_noticed(make: MakeChannel, sshd: Sshd) -> None:
    """A frozen far end: no packet says that the connection is over."""
    channel = make(options=("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"), patience_s=0.0)
    process = channel.spawn()
    pid = hello(process)[0]
    frozen = [pid for pid in ancestors(pid) if "sshd" in Path(f"/proc/{pid}/comm").read_text() and pid != sshd.pid]
    for each in frozen:
        os.kill(each, signal.SIGSTOP)
    try:
        assert process.wait(timeout=20) == 255
        process.communicate()
    finally:
        for each in frozen:
            os.kill(each, signal.SIGCONT)


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_a_plan_is_measured_again_when_the_connection_breaks(make: MakeChannel, sshd: Sshd, tmp_path: Path) -> None:
    """The whole way: a model, the runner over there, a measurement, sshd killed in the middle of the next one."""
    graph = resolve_model(str(save_tiny_cnn(tmp_path / f"{HOSTILE}.onnx")))
    store = BlobStore(tmp_path / "store")
    with open_machine(make(archive=None), store, "ssh://board", graph, None) as device:
        nodes = tuple(node for group in graph.groups for node in graph.group_node_ids(group.index))
        segment = Segment(nodes=nodes, parts=(Part("cpu/onnxruntime/fp32"),))
        plan = Plan(model=model_ref(graph), device=device.spec.id, engines=("onnxruntime",), segments=(segment,))
        answer = device.measure(plan, device.default_condition)
        assert answer.ok, answer.error
        assert device.notes == ()

        def restart() -> None:
            sshd.kill()
            time.sleep(0.5)
            sshd.start()

        breaking = threading.Timer(0.2, restart)
        breaking.start()
        while breaking.is_alive() or not device.notes:
            answer = device.measure(plan, device.default_condition)
            assert answer.ok, answer.error
        assert "lost" in device.notes[0]
    assert not list(tmp_path.rglob("pwned")) and not Path.home().joinpath("pwned").exists()
