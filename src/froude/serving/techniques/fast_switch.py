"""FastSwitch: swapping in few large copies, beside the computation, and without copying twice what has not changed.

Blocks of a sequence lie next to each other in groups, so that a copy is launched per group and layer instead of per
block and layer; worker threads launch them while the engine goes on; and host memory keeps what was copied there, so
that a sequence swapped out again copies new blocks only. It changes what `--swap-space` costs, not who is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.serving.outcome import Swap
from froude.serving.technique import ServingContext, ServingTechnique


@dataclass(frozen=True)
class FastSwitch(ServingTechnique):
    """Knobs: blocks of a group (``group_blocks``; the paper's groups hold about 20), ``overlap`` and ``reuse``.

    An iteration lasts at least as long as the copies before it; the authors' engine lets a sequence whose copy takes
    longer join a later one. Groups split when memory is scarce; here they keep their size.
    """

    name = "fast-switch"
    source = Source(
        "Shen et al.",
        2024,
        "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving",
        "arXiv:2411.18424",
        catalogue=65,
    )
    quality = "exact: the same cache, copied otherwise"

    group_blocks: Annotated[int, Field(ge=1)] = 20
    overlap: bool = True
    reuse: bool = True

    def rewrite_swap(self, swap: Swap | None, context: ServingContext) -> Swap | None:
        """Larger copies, hidden, and fewer."""
        if swap is None:
            raise InvalidValueError("technique", self.name, "needs preemption by swapping; give swap_space")
        return replace(swap, group_blocks=self.group_blocks, overlap=self.overlap, reuse=self.reuse)
