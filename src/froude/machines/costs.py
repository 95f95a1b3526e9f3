"""Prices, carbon intensities and PUE from the curated tables beside this file."""

from __future__ import annotations

import functools
import statistics
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from froude.core.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Price:
    """On-demand USD per device-hour: the median over providers, the cheapest and the dearest, and who they are."""

    usd_per_device_hour: float
    low: float
    high: float
    providers: tuple[str, ...]


def read_table(name: str) -> dict[str, Any]:
    """A TOML file of this room."""
    return _read(name)


@functools.cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text("utf-8"))


def find_price(device: str) -> Price | None:
    """The price of a device by canonical name, or None where no provider is listed."""
    rows = [row for row in read_table("prices.toml")["price"] if row["device"] == device]
    if not rows:
        return None
    values = [float(row["usd_per_device_hour"]) for row in rows]
    providers = tuple(f"{row['provider']} {row['date']}" for row in rows)
    return Price(statistics.median(values), min(values), max(values), providers)


def carbon_intensity(region: str) -> float:
    """Kilograms of CO2e per kWh in a cloud region or country.

    Raises:
        UnknownNameError: naming the nearest region.
    """
    table = read_table("carbon.toml")["region"]
    if region.lower() not in table:
        raise UnknownNameError("region", region, table)
    return float(table[region.lower()]["kg_co2e_per_kwh"])


def facility_pue(operator: str) -> float:
    """Power usage effectiveness of an operator's computer centres.

    Raises:
        UnknownNameError: naming the nearest operator.
    """
    table = read_table("carbon.toml")["pue"]
    if operator.lower() not in table:
        raise UnknownNameError("operator", operator, table)
    return float(table[operator.lower()]["pue"])
