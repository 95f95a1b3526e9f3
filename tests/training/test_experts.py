"""Mixtures of experts, latent attention and 4-bit products in training steps."""

from __future__ import annotations

import numpy as np
import pytest

from froude.machines.cluster import parse_cluster
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.models.operator import Elementwise, Gather, Operator
from froude.timing.cost import Collective
from froude.timing.stack import find_stack
from froude.training.build import compositions, split_layers
from froude.training.plan import Job, Layout
from froude.training.step import PricedBatch, Scenario, predict, price_layouts

SEQ = 4096


def deepseek(mtp_layers: int = 0) -> Architecture:
    """DeepSeek-V3, with as many modules for further tokens."""
    return resolve("deepseek-ai/DeepSeek-V3").model_copy(update={"mtp_layers": mtp_layers})


def scenario(arch: Architecture, cluster: str, *, precision: str = "bf16", sequences: int = 256) -> Scenario:
    """A step of ``sequences`` sequences."""
    job = Job.parse({"seq_len": SEQ, "global_batch_tokens": sequences * SEQ, "precision": precision})
    return Scenario(arch, parse_cluster(cluster), job, find_stack("megatron"))


def priced(arch: Architecture, layout: Layout, cluster: str) -> PricedBatch:
    """The work of a layout."""
    (batch,) = price_layouts(scenario(arch, cluster), [layout])
    return batch


def matrix_flops(work: tuple[Operator | Collective, ...]) -> float:
    """FLOPs of products and attention; elementwise work is no part of a model's FLOPs."""
    return sum(
        float(np.ravel(item.flops * item.count)[0])
        for item in work
        if not isinstance(item, Collective | Elementwise | Gather)
    )


@pytest.mark.parametrize(("mtp_layers", "published"), [(0, 249.7e9), (1, 260.2e9)])
def test_flops_of_deepseek_v3_are_those_that_megatron_bridge_counts(mtp_layers: int, published: float) -> None:
    """Model TFLOP/s over tokens/s of its performance summary, without and with the module for a further token."""
    counted = 3.0 * deepseek(mtp_layers).flops_per_token(SEQ)
    assert counted == pytest.approx(published, rel=0.005)
    # 37B active parameters: 6ND and attention
    assert counted > 6 * 36.5e9


@pytest.mark.parametrize("mtp_layers", [0, 1])
def test_the_work_of_a_step_is_the_flops_of_the_model(mtp_layers: int) -> None:
    """Forward and backward passes of all blocks on one rank, against 6ND with causal attention."""
    arch = deepseek(mtp_layers)
    batch = priced(arch, Layout(data_parallel=64, expert_parallel=64, micro_batch=1), "h100-sxm:64")
    (piece,) = compositions(arch.layers, 1, 1, 3, mtp_layers)
    forward = sum(count * matrix_flops(batch.work.blocks[name].forward) for name, count in piece.items())
    backward = sum(count * matrix_flops(batch.work.blocks[name].backward) for name, count in piece.items())
    assert forward == pytest.approx(arch.flops_per_token(SEQ) * SEQ, rel=1e-3)
    # the backward pass of the fused attention makes five products where a model's FLOPs count four
    assert forward + backward == pytest.approx(3.0 * arch.flops_per_token(SEQ) * SEQ, rel=0.03)


def test_tensor_parallel_ranks_exchange_latents_and_copy_their_projections() -> None:
    """The widths of query_rank and cached channels travel, not the residual stream; both are whole on every rank."""
    arch = deepseek()
    assert arch.latent is not None
    width = arch.latent.query_rank + arch.latent.cached
    one = priced(arch, Layout(data_parallel=32, tensor_parallel=2, expert_parallel=32), "h100-sxm:64")
    layer = one.work.blocks["dense-layer"]
    opening = next(item for item in layer.forward if isinstance(item, Collective) and item.name == "tp-open")
    assert float(np.ravel(opening.bytes)[0]) == SEQ * width * 2.0
    down = next(item for item in layer.forward if isinstance(item, Operator) and item.name == "latent-down")
    assert float(np.ravel(down.flops)[0]) == SEQ / 2 * 2.0 * arch.hidden * width
    split = arch.dense_layer_parameters - arch.hidden * width
    assert float(np.ravel(layer.parameters)[0]) == split / 2 + arch.hidden * width


def test_pipelines_of_deepseek_v3_are_laid_out_as_published() -> None:
    """github.com/NVIDIA-NeMo/Megatron-Bridge, performance recipes: Et*4|(t*4|)*14tmL and Et|(tt|)*30mL."""
    assert split_layers(61, 16) == [*[4] * 15, 1]
    assert split_layers(61, 8) == [*[8] * 7, 5]
    assert split_layers(61, 32) == [1, *[2] * 30, 0]
    pieces = compositions(61, 4, 4, 3, 1)
    assert pieces[0] == {"layer": 1, "dense-layer": 3, "embedding": 1}
    assert pieces[-1] == {"layer": 1, "mtp": 1, "head": 1}


def test_fewer_bits_take_less_time_as_long_as_products_rule() -> None:
    """Half the bits are no half of the time: casts, attention, LM head and communication stay."""
    arch = resolve("meta-llama/Llama-3.1-70B")
    layout = Layout(data_parallel=8, tensor_parallel=2, pipeline_parallel=4, virtual_stages=5,
                    schedule="interleaved-1f1b")  # fmt: skip
    steps = [
        predict(scenario(arch, "gb200:64", precision=precision), [layout])[0].step_s
        for precision in ("bf16", "fp8", "nvfp4")
    ]
    assert steps[0] > steps[1] > steps[2] > steps[0] / 4
