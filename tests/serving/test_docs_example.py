"""The scheduler shown in docs/serving.md works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from froude.core.registry import Source
from froude.serving.iteration import AffineIterationTime
from froude.serving.policy import Decision, Scheduler, Sequence
from froude.serving.simulator import jump
from froude.serving.stepping import step


def test_the_scheduler_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    code = re.search(r"```python\n(class LastComeFirst.*?)```", text, re.DOTALL)
    assert code is not None
    names = {"Scheduler": Scheduler, "Source": Source, "Decision": Decision}
    exec(code.group(1), names)
    scheduler = names["LastComeFirst"](max_batched_tokens=64, max_seqs=4)

    def load():
        return [Sequence(i, 40 * (i % 7), 10 + i % 5, 20 + 3 * (i % 4)) for i in range(28)]

    def trace():
        ordered = sorted(load(), key=lambda s: (s.arrival_ps, s.id))
        return [Sequence(i, s.arrival_ps, s.prompt_tokens, s.output_tokens) for i, s in enumerate(ordered)]

    time = AffineIterationTime(5, 1, 1)
    assert jump(trace(), scheduler, time, 24, 4) == step(trace(), scheduler, time, 24, 4)
    done = jump(trace(), scheduler, time, 24, 4)
    assert min(done.finish_ps) > 0 and sum(done.preemptions) > 0
