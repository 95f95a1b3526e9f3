"""DeepSeek's learning rate: near-optimal rates fall as an eighth root of compute.

Compute is FLOPs per token without embeddings, attention included, times tokens; the schedule drops in steps.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library._power import Power


class DeepseekRate(Power):
    """lr = k C^a, a negative."""

    name = "deepseek-rate"
    source = Source("DeepSeek-AI", 2024, "DeepSeek LLM: Scaling Open-Source Language Models", "arXiv:2401.02954")
    form = "lr = k C^a; C = (72 n_layer d^2 + 12 n_layer d n_ctx) D"
    inputs = ("flops",)
    target = "learning_rate"
    unit = "1"
    scale = (1e-3, 1e2)
    exponent = (-0.5, 0.1)


def flops_per_token(layers: float, width: float, context: float) -> float:
    """The paper's M: training FLOPs per token without embeddings, with attention."""
    return 72.0 * layers * width**2 + 12.0 * layers * width * context
