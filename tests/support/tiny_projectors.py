"""Small projectors of the families that llama.cpp knows, with random weights: enough to load and to run each kind.

    mlp            LLaVA: rows one after the other
    gemma3         all rows look at each other, between two marks
    qwen2vl_merger rows have places in a plane, and take fewer positions than rows
    idefics3       four patches become a row
    pixtral        as many rows as the picture has patches, a mark behind each line

What they make of a picture is noise, but other noise for each picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_model import N_EMBD

#: Tokens that a family wants to find in the vocabulary.
MARKS = {"idefics3": ("\n\n", "<fake_token_around_image>", "<global-img>")}
FAMILIES = ("mlp", "gemma3", "qwen2vl_merger", "idefics3", "pixtral")


def write_tiny_projector(
    path: Path,
    family: str,
    *,
    width: int = N_EMBD,
    seed: int = 0,
    hidden: int = 32,
    n_ff: int = 64,
    n_layer: int = 2,
    n_head: int = 2,
    patch: int = 8,
    side: int = 64,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """One of `FAMILIES` at `path`.

    Args:
        width: Of its model's tokens.
        hidden, n_ff, n_layer, n_head: Of its encoder.
        patch, side: Pixels of a patch, and of the picture that it was made for.
        kind: Type of its matrices.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "clip")

    def add(name: str, *shape: int) -> None:
        weights = (rng.standard_normal(shape) * min(0.1, 1 / np.sqrt(hidden))).astype(np.float32)
        if len(shape) == 2 and "position" not in name:
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weights)

    def one(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", family)
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": side, "patch_size": patch, "embedding_length": hidden, "feed_forward_length": n_ff,
        "block_count": n_layer, "projection_dim": width, "attention.head_count": n_head,
    }.items():  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    num_patches = (side // patch) ** 2
    add("v.patch_embd.weight", hidden, 3, patch, patch)
    if family in ("mlp", "gemma3", "idefics3"):
        add("v.position_embd.weight", num_patches, hidden)
        add("v.patch_embd.bias", hidden)
    for layer in range(n_layer):
        begin = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"{begin}{name}.weight", hidden, hidden)
            if family != "pixtral":
                add(f"{begin}{name}.bias", hidden)
        for name in ("ln1", "ln2"):
            one(f"{begin}{name}.weight", hidden)
            if family != "pixtral":
                add(f"{begin}{name}.bias", hidden)
        add(f"{begin}ffn_up.weight", n_ff, hidden)
        add(f"{begin}ffn_down.weight", hidden, n_ff)
        if family == "pixtral":
            add(f"{begin}ffn_gate.weight", n_ff, hidden)
        else:
            add(f"{begin}ffn_up.bias", n_ff)
            add(f"{begin}ffn_down.bias", hidden)
    match family:
        case "mlp":
            add("mm.0.weight", width, hidden)
            add("mm.0.bias", width)
            add("mm.2.weight", width, width)
            add("mm.2.bias", width)
        case "gemma3":
            writer.add_uint32("clip.vision.projector.scale_factor", 4)
            _post_norm(add, one, hidden)
            add("mm.input_projection.weight", hidden, width)
            one("mm.soft_emb_norm.weight", hidden)
        case "qwen2vl_merger":
            add("v.patch_embd.weight.1", hidden, 3, patch, patch)
            _post_norm(add, one, hidden)
            add("mm.0.weight", hidden * 4, hidden * 4)
            add("mm.0.bias", hidden * 4)
            add("mm.2.weight", width, hidden * 4)
            add("mm.2.bias", width)
        case "idefics3":
            writer.add_uint32("clip.vision.projector.scale_factor", 2)
            _post_norm(add, one, hidden)
            add("mm.model.fc.weight", width, hidden * 4)
        case "pixtral":
            one("v.pre_ln.weight", hidden)
            add("mm.1.weight", width, hidden)
            add("mm.1.bias", width)
            add("mm.2.weight", width, width)
            add("mm.2.bias", width)
            add("v.token_embd.img_break", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _post_norm(add: Callable[..., None], one: Callable[[str, int], None], hidden: int) -> None:
    one("v.post_ln.weight", hidden)
    add("v.post_ln.bias", hidden)
