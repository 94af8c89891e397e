"""Remote models and names with several targets in packtrain.toml, and what a node offers of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packtrain.broker.errors import SetupError
from packtrain.broker.settings import Settings
from packtrain.workers.catalog_config import load_catalog_config
from packtrain.workers.node_catalog import ScriptedCatalog
from packtrain.workers.remote.catalog import RemoteCatalog

pytestmark = pytest.mark.unit

REMOTE = (
    '[models.far]\naliases = ["f"]\n[models.far.remote]\nurl = "https://api.example.com/v1/"\nkey_env = "FAR_KEY"\n'
)
SEVERAL = '[aliases.any]\ntargets = ["near", "far"]\nspill_after_s = 20\n'


def catalog(home: Path, toml: str, *, key: str | None = "sk-1", near: str = "near") -> RemoteCatalog:
    home.joinpath("packtrain.toml").write_text(toml)
    home.joinpath("models").mkdir(exist_ok=True)
    home.joinpath("models", f"{near}.scripted.json").write_text(json.dumps({}))
    made = RemoteCatalog(ScriptedCatalog(Settings(home=home)), load_catalog_config(home), lambda _: key)
    assert made.scan()
    return made


def test_remote_models_and_aliases_stand_beside_the_files(tmp_path: Path) -> None:
    found = catalog(tmp_path, REMOTE + SEVERAL)
    offered = {info.id: info for info in found.offered()}

    assert set(found.models) == {"near", "far"}
    far = offered["far"]
    assert (far.remote, far.n_slots, far.max_replicas, far.n_ctx) == ("api.example.com far", 8, 1, 0)
    assert 0 < far.required_bytes < 2**27
    assert not far.fetchable
    assert offered["f"].alias_of == "far"
    assert (offered["any"].alias_of, offered["any"].targets, offered["any"].spill_after_s) == (
        "near",
        ("near", "far"),
        20,
    )
    remote = found.remote(far.id)  # type: ignore[arg-type]
    assert remote is not None
    assert (remote.url, remote.model) == ("https://api.example.com/v1", "far")
    assert not found.faults
    assert not found.scan()


@pytest.mark.parametrize("key", [None, " "])
def test_a_model_whose_key_is_missing_is_a_fault_and_hides_no_other(tmp_path: Path, key: str | None) -> None:
    found = catalog(tmp_path, REMOTE, key=key)

    assert set(found.models) == {"near"}
    (fault,) = found.faults
    assert "FAR_KEY" in fault.reason


def test_a_file_of_the_same_name_is_a_fault(tmp_path: Path) -> None:
    found = catalog(tmp_path, REMOTE, near="far")
    assert found.models.keys() == {"far"}
    assert [info.remote for info in found.offered() if info.id == "far"] == ["api.example.com far"]
    assert "rename one of them" in found.faults[0].reason

    found = catalog(tmp_path, "[aliases.far]\ntargets = ['x', 'y']\n", near="far")
    assert [info.alias_of for info in found.offered()] == [""]
    assert "choose another" in found.faults[0].reason


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[models.m.remote]\nurl = "api.example.com"', "models.m.remote.url: give the beginning"),
        ('[models.m.remote]\nurl = "ftp://x/v1"', "such as https"),
        ('[models.m.remote]\nurl = "https://x/v1/chat/completions"', "before /chat/completions"),
        ('[models.m.remote]\nurl = "https://x/v1?key=1"', "such as https"),
        ('[models.m.remote]\nurl = "https://u:secret@x/v1"', "leave user and password out"),
        ('[models.m.remote]\nurl = "https://x:y/v1"', "ort"),
        ('[models.m.remote]\nmodel = "x"', "url"),
        ('[models.m.remote]\nurl = "https://x/v1"\nkey_env = "sk-secret"', "not the key"),
        ('[models.m.remote]\nurl = "https://x/v1"\nkey_env = "gsk_secret"', "not the key"),
        (
            '[models.m.remote]\nurl = "https://x/v1"\napi_key = "sk-secret"',
            "unknown key; remove it, or use one of url, model",
        ),
        ('[models.m.remote]\nurl = "https://x/v1"\nconcurrency = 0', "concurrency = 0"),
        ('[models.m.remote]\nurl = "https://x/v1"\nprice_in = 1.0', "both price_in and price_out"),
        ('[models.m]\nslots = 4\n[models.m.remote]\nurl = "https://x/v1"', "use concurrency"),
        (
            '[models.m]\nkv_type = "q8_0"\n[models.m.remote]\nurl = "https://x/v1"',
            "models.m.kv_type: the model is remote",
        ),
        ("[aliases.a]\ntargets = []", "targets"),
        ('[aliases.a]\ntargets = ["x", "x"]', "stands there twice"),
        ('[aliases.a]\ntargets = ["b", "x"]\n[aliases.b]\ntargets = ["x", "y"]', "'b' is itself an alias"),
        ('[aliases.a]\ntargets = ["x"]\nspill = 3', "unknown key; remove it, or use one of targets, spill_after_s"),
        ('[aliases.a]\ntargets = ["x"]\nspill_after_s = -1', "spill_after_s"),
        ('[models.a]\n[aliases.a]\ntargets = ["x"]', "already the name of a model"),
        ('[models.m]\naliases = ["a"]\n[aliases.a]\ntargets = ["x"]', "already the name of a model"),
    ],
)
def test_a_mistake_stops_the_node_with_its_place_and_shows_no_key(tmp_path: Path, toml: str, said: str) -> None:
    tmp_path.joinpath("packtrain.toml").write_text(toml)
    with pytest.raises(SetupError) as caught:
        load_catalog_config(tmp_path)

    assert said in caught.value.message
    assert "secret" not in caught.value.message


def test_defaults_for_loaded_models_do_not_count_for_remote_ones(tmp_path: Path) -> None:
    found = catalog(tmp_path, '[defaults]\nkv_type = "q8_0"\nnumerics = "deterministic"\n' + REMOTE)

    assert found.options(next(model for model in found.models if model == "far")).changed() == {}
    assert found.models[next(model for model in found.models if model == "far")][0].numerics == "fast"
