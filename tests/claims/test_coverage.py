"""`coverage.toml` stays true: complete, and backed by files, commands and tests that exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import typer.main

from froude.claims.claim import load_claim
from froude.claims.coverage import SHOWN, STATUSES, Work, all_works, coverage
from froude.claims.runner import ClaimResult
from froude.cli import app
from froude.core.errors import FroudeError

ROOT = Path(__file__).parents[2]
CATALOGUE = ROOT / ".." / "shared" / "data" / "catalogue.jsonl"
BACKED = [work for work in all_works() if work.status in SHOWN]
_IDX = re.compile(r"\bcatalogue\s*=\s*(\d+)")


@cache
def implemented() -> dict[int, list[Path]]:
    """Catalogue rows that sources in the code name, and the files that do."""
    found: dict[int, list[Path]] = {}
    for path in sorted((ROOT / "src" / "froude").rglob("*.py")):
        for idx in _IDX.findall(path.read_text("utf-8")):
            found.setdefault(int(idx), []).append(path)
    return found


def test_every_work_once() -> None:
    assert [work.idx for work in all_works()] == list(range(481))
    assert all(work.system for work in all_works())


def test_the_catalogue_says_the_same() -> None:
    if not CATALOGUE.is_file():
        pytest.skip("the catalogue is not here")
    rows = [json.loads(line) for line in CATALOGUE.read_text("utf-8").splitlines()]
    works = all_works()
    assert [row["system"] for row in rows] == [work.system for work in works]
    assert [row["scope"].startswith("out") for row in rows] == [work.status == "out" for work in works]


@pytest.mark.parametrize("work", BACKED, ids=lambda work: str(work.idx))
def test_file_command_and_test_exist(work: Work) -> None:
    assert work.file and work.command and work.test
    path = ROOT / work.file
    assert path.is_file(), work.file
    named = {int(idx) for idx in _IDX.findall(path.read_text("utf-8"))}
    assert not named or work.idx in named, f"{work.file} names {named}, not {work.idx}"
    parse(work.command)
    file, _, function = work.test.partition("::")
    assert re.search(rf"^def {re.escape(function)}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), work.test


def test_what_is_implemented_is_listed() -> None:
    works = all_works()
    forgotten = {
        idx: [str(path.relative_to(ROOT)) for path in paths]
        for idx, paths in implemented().items()
        if works[idx].status not in SHOWN
    }
    assert not forgotten, forgotten


@pytest.mark.parametrize(
    "work", [w for w in BACKED if "reproduced" in (w.status, *w.also)], ids=lambda work: str(work.idx)
)
def test_what_is_reproduced_holds(work: Work, shortened: Callable[[str], ClaimResult]) -> None:
    names = re.findall(r"check claims ([\w-]+)", f"{work.command} {work.note or ''}")
    own = [name for name in names if load_claim(name).source.catalogue == work.idx]
    assert any(shortened(name).verdict == "holds" for name in own)


def test_counts() -> None:
    found = coverage().json()
    assert sum(found[status.replace("-", "_")] for status in STATUSES) == 481
    assert len(found["rows"]) == 481
    assert len(coverage("not_yet").works) == found["not_yet"]
    assert all("reproduced" in (work.status, *work.also) for work in coverage("reproduced").works)
    with pytest.raises(FroudeError, match="modelled"):
        coverage("modeled")


@pytest.mark.parametrize(
    "row",
    [
        {"idx": 1, "system": "x", "status": "executed"},
        {"idx": 1, "system": "x", "status": "out"},
        {"idx": 1, "system": "x", "status": "not-yet", "file": "y"},
        {"idx": 1, "system": "x", "status": "not-yet", "reason": "y"},
        {"idx": 1, "system": "x", "status": "done"},
    ],
)
def test_rows_that_claim_too_much_or_too_little(row: dict[str, object]) -> None:
    with pytest.raises(FroudeError):
        Work.parse(row)


def parse(command: str) -> None:
    """Parse a command line as the program would, without running it."""
    program, *words = shlex.split(command)
    if program == "python":
        assert words[:2] == ["-m", "pytest"]
        assert (ROOT / words[2]).is_file(), command
        return
    assert program == "froude"
    found = typer.main.get_command(app)
    while commands := getattr(found, "commands", None):
        assert words and words[0] in commands, f"{command}: no command {words[:1]}"
        found = commands[words.pop(0)]
    found.make_context(command, words)
