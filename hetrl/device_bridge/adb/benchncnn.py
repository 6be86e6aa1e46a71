"""ncnn's own benchmark program on a phone, with weights that it makes up."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

import msgspec

from hetrl.device_bridge.adb.adb import Adb, TimedOut
from hetrl.device_bridge.channel import ChannelLost, NoSpace
from hetrl.device_bridge.remote_names import last_line
from hetrl.errors import UsageError
from hetrl.measurement import Failure, MeasurementError

# As benchmark/benchncnn.cpp of Tencent/ncnn prints it.
_LINE = re.compile(
    r"^\s*(?P<name>\S+)\s+min =\s*(?P<min>[0-9.]+)\s+max =\s*(?P<max>[0-9.]+)\s+avg =\s*(?P<avg>[0-9.]+)\s*$",
    re.MULTILINE,
)
TIMEOUT_SLACK_S = 5.0  # for adb to notice that the phone has ended a program
KILLED, NOT_EXECUTABLE, NOT_FOUND = 137, 126, 127  # a shell's exit statuses
MAX_EDGE = 1 << 16


class NcnnModel(msgspec.Struct, frozen=True):
    """A plan as ncnn runs it.

    :param param: text of a `.param` file; a layer with the feature mask ` 31=16` stays on the CPU.
    :param shape: of the one input: width, height, channels.
    :param uses_gpu: whether any layer is for the GPU.
    """

    param: str
    shape: tuple[int, int, int]
    uses_gpu: bool

    def __post_init__(self) -> None:
        if not all(1 <= edge <= MAX_EDGE for edge in self.shape):
            raise UsageError(f"{self.shape} is no shape of an input", "give width, height and channels")


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one run of the program measures.

    :param loops: inferences in one run, after its own warm-up.
    :param powersave: 0 all cores, 1 the little ones, 2 the big ones.
    :param cooling_down: whether it sleeps for 10 s before.
    """

    loops: int = 8
    threads: int = 4
    powersave: int = 2
    gpu_device: int = 0
    cooling_down: bool = False
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not (1 <= self.loops <= 100_000 and 1 <= self.threads <= 64 and self.powersave in (0, 1, 2)):
            raise UsageError(f"{self} makes no sense", "try loops=8, threads=4, powersave=2")
        if not (0 <= self.gpu_device <= 16 and self.timeout_s >= 1):
            raise UsageError(f"{self} makes no sense", "try gpu_device=0, timeout_s=120")


class BenchRun(msgspec.Struct, frozen=True):
    """Times per inference of one run in ms."""

    min_ms: float
    max_ms: float
    avg_ms: float


class Benchncnn:
    """The program on one phone.

    :param program: built for the phone, a file of this computer; pushed when it is first needed.
    """

    def __init__(self, adb: Adb, program: Path, settings: BenchSettings | None = None) -> None:
        self.settings = settings or BenchSettings()
        self._adb = adb
        self._program = program

    def run(self, model: NcnnModel) -> BenchRun | MeasurementError:
        """Measure once; what goes wrong there is a value.

        :raises UsageError: the program cannot be read.
        """
        try:
            return self._run(model)
        except TimedOut as error:
            return MeasurementError(Failure.TIMEOUT, str(error))
        except NoSpace as error:
            return MeasurementError(Failure.NO_SPACE, str(error))
        except ChannelLost as error:
            return MeasurementError(Failure.LOST, str(error))

    def _run(self, model: NcnnModel) -> BenchRun | MeasurementError:
        s = self.settings
        program = self._adb.push(self._program)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.param"
            path.write_text(model.param, encoding="utf-8")
            param = self._adb.push(path)
        device = s.gpu_device if model.uses_gpu else -1
        numbers = [s.loops, s.threads, s.powersave, device, int(s.cooling_down)]
        shape = "[" + ",".join(str(edge) for edge in model.shape) + "]"
        # The phone itself ends what hangs: a program outlives the adb that started it.
        guard = ["timeout", "-s", "KILL", f"{s.timeout_s:.0f}"]
        command = [*guard, program, *(str(n) for n in numbers), f"param={param}", f"shape={shape}"]
        began = time.monotonic()
        done = self._adb.shell(command, s.timeout_s + TIMEOUT_SLACK_S)
        if done.code == KILLED:
            self._adb.shell(["true"])  # a phone that restarts kills it as well: that is a lost connection
        if done.code and time.monotonic() - began >= s.timeout_s:
            return MeasurementError(Failure.TIMEOUT, f"benchncnn did not end within {s.timeout_s:g} s")
        return _answer(done.code, f"{done.stdout}\n{done.stderr}", param)


def _answer(code: int, said: str, param: str) -> BenchRun | MeasurementError:
    reason = last_line(said) or "it said nothing"
    if code == KILLED:
        return MeasurementError(
            Failure.OUT_OF_MEMORY, f"benchncnn was killed, as a phone does when memory is short ({reason})"
        )
    if code in (NOT_EXECUTABLE, NOT_FOUND):
        return MeasurementError(
            Failure.UNSUPPORTED, f"benchncnn does not start; is it built for this phone? ({reason})"
        )
    if code:
        return MeasurementError(Failure.CRASHED, f"benchncnn ended with {code} ({reason})")
    for match in _LINE.finditer(said):
        # A benchncnn from before `param=` runs its own list of models instead.
        if match["name"] in (param, param.removesuffix(".param")):
            return BenchRun(float(match["min"]), float(match["max"]), float(match["avg"]))
    return MeasurementError(Failure.UNSUPPORTED, f"benchncnn does not know this model; is it too old? ({reason})")
