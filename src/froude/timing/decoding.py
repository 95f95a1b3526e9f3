"""Attention of decoding: one query a sequence over a long cache, priced as engines' kernels run it.

A kernel starts, each multiprocessor takes sequences (with the query heads that share their keys) one after the other,
and keys stream from memory. Where all heads share the keys (latent attention), arithmetic may take longer than that.
Everything is proportional to the sequences or to the keys, so a batch is priced by its totals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Array
from froude.machines.device import Device
from froude.models.operator import Attention, LatentAttention
from froude.timing.constants import Constants

_TILE_HEADS = 64  # rows of a latent kernel's tile, one query head each; fewer heads leave the rest empty


@dataclass(frozen=True)
class DecodeKernel:
    """What decode attention takes on one device, from the constants ``decode.*`` of its generation.

    Attributes:
        device, constants: which.
        engine: whose kernels: TensorRT-LLM's handle short caches of 8 bits faster than others do.
    """

    device: Device
    constants: Constants
    engine: str = ""

    @property
    def start_s(self) -> float:
        """Before it reads a key."""
        return self._of("attention_start_s")

    def seconds(self, op: Attention, sequences: Array) -> Array:
        """Of one query for each of ``sequences``, without the start."""
        latent = isinstance(op, LatentAttention)
        kind = "latent" if latent else "attention"
        narrow = "_8_bit" if op.element_bytes == 1.0 else ""
        bandwidth = self.device.memory_bandwidth * self._of(f"{kind}_efficiency{narrow}")
        block_s = self._of(f"{kind}_block_s")
        if narrow and not latent:
            bandwidth = min(bandwidth, self._of("attention_unpack"))
            block_s = self.constants["decode.xqa_block_s_8_bit"] if self.engine == "tensorrt-llm" else block_s
        streamed = (op.bytes_read + op.bytes_written) / bandwidth
        tiles: Array = np.ceil(np.divide(op.heads, _TILE_HEADS)) if latent else op.kv_heads
        blocks = sequences * tiles * block_s / self.device.multiprocessors
        if not latent:
            return blocks + streamed
        dtype = op.dtype if op.dtype in self.device.peak_flops else "bf16"
        padded = op.flops * (tiles * _TILE_HEADS / op.heads)
        seconds: Array = blocks + np.maximum(streamed, padded / (self.device.peak(dtype) * self._of("latent_flops")))
        return seconds

    def _of(self, name: str) -> float:
        return self.constants.of_generation(f"decode.{name}", self.device.name)
