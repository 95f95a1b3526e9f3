"""Several engines that differ, behind routers: jumping equals stepping, and the routers do what they say."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from froude.serving.iteration import AffineIterationTime
from froude.serving.outcome import Worker
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.router import ROUTERS
from froude.serving.simulator import jump_fleet
from froude.serving.stepping import step_fleet

requests = st.lists(
    st.tuples(st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 2000)), st.integers(1, 60), st.integers(1, 40)),
    min_size=1,
    max_size=25,
)


def build(rows) -> list[Sequence]:
    now, out = 0, []
    for i, (gap, prompt, output) in enumerate(rows):
        now += gap
        out.append(Sequence(i, now, prompt, output))
    return out


workers = st.builds(
    Worker,
    st.builds(
        lambda name, seqs: SCHEDULERS.create(name, max_batched_tokens=32, max_seqs=seqs),
        st.sampled_from(SCHEDULERS.names()),
        st.integers(1, 6),
    ),
    st.builds(AffineIterationTime, st.integers(1, 50), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)),
    st.integers(8, 60),
    st.sampled_from([1, 4]),
)


@settings(max_examples=150, deadline=None)
@given(rows=requests, fleet=st.lists(workers, min_size=2, max_size=4), router=st.sampled_from(ROUTERS.names()))
def test_mixed_fleets(rows, fleet, router):
    # A queue has one order for a whole engine; engines of one fleet may have different ones.
    jumped = jump_fleet(build(rows), fleet, router=ROUTERS.create(router))
    stepped = step_fleet(build(rows), fleet, router=ROUTERS.create(router))
    assert jumped == stepped


@dataclass
class Load:
    outstanding: int = 0
    outstanding_tokens: int = 0


def test_by_tokens_counts_tokens():
    chosen = ROUTERS.create("least-tokens").route(Sequence(0, 0, 1, 1), [Load(1, 900), Load(3, 100), Load(2, 100)])
    assert chosen == 1


def test_weights():
    router = ROUTERS.create("weighted-least-outstanding", weights=[4.0, 1.0])
    loads = [Load(), Load()]
    for i in range(50):
        loads[router.route(Sequence(i, 0, 1, 1), loads)].outstanding += 1
    assert [load.outstanding for load in loads] == [40, 10]


def test_two_choices_are_far_more_even_than_one():
    router, loads = ROUTERS.create("power-of-two"), [Load() for _ in range(50)]
    for i in range(5000):
        loads[router.route(Sequence(i, 0, 1, 1), loads)].outstanding += 1
    assert max(load.outstanding for load in loads) <= 100 + 5  # one choice: about 100 + 25
    assert ROUTERS.create("power-of-two").route(Sequence(3, 0, 1, 1), [Load()]) == 0
