"""The `Technique` contract: a published method that can be switched on for a plan.

What a technique may rewrite depends on the room: see `froude.training.technique` and `froude.serving.technique`. The
speed-up its paper reports appears nowhere in it; it must emerge from what the rewriting does to bytes, FLOPs, order of
work and waiting.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from froude.core.registry import Source


class Technique(ABC):
    """Base of all techniques. Knobs are dataclass fields with defaults from the paper.

    Attributes:
        name: as on the command line.
        source: where it was published.
        quality: what is known of its effect on the model's quality.
        conflicts: names of techniques it cannot be combined with.
    """

    name: ClassVar[str]
    source: ClassVar[Source]
    quality: ClassVar[str]
    conflicts: ClassVar[frozenset[str]] = frozenset()
