"""Check the support rules against counted layers, and count NN-Stretch's fallback.

python experiments/support.py            print the tables
python experiments/support.py --write    also write docs/support.md

Asks Qualcomm's HTP backend about the built-in networks: needs the extra `qnn`, and about a minute.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hetrl.support.agreement import agreements
from hetrl.support.fallback import CPU, DSP, GPU, Fallback, fallback, tflite
from hetrl.support.hub import Profile, predicted_left, profiles, wrapped
from hetrl.support.networks import NAMES
from hetrl.support.partition import Limits
from hetrl.support.qnn import npu_support
from hetrl.support.rules import rule_sets
from hetrl.support.stretch import Merge, Read
from hetrl.zoo.catalog import catalog
from hetrl.zoo.networks import blueprint

ROOT = Path(__file__).resolve().parent.parent
STUDY = 0.48  # arXiv 2405.01851, section 3.1.2: about 48 % of ResNet-50's operators under NN-Stretch on CPU and GPU
ONE, ALL = Limits(max_partitions=1), Limits()
PIECES = {
    "all": ALL,
    "the largest": ONE,
    "the two largest": Limits(max_partitions=2),
    "those of 7 and more (Band's default)": Limits(min_nodes=7),
}
MEASURES = {
    "unsupported": lambda f: f.unsupported,
    "unsupported of the GPU's": lambda f: f.unsupported_of_meant,
    "on the CPU": lambda f: f.on_cpu,
}


def table(header: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def pct(share: float) -> str:
    return f"{100 * share:.1f} %"


def rules() -> list[str]:
    rows = []
    for name, found in rule_sets().items():
        refused = [v.operator for v in found.verdicts.values() if not v.takes]
        taken = sum(v.takes for v in found.verdicts.values())
        rows.append((f"`{name}`", taken, ", ".join(refused) or "-", "; ".join(found.sources)))
    return ["## Rules", "", *table(("rules", "taken", "named as refused", "source"), rows)]


def totals() -> list[str]:
    counted = {name: sorted({p.total for p in profiles() if p.network == name}) for name in NAMES}
    rows = [(name, len(wrapped(name)), ", ".join(map(str, counted[name]))) for name in NAMES]
    return ["### Layers in all", "", *table(("network", "lowered", "counted"), rows)]


def boards() -> list[str]:
    by_board: dict[str, list[tuple[Profile, float]]] = {}
    for profile in profiles():
        share = predicted_left(profile, ALL)
        if share is not None:
            by_board.setdefault(profile.board, []).append((profile, share))
    rows = []
    for board, found in sorted(by_board.items()):
        off = np.array([abs(share - p.left) for p, share in found])
        whole = sum(p.left == 0 for p, _ in found)
        falls = [e for e, (p, _) in zip(off, found, strict=True) if p.left > 0]
        among = pct(float(np.median(falls))) if falls else "-"
        rows.append((board, len(found), whole, pct(float(np.median(off))), pct(float(off.mean())), among))
    header = ("board", "profiles", "counted whole", "median difference", "mean", "median where any layer left")
    return ["### Share of layers that left the processor, by the type rules alone", "", *table(header, rows)]


def mixed() -> list[str]:
    rows = []
    for p in sorted({p for p in profiles() if p.left > 0}, key=lambda p: (p.board, p.network, p.published)):
        share = predicted_left(p, ALL)
        said = "-" if share is None else pct(share)
        rows.append((p.board, p.network, p.precision, p.published, f"{p.npu} / {p.gpu} / {p.cpu}", pct(p.left), said))
    header = ("board", "network", "precision", "published", "NPU / GPU / CPU", "left", "predicted")
    return ["### Profiles in which layers left", "", *table(header, rows)]


def pieces() -> list[str]:
    """The three networks with grouped convolutions on the older DSP, by what the delegate keeps of its partitions."""
    last = {p.network: p for p in profiles() if p.board == "QCS8250 DSP" and p.network in NAMES and p.left > 0}
    rows = [
        (name, pct(p.left), *(pct(predicted_left(p, limits) or 0.0) for limits in PIECES.values()))
        for name, p in sorted(last.items())
    ]
    return [
        "### Grouped convolutions leave the DSP, and take their neighbours along", "",
        *table(("network", "counted", *(f"DSP keeps {name}" for name in PIECES)), rows),
    ]  # fmt: skip


def readings() -> list[tuple[str, str, Merge, Read, Fallback]]:
    network = blueprint("resnet50")
    found = []
    for (name, limits), rule, merge, read in itertools.product(
        {"one partition": ONE, "all partitions": ALL}.items(), ("tflite_gpu", "tflite_gpu_documented"), Merge, Read
    ):
        found.append((name, rule, merge, read, fallback(network, (CPU, GPU), merge, tflite(limits, rule), read)))
    return found


def nn_stretch() -> list[str]:
    alone = fallback(blueprint("resnet50"), (GPU,), Merge.BLOCK, tflite(ONE))
    found = readings()
    rows = [
        (merge, read, name, f.operators, f.added, f.refused, f.left, *(pct(m(f)) for m in MEASURES.values()))
        for name, rule, merge, read, f in found
        if rule == "tflite_gpu"
    ]
    header = ("merge", "read by", "delegate keeps", "operators", "added", "refused", "left", *MEASURES)
    near = [
        (measure, *min(found, key=lambda r, m=m: abs(m(r[4]) - STUDY)))  # type: ignore[misc]
        for measure, m in MEASURES.items()
    ]
    lines = [
        f"Whole on the GPU: {alone.operators} operators, {pct(alone.unsupported)} unsupported.", "",
        *table(header, rows),
        "Nearest to the study's 48 % among these rows and those of `tflite_gpu_documented` (without `MEAN`):", "",
        *table(
            ("measure", "merge", "read by", "delegate keeps", "rules", "share", "off by"),
            [
                (measure, merge, read, name, f"`{rule}`", pct(MEASURES[measure](f)),
                 f"{100 * (MEASURES[measure](f) - STUDY):+.1f} points")
                for measure, name, rule, merge, read, f in near
            ],
        ),
    ]  # fmt: skip
    return lines


def processors() -> list[str]:
    network, rows = blueprint("resnet50"), []
    for units in ((GPU,), (CPU, GPU), (CPU, DSP), (CPU, GPU, DSP)):
        f, g = (fallback(network, units, Merge.BLOCK, tflite(limits)) for limits in (ONE, ALL))
        rows.append(("+".join(units), f.operators, f.added, pct(1 - f.unsupported), pct(1 - g.unsupported)))
    header = ("processors", "operators", "added", "supported, one partition", "supported, all partitions")
    return table(header, rows)


def device_files() -> list[str]:
    rows = [
        (a.device, a.processor, f"`{a.rules}`", ", ".join(a.refused_but_listed) or "-",
         ", ".join(a.taken_but_excluded) or "-")
        for a in agreements()
    ]  # fmt: skip
    header = ("device", "processor", "rules", "refused by the file, taken by the list", "the other way round")
    return table(header, rows)


def htp() -> list[str]:
    rows, backend = [], ""
    for entry in catalog():
        answer = npu_support(entry.name)
        backend = answer.backend
        taken = len(answer.nodes) - len(answer.refused)
        rows.append((entry.name, len(answer.nodes), taken, "no: out of memory" if answer.problem else "yes"))
    return [f"{backend}, fp32 models (which it runs in fp16):", "", *table(
        ("model", "operators", "taken", "prepared as one graph"), rows)]  # fmt: skip


INTRO = """\
# Operator support and fallback

Made by `python experiments/support.py --write`. `hetrl measure` lists every operator that is refused where a plan puts
it, with the reason and what it costs; this page says where the rules come from and how far they can be trusted.
"""
RULES = """\
One row per operator is in `hetrl/data/operator_support.csv`, by the runtime's own name. What a list does not name
counts as refused, and so do, in TFLite's rules, operators on tensors of more than four dimensions. Each list is of
one version: newer runtimes take more. `hetrl.support.partition` has the rule by which TFLite hands pieces of a graph
to a delegate.

## Against counted layers

Qualcomm AI Hub's profiles count how many layers of a network ran on the NPU (or DSP), the GPU and the CPU
(`hetrl/data/tflite_latencies.csv`). `hetrl.support.lowering` makes TFLite's operators of a network; the quantization
and normalization that AI Hub puts around it are added.
"""
BOARDS = """\
Most profiles are whole on their processor and the rules say so, which makes the median difference small and says
little. The last column is about the others, which are listed below. That grouped convolutions leave the DSP was read
from these very profiles; how many layers go with them was not. No list explains why layers of DenseNet and QuickSRNet
left: DenseNet is whole on QCS8450, QuickSRNet in all later profiles.
"""
PIECES_SAY = """\
By type alone a fifth of the layers leaves. Counted is what a delegate would do that keeps only its largest pieces,
which are the first and the last. The profiles cannot tell a limit on the number of pieces from one on their size, and
three networks are too few to choose by: no device file uses either. How the rest is shared between GPU and CPU (11 or
13 layers on the CPU) is not predicted.

What the counts cannot tell: which layers left, why, and what it cost. A layer of the runtime is no ONNX operator.
Networks whose layers hetrl lacks are not compared, and where only their list is known, without the wiring, the
prediction is made only if no layer is refused.

## NN-Stretch's ResNet-50 on d1

The study (arXiv 2405.01851, section 3.1.2) counts about 48 % of ResNet-50's operators as unsupported under NN-Stretch
on d1's CPU and GPU. It says neither what was counted nor where the branches met, and NN-Stretch's code is not public.
`hetrl.support.stretch` builds such a network: one branch per processor with its share of the channels, a slice per
branch and a concatenation at each merge point. The result is a valid ONNX model.

Counted are TFLite's operators. *Refused* are those that the GPU delegate does not take; *left* are those that it
takes in partitions that it does not keep: by default it keeps one, the largest. *Unsupported* are both, of all
operators, then of those meant for the GPU; *on the CPU* adds the CPU's own branch.
"""
STRETCH_SAYS = """\
Nothing is fitted, but the nearest of many readings is picked with the study's figure in sight: no row is what the
authors measured. Of the readings in which *unsupported* means what the study says (it falls back), one merge point
per residual block, read by slices, under the GPU delegate's default comes nearest. With every partition kept, only
the count that takes the CPU's own branch for fallback comes near, for almost any number of merge points: that is the
branch itself. Types alone explain little: slices and concatenations are in the delegate's list, a Split is not. What
falls back is what the merges cut off from the largest partition.

Operators added by more processors lower the supported share (one merge point per block, read by slices):
"""
PROCESSORS_SAY = """\
The DSP's branch needs conversions to int8 and back, which the Hexagon delegate does not take. With every partition
kept the order is another one: CPU and GPU lose nothing, and three processors less than CPU and DSP.

## Device files

What `unsupported` in the built-in files and the lists say of the operator types that the lists name:
"""
PROFILE = """\
The device files are the more cautious where a list is younger than the phone's runtime.

## Asking the NPU

```console
$ hetrl profile model.onnx --npu-support --input-shape x:1x4x16x16
```

asks Qualcomm's HTP backend, which the plugin `onnxruntime-qnn` brings for x86 (`pip install 'hetrl[qnn]'`, 270 MB; it
sits beside the plain `onnxruntime`). With `--device-file d4 --out FILE.json` the types that it refuses wherever they
occur are added to a copy of the device file, with a note. The backend judges the model as it is: a quantized one
(QDQ) as integers, any other as fp16, for which AI Hub has profiles of QCS8450's HTP and none of QCS6490's; naming
another chip (`htp_arch`) changed no answer for ResNet-18 in fp32. It is no witness for the older Hexagons of d1, d3
and d7, and says nothing about time.
"""


def document() -> str:
    blocks = [
        INTRO, *rules(), RULES, *totals(), *boards(), BOARDS, *mixed(), *pieces(), PIECES_SAY, *nn_stretch(),
        STRETCH_SAYS, *processors(), PROCESSORS_SAY, *device_files(), PROFILE, *htp(),
    ]  # fmt: skip
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    text = document()
    print(text)
    if write:
        (ROOT / "docs" / "support.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
