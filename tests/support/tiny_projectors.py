"""Small projectors of the families that llama.cpp knows, with random weights: enough to load and to run each kind.

    mlp            LLaVA: rows one after the other
    gemma3         all rows look at each other, between two marks
    qwen2vl_merger rows have places in a plane, and take fewer positions than rows
    idefics3       four patches become a row
    qwen2.5vl_merger   the same with a gate, and windows within which patches look at each other
    pixtral        as many rows as the picture has patches, a mark behind each line
    janus_pro      each patch a row
    lfm2           four patches a row, as many as the picture needs
    internvl       the same in tiles, behind a norm of them

and of sounds, which Whisper's encoder takes in pieces of 30 s:

    ultravox       several of its rows stacked to one
    voxtral        the same behind a pool of two, a mark before them
    qwen2a         rows one after the other behind a pool of two, between two marks

`mlp+ultravox` has both in one file. What they make of a picture or sound is noise, but other noise for each.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_model import N_EMBD

#: Tokens that a family wants to find in the vocabulary.
MARKS = {
    "idefics3": ("\n\n", "<fake_token_around_image>", "<global-img>"),
    "voxtral": ("[BEGIN_AUDIO]",),
    "qwen2a": ("<|audio_bos|>", "<|audio_eos|>"),
}
#: Rows that are one behind the encoder of sounds. Few others agree with the number that this llama.cpp expects.
_STACKS = {"ultravox": 12, "voxtral": 6}
_SOUND_ROWS, _MELS = 1500, 8
_SEEING = (
    "mlp", "gemma3", "qwen2vl_merger", "qwen2.5vl_merger", "idefics3", "pixtral", "janus_pro", "lfm2", "internvl",
)  # fmt: skip
_HEARING = ("ultravox", "voxtral", "qwen2a")
FAMILIES = (*_SEEING, *_HEARING, "mlp+ultravox")
#: With a bias to each norm and matrix, and learned positions.
_SIGLIP = ("mlp", "gemma3", "idefics3", "janus_pro", "lfm2", "internvl")
#: With a gate, and norms without a bias.
_GATED = ("pixtral", "qwen2.5vl_merger")


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
    weights = _Weights(gguf.GGUFWriter(path, "clip"), seed, hidden, kind)
    writer = weights.writer
    writer.add_bool("clip.use_gelu", True)
    kinds = family.split("+")
    shape = {
        "embedding_length": hidden, "feed_forward_length": n_ff, "block_count": n_layer, "projection_dim": width,
        "attention.head_count": n_head,
    }  # fmt: skip
    for each in kinds:
        sense = "vision" if each in _SEEING else "audio"
        writer.add_bool(f"clip.has_{sense}_encoder", True)
        writer.add_string(f"clip.{sense}.projector_type" if len(kinds) > 1 else "clip.projector_type", each)
        for key, value in shape.items():
            writer.add_uint32(f"clip.{sense}.{key}", value)
        writer.add_float32(f"clip.{sense}.attention.layer_norm_epsilon", 1e-5)
        if sense == "vision":
            _add_eyes(weights, each, width, n_ff, n_layer, patch, side)
        else:
            _add_ears(weights, each, width, n_ff, n_layer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Weights:
    """Adds tensors to a file, random ones and ones."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int, hidden: int, kind: gguf.GGMLQuantizationType) -> None:
        self.writer = writer
        self.hidden = hidden
        self._rng = np.random.default_rng(seed)
        self._kind = kind

    def add(self, name: str, *shape: int) -> None:
        weights = (self._rng.standard_normal(shape) * min(0.1, 1 / np.sqrt(self.hidden))).astype(np.float32)
        if len(shape) == 2 and "position" not in name and not name.startswith("a.conv"):
            self.writer.add_tensor(name, gguf.quants.quantize(weights, self._kind), raw_dtype=self._kind)
        else:
            self.writer.add_tensor(name, weights)

    def one(self, name: str, size: int) -> None:
        self.writer.add_tensor(name, np.ones(size, np.float32))

    def norm(self, name: str) -> None:
        self.one(f"{name}.weight", self.hidden)
        self.add(f"{name}.bias", self.hidden)


def _add_eyes(weights: _Weights, family: str, width: int, n_ff: int, n_layer: int, patch: int, side: int) -> None:
    add, one, hidden, writer = weights.add, weights.one, weights.hidden, weights.writer
    writer.add_uint32("clip.vision.image_size", side)
    writer.add_uint32("clip.vision.patch_size", patch)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    num_patches = (side // patch) ** 2
    add("v.patch_embd.weight", hidden, 3, patch, patch)
    if family in _SIGLIP:
        add("v.position_embd.weight", num_patches + (family == "internvl"), hidden)
        add("v.patch_embd.bias", hidden)
    for layer in range(n_layer):
        begin = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"{begin}{name}.weight", hidden, hidden)
            if family != "pixtral":
                add(f"{begin}{name}.bias", hidden)
        for name in ("ln1", "ln2"):
            one(f"{begin}{name}.weight", hidden)
            if family not in _GATED:
                add(f"{begin}{name}.bias", hidden)
        add(f"{begin}ffn_up.weight", n_ff, hidden)
        add(f"{begin}ffn_down.weight", hidden, n_ff)
        if family in _GATED:
            add(f"{begin}ffn_gate.weight", n_ff, hidden)
        if family != "pixtral":
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
            weights.norm("v.post_ln")
            add("mm.input_projection.weight", hidden, width)
            one("mm.soft_emb_norm.weight", hidden)
        case "qwen2vl_merger" | "qwen2.5vl_merger":
            add("v.patch_embd.weight.1", hidden, 3, patch, patch)
            if family in _GATED:
                writer.add_uint32("clip.vision.n_wa_pattern", 2)
                one("v.post_ln.weight", hidden)
            else:
                weights.norm("v.post_ln")
            add("mm.0.weight", hidden * 4, hidden * 4)
            add("mm.0.bias", hidden * 4)
            add("mm.2.weight", width, hidden * 4)
            add("mm.2.bias", width)
        case "idefics3":
            writer.add_uint32("clip.vision.projector.scale_factor", 2)
            weights.norm("v.post_ln")
            add("mm.model.fc.weight", width, hidden * 4)
        case "janus_pro":
            weights.norm("v.post_ln")
            add("mm.0.weight", width, hidden)
            add("mm.0.bias", width)
            add("mm.1.weight", width, width)
            add("mm.1.bias", width)
        case "lfm2":
            writer.add_uint32("clip.vision.projector.scale_factor", 2)
            weights.norm("v.post_ln")
            add("mm.1.weight", width, hidden * 4)
            add("mm.1.bias", width)
            add("mm.2.weight", width, width)
            add("mm.2.bias", width)
        case "internvl":
            writer.add_uint32("clip.vision.projector.scale_factor", 2)
            add("v.class_embd", hidden)
            one("mm.model.mlp.0.weight", hidden * 4)
            add("mm.model.mlp.0.bias", hidden * 4)
            add("mm.model.mlp.1.weight", width, hidden * 4)
            add("mm.model.mlp.1.bias", width)
            add("mm.model.mlp.3.weight", width, width)
            add("mm.model.mlp.3.bias", width)
        case "pixtral":
            one("v.pre_ln.weight", hidden)
            add("mm.1.weight", width, hidden)
            add("mm.1.bias", width)
            add("mm.2.weight", width, width)
            add("mm.2.bias", width)
            add("v.token_embd.img_break", width)


def _add_ears(weights: _Weights, family: str, width: int, n_ff: int, n_layer: int) -> None:
    add, hidden = weights.add, weights.hidden
    weights.writer.add_uint32("clip.audio.num_mel_bins", _MELS)
    add("a.conv1d.1.weight", hidden, _MELS, 3)
    add("a.conv1d.1.bias", hidden, 1)
    add("a.conv1d.2.weight", hidden, hidden, 3)
    add("a.conv1d.2.bias", hidden, 1)
    add("a.position_embd.weight", _SOUND_ROWS, hidden)
    for layer in range(n_layer):
        begin = f"a.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"{begin}{name}.weight", hidden, hidden)
            if name != "attn_k":
                add(f"{begin}{name}.bias", hidden)
        weights.norm(f"{begin}ln1")
        weights.norm(f"{begin}ln2")
        add(f"{begin}ffn_up.weight", n_ff, hidden)
        add(f"{begin}ffn_up.bias", n_ff)
        add(f"{begin}ffn_down.weight", hidden, n_ff)
        add(f"{begin}ffn_down.bias", hidden)
    weights.norm("a.post_ln")
    stack = _STACKS.get(family, 1)
    if stack > 1:
        weights.writer.add_uint32("clip.audio.projector.stack_factor", stack)
    match family:
        case "ultravox":
            weights.one("mm.a.norm_pre.weight", hidden * stack)
            add("mm.a.mlp.1.weight", 2 * width, hidden * stack)
            weights.one("mm.a.norm_mid.weight", width)
            add("mm.a.mlp.2.weight", width, width)
        case "voxtral":
            add("mm.a.mlp.1.weight", width, hidden * stack)
            add("mm.a.mlp.2.weight", width, width)
        case "qwen2a":
            add("mm.a.fc.weight", width, hidden)
            add("mm.a.fc.bias", width)
