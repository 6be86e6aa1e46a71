"""What compression costs a trained network, with and without fine-tuning, measured on pictures it never saw.

python experiments/digits.py            print docs/digits.md
python experiments/digits.py --write    write it
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hetrl.compress.compensate import moments  # noqa: E402
from hetrl.compress.low_rank.factor import factor  # noqa: E402
from hetrl.compress.low_rank.policy import LowRank, Scheme  # noqa: E402
from hetrl.compress.pruning import prune  # noqa: E402
from hetrl.compress.quantize import quantize  # noqa: E402
from hetrl.compress.weights import complete_model  # noqa: E402
from hetrl.finetune.settings import FinetuneSettings  # noqa: E402
from hetrl.finetune.training import finetune  # noqa: E402
from hetrl.graph.reader import graph_from_model  # noqa: E402
from hetrl.zoo.source import open_source  # noqa: E402
from tests.digits import digits_in  # noqa: E402

SEEDS = (0, 1)
EPOCHS = 6
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
SHARES = (0.5, 0.25)
FITTED = 256  # pictures that pruned networks are fitted to
CALIBRATED = 64  # pictures that int8 ranges come from
Z_95 = 1.96


@dataclass(frozen=True)
class Row:
    """One compressed network; accuracies in percent, after fine-tuning once per seed, int8 with the first seed's."""

    name: str
    macs: int
    parameters: int
    before: float
    fitted: float | None
    after: tuple[float, ...]
    labels_only: float
    int8: float


class Digits:
    """The trained network, its data, and how right a network is."""

    def __init__(self, folder: Path) -> None:
        files = digits_in(folder)
        self.original = complete_model(open_source(files.model)[0])
        train, test = np.load(files.train), np.load(files.test)
        self.inputs, self.labels = train["inputs"], train["labels"]
        self._pictures, self._classes = test["inputs"], test["labels"]

    @property
    def count(self) -> int:
        return len(self._classes)

    def accuracy(self, model: onnx.ModelProto) -> float:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        scores = [session.run(None, {"data": picture[None]})[0] for picture in self._pictures]
        return 100 * float((np.concatenate(scores).argmax(1) == self._classes).mean())

    def int8(self, model: onnx.ModelProto) -> float:
        return self.accuracy(quantize(model, ({"data": p[None]} for p in self.inputs[:CALIBRATED])).model)

    def fitted(self, ratio: float) -> float:
        """Pruned, weights taking over what lost channels carried on pictures of the first training; no labels."""
        graph = graph_from_model(self.original, name="digits")
        known = moments(self.original, graph, [{"data": picture[None]} for picture in self.inputs[:FITTED]])
        return self.accuracy(prune(self.original, ratio, known=known).model)

    def row(self, name: str, model: onnx.ModelProto, fitted: float | None = None) -> Row:
        graph = graph_from_model(model, name=name)
        tuned = [self._tuned(model, seed) for seed in SEEDS]
        alone = self._tuned(model, SEEDS[0], teacher=False)
        after = tuple(self.accuracy(one) for one in tuned)
        before, int8 = self.accuracy(model), self.int8(tuned[0])
        return Row(name, graph.macs, graph.parameters, before, fitted, after, self.accuracy(alone), int8)

    def _tuned(self, model: onnx.ModelProto, seed: int, *, teacher: bool = True) -> onnx.ModelProto:
        settings = FinetuneSettings(epochs=EPOCHS, seed=seed)
        original = self.original if teacher else None
        return finetune(model, self.inputs, self.labels, settings, teacher=original).model


def rows(digits: Digits) -> Iterator[Row]:
    original = digits.original
    yield digits.row("as trained", original)
    for ratio in RATIOS:
        yield digits.row(f"pruning {ratio:g}", prune(original, ratio).model, digits.fitted(ratio))
    for scheme in Scheme:
        for share in SHARES:
            smaller = factor(original, LowRank(keep=share, scheme=scheme)).model
            yield digits.row(f"low rank {share:g}, {scheme}", smaller)
    half = prune(original, 0.5).model
    yield digits.row("pruning 0.5, then low rank 0.5, narrow", factor(half, LowRank(keep=0.5)).model)


def wilson_pct(right_pct: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent."""
    p, z2 = right_pct / 100, Z_95**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return 100 * (middle - half), 100 * (middle + half)


def document(digits: Digits, found: list[Row]) -> str:
    base = found[0]
    low, high = wilson_pct(base.before, digits.count)
    table = [
        f"| {row.name} | {100 * row.macs / base.macs:.0f} % | {100 * row.parameters / base.parameters:.0f} % "
        f"| {row.before:.1f} | {'' if row.fitted is None else f'{row.fitted:.1f}'} "
        f"| {np.mean(row.after):.1f} ({', '.join(f'{one:.1f}' for one in row.after)}) "
        f"| {row.labels_only:.1f} | {row.int8:.1f} |"
        for row in found
    ]
    return "\n".join(
        [
            "# Compression of a trained network",
            "",
            "Made by `python experiments/digits.py --write`. The network of `tests/digits.py` is trained on 1,078 of "
            f"scikit-learn's digits; all accuracies are measured in ONNX Runtime on the other {digits.count}, in "
            f"percent. As trained it is right for {base.before:.1f} % (Wilson's 95 % interval: {low:.1f} to "
            f"{high:.1f}), so that differences of less than a point say little.",
            "",
            f"Fine-tuning: {EPOCHS} epochs of `hetrl.finetune` with its usual settings on the pictures of the first "
            f"training, the mean of {len(SEEDS)} seeds, and each; labels and the network as trained count half "
            "each. *Labels alone* leaves the network as trained out; *int8* is quantized after fine-tuning. Both are "
            "of the first seed. *Fitted* is pruned with weights that take over what lost channels carried on "
            f"{FITTED} of the training's pictures, without labels and without training. Ranges for int8 come from "
            f"{CALIBRATED} of the training's pictures.",
            "",
            "| | MACs | parameters | compressed | fitted | fine-tuned | labels alone | int8 |",
            "|---|---|---|---|---|---|---|---|",
            *table,
            "",
            "Pruning takes the given share of every group of channels by L1 norm, in multiples of 4. Low rank keeps "
            "the given share of each layer's weights at most, where that saves weights and work; the scheme is that "
            "of convolutions with a window.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        digits = Digits(Path(folder))
    found = []
    for row in rows(digits):
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    text = document(digits, found)
    if write:
        (ROOT / "docs" / "digits.md").write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
