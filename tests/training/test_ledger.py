"""The memory ledger: what it must do whatever its constants, and published measurements it must come near."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.architecture import Architecture
from froude.timing.stack import find_stack
from froude.training.ledger import Ledger, memory_constants, probability_of_fit
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import predict

MODEL = Architecture.parse({"name": "small", "layers": 8, "hidden": 1024, "heads": 16, "ffn": 4096, "vocab": 32000})
GIB = 2.0**30


def ledger(
    stack: str = "megatron", mechanisms: dict[str, str] | None = None, seq_len: int = 2048, **layout: Any
) -> Ledger:
    chosen = Layout(**{"data_parallel": 1, "sequence_parallel": False, **layout})
    cluster = parse_cluster(f"a100-sxm-80gb:{chosen.devices}")
    job = Job(seq_len=seq_len, global_batch_tokens=64 * seq_len)
    scenario = Scenario(MODEL, cluster, job, find_stack(stack).but(**(mechanisms or {})))
    return predict(scenario, [chosen])[0].ledger(own_machine=False)


@settings(max_examples=15, deadline=None)
@given(
    micro_batch=st.sampled_from([1, 2, 4]),
    tensor=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2, 4]),
    zero=st.sampled_from([0, 1, 2]),
    recompute=st.sampled_from(["none", "selective", "full"]),
)
def test_more_work_takes_more_and_more_division_less(
    micro_batch: int, tensor: int, pipeline: int, zero: int, recompute: str
) -> None:
    at: dict[str, Any] = {
        "data_parallel": 2,
        "tensor_parallel": tensor,
        "pipeline_parallel": pipeline,
        "micro_batch": micro_batch,
        "zero_stage": zero,
        "recompute": recompute,
    }
    here = ledger(**at).bytes_of("allocated")
    assert ledger(**{**at, "micro_batch": 2 * micro_batch}).bytes_of("allocated") > here
    assert ledger(**at, seq_len=4096).bytes_of("allocated") > here
    assert ledger(**{**at, "tensor_parallel": 2 * tensor}).bytes_of("allocated") < here
    assert ledger(**{**at, "zero_stage": zero + 1 if zero < 2 else zero}).bytes_of("allocated") <= here
    if recompute != "full":
        assert ledger(**{**at, "recompute": "full"}).bytes_of("allocated") < here
    if tensor > 1:
        split = ledger(**{**at, "sequence_parallel": True})
        assert split.stages[0]["weights"] == ledger(**at).stages[0]["weights"]


def test_what_a_stack_keeps_is_what_its_mechanisms_say() -> None:
    plain = ledger().stages[0]
    tokens, vocab = 2048.0, MODEL.vocab
    losses = {
        loss: ledger(mechanisms={"loss": loss}).stages[0]["activations"]
        for loss in ("fused", "in-place", "copied", "library")
    }
    assert losses["in-place"] - losses["fused"] == pytest.approx(2 * tokens * vocab)
    assert losses["copied"] - losses["in-place"] == pytest.approx(4 * tokens * vocab)
    assert losses["library"] - losses["copied"] == pytest.approx(4 * tokens * vocab)
    masks = ledger(mechanisms={"dropout": "masks"}).stages[0]["activations"]
    assert masks - plain["activations"] == pytest.approx(2 * MODEL.layers * tokens * MODEL.hidden)
    parameters = plain["weights"] / 2.0
    assert plain["gradients"] == 4 * parameters
    assert ledger(mechanisms={"gradients_held": "compute"}).stages[0]["gradients"] == 2 * parameters
    assert ledger(mechanisms={"gradients_held": "deepspeed"}).stages[0]["gradients"] == 6 * parameters


def test_gathered_logits_do_not_shrink_with_tensor_parallelism() -> None:
    def head(tensor: int, logits: str) -> float:
        mechanisms = {"loss": "library", "logits": logits}
        with_loss = ledger(mechanisms=mechanisms, tensor_parallel=tensor, recompute="full").stages[0]["activations"]
        without = ledger(mechanisms={**mechanisms, "loss": "copied"}, tensor_parallel=tensor, recompute="full").stages[
            0
        ]["activations"]
        return with_loss - without

    assert head(4, "split") == pytest.approx(head(1, "split") / 4)
    assert head(4, "gathered") == pytest.approx(head(1, "gathered"))


def test_inputs_kept_as_gathered_undo_sequence_parallelism_for_them() -> None:
    layout = {"tensor_parallel": 4, "sequence_parallel": True}
    kept = ledger(mechanisms={"sequence_inputs": "kept"}, **layout).stages[0]["activations"]
    again = ledger(**layout).stages[0]["activations"]
    # the inputs of two products a layer, 2 bytes an element, whole instead of a quarter
    assert kept - again == pytest.approx(MODEL.layers * 2 * 2.0 * 2048 * MODEL.hidden * 3 / 4)


def test_kinds_of_measurement_see_more_and_more() -> None:
    book = ledger(tensor_parallel=2, pipeline_parallel=2)
    allocated, reserved, device = (book.bytes_of(kind) for kind in ("allocated", "reserved", "device"))
    assert allocated < reserved < device
    constants = memory_constants()
    # tensor parallel, pipeline parallel, the ends' shared weights, all ranks
    assert device - reserved == pytest.approx(constants.runtime_bytes + 4 * constants.communicator_bytes)
    assert ledger().stages[0]["runtime"] == constants.runtime_bytes
    assert ledger(stack="maxtext").bytes_of("device") == pytest.approx(
        sum(size for part, size in ledger(stack="maxtext").stages[0].items())
    )
    assert "allocator" not in ledger(stack="maxtext").stages[0]


@given(st.floats(1e9, 3e11))
def test_probability_of_fit_falls_with_need(peak: float) -> None:
    here, more = probability_of_fit(peak, 80 * GIB), probability_of_fit(peak * 1.1, 80 * GIB)
    assert float(here) >= float(more)
    assert float(probability_of_fit(80 * GIB, 80 * GIB)) == pytest.approx(0.5)


def test_a_published_peak_of_megatrons_tests() -> None:
    # tests/functional_tests/test_cases/gpt/gpt3_mcore_te_tp1_pp1_dist_optimizer_no_mmap_bin_files of
    # github.com/NVIDIA/Megatron-LM: 12 layers of 512, 8 sequences of 1024 over 8 A100 in micro-batches of 4, unfused
    # attention, dropout. "mem-max-allocated-bytes" on A100.
    model = Architecture.parse(
        {
            "name": "gpt", "layers": 12, "hidden": 512, "heads": 8, "ffn": 2048, "vocab": 50304, "gated": False,
            "norm": "layer", "positions": "learned", "max_positions": 1024, "tied_embeddings": True,
        }
    )  # fmt: skip
    stack = find_stack("megatron").but(attention="fused-softmax", accumulation="separate", dropout="masks")
    scenario = Scenario(
        model, parse_cluster("a100-sxm-80gb:8"), Job(seq_len=1024, global_batch_tokens=32 * 1024), stack
    )
    layout = Layout(data_parallel=8, micro_batch=4, sequence_parallel=False)
    book = predict(scenario, [layout])[0].ledger(own_machine=False)
    assert book.bytes_of("allocated") == pytest.approx(4_673_069_568, rel=0.02)


def test_uneven_stages_hold_what_the_plan_says() -> None:
    even = ledger(pipeline_parallel=4, zero_stage=0)
    uneven = ledger(pipeline_parallel=4, zero_stage=0, stage_layers=(1, 3, 3, 1))
    assert even == ledger(pipeline_parallel=4, zero_stage=0, stage_layers=(2, 2, 2, 2))
    assert uneven.bytes_of("allocated", 3) < even.bytes_of("allocated", 3)
    assert uneven.bytes_of("allocated", 1) > even.bytes_of("allocated", 1)
    for wrong, why in (((4, 4), "names 2"), ((1, 1, 1, 1), "adds up to 4 layers")):
        with pytest.raises(FroudeError, match=why):
            ledger(pipeline_parallel=4, stage_layers=wrong)


MIXTURE = Architecture.parse(
    {
        "name": "mixture",
        "layers": 4,
        "hidden": 1024,
        "heads": 16,
        "ffn": 4096,
        "vocab": 32000,
        "gated": True,
        "latent": {"query_rank": 256, "kv_rank": 128, "rope_dim": 32, "value_dim": 64},
        "head_dim": 96,
        "experts": {"count": 8, "top_k": 2, "ffn": 512, "shared_ffn": 512, "dense_layers": 1},
    }
)


def mixture_bytes(mechanisms: dict[str, str] | None = None, **layout: Any) -> float:
    chosen = Layout(**{"data_parallel": 4, "expert_parallel": 4, "micro_batch": 4, **layout})
    job = Job(seq_len=2048, global_batch_tokens=64 * 2048)
    stack = find_stack("megatron").but(**(mechanisms or {}))
    scenario = Scenario(MIXTURE, parse_cluster("a100-sxm-80gb:4"), job, stack)
    return predict(scenario, [chosen])[0].ledger(own_machine=False).bytes_of("allocated")


def test_recomputed_and_offloaded_modules_are_not_kept() -> None:
    kept = mixture_bytes()
    for module in ("layernorm", "mla_up_proj", "mlp", "moe", "moe_act", "shared_experts"):
        assert mixture_bytes(recompute_modules=(module,)) < kept
    assert mixture_bytes(recompute_modules=("moe",)) < mixture_bytes(recompute_modules=("moe_act", "shared_experts"))
    unfused = {"attention": "unfused"}
    core = mixture_bytes(unfused, recompute_modules=("core_attn",))
    assert core == mixture_bytes(unfused, recompute="selective")
    for module in ("attn_norm", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act"):
        assert mixture_bytes(offload_modules=(module,)) < kept
    assert mixture_bytes(offloaded_layers=4) < mixture_bytes(offloaded_layers=2) < kept


def test_probabilities_inside_experts_keep_activations_where_no_kernel_weighs_them() -> None:
    fused = mixture_bytes() / mixture_bytes({"weighting": "outputs"})
    eager = mixture_bytes({"activation": "eager"}) / mixture_bytes({"activation": "eager", "weighting": "outputs"})
    assert fused < 1.0  # one kernel, and what experts give need not be kept
    assert eager < 1.0 < eager / fused


def test_segments_that_grow_leave_no_gaps() -> None:
    gaps = ledger().bytes_of("reserved") - ledger().bytes_of("allocated")
    grown = ledger(mechanisms={"allocator": "expandable"})
    assert gaps > 0
    assert grown.bytes_of("reserved") == grown.bytes_of("allocated")


def test_compiled_programs_save_what_products_give() -> None:
    def kept(stack: str, recompute: str) -> float:
        return ledger(stack, {"attention": "flash-2"}, micro_batch=8, recompute=recompute).bytes_of("allocated")

    assert kept("maxtext", "full") < kept("maxtext", "selective") < 0.9 * kept("maxtext", "none")
    assert kept("megatron", "selective") > 0.98 * kept("megatron", "none")  # flash attention keeps no scores
