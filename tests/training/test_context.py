"""Sequences divided over ranks: what a ring and all-to-alls move, and that both compute the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.machines.cluster import Cluster
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.models.operator import Attention
from froude.timing.collectives import sent_bytes
from froude.timing.cost import Collective
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.search import parse_fixed
from froude.training.step import StepPrediction, predict, work_of_layouts
from froude.training.work import Work

SEQ = 32768
DENSE = resolve("megatron/gpt-7.5b")  # 32 heads, each with keys of its own
GROUPED = resolve("llama-3.1-8b")  # 32 heads, 8 of keys


def layout(ranks: int, exchange: str, *, tensor: int = 1, data: int = 1, **changes: object) -> Layout:
    fields = {"context_parallel": ranks, "tensor_parallel": tensor, "data_parallel": data, **changes}
    return Layout.model_validate({"zero_stage": 3, "recompute": "full", "context_exchange": exchange, **fields})


def scenario(arch: Architecture, used: Layout, **links: object) -> Scenario:
    cluster = Cluster.parse({"device": "a100-sxm-80gb", "count": used.devices, **links})
    job = Job(seq_len=SEQ, global_batch_tokens=SEQ * used.data_parallel)
    return Scenario(arch, cluster, job, find_stack("megatron"))


def layer(arch: Architecture, used: Layout) -> tuple[Work, Work, float]:
    """Forward and backward work of a layer without what is recomputed, and the bytes that it keeps."""
    used = used.model_copy(update={"recompute": "none"})
    block = work_of_layouts(scenario(arch, used), [used])[0].work.blocks["layer"]
    return block.forward, block.backward, float(block.saved_bytes[0])


def sent(work: Work) -> float:
    """Bytes that a rank sends around attention."""
    return sum(
        float((c.count * sent_bytes(c.kind, c.bytes, c.group.ranks))[0])
        for c in work
        if isinstance(c, Collective) and c.name.startswith("cp-")
    )


def step(arch: Architecture, used: Layout, **links: object) -> StepPrediction:
    return predict(scenario(arch, used, **links), [used])[0]


@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_volume_of_all_to_alls_is_the_published_one(ranks: int) -> None:
    # 3 N h for queries, keys and values and N h for the output, a P-th of it per link (Jacobs et al. 2023, 2309.14509);
    # of that a rank keeps its own P-th.
    forward, backward, _ = layer(DENSE, layout(ranks, "all-to-all"))
    published = 4 * SEQ * DENSE.hidden / ranks * 2
    assert sent(forward) == pytest.approx(published * (1 - 1 / ranks))
    assert sent(backward) == pytest.approx(sent(forward))
    around, _, _ = layer(DENSE, layout(ranks, "ring"))
    assert sent(around) == pytest.approx(2 * SEQ * DENSE.hidden * 2 * (1 - 1 / ranks))


@given(
    ranks=st.sampled_from([1, 2, 4, 8, 16]),
    tensor=st.sampled_from([1, 2]),
    arch=st.sampled_from([DENSE, GROUPED]),
)
def test_both_compute_the_same(ranks: int, tensor: int, arch: Architecture) -> None:
    ring, heads = (
        [float(op.flops[0]) for op in layer(arch, layout(ranks, kind, tensor=tensor))[0] if isinstance(op, Attention)]
        for kind in ("ring", "all-to-all")
    )
    assert heads == pytest.approx(ring)


def test_few_heads_of_keys_are_repeated() -> None:
    """8 heads of keys on 16 ranks: each needs one, so they are sent and kept twice."""
    for ranks, copies in ((8, 1), (16, 2)):
        forward, _, kept = layer(GROUPED, layout(ranks, "all-to-all"))
        keys = SEQ / ranks * GROUPED.kv_width * 2
        queries = SEQ / ranks * GROUPED.query_width * 2
        assert sent(forward) == pytest.approx((2 * queries + 2 * copies * keys) * (1 - 1 / ranks))
        assert kept - layer(GROUPED, layout(ranks, "ring"))[2] == pytest.approx(2 * (copies - 1) * keys)


def test_on_one_rank_nothing_differs() -> None:
    one, other = (step(DENSE, layout(1, kind, data=4)) for kind in ("ring", "all-to-all"))
    assert one.step_s == other.step_s
    assert one.peak_bytes == other.peak_bytes


def test_links_that_take_no_time_leave_no_difference() -> None:
    free = {"scaleup_bandwidth": 1e18, "scaleout_bandwidth": 1e18, "scaleup_latency_s": 0.0, "scaleout_latency_s": 0.0}
    ring, heads = (step(DENSE, layout(8, kind), **free) for kind in ("ring", "all-to-all"))
    assert heads.step_s == pytest.approx(ring.step_s, rel=0.02)


def test_all_to_alls_win_where_the_ring_does_not_hide_and_lose_where_it_does() -> None:
    def gain(**links: object) -> float:
        ring, heads = (step(DENSE, layout(16, kind), **links) for kind in ("ring", "all-to-all"))
        return ring.step_s / heads.step_s

    assert gain(scaleout_bandwidth=1e9) > 1.03
    assert gain(scaleout_bandwidth=2e11) < 1.0


@pytest.mark.parametrize(
    ("arch", "used", "sentence"),
    [
        (DENSE, layout(64, "all-to-all"), "context_parallel 64 does not divide heads 32"),
        (DENSE, layout(8, "all-to-all", tensor=8), "context_parallel 64 does not divide heads 32"),
        (resolve("deepseek-ai/DeepSeek-V3"), layout(8, "all-to-all"), "compresses"),
        (DENSE, layout(24, "ring"), "context_parallel 24 does not divide seq_len 32768"),
    ],
)
def test_what_cannot_be_divided_is_refused(arch: Architecture, used: Layout, sentence: str) -> None:
    assert sentence in str(scenario(arch, used).objection(used))
    if used.context_exchange != "ring":
        ring = used.model_copy(update={"context_exchange": "ring"})
        assert "heads" not in str(scenario(arch, ring).objection(ring))


def test_a_search_can_be_told() -> None:
    assert parse_fixed("cp=8,context_exchange=all-to-all") == {"context_parallel": 8, "context_exchange": "all-to-all"}
    assert "all-to-all" in layout(8, "all-to-all").describe()
