"""Which channels of a graph go together, which may go, and what that makes of every shape."""

from __future__ import annotations

from hetrl.graph.channels.groups import Axes, ChannelAxis, ChannelGroup, Channels, Traced
from hetrl.graph.channels.trace import trace
from hetrl.graph.channels.tracer import Role

__all__ = ["Axes", "ChannelAxis", "ChannelGroup", "Channels", "Role", "Traced", "trace"]
