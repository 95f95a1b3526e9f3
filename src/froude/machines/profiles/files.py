"""Whose profile a file is: froude's own, SimuMax's or Vidur's."""

from __future__ import annotations

from pathlib import Path

from froude.core.errors import FroudeError, InvalidValueError
from froude.core.spec import read_yaml
from froude.machines.device import Device
from froude.machines.profiles import simumax, vidur


def read_profile(paths: str) -> Device:
    """The device that files describe.

    Args:
        paths: what `froude measure device` wrote; a system file of SimuMax; or CSV files of Vidur (or folders of them),
            separated by commas.

    Raises:
        FroudeError: one sentence for what is none of these.
    """
    files = [Path(path) for path in paths.split(",") if path]
    for file in files:
        if not file.exists():
            raise FroudeError(f"{file}: no such file")
    if files and all(file.is_dir() or file.suffix.lower() == ".csv" for file in files):
        return vidur.read(files)
    if len(files) != 1:
        raise InvalidValueError("cluster", f"profile:{paths}", "combines files that are not all CSV files of Vidur")
    data = read_yaml(files[0])
    if simumax.recognises(data):
        return simumax.read(data, str(files[0]))
    device = Device.parse(data, where=str(files[0]))
    if not (device.measured or device.tables):
        raise InvalidValueError(
            "cluster", f"profile:{paths}", "names a profile without measurements; `froude measure device` writes one"
        )
    return device
