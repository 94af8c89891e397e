"""Load options: what the operator may say, and what is refused before llama.cpp would."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.errors import SetupError
from packtrain.broker.ids import ModelId
from packtrain.workers.catalog import load_catalog
from packtrain.workers.catalog_config import FILE_NAME, CatalogConfig, load_catalog_config
from packtrain.workers.load_options import LoadOptions, max_outputs, rows_per_step
from tests.support.gguf_files import gguf_bytes, metadata, write_gguf

pytestmark = pytest.mark.unit


def config_of(home: Path, text: str) -> CatalogConfig:
    (home / FILE_NAME).write_text(text)
    return load_catalog_config(home)


def test_nothing_said_is_llama_cpps_choice(tmp_path: Path) -> None:
    options = config_of(tmp_path, "[models.a]\nslots = 2").load_options("a")

    assert options == LoadOptions()
    assert options.changed() == {}


def test_a_model_has_its_own_options_and_the_rest_from_the_defaults(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        [defaults]
        kv_type = "q8_0"
        gpu_layers = 20
        [models.a]
        kv_type = "f16"
        tensor_split = [3, 1]
        flash_attention = false
        moe_on_cpu = true
        parking = false
        """,
    )

    assert config.load_options("a") == LoadOptions(
        kv_type="f16", gpu_layers=20, tensor_split=(3, 1), flash_attention=False, moe_on_cpu=True, parking=False
    )
    assert config.load_options("b") == LoadOptions(kv_type="q8_0", gpu_layers=20)


def test_options_travel_as_json() -> None:
    for options in (LoadOptions(moe_on_cpu=True), LoadOptions(moe_on_cpu=3), LoadOptions(tensor_split=(1, 0))):
        assert LoadOptions.model_validate_json(options.model_dump_json()) == options
    assert LoadOptions.model_validate_json('{"moe_on_cpu": true}').moe_on_cpu is True


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("kv_type = 'q9'", ["models.a.kv_type = 'q9'", "'q8_0'"]),
        ("gpu_layers = -1", ["models.a.gpu_layers = -1"]),
        ("gpu_layers = true", ["models.a.gpu_layers = True"]),
        ("tensor_split = [0, 0]", ["models.a.tensor_split", "above 0"]),
        ("tensor_split = [-1.0]", ["models.a.tensor_split.0 = -1.0"]),
        ("flash_attention = 'on'", ["models.a.flash_attention = 'on'"]),
        ("moe_on_cpu = -1", ["models.a.moe_on_cpu = -1", "true for all"]),
        ("moe_on_cpu = 'all'", ["models.a.moe_on_cpu = 'all'", "true for all"]),
        ("kv_type = 'q4_0'\nflash_attention = false", ["models.a", "q4_0 needs flash attention"]),
    ],
)
def test_mistake_is_refused_with_key_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(SetupError) as caught:
        config_of(tmp_path, f"[models.a]\n{text}")

    for part in parts:
        assert part in str(caught.value)


def test_options_that_only_clash_together_name_the_model(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"models\.a, with \[defaults\]: kv_type q8_0 needs flash attention"):
        config_of(tmp_path, "[defaults]\nkv_type = 'q8_0'\n[models.a]\nflash_attention = false")


def test_heads_that_are_no_whole_blocks_are_a_fault_of_the_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "narrow.gguf")  # its heads have 16 elements
    write_gguf(tmp_path / "wide.gguf", gguf_bytes(metadata(llama__attention__head_count=2)))
    config = CatalogConfig.model_validate({"defaults": {"kv_type": "q8_0"}})

    catalog = load_catalog([tmp_path], config, 2**33)

    assert list(catalog.models) == [ModelId("wide")]
    assert catalog.models[ModelId("wide")].info.options == {"kv_type": "q8_0"}
    assert [fault.file for fault in catalog.faults] == ["narrow.gguf"]
    assert "its heads have 16; use f16 or bf16" in catalog.faults[0].reason


def test_outputs_of_a_step_suffice_for_every_slot_and_fit_in_it() -> None:
    for n_slots in (1, 4, 16, 256):
        assert n_slots <= max_outputs(n_slots) <= rows_per_step(n_slots)
