"""Mixtures of experts, latent attention and 4-bit products in training steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.machines.cluster import Group, parse_cluster
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.models.operator import Elementwise, Gather, Operator
from froude.timing.collectives import level_bytes
from froude.timing.cost import Collective
from froude.timing.stack import find_stack
from froude.training.build import compositions, split_layers
from froude.training.experts import distinct
from froude.training.plan import Job, Layout
from froude.training.runs import run_of
from froude.training.scenario import Scenario
from froude.training.step import PricedBatch, predict, price_layouts

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
    (piece,) = compositions((arch.layers,), 3, mtp_layers)
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
    assert split_layers(61, 16) == (*[4] * 15, 1)
    assert split_layers(61, 8) == (*[8] * 7, 5)
    assert split_layers(61, 32) == (1, *[2] * 30, 0)
    pieces = compositions(split_layers(61, 16), 3, 1)
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


# -- routing, permutation, exchange ------------------------------------------------------------------------------------

SPREAD = Layout(data_parallel=64, expert_parallel=64)


def step_s(cluster: str = "gb200:64", layout: Layout = SPREAD, precision: str = "fp8", **mechanisms: str) -> float:
    """Seconds of a step of Qwen3-235B under the nemo stack with some mechanisms exchanged."""
    here = scenario(resolve("Qwen/Qwen3-235B-A22B"), cluster, precision=precision)
    here = replace(here, stack=find_stack("nemo-te").but(**mechanisms))
    return predict(here, [layout])[0].step_s


def test_every_mechanism_helps() -> None:
    """Each does less work, moves fewer bytes or hides some of them."""
    plain = step_s()
    assert step_s(permutation="eager") > plain
    assert step_s(dispatch="deduplicated") < plain
    assert step_s(exchange_overlap="interleaved") < plain
    assert step_s(experts="fused") < plain
    small = {"layout": Layout(data_parallel=64, expert_parallel=8), "cluster": "b200:64"}
    hosts = [step_s(**small, host=host, routing=routing) for host, routing in (
        ("eager", "synchronised"), ("partial-graphs", "synchronised"), ("graphs", "on-device"))]  # fmt: skip
    assert hosts[0] > hosts[1] > hosts[2]


@given(domains=st.integers(1, 64), picks=st.integers(1, 16), domain=st.sampled_from([2, 4, 8, 72]))
def test_a_token_is_sent_once_to_a_rank(domains: int, picks: int, domain: int) -> None:
    """Fewer bytes than a copy per choice, over the network above all, and as many with a single choice."""
    ranks = domains * domain
    group = Group(ranks, 1)
    up, out = level_bytes("all-to-all", 1.0, group, domain, picks)
    plain_up, plain_out = level_bytes("all-to-all", 1.0, group, domain)
    assert out <= plain_out * (1 + 1e-9) + 1e-9
    if domain >= ranks:
        assert up <= plain_up * (1 + 1e-9)
        assert picks > 1 or up == pytest.approx(plain_up)
    assert 1.0 <= distinct(ranks, picks) * (1 + 1e-9) <= min(ranks, picks) * (1 + 1e-6) + 1e-6


def test_experts_that_are_cut_hold_less_and_exchange_further_apart() -> None:
    """Grok-1 was published both ways; 4 ranks that share an expert leave its exchange to ranks 4 apart."""
    arch = resolve("Qwen/Qwen3-235B-A22B")
    base = {"data_parallel": 8, "tensor_parallel": 4, "expert_parallel": 8}
    whole, cut = (
        priced(arch, Layout.parse({**base, "expert_tensor_parallel": ways}), "h100-sxm:32").work.blocks["layer"]
        for ways in (1, 4)
    )
    assert float(np.ravel(cut.expert_parameters)[0]) == float(np.ravel(whole.expert_parameters)[0]) / 4
    assert matrix_flops(cut.forward) == pytest.approx(matrix_flops(whole.forward), rel=1e-6)
    sent = {item.name: item for item in cut.forward if isinstance(item, Collective)}
    assert float(np.ravel(sent["ep-dispatch"].group.stride)[0]) == 4
    assert float(np.ravel(sent["ep-gather"].bytes)[0]) == 4 * float(np.ravel(sent["ep-dispatch"].bytes)[0])
    refused = Layout.parse({**base, "expert_tensor_parallel": 3})
    assert "expert_tensor_parallel 3" in str(scenario(arch, "h100-sxm:32").objection(refused))


def test_recipes_say_what_ran() -> None:
    """By model, device, precision and release; a row's own words prevail."""
    row = {
        "id": "1", "source": "NVIDIA Megatron-Bridge performance summary", "model": "deepseek_v3", "device": "gb200",
        "n_gpus": 256, "layers": 61, "hidden": 7168, "heads": 128, "kv_heads": 128, "ffn": 18432, "vocab": 129280,
        "seq": 4096, "n_experts": 256, "topk": 8, "expert_ffn": 2048, "precision": "MXFP8", "tp": 1, "pp": 4, "vpp": 4,
        "cp": 1, "ep": 64, "sp": 0, "micro_batch": 1, "global_batch_seqs": 4096, "zero_stage": 1,
    }  # fmt: skip
    new = run_of({**row, "notes": "26.06.01 NeMo Container; dropless"})
    old = run_of({**row, "notes": "26.04 NeMo Container; dropless; w/o MTP"})
    assert (new.stack.host, new.stack.experts, new.architecture.mtp_layers) == ("graphs", "fused", 1)
    assert (old.stack.host, old.stack.experts, old.architecture.mtp_layers) == ("partial-graphs", "streams", 0)
