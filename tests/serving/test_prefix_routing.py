"""Prefix-aware routing: what a router remembers, against every prefix that each replica was ever sent."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from froude.serving.policy import Sequence
from froude.serving.routers.prefix_aware import PrefixAware


@dataclass
class Load:
    outstanding: int
    outstanding_tokens: int = 0


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Hashes of prompts, each perhaps beginning as one before it did: a hash stands for all that is before it too."""
    made: list[tuple[int, ...]] = [()]
    fresh = 0
    for _ in range(draw(st.integers(1, 25))):
        begun = draw(st.sampled_from(made))
        begun = begun[: draw(st.integers(0, len(begun)))]
        more = draw(st.integers(0, 6))
        made.append((*begun, *range(fresh, fresh + more)))
        fresh += more
    return made


@given(prompts(), st.data())
def test_a_request_follows_the_longest_prefix_that_was_sent(made, data):
    router, replicas = PrefixAware(margin=4), data.draw(st.integers(2, 5))
    sent: list[set[tuple[int, ...]]] = [set() for _ in range(replicas)]
    for i, prompt in enumerate(made):
        loads = data.draw(st.lists(st.integers(0, 8), min_size=replicas, max_size=replicas))
        shared = [max(n for n in range(len(prompt) + 1) if not n or prompt[:n] in have) for have in sent]
        balanced = max(loads) - min(loads) <= 4 or max(loads) <= 1.1 * min(loads)
        follows = balanced and max(shared) > len(prompt) / 2
        able = [r for r in range(replicas) if not follows or shared[r] == max(shared)]
        chosen = router.route(Sequence(i, 0, 8, 1, prefix=prompt), [Load(n) for n in loads])
        assert chosen == min(able, key=lambda r: (loads[r], r))
        sent[chosen].update(prompt[: n + 1] for n in range(len(prompt)))
