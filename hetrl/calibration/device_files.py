"""All device files of the study's phones from one fit."""

from __future__ import annotations

from hetrl.calibration.fit import Fit, engine_of
from hetrl.calibration.mace import MEASURED_PHONE
from hetrl.calibration.phones import phones
from hetrl.calibration.spec_file import device_spec, encode_spec
from hetrl.calibration.uncertainty import shifted_errors


def device_files(fit: Fit) -> dict[str, bytes]:
    """The bytes of each phone's device file, by its id."""
    shifted = shifted_errors(engine_of(fit, MEASURED_PHONE))
    return {phone: encode_spec(device_spec(fit, phone, shifted)) for phone in phones()}
