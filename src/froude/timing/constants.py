"""The physical constants of the timing room, read from ``constants.toml`` by dotted name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from froude.core.errors import UnknownNameError


@dataclass(frozen=True)
class Constant:
    """One constant with where it came from.

    Attributes:
        value: a number, or a list or mapping of them.
        source: where it is documented, or what it stands for.
        estimated: no document states it.
        prior: of a fitted constant: the guess before any fit, and the standard deviation of its logarithm.
    """

    value: Any
    source: str
    estimated: bool = False
    prior: tuple[float, float] | None = None


@dataclass(frozen=True)
class Constants:
    """Constants by dotted name ("gemm.ramp_k"). A calibration is the same table with a few values replaced."""

    table: Mapping[str, Constant]
    generations: Mapping[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> float:
        """The number of that name."""
        return float(self._entry(name).value)

    def structured(self, name: str) -> Any:
        """A constant that is a list or a mapping."""
        return self._entry(name).value

    def fitted(self) -> dict[str, tuple[float, float]]:
        """The constants that are fitted on whole steps, with their priors."""
        return {name: entry.prior for name, entry in self.table.items() if entry.prior is not None}

    def source(self, name: str) -> str:
        """Where it came from."""
        entry = self._entry(name)
        return f"{entry.source} (estimated)" if entry.estimated else entry.source

    def generation(self, device: str) -> str:
        """Instruction generation of a device: "ampere", "hopper", ... or "other"."""
        words = device.split("-")
        for generation, prefixes in self.generations.items():
            if any(words[: len(p.split("-"))] == p.split("-") for p in prefixes):
                return generation
        return "other"

    def measured(self, device: str) -> bool:
        """Whether kernels were measured on a device of this generation, and whole training steps fitted."""
        clock = self.table.get(f"clock.{self.generation(device)}")
        return clock is not None and clock.prior is not None

    def of_generation(self, name: str, device: str) -> float:
        """A number that depends on the instruction generation of a device; ``name.other`` where none is stated."""
        return self[self._of_generation(name, device)]

    def structured_of_generation(self, name: str, device: str) -> Any:
        """Likewise, of a constant that is a list or a mapping."""
        return self.structured(self._of_generation(name, device))

    def but(self, values: Mapping[str, float], source: str) -> Constants:
        """The same constants with some replaced, as a calibration does."""
        changed = {name: replace(self._entry(name), value=v, source=source) for name, v in values.items()}
        return replace(self, table={**self.table, **changed})

    def _of_generation(self, name: str, device: str) -> str:
        own = f"{name}.{self.generation(device)}"
        return own if own in self.table else f"{name}.other"

    def _entry(self, name: str) -> Constant:
        if name not in self.table:
            raise UnknownNameError("constant", name, self.table)
        return self.table[name]


@lru_cache(maxsize=1)
def default_constants() -> Constants:
    """The constants that ship."""
    raw = tomllib.loads(resources.files(__package__).joinpath("constants.toml").read_text("utf-8"))
    generations = {name: tuple(prefixes) for name, prefixes in raw.pop("generations").items()}
    table: dict[str, Constant] = {}

    def walk(prefix: str, node: dict[str, Any]) -> None:
        if "value" in node:
            prior = tuple(node["prior"]) if "prior" in node else None
            table[prefix] = Constant(node["value"], node["source"], node.get("estimated", False), prior)
            return
        for key, child in node.items():
            walk(f"{prefix}.{key}" if prefix else key, child)

    walk("", raw)
    return Constants(table, generations)
