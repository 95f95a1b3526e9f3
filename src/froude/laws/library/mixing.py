"""Ye's data mixing law: a domain's loss is an exponential of the mixture's shares, so few small runs rank all mixtures.

One fit per validation domain; nested with step and size laws it predicts mixtures at scales never trained. Shares are
the columns that start with ``mix_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values

PREFIX = "mix_"


class Mixing(Law):
    """L = c + k exp(sum_j t_j r_j)."""

    name = "mixing"
    source = Source(
        "Ye et al.",
        2024,
        "Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance",
        "arXiv:2403.16952",
        catalogue=284,
    )
    form = "L = c + k exp(sum_j t_j r_j), t of the last domain 0"
    delta = 1e-2

    def __init__(self, domains: tuple[str, ...] = ("mix_1", "mix_2")) -> None:
        self.domains = domains

    @classmethod
    def for_table(cls, table: Mapping[str, Any]) -> Mixing:
        """One share per ``mix_`` column."""
        domains = tuple(name for name in table if name.startswith(PREFIX))
        if table and len(domains) < 2:
            raise FroudeError(
                f"{cls.name}: the shares of the mixture are columns whose names start with {PREFIX!r}, at least two; "
                f"the table has {', '.join(table)}"
            )
        return cls(domains) if domains else cls()

    def columns(self) -> tuple[str, ...]:
        """The shares."""
        return self.domains

    def positive(self) -> tuple[str, ...]:
        """A share may be zero."""
        return ()

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """c, k and one t per domain but the last: shares add up to one, so only differences of t matter."""
        return (
            Symbol("c", "nats", 0.2, 5.0, "log", "loss that no mixture goes below"),
            Symbol("k", "nats", 0.01, 5.0, "log", "what a mixture of the last domain alone adds"),
            *(
                Symbol(f"t_{name.removeprefix(PREFIX)}", "1", -2.0, 2.0, "linear", "effect of this share")
                for name in self.domains[:-1]
            ),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Validation loss of one domain."""
        return coefficients["c"] + self._term(inputs, coefficients)

    def gradient(self, inputs: Values, coefficients: Values) -> tuple[Floats, list[Floats]]:
        """Closed form: many domains make the complex step slow."""
        term = self._term(inputs, coefficients)
        shares = [term * np.asarray(inputs[name]) for name in self.domains[:-1]]
        return coefficients["c"] + term, [np.ones_like(term), term / coefficients["k"], *shares]

    def _term(self, inputs: Values, c: Values) -> Any:
        power = sum(c[f"t_{name.removeprefix(PREFIX)}"] * np.asarray(inputs[name]) for name in self.domains[:-1])
        return c["k"] * np.exp(power)
