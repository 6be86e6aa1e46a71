"""TensorFlow Lite and LiteRT: advice, since neither places operators one by one.

A delegate gets the largest of the parts into which its unsupported operators cut a model, as many as
`max_delegated_partitions` says, and none below `min_nodes_per_partition` (see `hetrl.support.partition`). So a plan can
be had where its accelerator's operators are the largest parts, whole. `flags.txt` has the options of TensorFlow's
benchmark tool (tensorflow/tensorflow, lite/tools/delegates/README.md and lite/tools/benchmark/README.md), which are
those of the delegates' own interfaces. LiteRT's `CompiledModel` (google-ai-edge/LiteRT) knows no limit: `litert.json`,
what its `Options` takes, is there only where the accelerator gets all that it supports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from hetrl.export.base import Carries, Check, Claims, Exporter, Limit, Order, Wish, unit_of
from hetrl.export.bundle import Bundle
from hetrl.export.texts import (
    one_each,
    read_json,
    read_text,
    segment_of,
    threads,
    write_json,
)
from hetrl.export.tflite_fit import best_for_tflite, ranked_partitions
from hetrl.graph import OperatorGraph
from hetrl.plan import Plan
from hetrl.support.lowering import RuntimeOp, lower

FLAGS, ADVICE, LITERT = "flags.txt", "advice.json", "litert.json"
Delegate = Literal["none", "gpu", "hexagon", "nnapi"]
_DELEGATES: dict[str, Delegate] = {"gpu": "gpu", "dsp": "hexagon", "npu": "nnapi"}


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part that the delegate gets: how many of the runtime's operators it has, and the plan's that they come from."""

    operators: int
    nodes: tuple[str, ...]


class Advice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes the runtime do what the plan says.

    :param precision: the delegate's, the CPU's where there is none.
    :param delegated: the parts that the delegate gets, largest first; `left` are the sizes of those that it does not.
    """

    schema: Literal["hetrl.tflite/1"] = "hetrl.tflite/1"
    delegate: Delegate
    precision: str
    max_delegated_partitions: int
    min_nodes_per_partition: int
    num_threads: int
    delegated: tuple[Partition, ...]
    left: tuple[int, ...]


class CpuOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_threads: int


class GpuOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enforce_f32: bool


class LiteRt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Arguments of `ai_edge_litert.options.Options`, in its own names."""

    hardware_accelerators: tuple[Literal["CPU", "GPU", "NPU"], ...]
    cpu_options: CpuOptions
    gpu_options: GpuOptions | None = None


class Tflite(Exporter):
    """See the module."""

    name = "tflite"
    summary = "TensorFlow Lite and LiteRT: delegate, limits on its partitions, threads"
    carries = Carries(units=frozenset({"cpu", *_DELEGATES}), compression=False)
    needs_weights = False
    engines = frozenset({"tflite"})

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        found = super().claims(plan, graph)
        refused = [*found.refused, *one_each(plan)]
        if len(_accelerators(plan)) > 1:
            names = " and ".join(_accelerators(plan))
            refused.append(Limit("segments", f"there is one delegate, and the plan uses {names}"))
        if not refused:
            refused += Delegation.of(plan, graph).limits()
        return Claims(tuple(refused), found.left_out)

    def lowered(self, wish: Wish) -> Plan:
        """See `hetrl.export.lowering.lowered`."""
        return best_for_tflite(self, wish)

    def write(self, order: Order, folder: Path) -> None:
        advice = Delegation.of(order.plan, order.graph).advice(threads(order.spec, order.plan.processors))
        write_json(folder / ADVICE, advice)
        (folder / FLAGS).write_text(flags(advice), encoding="utf-8")
        litert = litert_options(advice)
        if litert is not None:
            write_json(folder / LITERT, litert)

    def readme(self, order: Order) -> str:
        delegation = Delegation.of(order.plan, order.graph)
        fields = {
            "none": "",
            "gpu": "TfLiteGpuDelegateOptionsV2.max_delegated_partitions",
            "hexagon": "TfLiteHexagonDelegateOptions.max_delegated_partitions",
            "nnapi": "StatefulNnApiDelegate::Options.max_number_delegated_partitions",
        }[delegation.delegate]
        own = f"In an app: `{fields} = {delegation.count}`.\n" if fields else ""
        litert = litert_options(delegation.advice(1)) is not None
        python = f"LiteRT's `CompiledModel` takes the options in `{LITERT}`.\n" if litert else ""
        return (
            f"`{FLAGS}` has the options of TensorFlow Lite's benchmark tool, for the model as a .tflite file:\n\n"
            f"    xargs ./benchmark_model --graph=model.tflite < {FLAGS}\n\n{own}{python}"
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        advice = Delegation.of(order.plan, order.graph).advice(1)
        unlimited = f"LiteRT's CompiledModel would delegate {len(advice.left)} partitions more, so use its Interpreter"
        int8 = any(p.endswith("/int8") for p in order.plan.processors)
        return (
            *(("No option makes it calculate in int8: the .tflite file has to be quantized",) if int8 else ()),
            *((unlimited,) if advice.left and advice.delegated else ()),
            *(("Which operators NNAPI takes is the phone's to say",) if advice.delegate == "nnapi" else ()),
        )

    def text_checks(self, bundle: Bundle) -> Iterator[Check]:
        advice, plan = read_json(bundle, ADVICE, Advice), bundle.manifest.plan
        same = read_text(bundle, FLAGS) == flags(advice)
        yield Check("flags", same, f"{FLAGS} {'is' if same else 'is not'} what {ADVICE} says")
        litert = litert_options(advice)
        if litert is not None:
            same = read_json(bundle, LITERT, LiteRt) == litert
            yield Check("litert", same, f"{LITERT} {'is' if same else 'is not'} what {ADVICE} says")
        placed = segment_of(plan)
        nodes = [node for partition in advice.delegated for node in partition.nodes]
        units = {_DELEGATES.get(unit_of(placed[n].processors[0])) if n in placed else None for n in nodes}
        sizes = [partition.operators for partition in advice.delegated]
        largest = sizes == sorted(sizes, reverse=True) and min(sizes, default=0) >= max(advice.left, default=0)
        limits = (advice.max_delegated_partitions, advice.min_nodes_per_partition) == _limits(sizes)
        fits = units <= {advice.delegate} and (largest or not sizes) and limits
        said = f"{len(sizes)} partitions delegated, {len(advice.left)} left to the CPU"
        yield Check("placement", fits, said if advice.delegate != "none" else "all on the CPU, no delegate")


@dataclass(frozen=True)
class Delegation:
    """A plan as TensorFlow Lite sees it.

    :param ranked: the parts that the delegate could have, as indices of `ops`, largest first.
    :param wanted: those operators that it takes and that the plan has on it.
    """

    delegate: Delegate
    precision: str
    ops: tuple[RuntimeOp, ...]
    ranked: tuple[tuple[int, ...], ...]
    wanted: frozenset[int]

    @staticmethod
    def of(plan: Plan, graph: OperatorGraph) -> Delegation:
        """Of a plan with one accelerator at most."""
        ops, accelerator = lower(graph), next(iter(_accelerators(plan)), None)
        if accelerator is None:
            return Delegation("none", plan.processors[0].split("/")[2], ops, (), frozenset())
        ranked, placed = ranked_partitions(ops, unit_of(accelerator)), segment_of(plan)
        wanted = {n for part in ranked for n in part if placed[ops[n].node].processors == (accelerator,)}
        return Delegation(_DELEGATES[unit_of(accelerator)], accelerator.split("/")[2], ops, ranked, frozenset(wanted))

    @property
    def count(self) -> int | None:
        """How many of the largest parts are what the plan wants; None if it wants something else."""
        unions = (frozenset(n for part in self.ranked[:count] for n in part) for count in range(len(self.ranked) + 1))
        return next((count for count, union in enumerate(unions) if union == self.wanted), None)

    def limits(self) -> Iterator[Limit]:
        """Why the plan cannot be had."""
        if self.delegate != "none" and not self.wanted:
            yield Limit("segments", f"the {self.delegate} delegate takes none of the operators that are on it")
        if self.count is not None:
            return
        for part in self.ranked:
            kept = self.wanted.intersection(part)
            if kept and len(kept) < len(part):
                where = f"the {len(part)} operators from {self.ops[min(part)].node!r} on"
                yield Limit("segments", f"{where} are delegated together or not at all, the plan has {len(kept)} there")
                return
        skipped = next(part for part in self.ranked if not self.wanted.intersection(part))
        where = f"the {len(skipped)} operators from {self.ops[min(skipped)].node!r} on"
        yield Limit("segments", f"the largest partitions are delegated first, and {where} are to stay on the CPU")

    def advice(self, num_threads: int) -> Advice:
        """For a plan that can be had."""
        count = self.count or 0
        delegated = tuple(
            Partition(len(part), tuple(dict.fromkeys(self.ops[n].node for n in part))) for part in self.ranked[:count]
        )
        at_most, at_least = _limits([partition.operators for partition in delegated])
        return Advice(
            delegate=self.delegate,
            precision=self.precision,
            max_delegated_partitions=at_most,
            min_nodes_per_partition=at_least,
            num_threads=num_threads,
            delegated=delegated,
            left=tuple(len(part) for part in self.ranked[count:]),
        )


def flags(advice: Advice) -> str:
    """Options of the benchmark tool, one a line."""
    delegate = {
        "none": ["--use_xnnpack=true"],
        "gpu": ["--use_gpu=true", f"--gpu_precision_loss_allowed={_word(advice.precision != 'fp32')}"],
        "hexagon": ["--use_hexagon=true"],
        "nnapi": ["--use_nnapi=true", f"--nnapi_allow_fp16={_word(advice.precision == 'fp16')}"],
    }[advice.delegate]
    counts = [
        f"--max_delegated_partitions={advice.max_delegated_partitions}",
        f"--min_nodes_per_partition={advice.min_nodes_per_partition}",
    ]
    return "\n".join([*delegate, *(counts if advice.delegated else []), f"--num_threads={advice.num_threads}"]) + "\n"


def litert_options(advice: Advice) -> LiteRt | None:
    """What LiteRT's `CompiledModel` is to be given, None where it cannot do what the plan says."""
    if advice.delegate == "hexagon" or (advice.delegated and advice.left):
        return None
    cpu = CpuOptions(advice.num_threads)
    if advice.delegate == "gpu":
        return LiteRt(
            hardware_accelerators=("GPU", "CPU"), cpu_options=cpu, gpu_options=GpuOptions(advice.precision == "fp32")
        )
    return LiteRt(hardware_accelerators=("NPU", "CPU") if advice.delegate == "nnapi" else ("CPU",), cpu_options=cpu)


def _limits(sizes: list[int]) -> tuple[int, int]:
    return len(sizes), min(sizes, default=0)


def _accelerators(plan: Plan) -> tuple[str, ...]:
    return tuple(name for name in plan.processors if unit_of(name) != "cpu")


def _word(value: bool) -> str:
    return "true" if value else "false"


EXPORTER = Tflite()
