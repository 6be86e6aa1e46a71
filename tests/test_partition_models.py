"""Networks that torch exports, cut in every way."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from hetrl.device_bridge.blobs import BlobStore
from hetrl.graph.reader import load_graph
from hetrl.partition import FileSource, Partitioner, largest_error, reference_outputs, seeded_inputs
from hetrl.plan import Axis
from hetrl.testing.models import random_decisions
from tests.partition_help import TARGETS, execute, host_space
from tests.torch_models import GoogLeNetLike, MobileNetLike, ViTLike, export


@pytest.mark.parametrize("network", [MobileNetLike, GoogLeNetLike, ViTLike])
@pytest.mark.parametrize("dynamo", [False, True])
def test_random_plans_of_exported_networks(network: type[nn.Module], dynamo: bool, tmp_path: Path) -> None:
    path = export(network(), tmp_path / "m.onnx", (1, 3, 32, 32), dynamo=dynamo)
    graph, source = load_graph(path), FileSource(path)
    partitioner = Partitioner(source, graph, BlobStore(tmp_path / "blobs"))
    space = host_space(graph)
    inputs = seeded_inputs(graph, 0)
    reference = reference_outputs(source, inputs)
    plans = sorted((space.plan(column) for column in random_decisions(space, 0, 40).T), key=lambda plan: plan.splits)
    assert {segment.axis for segment in plans[-1].segments} > {Axis.NONE}
    for plan in (plans[0], plans[-2], plans[-1]):
        outputs = execute(partitioner.job(plan, TARGETS), partitioner.store, inputs)
        assert largest_error(outputs, reference) < 1e-5
