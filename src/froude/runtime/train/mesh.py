"""Who is who: ranks on a mesh of pipeline, data and tensor parallelism, tensor innermost as in Megatron-LM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from froude.runtime.train.state import DataGroup
from froude.runtime.train.tensor_parallel import TensorGroup
from froude.training.plan import Layout


@dataclass(frozen=True)
class Mesh:
    """This rank's place.

    Attributes:
        stage, stages: its pipeline stage, of how many.
        data, tensor: its data- and tensor-parallel groups.
        ends: the group that joins it with the rank at the pipeline's other end, for the two ends of a pipeline.
    """

    stage: int
    stages: int
    data: DataGroup
    tensor: TensorGroup
    ends: Any = None

    def peer(self, stage: int) -> int:
        """The global rank that stands where this one does in another pipeline stage."""
        return (stage % self.stages * self.data.ranks + self.data.index) * self.tensor.ranks + self.tensor.index


def join(layout: Layout) -> Mesh:
    """Build the groups; every rank calls it once, after joining the process group."""
    shape = (layout.pipeline_parallel, layout.data_parallel, layout.tensor_parallel)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("pipeline", "data", "tensor"))
    place = mesh.get_coordinate()
    assert place is not None
    stage, data, tensor = place
    per_stage = shape[1] * shape[2]
    ends = None
    if layout.pipeline_parallel > 1:
        for first in range(per_stage):
            pair = [first, first + (shape[0] - 1) * per_stage]
            group = dist.new_group(pair)
            if dist.get_rank() in pair:
                ends = group
    return Mesh(
        stage,
        shape[0],
        DataGroup(shape[1], data, mesh["data"].get_group(), mesh["data"]),
        TensorGroup(
            shape[2], tensor, layout.sequence_parallel and layout.tensor_parallel > 1, mesh["tensor"].get_group()
        ),
        ends,
    )
