"""Frames that a user interface drops beside inference on this computer, by how inference is capped.

    python experiments/bench_frames.py                 print docs/bench_frames.md
    python experiments/bench_frames.py --write         write docs/bench_frames.json and docs/bench_frames.md
    python experiments/bench_frames.py --rounds 1      a quick look

A process wants 9 ms of CPU time at 60 Hz and counts the frames that come late. It is CPU time and not work, since the
cores of a virtual machine run at half their speed whenever a neighbour likes. Beside it runs a network in ONNX Runtime
on all cores: flat out, and under every kind of cap. Every round measures all of them, in an order drawn anew. Before
and after each the process runs alone: where it drops frames even so, or other programs took part of the cores, the
machine was not quiet, and the measurement is repeated, and kept with a mark if it stays disturbed. Beside each drop
rate is what the surrogate predicts, and below whether both order the caps alike.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median

import msgspec

import hetrl
from hetrl.cache import cache_folder
from hetrl.condition import Condition, Ui
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import LocalChannel
from hetrl.device_bridge.host.device import RunnerDevice
from hetrl.device_bridge.host.loaded import load
from hetrl.device_bridge.host.opening import HOST, known_spec
from hetrl.device_bridge.host.processors import machine_spec
from hetrl.device_bridge.runner.foreign import watch_foreign
from hetrl.device_bridge.runner.frames import FrameProbe
from hetrl.device_bridge.runner.protocol import Request
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.runner.telemetry import all_cores
from hetrl.device_bridge.runner_client import RunnerClient
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.measurement import MeasurementError
from hetrl.plan import Cap, Plan, ProcessCap
from hetrl.testing.devices import whole_model_plans

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODEL, ENGINE = "resnet18", "onnxruntime"
ALL, ONE = "cpu/onnxruntime/fp32", "cpu1/onnxruntime/fp32"
UI = Ui(60.0, 9.0)
WITH_UI = Condition(ui=UI)
ROUNDS, TRIES = 5, 4
ALONE_S = 1.0
QUIET = 0.1  # of the cores, as in `runner.sampling`
CLEAR = 0.05  # drop rates that differ by less are not ordered
MANY, FEW = 0.30, 0.05  # what flat-out inference drops at least, and inference that is out of the way at most
FLAT_OUT, OUT_OF_THE_WAY = "flat out", ("one core, the other left to the interface", "idle priority")
PREFERRED = "-19"


class Row(msgspec.Struct, frozen=True):
    """One way to run inference.

    :param rates: drop rate of each round; `disturbed` says in which of them the machine was not quiet.
    :param predicted: the surrogate's drop rate, `predicted_ms` its latency.
    """

    name: str
    rates: tuple[float, ...]
    disturbed: tuple[bool, ...]
    latency_ms: float
    predicted: float
    predicted_ms: float

    @property
    def rate(self) -> float:
        """The median of the rounds that nobody disturbed, if there are any."""
        quiet = [rate for rate, bad in zip(self.rates, self.disturbed, strict=True) if not bad]
        return median(quiet or self.rates)


def caps(device: RunnerDevice) -> dict[str, Plan]:
    """The plans, by what holds them back."""
    surrogate = SurrogateDevice(device.spec, device.graph, device.engine_name)
    whole = {plan.processors[0]: plan for plan in whole_model_plans(surrogate)}
    free = whole[ALL]

    def duty(plan: Plan, share: float) -> Plan:
        return msgspec.structs.replace(plan, caps=(Cap(ALL, share),))

    def held(cap: ProcessCap) -> Plan:
        return msgspec.structs.replace(free, process_cap=cap)

    return {
        FLAT_OUT: free,
        **{f"duty cycle {share:g}, one segment": duty(free, share) for share in (0.75, 0.5, 0.25)},
        "duty cycle 0.5, a segment for each fusion group": duty(in_groups(free, device), 0.5),
        OUT_OF_THE_WAY[0]: whole[ONE],
        OUT_OF_THE_WAY[1]: held(ProcessCap(idle_priority=True)),
        "quota of 0.5 cores": held(ProcessCap(quota_cpus=0.5)),
    }


def in_groups(plan: Plan, device: RunnerDevice) -> Plan:
    """A plan of one segment with one for each fusion group instead."""
    (segment,) = plan.segments
    groups = [device.graph.group_node_ids(g) for g in range(len(device.graph.groups))]
    return msgspec.structs.replace(
        plan, segments=tuple(msgspec.structs.replace(segment, nodes=tuple(nodes)) for nodes in groups)
    )


def alone(seconds: float, speed: float) -> tuple[float, bool, float]:
    """The drop rate without inference, whether the machine was disturbed, and the probe's speed."""
    cores = all_cores()
    with FrameProbe(UI.rate_hz, UI.render_ms, cores, speed, timed=True) as probe:
        foreign = watch_foreign(probe.pids, cores)
        before, start = foreign.total_ms(), time.monotonic()
        probe.restart()
        time.sleep(seconds)
        rate = probe.read().rate
        share = (foreign.total_ms() - before) / (1000 * (time.monotonic() - start) * len(cores))
        return rate, share > QUIET, probe.steps_per_ms


def measure(device: RunnerDevice, rounds: int) -> list[Row]:
    plans = caps(device)
    surrogate = SurrogateDevice(device.spec, device.graph, device.engine_name)
    rates: dict[str, list[float]] = {name: [] for name in plans}
    disturbed: dict[str, list[bool]] = {name: [] for name in plans}
    latencies: dict[str, list[float]] = {name: [] for name in plans}
    idle_rates, idle_disturbed, speed = [], [], 0.0
    order, dice = list(plans), random.Random(0)
    for _ in range(rounds):
        dice.shuffle(order)
        for name in order:
            for _ in range(TRIES):
                before, loaded, speed = alone(ALONE_S, speed)
                found = device.measure(plans[name], WITH_UI)
                if found.error is not None:
                    raise SystemExit(f"{name}: {found.error.message}")
                after, loaded_after, speed = alone(ALONE_S, speed)
                bad = loaded or loaded_after or found.foreign_load or max(before, after) > FEW
                if not bad:
                    break
            assert found.frame_drop_rate is not None and found.latency_ms is not None
            idle_rates += [before, after]
            idle_disturbed += [loaded, loaded_after]
            rates[name].append(found.frame_drop_rate)
            disturbed[name].append(bad)
            latencies[name].append(found.latency_ms)
            print(f"{name}: {found.frame_drop_rate:.1%}, alone {before:.1%} and {after:.1%}", flush=True)
    rows = [Row("no inference", tuple(idle_rates), tuple(idle_disturbed), 0.0, 0.0, 0.0)]
    for name, plan in plans.items():
        said = surrogate.measure(plan, WITH_UI)
        assert said.frame_drop_rate is not None and said.latency_ms is not None
        seen = (tuple(rates[name]), tuple(disturbed[name]), median(latencies[name]))
        rows.append(Row(name, *seen, said.frame_drop_rate, said.latency_ms))
    return rows


class Timed(RunnerDevice):
    """Frames are so much CPU time."""

    def _request(self, condition: Condition, sampling: Sampling) -> Request:
        request = super()._request(condition, sampling)
        return request if request.screen is None else replace(request, screen=replace(request.screen, timed=True))


def open_preferred() -> RunnerDevice:
    """This computer, whose kernel is asked to prefer the runner's session to other programs (autogroup, see sched(7)).

    A quota's control group is outside of it.
    """
    store = BlobStore(cache_folder() / "blobs")
    client = RunnerClient(LocalChannel(store), store)
    hello = client.hello()
    if isinstance(hello, MeasurementError):
        raise SystemExit(hello.message)
    with suppress(OSError):
        Path(f"/proc/{hello.pid}/autogroup").write_text(PREFERRED)
    graph = hetrl.load_model(MODEL)
    return Timed(known_spec(machine_spec(hello, HOST)), graph, ENGINE, client, load(graph, store))


def ordered_alike(rows: Sequence[Row]) -> tuple[int, int]:
    """Of the pairs whose measured drop rates differ clearly, how many the surrogate orders alike, and how many."""
    pairs = [(a, b) if a.rate < b.rate else (b, a) for a, b in combinations(rows, 2) if abs(a.rate - b.rate) > CLEAR]
    return sum(low.predicted < high.predicted for low, high in pairs), len(pairs)


def separates(rows: Sequence[Row]) -> bool:
    """Whether flat-out inference drops many frames, and inference that is out of the way few."""
    rate = {row.name: row.rate for row in rows}
    return rate[FLAT_OUT] > MANY and all(rate[name] < FEW for name in OUT_OF_THE_WAY)


def quiet(rows: Sequence[Row]) -> bool:
    """Whether every way to run inference was measured in quiet more often than not."""
    return all(sum(row.disturbed) < len(row.disturbed) / 2 for row in rows)


def report(rows: Sequence[Row], soc: str, cores: int, calibrated: bool) -> str:
    alike, pairs = ordered_alike(rows)
    lines = [
        "# Frames beside inference, by cap",
        "",
        f"Made by `python experiments/bench_frames.py --write`: {MODEL} in ONNX Runtime on {soc}, {cores} cores; a "
        f"process that wants {UI.render_ms:g} ms of CPU time a frame at {UI.rate_hz:g} Hz. Drop rates are medians of "
        "the rounds that nobody disturbed, if there are any; in brackets the lowest and the highest of all. A round is "
        f"disturbed if other programs took over {QUIET:.0%} of the cores, or the process dropped over {FEW:.0%} of "
        "its frames while it ran alone just before or after, which took a second each and are the first row.",
        "",
        "| inference | frames dropped, measured | disturbed rounds | predicted | latency, ms | predicted, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = f"{row.rate:.1%} ({min(row.rates):.1%} to {max(row.rates):.1%})"
        took = (f"{row.latency_ms:.1f}", f"{row.predicted_ms:.1f}") if row.latency_ms else ("-", "-")
        counted = f"{sum(row.disturbed)} of {len(row.disturbed)}"
        lines.append(f"| {row.name} | {measured} | {counted} | {row.predicted:.1%} | {took[0]} | {took[1]} |")
    verdict = "separates" if separates(rows) else "does not separate"
    if not quiet(rows):
        lines += ["", "The machine was not quiet: what follows says little."]
    lines += [
        "",
        f"The probe {verdict} caps: flat out over {MANY:.0%}, out of the way under {FEW:.0%}. The surrogate, "
        f"{'calibrated' if calibrated else 'not calibrated'} on this machine, orders {alike} of the {pairs} pairs "
        f"whose drop rates differ by more than {CLEAR:.0%} as they were measured. How it predicts them, and what it "
        "assumes, is in `hetrl/device_bridge/surrogate/shared_cores.py`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with open_preferred() as device:
        rows = measure(device, options.rounds)
        calibrated = bool(device.spec.engine(ENGINE).calibrated_models)
        text = report(rows, device.spec.soc, len(all_cores()), calibrated)
        print(text)
        if options.write:
            found = {"model": MODEL, "machine": device.spec.soc, "calibrated": calibrated, "rows": rows}
            data = msgspec.json.format(msgspec.json.encode(found), indent=1)
            (DOCS / "bench_frames.json").write_bytes(data + b"\n")
            (DOCS / "bench_frames.md").write_text(text)


if __name__ == "__main__":
    main()
