"""The batched environment on a device, failures told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hetrl.envs.core import Finished, Ints, PartitionCore
from hetrl.envs.evaluate import Outcomes, evaluate, of_decisions
from hetrl.envs.setting import Setting
from hetrl.errors import UsageError
from hetrl.measurement import Failure, Measurement
from hetrl.plan import Plan


class DeviceCore(PartitionCore):
    """A core whose plans are measured on a setting's device.

    The device measures the reference, the whole model on its CPU, when the core is made.

    :param size: plans side by side.
    :param owned: whether `close` closes the device.
    :raises Infeasible: the model does not run on the CPU.
    :raises DeviceFailed: the device went away.
    """

    def __init__(self, setting: Setting, size: int, *, owned: bool = False) -> None:
        if size < 1:
            raise UsageError(f"{size} environments are none", "give num_envs=1 or more")
        super().__init__(setting.space, setting.objective, self._evaluate, setting.reference_ms, size)
        self.setting = setting
        self._owned = owned
        self._measured: list[Measurement] | None = None
        self._complete: Ints = self._taken

    def plan(self, index: int) -> Plan:
        """The plan that environment `index` completed last."""
        return self.space.plan(self._complete[:, index])

    def measurement(self, index: int) -> Measurement:
        """What the device said of it. A surrogate is asked once more, and says the same."""
        if self._measured is not None:
            return self._measured[index]
        return self.setting.device.measure(self.plan(index), self.setting.condition)

    def final_infos(self, finished: Finished) -> dict[str, npt.NDArray[Any]]:
        """See `PartitionCore.final_infos`; `error` is why there is no latency, None where there is one."""
        failed = np.flatnonzero(np.isnan(finished.outcomes.latency_ms))
        errors = np.full(self.size, None, dtype=object)
        for index in failed:
            error = self.measurement(int(index)).error
            errors[index] = f"{error.kind}: {error.message}" if error else None
        return {**super().final_infos(finished), "error": errors}

    def close(self) -> None:
        if self._owned:
            self.setting.device.close()

    def _evaluate(self, taken: Ints) -> Outcomes:
        device, condition = self.setting.device, self.setting.condition
        self._complete = taken.copy()
        if device is self.setting.planner:
            return evaluate(self.space, device, condition, taken)
        plans = [self.plan(index) for index in range(self.size)]
        self._measured = device.measure_many(plans, condition)
        self.lost = np.array([m.error is not None and m.error.kind is Failure.LOST for m in self._measured])
        return of_decisions(self.space, self._measured, taken)
