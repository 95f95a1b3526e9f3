"""ZeRO++: volumes as the paper counts them, gain that emerges, and the controls that must take it away."""

from __future__ import annotations

import pytest

from froude.core.errors import FroudeError
from froude.machines.cluster import Cluster, parse_cluster
from froude.models.catalogue import resolve
from froude.timing.collectives import level_bytes
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import StepPrediction, predict, price_layouts
from froude.training.technique import techniques
from froude.training.work import StepWork

SEQ = 2048
OFF = {"qwz": False, "hpz": False, "qgz": False}


def scenario(cluster: Cluster, knobs: dict[str, object] | None = None) -> Scenario:
    used = () if knobs is None else (techniques.create("zero-plus-plus", **knobs),)
    job = Job(seq_len=SEQ, global_batch_tokens=SEQ * cluster.count, precision="bf16")
    return Scenario(resolve("meta-llama/Llama-2-13b-hf"), cluster, job, find_stack("fsdp"), used)


def layout(cluster: Cluster, **changes: object) -> Layout:
    return Layout.model_validate({"data_parallel": cluster.count, "zero_stage": 3, "recompute": "full", **changes})


def step(cluster: Cluster, knobs: dict[str, object] | None = None, **changes: object) -> StepPrediction:
    return predict(scenario(cluster, knobs), [layout(cluster, **changes)])[0]


def slow(count: int = 64, bandwidth: float = 1.5e9, **changes: object) -> Cluster:
    """Nodes of eight A100 with little network between them."""
    return Cluster.parse({"device": "a100-sxm-80gb", "count": count, "scaleout_bandwidth": bandwidth, **changes})


def work(cluster: Cluster, knobs: dict[str, object] | None) -> StepWork:
    return price_layouts(scenario(cluster, knobs), [layout(cluster)])[0].work


def between_nodes(found: StepWork, cluster: Cluster) -> dict[str, float]:
    """Bytes per parameter of a layer that leave a node through one port, for each synchronisation."""
    total = {}
    for name in ("gather_forward", "gather_backward", "reduce"):
        sync = getattr(found, name)
        moved = sum(
            float(level_bytes(c.kind, c.bytes, c.group, cluster.scaleup_domain)[1][0])
            for c in sync.collectives["layer"]
        )
        total[name] = moved / float(found.blocks["layer"].parameters[0])
    return total


def test_traffic_between_nodes_is_what_the_paper_counts() -> None:
    # Table 1 of the paper, in units of the model's 16-bit size: ZeRO-3 moves 1 + 1 + 1, ZeRO++ 0.5 + 0 + 0.25.
    cluster = slow()
    before, after = between_nodes(work(cluster, None), cluster), between_nodes(work(cluster, {}), cluster)
    assert after["gather_forward"] / before["gather_forward"] == pytest.approx(0.5, rel=1e-2)
    assert after["gather_backward"] == 0.0
    assert after["reduce"] / before["reduce"] == pytest.approx(0.25, rel=1e-2)
    assert sum(before.values()) / sum(after.values()) == pytest.approx(4.0, rel=1e-2)


def test_everything_off_gives_exactly_the_baseline() -> None:
    before, after = step(slow()), step(slow(), OFF)
    assert after.step_s == before.step_s
    assert after.peak_bytes == before.peak_bytes


def test_a_slow_network_makes_it_pay_and_each_mechanism_adds() -> None:
    cluster = slow()
    base = step(cluster).step_s
    gains = {name: base / step(cluster, {**OFF, name: True}).step_s for name in ("qwz", "hpz", "qgz")}
    assert all(gain > 1.05 for gain in gains.values()), gains
    assert base / step(cluster, {}).step_s > max(gains.values())


def test_larger_micro_batches_need_it_less() -> None:
    cluster = slow()
    gains = []
    for micro_batch in (1, 4):
        one = scenario(cluster)
        many = scenario(cluster, {})
        job = Job(seq_len=SEQ, global_batch_tokens=SEQ * cluster.count * micro_batch)
        where = layout(cluster, micro_batch=micro_batch)
        times = [
            predict(Scenario(s.architecture, s.cluster, job, s.stack, s.techniques), [where])[0].step_s
            for s in (one, many)
        ]
        gains.append(times[0] / times[1])
    assert gains[0] > gains[1] > 1.0


def test_infinite_links_leave_only_the_cost_of_quantising() -> None:
    fast = slow(bandwidth=1e18, scaleup_bandwidth=1e18, scaleup_latency_s=0.0, scaleout_latency_s=0.0)
    gain = step(fast).step_s / step(fast, {}).step_s
    assert 0.9 < gain < 1.0
    # With the links inside the nodes as they are, narrower types save a little there.
    between = slow(bandwidth=1e18, scaleout_latency_s=0.0)
    assert step(between).step_s / step(between, {}).step_s < 1.05


def test_on_one_node_the_second_copy_is_nothing() -> None:
    node = parse_cluster("a100-sxm-80gb:8")
    with_copy, without = step(node, {"hpz": True}), step(node, {"hpz": False})
    assert with_copy.step_s == without.step_s
    assert with_copy.peak_bytes == without.peak_bytes


def test_the_second_copy_costs_the_weights_over_the_ranks_of_a_node() -> None:
    cluster = slow()
    before, after = step(cluster, {**OFF}), step(cluster, {**OFF, "hpz": True})
    parts = after.ledger(own_machine=False).stages[0]
    assert parts["secondary weights"] == pytest.approx(2.0 * resolve("meta-llama/Llama-2-13b-hf").parameters / 8)
    assert after.peak_bytes == pytest.approx(before.peak_bytes + parts["secondary weights"])


def test_finer_groups_move_more_scales() -> None:
    cluster = slow()
    fine, coarse = (between_nodes(work(cluster, {"group_size": size}), cluster) for size in (64, 4096))
    assert fine["reduce"] > 1.1 * coarse["reduce"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zero_stage": 1}, "zero-plus-plus: needs zero_stage 3, and the layout has zero_stage 1"),
        ({"data_parallel": 1, "tensor_parallel": 8}, "needs data_parallel of 2 or more"),
    ],
)
def test_says_what_it_needs(changes: dict[str, object], said: str) -> None:
    with pytest.raises(FroudeError, match=said):
        step(parse_cluster("a100-sxm-80gb:8"), {}, **changes)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"hpx": True}, "did you mean 'hpz'"),
        ({"weights_dtype": "int3"}, "did you mean 'int"),
        ({"group_size": 0}, "group_size: 0 is not valid"),
        ({"hpz": "perhaps"}, "hpz: 'perhaps' is not valid"),
    ],
)
def test_bad_knobs_are_one_sentence(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(FroudeError, match=said):
        techniques.create("zero-plus-plus", **knobs)
