"""DeepSeek's batch: near-optimal batches grow as a third power of compute.

Compute is counted as in `deepseek-rate`.
"""

from __future__ import annotations

from froude.laws.library._power import Power
from froude.laws.library.deepseek_rate import DeepseekRate


class DeepseekBatch(Power):
    """B = k C^a, in tokens."""

    name = "deepseek-batch"
    source = DeepseekRate.source
    form = "B = k C^a; C = (72 n_layer d^2 + 12 n_layer d n_ctx) D"
    inputs = ("flops",)
    target = "batch_tokens"
    unit = "tokens"
    scale = (1e-4, 1e4)
    exponent = (0.0, 0.8)
