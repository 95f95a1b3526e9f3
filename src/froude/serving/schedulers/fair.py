"""Virtual Token Counter: the waiting client that has been served least is served next, whatever the others ask for.

A client is charged for prompt and generated tokens by weight; one that returns is lifted to the least charged of those
waiting. Work is never held back, and the difference in service between two clients that both wait stays bounded.
Otherwise it batches as vLLM V1 does, which the paper's S-LoRA does not: its cache is reserved, and never preempted.
Source: Sheng et al. (2024), Fairness in Serving Large Language Models, OSDI 2024, arXiv:2401.00588 (weights 1 and 2).
"""

from __future__ import annotations

from dataclasses import replace

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.serving.client_lines import ClientLines
from froude.serving.policy import Decision, View
from froude.serving.schedulers.vllm_v1 import VllmV1


class Fair(VllmV1):
    """vLLM V1 with a line for each client, the least served first."""

    name = "fair"
    source = Source("Sheng et al.", 2024, "Fairness in Serving Large Language Models", "arXiv:2401.00588")
    first_come = False

    def __init__(
        self,
        max_batched_tokens: int = 2048,
        max_seqs: int = 256,
        watermark: float = 0.0,
        input_weight: int = 1,
        output_weight: int = 2,
    ) -> None:
        super().__init__(max_batched_tokens, max_seqs, watermark)
        for name, weight in (("input_weight", input_weight), ("output_weight", output_weight)):
            if weight != int(weight) or weight < 0:
                raise InvalidValueError(name, weight, "is not a whole number of at least 0")
        self.service_weights = (int(input_weight), int(output_weight))

    def schedule(self, view: View) -> Decision:
        """As vLLM V1; it ends at every arrival, which may lift a client, and when another client comes first."""
        decision = super().schedule(view)
        iterations = decision.iterations
        if isinstance(view.waiting, ClientLines) and view.waiting:
            iterations = min(iterations, view.waiting.steady_iterations())
        return replace(decision, iterations=iterations, on_arrival=True)
