"""Which projector a model is given, and what a model with one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.errors import SetupError
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.images import MAX_PIXELS
from packtrain.broker.offer_book import NodeOffers
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.placement.view import View
from packtrain.workers.catalog import Catalog, load_catalog
from packtrain.workers.catalog_config import CatalogConfig, load_catalog_config
from packtrain.workers.gguf import read_header
from packtrain.workers.gguf_projector import PIXEL_BYTES
from tests.support.factories import model_info, node_beat
from tests.support.gguf_files import Tensor, Value, gguf_bytes, metadata
from tests.support.pictures import PROJECTOR

pytestmark = pytest.mark.unit

GIB = 1024**3


def projector(path: Path, **changes: Value) -> None:
    pairs: dict[str, Value] = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": 64,
        "clip.vision.image_size": 64,
        "clip.vision.patch_size": 16,
        "clip.vision.embedding_length": 32,
        "clip.vision.feed_forward_length": 64,
        "clip.vision.attention.head_count": 2,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    path.write_bytes(gguf_bytes(pairs, [Tensor("mm.0.weight", (64, 32))]))


def catalog(folder: Path, toml: str = "") -> Catalog:
    home = folder / "home"
    home.mkdir()
    (home / "packtrain.toml").write_text(toml)
    return load_catalog([folder], load_catalog_config(home), 8 * GIB)


def of(found: Catalog) -> dict[str, str]:
    return {model: entry.info.projector for model, entry in found.models.items()}


def model(path: Path, width: int = 64) -> None:
    path.write_bytes(gguf_bytes(metadata(llama__embedding_length=width)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["smol-q8.gguf", "smol-mmproj.gguf"], {"smol-q8": "smol-mmproj.gguf"}),
        (["Smol-VL-Q8_0.gguf", "mmproj-Smol-VL-f16.gguf"], {"smol-vl-q8_0": "mmproj-Smol-VL-f16.gguf"}),
        (["smol.gguf", "mmproj-model-f16.gguf"], {"smol": "mmproj-model-f16.gguf"}),
        (
            ["smol.gguf", "smol-shapes.gguf", "smol-shapes-mmproj.gguf"],
            {"smol": "", "smol-shapes": "smol-shapes-mmproj.gguf"},
        ),
        (["smol.gguf", "other-mmproj.gguf"], {"smol": ""}),
        (["a.gguf", "a-mmproj-f16.gguf", "a-mmproj-q8_0.gguf"], {"a": "a-mmproj-f16.gguf"}),
    ],
)
def test_names_say_what_belongs_together(tmp_path: Path, names: list[str], expected: dict[str, str]) -> None:
    for name in names:
        (projector if "mmproj" in name else model)(tmp_path / name)

    assert of(catalog(tmp_path)) == expected


def test_a_projector_without_a_name_is_left_where_models_differ(tmp_path: Path) -> None:
    model(tmp_path / "a.gguf")
    model(tmp_path / "b.gguf", width=128)
    projector(tmp_path / "mmproj.gguf")

    assert of(catalog(tmp_path)) == {"a": "", "b": ""}


def test_one_whose_rows_are_of_another_width_is_none(tmp_path: Path) -> None:
    model(tmp_path / "a.gguf")
    projector(tmp_path / "a-mmproj.gguf", clip__vision__projection_dim=128)

    assert of(catalog(tmp_path)) == {"a": ""}


def test_the_operator_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "eyes").mkdir()
    projector(tmp_path / "eyes" / "x.gguf")
    projector(tmp_path / "b-mmproj.gguf")
    for name in "abc":
        model(tmp_path / f"{name}.gguf")
    toml = '[models.a]\nmmproj = "eyes/x.gguf"\n[models.b]\nmmproj = false\n[models.c]\nmmproj = "eyes/gone.gguf"\n'

    found = catalog(tmp_path, toml)

    assert of(found) == {"a": "x.gguf", "b": "", "c": ""}
    assert [fault.reason for fault in found.faults] == [
        "[models.c] mmproj has no effect: no file 'eyes/gone.gguf' is in the model folders; put it there or correct "
        "`mmproj`"
    ]


@pytest.mark.parametrize("value", ['"/etc/x.gguf"', '"../x.gguf"', '"x.bin"', "true", "5"])
def test_what_can_be_no_projector_stops_the_node(tmp_path: Path, value: str) -> None:
    (tmp_path / "packtrain.toml").write_text(f"[models.a]\nmmproj = {value}\n")

    with pytest.raises(SetupError, match="mmproj"):
        load_catalog_config(tmp_path)


def test_a_model_with_eyes_takes_more_memory_and_says_what_it_can(tmp_path: Path) -> None:
    model(tmp_path / "a.gguf")
    blind = catalog(tmp_path).models[ModelId("a")]
    projector(tmp_path / "a-mmproj.gguf", clip__has_audio_encoder=True)
    seeing = load_catalog([tmp_path], CatalogConfig(), 8 * GIB).models[ModelId("a")]

    assert blind.info.modalities == ("text",)
    assert seeing.info.modalities == ("text", "vision", "audio")
    memory = seeing.info.memory
    assert memory.picture_bytes == PIXEL_BYTES * MAX_PIXELS
    assert memory.image_bytes > 64 * 32 * 4
    assert seeing.info.required_bytes - blind.info.required_bytes == memory.image_bytes + memory.picture_bytes
    assert seeing.fingerprint != blind.fingerprint
    assert seeing.info.file_bytes == blind.info.file_bytes + (tmp_path / "a-mmproj.gguf").stat().st_size


def test_the_real_projector_is_read(tmp_path: Path) -> None:
    header = read_header(PROJECTOR).projector

    assert header
    assert (header.sees, header.hears, header.width) == (True, False, 576)


def test_a_model_that_sees_is_loaded_only_where_its_projector_is() -> None:
    seeing, blind = model_info(modalities=("text", "vision")), model_info()
    said = NodeOffers({NodeId("n1"): blind, NodeId("n2"): seeing})
    view = View(Snapshot(now_ms=0, nodes=(node_beat("n1"), node_beat("n2")), offers={ModelId(seeing.id): said}))

    assert list(view.offers(ModelId(seeing.id))) == ["n2"]
