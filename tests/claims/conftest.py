"""Runs of registered claims, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from froude.claims.claim import load_claim
from froude.claims.runner import ClaimResult, run_claim


@pytest.fixture(scope="session")
def shortened() -> Callable[[str], ClaimResult]:
    """A claim's first three points and its controls: they tell when it breaks, and stay cheap."""
    known: dict[str, ClaimResult] = {}

    def run(name: str) -> ClaimResult:
        if name not in known:
            claim = load_claim(name)
            known[name] = run_claim(claim.model_copy(update={"points": claim.points[:3]}))
        return known[name]

    return run
