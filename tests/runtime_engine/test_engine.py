"""The engine generates what the plain model does, whatever the policy; and keeps the simulator's time."""

from __future__ import annotations

import random
from functools import cache

import pytest

torch = pytest.importorskip("torch")

from froude.core.errors import FroudeError  # noqa: E402
from froude.models.architecture import Architecture  # noqa: E402
from froude.runtime.engine.cache import BlockPool  # noqa: E402
from froude.runtime.engine.calibration import FittedIterationTime  # noqa: E402
from froude.runtime.engine.engine import Engine, Step  # noqa: E402
from froude.runtime.models.llama import Llama, random_llama  # noqa: E402
from froude.serving.outcome import Swap  # noqa: E402
from froude.serving.policy import SCHEDULERS, Sequence  # noqa: E402
from froude.serving.prefix_cache import PREFIX_CACHES  # noqa: E402
from froude.serving.simulator import jump  # noqa: E402

TINY = Architecture(name="tiny", layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, vocab=256)
BLOCK_TOKENS = 4
TIME = FittedIterationTime(3_000_000, 500_000, 150_000, 1_100, 300_000, 70_000, 107)
_RANDOM = random.Random(0)
_SHARED = [_RANDOM.randrange(256) for _ in range(40)]  # every other prompt begins with some of it
REQUESTS = [
    (
        _SHARED[: 10 * (i % 5) * (i % 2)]
        + [_RANDOM.randrange(256) for _ in range(_RANDOM.randint(1, 20 + 40 * (i % 2 == 0)))],
        _RANDOM.randint(1, 30),
    )
    for i in range(16)
]
SWAP = Swap(100, 700_000, 50_000)


@cache
def model() -> Llama:
    torch.set_num_threads(1)
    return random_llama(TINY, seed=1)


@cache
def expected() -> list[list[int]]:
    """Greedy continuations by the whole model, without any cache."""
    outputs = []
    with torch.inference_mode():
        for prompt, count in REQUESTS:
            ids = list(prompt)
            for _ in range(count):
                ids.append(int(model()(torch.tensor([ids]))[0, -1].argmax()))
            outputs.append(ids[len(prompt) :])
    return outputs


def sequences() -> list[Sequence]:
    """Hashes are of the tokens themselves, units of 8 chained."""
    return [
        Sequence(
            i,
            i * 20_000_000,
            len(prompt),
            count,
            prefix=tuple(hash(tuple(prompt[: end + 8])) for end in range(0, len(prompt), 8)),
            client=i % 3,
        )
        for i, (prompt, count) in enumerate(REQUESTS)
    ]


def serve(
    name: str, blocks: int, host_blocks: int = 0, prefixes: str | None = None
) -> tuple[Engine, list[Sequence], list[Step], dict[int, int], dict[int, int]]:
    """Serve all requests, time being what the iteration time says, and copies to host memory and back."""
    scheduler = SCHEDULERS.create(name, max_batched_tokens=32, max_seqs=6)
    cache = PREFIX_CACHES[prefixes](blocks, BLOCK_TOKENS, 2 * BLOCK_TOKENS) if prefixes else None
    host = BlockPool(TINY, host_blocks, BLOCK_TOKENS) if host_blocks else None
    engine = Engine(model(), scheduler, BlockPool(TINY, blocks, BLOCK_TOKENS), cache, host)
    todo, steps = sequences(), []
    copying = 0
    first: dict[int, int] = {}
    finish: dict[int, int] = {}
    now, arrived = 0, 0
    while True:
        while arrived < len(todo) and todo[arrived].arrival_ps <= now:
            engine.arrive(todo[arrived], REQUESTS[arrived][0])
            arrived += 1
        step = engine.step(now)
        steps.append(step)
        moved = (*step.iteration.swapped_out, *step.iteration.swapped_in)
        copying += sum(SWAP.copy_ps(blocks) for _, blocks in moved)
        if step.idle:
            if step.iteration.preempted:
                continue
            if arrived == len(todo):
                return engine, todo, steps, first, finish
            now = todo[arrived].arrival_ps
            continue
        now += copying + TIME.segment(len(step.iteration.decoding), step.context_tokens, step.prompts)[0]
        copying = 0
        for sequence in step.emitted:
            first.setdefault(sequence.id, now)
        for sequence in step.finished:
            finish[sequence.id] = now


RESERVING = ("orca", "s3", "static", "tensorrt-llm")  # cache for the whole output is set aside at admission


@pytest.mark.parametrize("blocks", [200, 30, 24])
@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_same_outputs_under_every_policy(name: str, blocks: int) -> None:
    engine, todo, steps, _, _ = serve(name, blocks)
    assert [engine.output(sequence) for sequence in todo] == expected()
    assert engine.pool.free_blocks == blocks
    preempted = sum(len(step.iteration.preempted) for step in steps)
    if blocks == 24 and name not in RESERVING:
        assert preempted > 0, "the small cache was meant to force preemptions"
    if (blocks == 200 and name != "preemptive-priority") or name == "orca":  # it preempts for want of places, too
        assert preempted == 0


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_the_simulator_takes_the_same_decisions_at_the_same_times(name: str) -> None:
    """To the bit: one policy, one iteration time, a real model here and jumps there."""
    _, _, steps, first, finish = serve(name, 24)
    scheduler = SCHEDULERS.create(name, max_batched_tokens=32, max_seqs=6)
    outcome = jump(sequences(), scheduler, TIME, 24, BLOCK_TOKENS)
    assert outcome.first_ps == [first[i] for i in range(len(REQUESTS))]
    assert outcome.finish_ps == [finish[i] for i in range(len(REQUESTS))]
    assert sum(outcome.preemptions) == sum(len(step.iteration.preempted) for step in steps)
    assert outcome.iterations == sum(not step.idle for step in steps)


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_swapped_sequences_go_on_where_they_were(name: str) -> None:
    """The same outputs; no prompt token is computed twice; and the simulator agrees to the bit."""
    engine, todo, steps, first, finish = serve(name, 24, host_blocks=SWAP.host_blocks)
    assert [engine.output(sequence) for sequence in todo] == expected()
    assert engine.host is not None and engine.host.free_blocks == SWAP.host_blocks
    if name not in RESERVING:
        assert sum(step.copied[0] for step in steps) > 0
    computed = sum(tokens for step in steps for tokens, _ in step.prompts) + sum(
        len(s.iteration.decoding) for s in steps
    )
    assert computed == sum(len(prompt) + count - 1 for prompt, count in REQUESTS)
    scheduler = SCHEDULERS.create(name, max_batched_tokens=32, max_seqs=6)
    outcome = jump(sequences(), scheduler, TIME, 24, BLOCK_TOKENS, swap=SWAP)
    assert outcome.first_ps == [first[i] for i in range(len(REQUESTS))]
    assert outcome.finish_ps == [finish[i] for i in range(len(REQUESTS))]


@pytest.mark.parametrize("kind", PREFIX_CACHES)
@pytest.mark.parametrize("blocks", [200, 30, 24])
@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_prompts_found_again_change_no_output(name: str, blocks: int, kind: str) -> None:
    """The same outputs from blocks that others computed; and the simulator agrees to the bit."""
    engine, todo, _, first, finish = serve(name, blocks, prefixes=kind)
    assert [engine.output(sequence) for sequence in todo] == expected()
    cache = engine.stepper.cache
    assert cache is not None
    if blocks == 200:
        assert cache.hit_tokens > 0
    engine._kept.forget_evicted()
    assert engine.pool.free_blocks == cache.empty == blocks - len(cache.idle) * cache.unit_blocks
    scheduler = SCHEDULERS.create(name, max_batched_tokens=32, max_seqs=6)
    outcome = jump(sequences(), scheduler, TIME, blocks, BLOCK_TOKENS, prefix_unit_tokens=8, prefixes=kind)
    assert outcome.first_ps == [first[i] for i in range(len(REQUESTS))]
    assert outcome.finish_ps == [finish[i] for i in range(len(REQUESTS))]
    assert outcome.hit_tokens == cache.hit_tokens


def test_requests_that_can_never_run_are_refused() -> None:
    scheduler = SCHEDULERS.create("vllm-v1", max_batched_tokens=32, max_seqs=6)
    engine = Engine(model(), scheduler, BlockPool(TINY, 4, BLOCK_TOKENS))
    with pytest.raises(FroudeError, match="kv_blocks"):
        engine.check(Sequence(0, 0, 20, 8))
    with pytest.raises(FroudeError, match="positions"):
        engine.check(Sequence(0, 0, TINY.max_positions, 1))
