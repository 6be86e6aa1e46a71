"""All agents and samplers pass the suite that hetrl ships; methods with a defect do not."""

from __future__ import annotations

from typing import Any

import pytest

from hetrl import plugins
from hetrl.agents.base import Kind, Method
from hetrl.agents.settings import find_method
from hetrl.testing.methods import MethodConformance

REGISTERED = [(kind, name) for kind in Kind for name in plugins.names(kind.group)]


@pytest.mark.parametrize("registered", REGISTERED, ids=[f"{kind}:{name}" for kind, name in REGISTERED])
class TestRegistered(MethodConformance):
    @pytest.fixture
    def method(self, registered: tuple[Kind, str]) -> Method[Any]:
        return find_method(*registered)
