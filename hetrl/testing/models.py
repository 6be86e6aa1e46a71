"""Small random models and random plans of them, the same for the same seed."""

from __future__ import annotations

import random

import numpy as np

from hetrl.envs.space import Ints, PlanSpace
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.zoo.builder import Blueprint, Builder

UNSUPPORTED = "Erf"  # no GPU engine that hetrl ships has it


def random_graph(seed: int, layers: int, *, unsupported: bool = True, size: int = 20) -> OperatorGraph:
    """The graph of a `random_blueprint`."""
    return graph_from_model(
        random_blueprint(seed, layers, unsupported=unsupported, size=size).model, name=f"random{seed}"
    )


def random_blueprint(seed: int, layers: int, *, unsupported: bool = True, size: int = 20) -> Blueprint:
    """A model of about `layers` fusion groups: chains, strides, pools, residual adds, forks with and without a join.

    :param unsupported: let some operators be ones that a GPU does not take.
    :param size: rows and columns of the input, at least 8.
    """
    draw = random.Random(seed)
    net = Builder(f"random{seed}")
    maps = [net.input("x", (1, draw.choice((3, 8, 16)), size, size))]
    used: set[str] = set()
    for number in range(layers):
        x = draw.choice(maps[-2:])  # the last but one leaves a fork behind
        used.add(x)
        name = f"l{number}"
        channels, rows = net.shape(x)[1:3]
        same = [m for m in maps if m != x and net.shape(m)[2:] == net.shape(x)[2:]]
        what = draw.choice(("conv", "conv", "conv", "pool", "residual", "concat", "unsupported"))
        if what == "pool" and rows >= 4:
            kernel, stride = draw.choice(((2, 2), (3, 2), (3, 1)))
            made = net.max_pool(x, name, kernel, stride, pad=draw.choice((0, 1)))
        elif what == "concat" and same:
            other = draw.choice(same)
            used.add(other)
            made = net.concat([x, other], name)
        elif what == "unsupported" and unsupported:
            made = net.activation(x, name, UNSUPPORTED)
        else:
            made = _conv(net, draw, x, name, channels, rows)
            equal = [m for m in maps if net.shape(m) == net.shape(made)]
            if what == "residual" and equal:
                other = draw.choice(equal)
                used.add(other)
                made = net.add(made, other, f"{name}.add")
        maps.append(made)
    if draw.random() < 0.4:
        used.add(maps[-1])
        pooled = net.global_pool(maps[-1], "mean") if draw.random() < 0.5 else maps[-1]
        maps.append(net.gemm(net.flatten(pooled, "flat"), "logits", 64))
    return net.finish(*(m for m in maps[1:] if m not in used))


def _conv(net: Builder, draw: random.Random, x: str, name: str, channels: int, rows: int) -> str:
    kernel = draw.choice((1, 3, 3, 3, 5) if rows >= 5 else (1,))
    stride = draw.choice((1, 1, 1, 2)) if rows >= 6 else 1
    depthwise = draw.random() < 0.15
    out = channels if depthwise else draw.choice((4, 8, 12, 16, 32))
    pad = draw.choice((None, None, 0))
    made = net.conv(x, name, out, kernel, stride=stride, pad=pad, groups=channels if depthwise else 1)
    return net.activation(made, f"{name}.relu") if draw.random() < 0.5 else made


def random_decisions(space: PlanSpace, seed: int, count: int) -> Ints:
    """(length, count) random legal decisions; continuing a segment is as likely as starting a new one."""
    draw = np.random.default_rng(seed)
    taken = np.zeros((space.length, count), dtype=np.int64)
    for step in range(space.length):
        legal = space.mask(step, taken)
        weight = np.where(legal, draw.random(legal.shape), 0.0)
        if step >= len(space.globals):
            weight[0] *= draw.choice((0.5, 1.0, 4.0), size=count)
        taken[step] = weight.argmax(axis=0)
    return taken
