"""Small models with plans of d1, exported and tried out."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hetrl.agents.policies import find_policy
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.export.bundle import MANIFEST, Manifest, encode_manifest, list_files
from hetrl.exporting import Asked, Exported, export
from hetrl.graph.reader import load_graph
from hetrl.objective import Objective
from hetrl.plan import Plan, encode_plan
from hetrl.testing.models import random_blueprint, random_decisions
from hetrl.zoo.resolve import resolve_model

RUNTIMES = ("onnxruntime", "onnxruntime-annotated", "openvino", "ncnn")


def random_model(folder: Path, seed: int, layers: int = 8) -> Path:
    """An ONNX file with weights."""
    path = folder / f"random{seed}.onnx"
    random_blueprint(seed, layers, unsupported=False).save(path, seed)
    return path


def space_of(path: Path, device: str = "d1") -> PlanSpace:
    return PlanSpace(SurrogateDevice(load_spec(device), load_graph(path)), Objective())


def random_plans(path: Path, count: int, seed: int = 0) -> list[Plan]:
    """Of d1, with all that the plan space has: shares, caps, windows, branches side by side."""
    space = space_of(path)
    return [space.plan(column) for column in random_decisions(space, seed, count).T]


def shared_plans(path: Path, count: int) -> list[Plan]:
    """Plans with many shared segments, the most shared first."""
    return sorted(random_plans(path, 60), key=lambda plan: -plan.splits)[:count]


def written(plan: Plan, folder: Path) -> Path:
    file = folder / f"plan-{plan.key[:12]}.json"
    file.write_bytes(encode_plan(plan))
    return file


def exported(plan: Plan, model: Path, format_name: str, out: Path, *, lower: bool = False) -> Exported:
    return export(written(plan, model.parent), format_name, out, Asked(model=str(model), lower=lower))


def hand_plan(model: str, policy: str) -> Plan:
    """Of a built-in network on d1."""
    return find_policy(policy).plan(SurrogateDevice(load_spec("d1"), resolve_model(model)))


def reseal(folder: Path, **changes: object) -> None:
    """What somebody could do who knows how manifests are sealed: list the files as they are now."""
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    changed = msgspec.structs.replace(manifest, **({"files": list_files(folder)} | changes))
    (folder / MANIFEST).write_bytes(encode_manifest(changed))
