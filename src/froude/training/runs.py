"""Rows of published measurements as runs: architecture, job, layout, cluster and stack.

Settings that a row leaves blank come from ``source_defaults.toml`` and are listed with the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from froude.core.errors import FroudeError
from froude.core.measurements import Unusable
from froude.machines.cluster import Cluster
from froude.models.architecture import Architecture
from froude.timing.stack import Stack, find_stack
from froude.training.defaults import FAMILY, catalogued, defaults_of, family_of, tables
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.technique import techniques

COLUMNS = (
    "id", "source", "model", "device", "n_gpus", "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq",
    "n_experts", "topk", "expert_ffn", "params_b", "precision", "tp", "pp", "vpp", "dp", "cp", "ep", "sp",
    "micro_batch", "global_batch_seqs", "zero_stage", "recompute", "attention", "fused_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One measured configuration.

    Attributes:
        id, source: of the row.
        architecture, job, layout, cluster, stack: what ran.
        techniques: what the software does on top, where the layout allows it.
        assumed: names of the settings that the row leaves blank.
    """

    id: str
    source: str
    architecture: Architecture
    job: Job
    layout: Layout
    cluster: Cluster
    stack: Stack
    techniques: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What kind of model it trains."""
        return "dense" if self.architecture.experts is None else "experts"

    @property
    def scenario(self) -> Scenario:
        """What the layout is evaluated in."""
        used = tuple(techniques.create(name) for name in self.techniques)
        fitting = tuple(t for t in used if t.objection(self.architecture, self.cluster, self.job, self.layout) is None)
        return Scenario(self.architecture, self.cluster, self.job, self.stack, fitting)


@dataclass
class _Row:
    """A row with the defaults of its source, remembering which of them were needed."""

    cells: Mapping[str, Any]
    defaults: Mapping[str, Any]
    assumed: list[str] = field(default_factory=list)

    def get(self, column: str, name: str, otherwise: Any = None) -> Any:
        """The row's cell, unless its source's figures contradict it, else the source's default ``name``."""
        corrected = self.defaults.get("corrected", {})
        value = self.cells.get(column)
        if column not in corrected and value is not None and value != "":
            return value
        self.assumed.append(name)
        return corrected.get(column, self.defaults.get(name, otherwise))

    def need(self, column: str, name: str) -> Any:
        """Like `get`, for what a run cannot do without."""
        value = self.get(column, name)
        if value is None:
            raise Unusable(f"{name} is not stated")
        return value


def run_of(cells: Mapping[str, Any]) -> Run:
    """The run that a row describes.

    Raises:
        Unusable: when the row itself, or what Froude can express, does not allow it.
    """
    use = cells.get("use", "yes")
    if use != "yes":
        raise Unusable(str(use))
    row = _Row(cells, defaults_of(cells))
    label = str(row.need("precision", "precision"))
    precision = tables()["precision"].get(label)
    if precision is None:
        raise Unusable(f"precision {label} is not expressed yet")
    try:
        architecture = _architecture(row)
        cluster = _cluster(row)
        layout, sequences = _layout(row, architecture, cluster)
        job = Job.parse(
            {
                "seq_len": row.need("seq", "seq_len"),
                "global_batch_tokens": sequences * row.need("seq", "seq_len"),
                "precision": precision,
            }
        )
        cluster.device.peak(job.product_dtype)
        stack = _stack(row)
    except FroudeError as error:
        raise Unusable(str(error)) from None
    return Run(
        id=str(cells["id"]),
        source=str(cells["source"]),
        architecture=architecture,
        job=job,
        layout=layout,
        cluster=cluster,
        stack=stack,
        techniques=tuple(row.defaults.get("techniques", ())),
        assumed=tuple(dict.fromkeys(row.assumed)),
    )


# -- from a row to a run ----------------------------------------------------------------------------------------------


def _architecture(row: _Row) -> Architecture:
    name = str(row.need("model", "model"))
    family = family_of(row.cells)
    shape = {column: row.cells.get(column) for column in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")}
    if shape["hidden"] is None and name.startswith("maxtext_"):
        row.assumed.append("shape")
        shape.update(_maxtext_shape(name))
    if shape["hidden"] is None:
        known = catalogued(row.cells)
        if known is None:
            raise Unusable("the model's shape is not stated")
        row.assumed.append("shape")
        return known
    shape["vocab"] = row.get("vocab", "vocab")
    if shape["heads"] is None:
        shape["heads"] = row.get("heads", "heads", _usual_heads(int(shape["hidden"]), int(row.cells.get("tp") or 1)))
    if shape["ffn"] is None:
        row.assumed.append("ffn")
        shape["ffn"] = 4 * shape["hidden"]
    if shape["layers"] is None:
        row.assumed.append("layers")
        shape["layers"] = _layers_from_parameters(row, family, shape)
    fields: dict[str, Any] = {key: value for key, value in shape.items() if value is not None}
    for key in FAMILY:
        value = row.defaults.get(key, family.get(key))
        if value is not None:
            fields[key] = value
    if fields.get("positions") == "learned":
        fields["max_positions"] = row.need("seq", "seq_len")
    if fields["hidden"] % fields["heads"] and "head_dim" not in fields:
        # 14400 wide BLOOM candidates have 96 heads of 150, whatever the others of their section have.
        fields["heads"] = next(h for h in (96, 80, 72, 48, 32) if fields["hidden"] % h == 0)
    experts = _experts(row, family, int(fields["ffn"]))
    if experts is not None:
        fields["experts"] = experts
    return Architecture.parse({"name": name, **fields})


def _usual_heads(hidden: int, tensor_parallel: int) -> int:
    """Heads of 128, as most models of a billion parameters and more have, or of a common size that divides."""
    sizes = (128, 64, 96, 80, 112, 160, 192, 256) if hidden >= 2048 else (64, 128, 96, 80)
    return next((hidden // n for n in sizes if hidden % (n * tensor_parallel) == 0), max(1, hidden // 128))


def _experts(row: _Row, family: Mapping[str, Any], ffn: int) -> dict[str, Any] | None:
    """The mixture of experts, where there is one; as wide as the dense MLP unless something else is said."""
    count = row.cells.get("n_experts") or 1
    if count <= 1:
        return None
    return {
        "count": count,
        "top_k": row.need("topk", "top_k"),
        "ffn": row.get("expert_ffn", "expert_ffn", ffn),
        **family.get("experts", {}),
    }


def _layers_from_parameters(row: _Row, family: Mapping[str, Any], shape: Mapping[str, Any]) -> int:
    parameters = row.cells.get("params_b")
    if parameters is None:
        raise Unusable("neither layers nor parameters are stated")
    hidden, ffn = shape["hidden"], shape["ffn"]
    layer = 4 * hidden**2 + (3 if family["gated"] else 2) * hidden * ffn
    return max(1, round(float((parameters * 1e9 - shape["vocab"] * hidden) / layer)))


def _maxtext_shape(name: str) -> dict[str, int]:
    """Shape from MaxText's parameter scale (its ``get_individual_scales``), as 32 in "maxtext_32B"."""
    base = tables()["maxtext_scale"]
    cycles, rest = divmod(int(math.log2(int(name.removeprefix("maxtext_").removesuffix("B")))), 3)
    wide, deep = cycles + (rest > 1), cycles
    heads = cycles + (rest > 0)
    return {
        "hidden": base["hidden"] << wide,
        "heads": base["heads"] << heads,
        "ffn": base["ffn"] << heads,
        "layers": base["layers"] << deep,
    }


def _cluster(row: _Row) -> Cluster:
    device = row.need("device", "device")
    device = row.defaults.get("device_of", {}).get(device, device)
    fields: dict[str, Any] = {"device": device, "count": row.need("n_gpus", "devices")}
    if row.cells.get("gpus_per_node"):
        fields["devices_per_node"] = row.cells["gpus_per_node"]
    port = row.defaults.get("scaleout_bandwidth_of", {}).get(device, row.defaults.get("scaleout_bandwidth"))
    if port is not None:
        fields["scaleout_bandwidth"] = port
    if _slices(row) > 1:  # each has a fabric of its own
        fields["scaleup_domain"] = fields["count"] // _slices(row)
    return Cluster.parse(fields)


def _slices(row: _Row) -> int:
    """Slices of a TPU that a run spans, where the source's notes say so ("2x v5p-128")."""
    pattern = row.defaults.get("slices")
    found = re.search(pattern, str(row.cells.get("notes") or "")) if pattern else None
    return int(found.group(1)) if found else 1


def _layout(row: _Row, architecture: Architecture, cluster: Cluster) -> tuple[Layout, int]:
    """The layout, and the sequences of a global batch."""
    tensor = int(row.get("tp", "tensor_parallel", 1))
    pipeline = int(row.get("pp", "pipeline_parallel", 1))
    context = int(row.get("cp", "context_parallel", 1))
    data, rest = divmod(cluster.count, tensor * pipeline * context)
    if rest or data == 0:
        raise Unusable(f"tensor x pipeline x context parallel does not divide {cluster.count} devices")
    sequences = row.cells.get("global_batch_seqs")
    if sequences is None:
        row.assumed.append("global_batch")
        per_device = row.defaults.get("batch_per_device")
        if per_device is None:
            raise Unusable("the global batch is not stated")
        sequences = per_device * cluster.count
    micro_batch = row.cells.get("micro_batch")
    if micro_batch is None:
        row.assumed.append("micro_batch")
        unstated = row.defaults.get("micro_batch_of_pipeline", {}).get(str(pipeline))
        whole = sequences / data if row.defaults.get("micro_batch_is_per_device") else 1
        micro_batch = unstated or row.defaults.get("micro_batch", whole)
    if micro_batch != int(micro_batch) or sequences % (data * int(micro_batch)):
        raise Unusable(f"{sequences} sequences do not divide into micro-batches of {micro_batch:g} on {data} replicas")
    virtual = _virtual_stages(row, architecture.layers, pipeline) if pipeline > 1 else 1
    stated = _assumed(row, "stage_layers", None) if pipeline > 1 else None
    if stated is not None:
        virtual = len(stated) // pipeline
    sequence_parallel = bool(row.get("sp", "sequence_parallel", False)) and tensor > 1
    recompute = row.get("recompute", "recompute", "none")
    modules = _assumed(row, "recompute_modules", ())
    if modules and recompute == "selective":  # these, then, not attention
        recompute = "none"
    layout = Layout.parse(
        {
            "data_parallel": data,
            "tensor_parallel": tensor,
            "pipeline_parallel": pipeline,
            "context_parallel": context,
            "expert_parallel": int(row.cells.get("ep") or 1),
            "expert_tensor_parallel": _cut_experts(row, tensor),
            "virtual_stages": virtual,
            "stage_layers": stated,
            "schedule": "interleaved-1f1b" if virtual > 1 else "1f1b",
            "micro_batch": int(micro_batch),
            "zero_stage": int(row.get("zero_stage", "zero_stage", 0)),
            "replicate": _copies(row, data),
            "sequence_parallel": sequence_parallel,
            "recompute": recompute,
            "recompute_modules": modules,
            "offload_modules": _assumed(row, "offload_modules", ()),
            "offloaded_layers": _assumed(row, "offloaded_layers", 0) if pipeline == 1 else 0,
        }
    )
    return layout, int(sequences)


def _assumed(row: _Row, name: str, otherwise: Any) -> Any:
    """A setting that no column states: the source's default, remembered as assumed, else ``otherwise``."""
    if name not in row.defaults:
        return otherwise
    row.assumed.append(name)
    return row.defaults[name]


def _cut_experts(row: _Row, tensor: int) -> int:
    """Ranks that share an expert: as the source's default says, a number or "tensor" for as many as tensor-parallel."""
    if not row.cells.get("ep"):
        return 1
    ways = row.defaults.get("expert_tensor_parallel", 1)
    return tensor if ways == "tensor" else min(int(ways), tensor)


def _virtual_stages(row: _Row, layers: int, stages: int) -> int:
    """As stated; else the source's default, or the most that divide the layers up to its bound."""
    most = row.defaults.get("virtual_stages_up_to", 1)
    own = layers // stages
    dividing = max(n for n in range(1, max(1, min(most, own)) + 1) if layers % (stages * n) == 0 or n == 1)
    return int(row.get("vpp", "virtual_stages", dividing) or 1)


def _copies(row: _Row, data: int) -> int:
    """Copies of sharded states, where the source shards over a slice or a few neighbouring ranks only."""
    if _slices(row) > 1:
        return _slices(row)
    sharers = row.defaults.get("sharers_of", {}).get(str(row.cells["device"]))
    if sharers is None or data % sharers:
        return 1
    row.assumed.append("replicate")
    return data // int(sharers)


def _stack(row: _Row) -> Stack:
    changes: dict[str, str] = {}
    if row.cells.get("attention"):
        changes["attention"] = row.cells["attention"]
    if row.cells.get("fused_norm"):
        levels = tables()["fused_norm"] | row.defaults.get("fused_norm", {})
        changes["fusion"] = levels.get(row.cells["fused_norm"], "fused")
    # What is known of a source's software is more than the columns can say.
    changes |= row.defaults.get("mechanisms", {})
    return find_stack(row.defaults["stack"]).but(**changes)
