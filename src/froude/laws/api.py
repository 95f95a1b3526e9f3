"""What the commands ask of the laws: fit a file, compare laws, predict a run, list what is known."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.errors import FroudeError, InvalidValueError, UnknownNameError
from froude.core.estimate import Estimate
from froude.laws.diagnostics import halved_or_doubled, influence
from froude.laws.fitted import FittedLaw, read_law
from froude.laws.fitting import Fit, fit
from froude.laws.law import LAWS, Law
from froude.laws.library.mixing import PREFIX
from froude.laws.published import published, published_sets
from froude.laws.table import ALIASES, parse_pairs, read_table

INFLUENTIAL, SHOWN_INFLUENCE = 20, 3  # runs of largest residual that are left out in turn, and how many are told
MOST_DIAGNOSED = 20_000  # rows times coefficients; beyond, leaving runs out takes longer than it tells
SHOWN = {"name", "source", "data", "confidence", "ranges", "note"}  # of a published set


@dataclass(frozen=True)
class Fits:
    """One law's fit, or several compared, best first."""

    fits: tuple[Fit, ...]
    skipped: Mapping[str, str]
    compared: bool
    influence: tuple[Mapping[str, Any], ...] = ()
    profile: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def best(self) -> Fit:
        """The only fit, or the one that predicts held-out rows best."""
        return self.fits[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the best fit."""
        return self.best.warnings

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Of the best fit."""
        return self.best.assumptions

    def json(self) -> dict[str, Any]:
        """The best fit's contract; with ``--law all`` also every fit, and why others were skipped."""
        result = {**self.best.json(), "influence": list(self.influence), "profile": dict(self.profile)}
        if self.compared:
            result["laws"] = [one.json() for one in self.fits]
            result["skipped"] = [{"law": law, "reason": why} for law, why in self.skipped.items()]
        return result


@dataclass(frozen=True)
class Prediction:
    """What a law says of one run."""

    target: str
    estimate: Estimate
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """``{"loss": {"value", "low", "high"}}``."""
        return {self.target: self.estimate.json()}


def fit_file(
    runs: str | os.PathLike[str],
    law: str,
    *,
    columns: str | None = None,
    where: str | None = None,
    holdout: str | None = None,
    emphasis: str = "0",
    **options: Any,
) -> Fits:
    """Fit one law, or with ``"all"`` every law that the table's columns allow, compared by held-out error.

    Raises:
        FroudeError: the file, a column, a value or the number of rows does not allow the fit.
    """
    if law != "all":
        LAWS.get(law)
    options["emphasis"] = _power(emphasis)
    named = parse_pairs(columns, "columns")
    known = _fields()
    for name in named:
        if name not in known and not name.startswith(PREFIX):
            raise UnknownNameError("columns", name, known)
    table = read_table(runs, named)
    table = filter_rows(table, parse_pairs(where, "where"), str(runs))
    if law != "all":
        return _diagnosed((fit(law, table, holdout=holdout, where=str(runs), **options),), {}, False)
    fits, skipped = [], {}
    target = "loss"
    for name in LAWS.names():
        if LAWS.get(name).target != target:
            continue
        try:
            fits.append(fit(name, table, holdout=holdout or "largest:0.15", where=str(runs), **options))
        except FroudeError as error:
            skipped[name] = str(error)
    if not fits:
        # A law that lacks columns says less of this table than one that lacks rows.
        name, why = min(skipped.items(), key=lambda one: "is missing" in one[1])
        raise FroudeError(f"{runs}: no law can be fitted to it; {name!r}, for one, says: {why}")
    fits.sort(key=lambda one: one.holdout.median_ape if one.holdout else np.inf)
    return _diagnosed(tuple(fits), skipped, True)


def _diagnosed(fits: tuple[Fit, ...], skipped: Mapping[str, str], compared: bool) -> Fits:
    """With what the best fit rests on, where it is wide enough to be worth asking and small enough to ask."""
    best = fits[0]
    if best.priors or best.n * len(best.law.symbols) > MOST_DIAGNOSED:
        return Fits(fits, skipped, compared)
    return Fits(fits, skipped, compared, tuple(influence(best, INFLUENTIAL)[:SHOWN_INFLUENCE]), halved_or_doubled(best))


def filter_rows(table: Mapping[str, Any], where: Mapping[str, str], name: str) -> dict[str, Any]:
    """Rows whose columns hold the given values: as text, equal as numbers, or within LOW..HIGH (either may be open)."""
    kept = dict(table)
    for column, wanted in where.items():
        if column not in kept:
            raise UnknownNameError(f"where: column of {name}", column, kept)
        values = kept[column]
        span = _span(wanted)
        if span is not None:
            try:
                numeric = np.asarray(values, dtype=float)
            except (TypeError, ValueError):
                raise InvalidValueError(
                    "where", f"{column}={wanted}", "is a range of a column that holds text"
                ) from None
            mask = (numeric >= span[0]) & (numeric <= span[1])
        else:
            mask = np.array([str(value) == wanted or _equal(value, wanted) for value in values])
        if not mask.any():
            raise InvalidValueError("where", f"{column}={wanted}", f"leaves no rows of {name}")
        kept = {key: np.asarray(value)[mask] for key, value in kept.items()}
    return kept


def _fields() -> list[str]:
    """What ``--columns`` can name: whatever a law reads or predicts, and what those follow from."""
    read = {name for law in LAWS for name in (*law.inputs, law.target)}
    return sorted(read | set(ALIASES) | {"seq_len", "embed_dim", "epochs", "weight", "index"})


def _span(text: str) -> tuple[float, float] | None:
    """``100..300``, ``100..`` or ``..300`` as numbers; None for anything else."""
    low, dots, high = text.partition("..")
    if not dots or not (low or high):
        return None
    try:
        return float(low or "-inf"), float(high or "inf")
    except ValueError:
        return None


def load(law: str) -> FittedLaw:
    """A law by its file, or by name with its published coefficients (``NAME`` or ``NAME/SET``)."""
    if law.endswith((".yaml", ".yml")) or Path(law).is_file():
        return read_law(law)
    name, _, which = law.partition("/")
    return published(LAWS.get(name), which or None)


def list_laws(name: str | None = None) -> list[dict[str, Any]]:
    """Form, symbols with units, source and published coefficients with intervals of every law, or of one."""
    return [_facts(kind) for kind in ([LAWS.get(name)] if name else LAWS)]


def _facts(kind: type[Law]) -> dict[str, Any]:
    sets = []
    for found in published_sets(kind.name):
        law = published(kind, found.name)
        coefficients = {key: value.json() for key, value in law.estimates().items()}
        sets.append({**found.model_dump(include=SHOWN), "coefficients": coefficients})
    columns = {column: np.zeros(0) for column in published_sets(kind.name)[0].columns} if sets else {}
    example = kind.for_table(columns)
    return {
        "name": kind.name,
        "form": kind.form,
        "inputs": list(example.columns()),
        "target": kind.target,
        "about": (inspect.getmodule(kind).__doc__ or "").strip().splitlines()[0],
        "source": str(kind.source),
        "symbols": [{"name": s.name, "unit": s.unit, "meaning": s.meaning} for s in example.symbols],
        "allocates": kind.allocate is not Law.allocate,
        "published": sets,
    }


def predict(law: str | FittedLaw, inputs: Sequence[str] | Mapping[str, float]) -> Prediction:
    """The law's target for one run, given as ``["params=7e9", ...]`` or a mapping."""
    fitted = load(law) if isinstance(law, str) else law
    given = inputs if isinstance(inputs, Mapping) else _numbers(inputs)
    estimate, warnings = fitted.predict(**given)
    return Prediction(fitted.law.target, estimate, tuple(warnings), (*estimate.provenance, *fitted.notes))


def _power(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(pieces: Sequence[str]) -> dict[str, float]:
    result: dict[str, float] = {}
    for piece in pieces:
        for name, text in parse_pairs(piece, "inputs").items():
            try:
                result[name] = float(text)
            except ValueError:
                raise InvalidValueError(name, text, "should be a number") from None
    return result


def _equal(value: Any, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return False
