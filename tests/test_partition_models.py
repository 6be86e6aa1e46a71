"""Networks that torch exports, cut in every way."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from hetrl.partition import largest_error
from hetrl.plan import Axis
from tests.partition_help import TARGETS, cut_at_random, execute
from tests.torch_models import GoogLeNetLike, MobileNetLike, ViTLike, export


@pytest.mark.parametrize("network", [MobileNetLike, GoogLeNetLike, ViTLike])
@pytest.mark.parametrize("dynamo", [False, True])
def test_random_plans_of_exported_networks(network: type[nn.Module], dynamo: bool, tmp_path: Path) -> None:
    path = export(network(), tmp_path / "m.onnx", (1, 3, 32, 32), dynamo=dynamo)
    partitioner, plans, inputs, reference = cut_at_random(path, tmp_path)
    assert {segment.axis for segment in plans[-1].segments} > {Axis.NONE}
    for plan in (plans[0], plans[-2], plans[-1]):
        outputs = execute(partitioner.job(plan, TARGETS), partitioner.store, inputs)
        assert largest_error(outputs, reference) < 1e-5
