"""Small projectors of the families that llama.cpp knows, with random weights: enough to load and to run each kind.

    mlp            LLaVA: rows one after the other
    gemma3         all rows look at each other, between two marks
    qwen2vl_merger rows have places in a plane, and take fewer positions than rows
    idefics3       four patches become a row
    pixtral        as many rows as the picture has patches, a mark behind each line

What they make of a picture is noise, but other noise for each picture.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_model import N_EMBD

#: Tokens that a family wants to find in the vocabulary.
MARKS = {"idefics3": ("\n\n", "<fake_token_around_image>", "<global-img>")}
FAMILIES = ("mlp", "gemma3", "qwen2vl_merger", "idefics3", "pixtral")
WIDTH, N_FF, N_LAYER, N_HEAD, PATCH = 32, 64, 2, 2, 8
SIDE = {"qwen2vl_merger": 64, "pixtral": 64}


def write_tiny_projector(path: Path, family: str, *, width: int = N_EMBD, seed: int = 0) -> Path:
    """One of `FAMILIES` at `path`, for a model whose tokens are so wide."""
    rng = np.random.default_rng(seed)
    side = SIDE.get(family, 64)
    writer = gguf.GGUFWriter(path, "clip")

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.1).astype(np.float32))

    def one(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", family)
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": side, "patch_size": PATCH, "embedding_length": WIDTH, "feed_forward_length": N_FF,
        "block_count": N_LAYER, "projection_dim": width, "attention.head_count": N_HEAD,
    }.items():  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    num_patches = (side // PATCH) ** 2
    add("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    if family in ("mlp", "gemma3", "idefics3"):
        add("v.position_embd.weight", num_patches, WIDTH)
        add("v.patch_embd.bias", WIDTH)
    for layer in range(N_LAYER):
        begin = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"{begin}{name}.weight", WIDTH, WIDTH)
            if family != "pixtral":
                add(f"{begin}{name}.bias", WIDTH)
        for name in ("ln1", "ln2"):
            one(f"{begin}{name}.weight", WIDTH)
            if family != "pixtral":
                add(f"{begin}{name}.bias", WIDTH)
        add(f"{begin}ffn_up.weight", N_FF, WIDTH)
        add(f"{begin}ffn_down.weight", WIDTH, N_FF)
        if family == "pixtral":
            add(f"{begin}ffn_gate.weight", N_FF, WIDTH)
        else:
            add(f"{begin}ffn_up.bias", N_FF)
            add(f"{begin}ffn_down.bias", WIDTH)
    match family:
        case "mlp":
            add("mm.0.weight", width, WIDTH)
            add("mm.0.bias", width)
            add("mm.2.weight", width, width)
            add("mm.2.bias", width)
        case "gemma3":
            writer.add_uint32("clip.vision.projector.scale_factor", 4)
            _post_norm(add, one)
            add("mm.input_projection.weight", WIDTH, width)
            one("mm.soft_emb_norm.weight", WIDTH)
        case "qwen2vl_merger":
            add("v.patch_embd.weight.1", WIDTH, 3, PATCH, PATCH)
            _post_norm(add, one)
            add("mm.0.weight", WIDTH * 4, WIDTH * 4)
            add("mm.0.bias", WIDTH * 4)
            add("mm.2.weight", width, WIDTH * 4)
            add("mm.2.bias", width)
        case "idefics3":
            writer.add_uint32("clip.vision.projector.scale_factor", 2)
            _post_norm(add, one)
            add("mm.model.fc.weight", width, WIDTH * 4)
        case "pixtral":
            one("v.pre_ln.weight", WIDTH)
            add("mm.1.weight", width, WIDTH)
            add("mm.1.bias", width)
            add("mm.2.weight", width, width)
            add("mm.2.bias", width)
            add("v.token_embd.img_break", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _post_norm(add: object, one: object) -> None:
    assert callable(add)
    assert callable(one)
    one("v.post_ln.weight", WIDTH)
    add("v.post_ln.bias", WIDTH)
