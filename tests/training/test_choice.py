from __future__ import annotations

import pytest

from froude.training.accuracy import step_spread
from froude.training.choice import MIN_LAYOUTS, Candidate, choice_alike, choices, rank_correlation
from froude.training.runs import COLUMNS, run_of
from froude.training.scores import Check, Scored

# Korthikanti et al. 2022, arXiv:2205.05198: the 22B model of table 3.
MEGATRON_22B = dict.fromkeys(COLUMNS) | {
    "id": 0, "source": "Korthikanti", "use": "yes", "model": "megatron_22B", "device": "a100-sxm-80gb", "n_gpus": 8,
    "layers": 48, "hidden": 6144, "heads": 64, "ffn": 24576, "vocab": 51200, "seq": 2048, "precision": "fp16",
    "tp": 8, "pp": 1, "cp": 1, "sp": 0, "micro_batch": 4, "global_batch_seqs": 16, "zero_stage": 0,
    "recompute": "full", "attention": "fused-softmax", "fused_norm": "no",
}  # fmt: skip


def row(layout: int, predicted: float, measured: float, *, sweep: str = "a", source: str = "s") -> Scored:
    return Scored(f"{layout}", source, predicted, measured, candidate=Candidate((source, sweep), sweep, layout))


def test_regret_is_throughput_lost_by_the_layout_ranked_first() -> None:
    rows = [row(i, 10.0 + i, 20.0 + i) for i in range(MIN_LAYOUTS)]
    (right,) = choices(rows)
    assert (right.n, right.regret, right.spearman) == (MIN_LAYOUTS, 0.0, pytest.approx(1.0))
    rows[0] = row(0, 10.0, 42.0)  # ranked first, twice as slow as the best
    (wrong,) = choices(rows)
    assert wrong.regret == pytest.approx(0.5)
    assert wrong.spearman is not None and wrong.spearman == pytest.approx(1.0 - 6.0 * 56 / (8 * 63))


def test_layouts_measured_again_count_once() -> None:
    rows = [row(i % 7, 10.0 + i % 7, 20.0) for i in range(30)]
    assert choices(rows) == []
    rows = [row(i, 10.0 + i, 20.0 + i) for i in range(MIN_LAYOUTS)] + [row(0, 10.0, 26.0), row(0, 10.0, 23.0)]
    (found,) = choices(rows)
    assert found.n == MIN_LAYOUTS
    assert found.regret == pytest.approx(1.0 - 21.0 / 23.0)  # the median of 20, 26, 23 against the next layout's 21


def test_ties_do_not_depend_on_the_order_of_rows() -> None:
    rows = [row(i, 10.0 + i, 20.0 + i) for i in range(MIN_LAYOUTS)]
    rows[1] = row(1, 10.0 * (1.0 + 1e-12), 40.0)  # ranked first together with the best
    (found,) = choices(rows)
    (backwards,) = choices(rows[::-1])
    assert found.regret == pytest.approx(0.25)
    assert (backwards.regret, backwards.spearman) == (pytest.approx(found.regret), pytest.approx(found.spearman))


def test_sources_count_alike() -> None:
    good = [row(i, 1.0 + i, 1.0 + i, sweep=name) for name in "abc" for i in range(MIN_LAYOUTS)]
    bad = [row(i, 100.0 - i, 1.0 + i, source="t") for i in range(MIN_LAYOUTS)]
    found = choice_alike(choices([*good, *bad]))
    assert found["s"] == (3, 0.0, pytest.approx(1.0))
    assert found["t"] == (1, pytest.approx(1.0 - 1.0 / MIN_LAYOUTS), pytest.approx(-1.0))


def test_runs_of_one_sweep_differ_in_nothing_but_their_layout() -> None:
    cells = MEGATRON_22B
    base = Candidate.of(run_of(cells))
    for column, value in (("tp", 4), ("micro_batch", 2), ("recompute", "none"), ("zero_stage", 1), ("sp", 1)):
        other = Candidate.of(run_of({**cells, column: value}))
        assert other.sweep == base.sweep and other.layout != base.layout, column
    for column, value in (
        ("attention", "flash-2"), ("seq", 1024), ("global_batch_seqs", 8), ("precision", "bf16"),
        ("device", "h100-sxm"), ("n_gpus", 16), ("layers", 24), ("source", "Narayanan"),
    ):  # fmt: skip
        assert Candidate.of(run_of({**cells, column: value})).sweep != base.sweep, column


def test_rank_correlation_shares_ranks_of_ties() -> None:
    # Spearman 1904; scipy.stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4]) is 0.9487
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_coverage_is_the_share_of_rows_inside_their_interval() -> None:
    rows = tuple(Scored(str(i), "a", 1.0, value, spread=0.1) for i, value in enumerate((0.92, 1.0, 1.09, 1.2)))
    check = Check(4, rows, ())
    assert check.coverage() == pytest.approx(0.75)
    assert check.json()["interval_coverage"]["by_source"] == {"a": 0.75}
    assert Check(1, (Scored("x", "a", 1.0, 1.0),), ()).coverage() is None


def test_intervals_widen_where_less_is_known() -> None:
    def spread(**changes: object) -> float:
        found, said = step_spread(run_of({**MEGATRON_22B, **changes}).scenario)
        assert "docs/accuracy.md" in said
        return found

    usual = spread()
    assert 0.1 < usual < 0.2
    assert spread(device="mi250x", source="x", attention="flash-2") > 1.5 * usual
    assert usual < spread(n_gpus=512, global_batch_seqs=256) < 1.1 * usual
    assert spread(n_experts=8, topk=2, expert_ffn=24576, source="x", attention="flash-2") > 1.2 * usual
