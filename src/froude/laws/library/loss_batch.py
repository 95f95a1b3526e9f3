"""Critical batch against loss: the noise of gradients outgrows them as loss falls, whatever the size of the model.

Kaplan's B_crit = B_* / L^(1 / alpha_B), for the batch that divides saving of steps from saving of data; MiniCPM's best
batch has the same form. `critical-batch` and `time-transfer` say that data, not loss, decide.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library._power import Power


class LossBatch(Power):
    """B = k L^a, in tokens; a is negative."""

    name = "loss-batch"
    source = Source("Kaplan et al.", 2020, "Scaling Laws for Neural Language Models", "arXiv:2001.08361", catalogue=31)
    form = "B = k L^a"
    inputs = ("loss",)
    target = "batch_tokens"
    unit = "tokens"
    scale = (1e6, 1e11)
    exponent = (-8.0, -1.0)
