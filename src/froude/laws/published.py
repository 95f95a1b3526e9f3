"""Published coefficients: TOML files beside the laws, each set with its source, its data's range and its intervals."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, UnknownNameError
from froude.core.spec import Spec
from froude.laws.fitted import FittedLaw
from froude.laws.law import Law, pack

DRAWS = 400
UNSTATED = 0.03  # relative half-interval of exponents whose source states none; an estimate
ASSUMED = f"no interval was published; {UNSTATED:.0%} on its exponents is assumed"
PRIOR_SPREAD = 0.2  # relative; published exponents of one form differ by about this much between data sets
NORMAL_WIDTH = {0.8: 1.2816, 0.9: 1.6449, 0.95: 1.9600, 0.99: 2.5758}


class Anchor(Spec):
    """A scale coefficient that moves with its exponent so that their term stays put where the data are."""

    exponent: str
    input: str
    at: float
    rising: bool = False  # the term is scale * input^exponent, not scale / input^exponent


class CoefficientSet(Spec):
    """Coefficients of a law as published.

    Attributes:
        low, high: bounds of the published interval of the given ``level``.
        spread: relative scatter of single runs around the law, as a standard deviation.
        knobs: what sizes the law (columns), for laws that need it.
        confidence: "checked" against the source's code or data, "paper", or "memory" of the paper's text.
    """

    name: str
    source: str
    data: str
    confidence: str
    values: dict[str, float]
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    level: float = 0.8
    spread: float = 0.01
    ranges: dict[str, tuple[float, float]] = {}
    anchors: dict[str, Anchor] = {}
    columns: list[str] = []
    note: str = ""


def published_sets(law: str) -> list[CoefficientSet]:
    """All published sets of a law; the first is the default. Empty when none is known."""
    file = resources.files("froude.laws.coefficients").joinpath(f"{law.replace('-', '_')}.toml")
    if not file.is_file():
        return []
    return [CoefficientSet.parse(item, where=file.name) for item in tomllib.loads(file.read_text("utf-8"))["set"]]


def published(law: type[Law] | Law, name: str | None = None) -> FittedLaw:
    """A law with published coefficients, with draws from their published intervals.

    Raises:
        FroudeError: the law has none, or none of that name.
    """
    sets = published_sets(law.name)
    if not sets:
        raise FroudeError(
            f"law: {law.name!r} has no published coefficients here; fit it first (froude fit RUNS.csv --law {law.name} "
            "--out fit.yaml) and give the file"
        )
    found = next((s for s in sets if name in (None, s.name)), None)
    if found is None:
        raise UnknownNameError(f"coefficients of {law.name}", name, [s.name for s in sets])
    kind = law if isinstance(law, type) else type(law)
    return _with_draws(kind.for_table({column: np.zeros(0) for column in found.columns}), found)


def published_priors(law: Law) -> dict[str, tuple[float, float]]:
    """Exponents (dimensionless symbols) of the default published set, with generous spreads."""
    sets = published_sets(law.name)
    if not sets:
        raise FroudeError(f"priors: {law.name!r} has no published coefficients to hold its exponents near")
    values = sets[0].values
    return {
        s.name: (values[s.name], PRIOR_SPREAD if s.scale == "log" else PRIOR_SPREAD * abs(values[s.name]) or 1.0)
        for s in law.symbols
        if s.unit == "1" and s.name in values
    }


def _with_draws(law: Law, found: CoefficientSet) -> FittedLaw:
    rng = np.random.default_rng(0)
    width = NORMAL_WIDTH.get(found.level, NORMAL_WIDTH[0.8])
    draws: dict[str, Floats] = {}
    for symbol in law.symbols:
        value = found.values[symbol.name]
        centre = float(symbol.inside(np.asarray(value)))
        unstated = UNSTATED if not found.low and symbol.unit == "1" and symbol.name not in found.anchors else 0.0
        low, high = (
            found.low.get(symbol.name, value * (1 - unstated)),
            found.high.get(symbol.name, value * (1 + unstated)),
        )
        sigma = float(symbol.inside(np.asarray(high)) - symbol.inside(np.asarray(low))) / (2.0 * width)
        anchored = symbol.name in found.anchors
        draws[symbol.name] = np.asarray(
            symbol.outside(centre + (0.0 if anchored else sigma) * rng.standard_normal(DRAWS))
        )
    for name, anchor in found.anchors.items():
        draws[name] = _anchored(found.values, draws, name, anchor)
    noise = found.spread * np.sqrt(2.0) * _normal_quantiles()
    return FittedLaw(
        law,
        pack(law.symbols, found.values),
        pack(law.symbols, draws),
        noise,
        {name: found.ranges[name] for name in law.columns() if name in found.ranges},
        0,
        f"{found.source} ({found.data})",
        tuple(
            filter(
                None, (found.note, "" if found.low else f"no interval published: {UNSTATED:.0%} on exponents assumed")
            )
        ),
    )


def _anchored(values: Mapping[str, float], draws: Mapping[str, Floats], name: str, anchor: Anchor) -> Floats:
    """The scale that keeps the term at its published value at ``at``, for every draw of the exponent."""
    change = draws[anchor.exponent] - values[anchor.exponent]
    return np.asarray(values[name] * anchor.at ** (-change if anchor.rising else change))


def _normal_quantiles() -> Floats:
    from scipy.special import erfinv

    return np.asarray(erfinv(2.0 * np.linspace(0.005, 0.995, 101) - 1.0))
