"""MACE: a deployment file that puts the whole model on one processor, and says how the screen is kept smooth.

Keys and values are those of its documentation (XiaoMi/mace, docs/user_guide/advanced_usage_cmake.rst and
docs/user_guide/models/demo_models_onnx.yml) and of its converter (tools/python/utils/config_parser.py, `cl_mem_type`).
`limit_opencl_kernel_time` knows one time, 1 ms. What a processor does not take falls back to the CPU, operator by
operator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from hetrl.export.base import Carries, Check, Claims, Exporter, Limit, Order, unit_of
from hetrl.export.bundle import Bundle
from hetrl.export.bundle import Tensor as Port
from hetrl.export.texts import read_text, threads
from hetrl.graph import OperatorGraph
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Memory, Plan

FILE = "model_deployment.yml"
KERNEL_MS = 1.0  # what limit_opencl_kernel_time cuts kernels to
_DATA_TYPES = {"fp32": "fp32_fp32", "fp16": "fp16_fp32", "int8": "uint8"}
_PLAIN = re.compile(r"[A-Za-z_][\w./+-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null", "none"})  # no strings to YAML
_NO_NAME = re.compile(r"\W", re.ASCII)


class Mace(Exporter):
    """See the module."""

    name = "mace"
    summary = "MACE deployment file: one processor, memory type, kernel-time limit and queue window"
    carries = Carries(
        units=frozenset({"cpu", "gpu", "dsp"}),
        precisions=frozenset(_DATA_TYPES),
        one_processor=True,
        queue_window=True,
        kernel_slice=True,
        memory=True,
        compression=False,
    )
    needs_weights = False
    engines = frozenset({"mace", "mace_dsp"})

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        found = super().claims(plan, graph)
        more = (*kernel_time_limits(plan), *memory_limits(plan))
        return Claims((*found.refused, *more), found.left_out)

    def write(self, order: Order, folder: Path) -> None:
        graph = order.graph
        inputs, outputs = (
            [Port(t.name, t.shape, t.dtype) for t in map(graph.tensor_by_name.__getitem__, names)]
            for names in (graph.inputs, graph.outputs)
        )
        (folder / FILE).write_text(deployment(order.plan, inputs, outputs), encoding="utf-8")

    def readme(self, order: Order) -> str:
        device = {"gpu": "GPU", "dsp": "HEXAGON"}.get(_unit(order.plan), "CPU")
        count = threads(order.spec, order.plan.processors)
        return (
            f"`{FILE}` goes to MACE's converter. First put your ONNX file's path and its sha256 in it.\n\n"
            f"    python tools/python/convert.py --config {FILE}\n"
            f"    python tools/python/run_model.py --config {FILE} --num_threads {count} --cpu_affinity_policy 1\n\n"
            f"In C++: `MaceEngineConfig config(DeviceType::{device}); "
            f"config.SetCPUThreadPolicy({count}, AFFINITY_BIG_ONLY);`\n"
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        ranges = ("An int8 model needs its ranges: add quantize_range_file",) if _unit(order.plan) == "dsp" else ()
        return ranges

    def text_checks(self, bundle: Bundle) -> Iterator[Check]:
        manifest = bundle.manifest
        wanted = deployment(manifest.plan, manifest.inputs, manifest.outputs).splitlines()
        found = read_text(bundle, FILE).splitlines()
        wrong = [n for n, (a, b) in enumerate(zip_longest(found, wanted), start=1) if a != b]
        detail = f"{FILE}: {len(found)} lines, each as the plan says"
        yield Check("plan", not wrong, f"{FILE}, line {wrong[0]} is not the plan's" if wrong else detail)


def kernel_time_limits(plan: Plan) -> tuple[Limit, ...]:
    """MACE's one kernel time, against the plan's."""
    if plan.kernel_slice_ms in (None, KERNEL_MS):
        return ()
    return (Limit("kernel_slice_ms", f"MACE cuts kernels to {KERNEL_MS:g} ms, not to {plan.kernel_slice_ms:g} ms"),)


def memory_limits(plan: Plan) -> tuple[Limit, ...]:
    """MACE's one memory type for all tensors."""
    used = {segment.memory for segment in plan.segments if segment.memory is not None}
    return (Limit("segments.memory", "all tensors are of one memory type"),) if len(used) > 1 else ()


def memory_of(plan: Plan) -> Memory:
    """Of the GPU's tensors; images where the plan does not say, as MACE has it."""
    return next((segment.memory for segment in plan.segments if segment.memory is not None), Memory.IMAGE)


def net_name(name: str) -> str:
    """A model's name as MACE wants it: a C++ identifier."""
    plain = _NO_NAME.sub("_", name)
    return f"_{plain}" if plain[:1].isdigit() else plain or "_"


def deployment(plan: Plan, inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """The file's text."""
    name, unit = net_name(plan.model.name), _unit(plan)
    lines = [
        f"library_name: {name}",
        "target_abis: [arm64-v8a]",
        "model_graph_format: file",
        "model_data_format: file",
        "models:",
        f"  {name}:",
        "    platform: onnx",
        f"    model_file_path: /path/to/{name}.onnx",
        "    model_sha256_checksum: SHA256_OF_THAT_FILE",
        "    subgraphs:",
        *_ports("input", inputs, "      - "),
        *_ports("output", outputs, "        "),
        f"    runtime: {unit}",
        f"    data_type: {_DATA_TYPES[plan.processors[0].split('/')[2]]}",
    ]
    if unit == "gpu":
        lines += [
            f"    cl_mem_type: {memory_of(plan).value}",
            f"    limit_opencl_kernel_time: {int(plan.kernel_slice_ms is not None)}",
            f"    opencl_queue_window_size: {plan.queue_window or DEFAULT_QUEUE_WINDOW}",
        ]
    lines += [f"    quantize: {int(unit == 'dsp')}", "    obfuscate: 0", "    winograd: 0"]
    return "\n".join(lines) + "\n"


def _unit(plan: Plan) -> str:
    return unit_of(plan.processors[0])


def _ports(side: str, ports: Sequence[Port], first: str) -> list[str]:
    """Names, shapes, types and layouts of the inputs or of the outputs, a list each."""
    types = ["int32" if port.dtype.startswith("int") else "float32" for port in ports]
    layouts = ["NCHW" if len(port.shape) == 4 else "NONE" for port in ports]
    columns = (
        ("tensors", [_quoted(port.name) for port in ports]),
        ("shapes", [",".join(map(str, port.shape)) for port in ports]),
        ("data_types", types),
        ("data_formats", layouts),
    )
    lines = []
    for key, values in columns:
        lines += [f"{first}{side}_{key}:", *(f"          - {value}" for value in values)]
        first = "        "
    return lines


def _quoted(text: str) -> str:
    """A YAML string, in quotes where it would be read as something else."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


EXPORTER = Mace()
