"""Any ONNX: networks exported from torch train to a valid plan that beats every single processor."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import hetrl
from hetrl.plan_check import check_plan
from tests import torch_models

NETWORKS = {
    "mobilenet_like": (torch_models.MobileNetLike, (1, 3, 128, 128)),
    "googlenet_like": (torch_models.GoogLeNetLike, (1, 3, 128, 128)),
    "vit_like": (torch_models.ViTLike, (1, 3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network_trains_to_a_valid_plan(name: str, tmp_path: Path) -> None:
    build, shape = NETWORKS[name]
    module: nn.Module = build()
    path = tmp_path / f"{name}.onnx"
    torch_models.export(module.eval(), path, shape)
    result = hetrl.tune(str(path), "d1", budget=60, seed=0, out=tmp_path / "run")
    graph = hetrl.load_model(str(path))
    check_plan(result.plan, graph)
    assert result.evidence == "predicted"
    assert result.gap_to_exact is not None and 0 <= result.gap_to_exact <= 0.01
    assert result.best_hand is not None and result.latency_ms <= result.best_hand.latency_ms
    again = hetrl.measure(str(path), "d1", plan=tmp_path / "run" / "plan.json")
    assert again.latency_ms == result.latency_ms
    placed = [node for segment in result.plan.segments for node in segment.nodes]
    assert sorted(placed) == sorted(node.id for node in graph.nodes)
    assert not again.fallbacks  # the space leaves unsupported operators to the CPU


def test_unsupported_operators_fall_back_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vit_like.onnx"
    torch_models.export(torch_models.ViTLike().eval(), path, (1, 3, 32, 32))
    row = hetrl.measure(str(path), "d1", policy="mace_gpu_image")
    assert row.fallbacks and 0 < row.fallback_ratio < 1
    assert all(f.cost_ms >= 0 and "not supported" in f.reason for f in row.fallbacks)
    fallen = {hetrl.load_model(str(path)).nodes[i].op_type for i in range(len(hetrl.load_model(str(path)).nodes))}
    assert "LayerNormalization" in fallen or "ReduceMean" in fallen
