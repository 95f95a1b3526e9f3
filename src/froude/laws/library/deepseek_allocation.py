"""DeepSeek's allocation: FLOPs per token and tokens, both powers of compute, from isoFLOP curves.

Better data move the exponent towards models: 0.450 on early data, 0.524 on later ones, 0.578 on OpenWebText2.
"""

from __future__ import annotations

from typing import Any

from froude.laws.law import Values
from froude.laws.library._power import Power
from froude.laws.library.deepseek_rate import DeepseekRate


class DeepseekAllocation(Power):
    """M* = k C^a, in training FLOPs per token."""

    name = "deepseek-allocation"
    source = DeepseekRate.source
    form = "M* = k C^a; M = 72 n_layer d^2 + 12 n_layer d n_ctx"
    inputs = ("flops",)
    target = "flops_per_token"
    unit = "FLOPs per token"
    scale = (1e-4, 1e4)
    exponent = (0.2, 0.9)

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """Tokens from the law; parameters as if attention were a small part of the FLOPs per token."""
        per_token = self.predict({"flops": flops}, coefficients)
        return {"params": per_token / 6.0, "tokens": flops / per_token}
