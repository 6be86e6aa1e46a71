"""Networks in torch against ONNX Runtime: as they are, pruned, trained for two epochs, and written back.

python experiments/finetune_networks.py               all networks
python experiments/finetune_networks.py resnet18 vit  some of them

Prints a table: largest difference over largest value of the outputs before and after training, how many numbers are
trained, whether samples go in batches, and what stays.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments import torch_graphs  # noqa: E402
from hetrl import zoo  # noqa: E402
from hetrl.compress.pruning import prune  # noqa: E402
from hetrl.compress.weights import complete_model  # noqa: E402
from hetrl.fidelity import largest_error  # noqa: E402
from hetrl.finetune.network import Network, read_network  # noqa: E402
from hetrl.finetune.settings import FinetuneSettings  # noqa: E402
from hetrl.finetune.trainable import running_statistics  # noqa: E402
from hetrl.finetune.training import finetune  # noqa: E402
from hetrl.zoo.source import open_source  # noqa: E402
from tests.trainable_models import NETWORKS, exported  # noqa: E402

RATIO = 0.3
SAMPLES = 6


def models(wanted: set[str], folder: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    for name in zoo.names():
        if not wanted or name in wanted:
            yield name, complete_model(open_source(name, 0)[0])
    for name in torch_graphs.NETWORKS:
        if not wanted or name in wanted:
            yield name, complete_model(open_source(torch_graphs.exported(name, folder))[0])
    for name in NETWORKS:
        for dynamo in (False, True):
            if not wanted or name in wanted:
                model = exported(name, folder, opset=20, dynamo=dynamo)
                yield f"{name}{' (dynamo)' if dynamo else ''}", model


def runtime(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def error(network: Network, model: onnx.ModelProto, x: np.ndarray) -> float:
    with torch.no_grad():
        outputs = network.module.eval()(torch.tensor(x))
    found = {name: value.numpy() for name, value in zip(network.module.output_names, outputs, strict=True)}
    return largest_error(found, runtime(model, x))


def line(name: str, model: onnx.ModelProto) -> str:
    began = time.monotonic()
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal((SAMPLES, *shape[1:])).astype(np.float32)
    before = error(read_network(model), model, x[:1])
    smaller = prune(model, RATIO).model
    settings = FinetuneSettings(epochs=2, batch=2)
    tuned = finetune(smaller, x, None, settings, teacher=model)
    network = read_network(tuned.model)
    after = error(network, tuned.model, x[:1])
    names = {name for name, _ in network.module.named_parameters()} | running_statistics(network.model)
    floats = {t.name for t in network.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims}
    left = ", ".join(sorted(floats - names)) or "-"
    report = tuned.report
    gain = f"{report.after.loss / report.before.loss:.3f}" if report.before.loss else "-"  # nothing was pruned
    return (
        f"| {name} | {before:.1e} | {after:.1e} | {report.parameters:,} | {'yes' if report.batched else 'no'} "
        f"| {gain} | {left} | {time.monotonic() - began:.0f} |"
    )


HEADER = f"""\
| network | error | error, pruned {RATIO:g} and trained | trained | batches | loss, after / before | left | s |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(set(sys.argv[1:]), Path(folder)):
            print(line(name, model), flush=True)
            del model
            gc.collect()


if __name__ == "__main__":
    main()
