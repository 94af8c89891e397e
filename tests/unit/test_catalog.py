"""The catalog offers every good model, explains every bad file, and reads no header twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from packtrain.broker.claims import reserved_slots
from packtrain.broker.errors import SetupError
from packtrain.broker.ids import ModelId
from packtrain.workers import catalog as catalog_module
from packtrain.workers.catalog import MAX_FAULTS, Catalog, CatalogScanner, load_catalog
from packtrain.workers.catalog_config import CatalogConfig, load_catalog_config
from packtrain.workers.gguf import GgufHeader, read_header
from packtrain.workers.model_files import MAX_DEPTH
from tests.support.gguf_files import Value, gguf_bytes, metadata, write_gguf

pytestmark = pytest.mark.unit

MIB = 1024 * 1024


def catalog_of(*folders: Path, granted_bytes: int = 1024 * MIB, **config: object) -> Catalog:
    return load_catalog(folders, CatalogConfig.model_validate(config), granted_bytes)


def ids(catalog: Catalog) -> list[str]:
    return list(catalog.models)


def faults(catalog: Catalog) -> dict[str, str]:
    return {fault.file: fault.reason for fault in catalog.faults}


def part(number: int, count: int) -> bytes:
    """Part `number` (from 1) of a split model; only the first has the metadata."""
    first: Mapping[str | bytes, Value] = metadata() if number == 1 else {}
    return gguf_bytes({**first, "split.no": number - 1, "split.count": count})


def write_parts(folder: Path, name: str, *numbers: int, count: int) -> None:
    for number in numbers:
        write_gguf(folder / f"{name}-{number:05d}-of-{count:05d}.gguf", part(number, count))


# Which models are there


def test_model_is_offered_under_the_slug_of_its_file_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Qwen3 0.6B (Q8_0).gguf")

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == ["qwen3-0.6b-q8_0"]
    entry = catalog.models[ModelId("qwen3-0.6b-q8_0")]
    assert entry.path == path
    assert entry.info.file == path.name
    assert catalog.faults == ()


def test_entry_describes_the_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")

    info = catalog_of(tmp_path).models[ModelId("tiny")].info

    assert (info.architecture, info.quantization) == ("llama", "Q8_0")
    assert (info.n_layer, info.n_head_kv, info.n_ctx_train) == (2, 2, 512)
    assert (info.parameters, info.weights_bytes) == (64 * 8 + 64, 544 + 256)
    assert info.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2
    assert info.required_bytes > info.weights_bytes
    assert info.has_chat_template


def test_folders_are_searched_below_and_hidden_names_are_not(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a" / "b" / "deep.gguf")
    write_gguf(tmp_path / ".cache" / "hidden.gguf")
    write_gguf(tmp_path / "._deep.gguf", b"resource fork")
    write_gguf(tmp_path / "README.md", b"text")

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == ["deep"]
    assert catalog.faults == ()


def test_folder_too_deep_is_a_fault(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"d" * (MAX_DEPTH + 1))
    write_gguf(deep / "model.gguf")

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == []
    assert list(faults(catalog)) == [str(deep.relative_to(tmp_path))]


def test_missing_folder_is_a_fault_and_hides_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "there" / "a.gguf")

    catalog = catalog_of(tmp_path / "not-there", tmp_path / "there")

    assert ids(catalog) == ["a"]
    assert "cannot be read" in faults(catalog)[str(tmp_path / "not-there")]


def test_broken_file_is_a_fault_and_hides_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "sub" / "broken.gguf", b"GGUF\x01\0\0\0")
    write_gguf(tmp_path / "good.gguf")

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == ["good"]
    assert "GGUF version 1" in faults(catalog)["sub/broken.gguf"]


def test_unfinished_download_is_offered_when_it_is_complete(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gguf_bytes()[:-1])
    scanner = CatalogScanner([tmp_path], CatalogConfig(), MIB)
    before = scanner.scan()

    write_gguf(path)
    after = scanner.scan()

    assert "fewer than its tensors need" in faults(before)["m.gguf"]
    assert ids(after) == ["m"]
    assert after.faults == ()


@pytest.mark.parametrize(
    "pairs",
    [
        {"general.architecture": "clip"},
        {"general.architecture": "llama", "general.type": "adapter"},
        {"general.type": "imatrix"},
    ],
)
def test_files_that_are_no_models_are_passed_over(tmp_path: Path, pairs: Mapping[str, Value]) -> None:
    write_gguf(tmp_path / "mmproj-model.gguf", gguf_bytes(pairs))

    assert catalog_of(tmp_path) == Catalog()


def test_undecodable_file_name_is_shown_without_harm(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff\x1b[31m.gguf")
    write_gguf(tmp_path / name)
    write_gguf(tmp_path / ("broken" + name), b"")

    catalog = catalog_of(tmp_path)

    assert [entry.info.file for entry in catalog.models.values()] == ["bad??[31m.gguf"]
    assert list(faults(catalog)) == ["brokenbad??[31m.gguf"]
    assert catalog.models[ModelId("bad-31m")].info.model_dump_json()


def test_faults_beyond_a_hundred_are_counted(tmp_path: Path) -> None:
    for number in range(MAX_FAULTS + 5):
        write_gguf(tmp_path / f"{number:03}.gguf", b"")

    catalog = catalog_of(tmp_path)

    assert len(catalog.faults) == MAX_FAULTS + 1
    assert catalog.faults[-1].reason.startswith("5 more faults")


# Links


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "blobs" / "sha256-1234")
    link = tmp_path / "models" / "smol.gguf"
    link.parent.mkdir()
    link.symlink_to(blob)

    assert ids(catalog_of(link.parent)) == ["smol"]


def test_link_that_leads_nowhere_or_to_itself_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nothing")
    (tmp_path / "self.gguf").symlink_to(tmp_path / "self.gguf")

    assert list(faults(catalog_of(tmp_path))) == ["gone.gguf", "self.gguf"]


def test_link_to_a_folder_is_a_fault_and_cannot_loop(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    (tmp_path / "again").symlink_to(tmp_path)

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == ["a"]
    assert "PACKTRAIN_MODELS" in faults(catalog)["again"]


# Two claims to one id


def test_earlier_folder_has_the_id_and_the_later_file_is_a_fault(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "one" / "a.gguf")
    second = write_gguf(tmp_path / "two" / "A.gguf")

    catalog = catalog_of(tmp_path / "one", tmp_path / "two")

    assert catalog.models[ModelId("a")].path == first
    assert str(first) in faults(catalog)["A.gguf"]
    assert str(second) in faults(catalog)["A.gguf"]


def test_one_file_found_twice_is_no_fault(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "one" / "a.gguf")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.gguf").symlink_to(path)

    catalog = catalog_of(tmp_path / "one", tmp_path / "two", tmp_path, tmp_path / "one")

    assert ids(catalog) == ["a"]
    assert catalog.faults == ()


def test_broken_file_does_not_take_an_id(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one" / "a.gguf", b"")
    second = write_gguf(tmp_path / "two" / "a.gguf")

    assert catalog_of(tmp_path / "one", tmp_path / "two").models[ModelId("a")].path == second


# Split models


def test_parts_are_one_model_with_the_weights_of_all(tmp_path: Path) -> None:
    write_parts(tmp_path, "big", 3, 1, 2, count=3)

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == ["big"]
    entry = catalog.models[ModelId("big")]
    assert entry.path.name == "big-00001-of-00003.gguf"
    assert entry.info.weights_bytes == 3 * (544 + 256)
    assert entry.info.n_layer == 2


def test_overlapping_folders_do_not_double_the_weights_of_a_split_model(tmp_path: Path) -> None:
    write_parts(tmp_path / "in", "big", 1, 2, count=2)

    catalog = catalog_of(tmp_path, tmp_path / "in")

    assert catalog.models[ModelId("big")].info.weights_bytes == 2 * (544 + 256)
    assert catalog.faults == ()


def test_missing_part_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, "big", 1, 3, count=3)

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == []
    assert "big-00002-of-00003.gguf" in faults(catalog)["big-00001-of-00003.gguf"]


def test_missing_first_part_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, "big", 2, count=2)

    assert "big-00001-of-00002.gguf" in faults(catalog_of(tmp_path))["big-00002-of-00002.gguf"]


def test_many_missing_parts_are_counted(tmp_path: Path) -> None:
    write_parts(tmp_path, "big", 1, count=99_999)

    assert "and 99995 more" in faults(catalog_of(tmp_path))["big-00001-of-99999.gguf"]


def test_part_with_another_name_is_a_fault(tmp_path: Path) -> None:
    write_gguf(tmp_path / "renamed.gguf", part(1, 2))

    assert "part 1 of 2, but its name makes it 1 of 1" in faults(catalog_of(tmp_path))["renamed.gguf"]


def test_broken_part_is_the_fault_of_the_model(tmp_path: Path) -> None:
    write_parts(tmp_path, "big", 1, 2, count=2)
    write_gguf(tmp_path / "big-00002-of-00002.gguf", b"")

    catalog = catalog_of(tmp_path)

    assert ids(catalog) == []
    assert list(faults(catalog)) == ["big-00002-of-00002.gguf"]


# What the operator says


def test_defaults_are_the_trained_context_a_quarter_of_the_budget_and_five_minutes(tmp_path: Path) -> None:
    write_gguf(tmp_path / "short.gguf")
    kv = {"llama__attention__key_length": 2048, "llama__attention__value_length": 2048}  # 32 KiB for each token
    write_gguf(tmp_path / "long.gguf", gguf_bytes(metadata(llama__context_length=131_072, **kv)))

    models = catalog_of(tmp_path, granted_bytes=4 * 5 * 4096 * 32 * 1024).models

    assert (models[ModelId("short")].info.n_ctx, models[ModelId("short")].info.n_slots) == (512, 16)
    assert (models[ModelId("long")].info.n_ctx, models[ModelId("long")].info.n_slots) == (4096, 4)
    assert models[ModelId("long")].info.keep_alive_s == 300
    assert not models[ModelId("long")].info.pinned


def test_operator_overrides_one_model_and_all_others(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    placed = {"replicas": {"min": 1, "max": 3}, "nodes": {"gpu": "yes"}, "split": ["n1", "n2"]}
    options = {"context": 1024, "slots": 3, "keep_alive": -1, "pinned": True, **placed}

    models = catalog_of(
        tmp_path, defaults={"context": 256, "slots": 5, "keep_alive": "2h"}, models={"a": options}
    ).models

    a, b = models[ModelId("a")].info, models[ModelId("b")].info
    assert (a.n_ctx, a.n_slots, a.keep_alive_s, a.pinned) == (1024, 3, -1, True)
    assert (b.n_ctx, b.n_slots, b.keep_alive_s, b.pinned) == (256, 5, 7200, False)
    assert (a.min_replicas, a.max_replicas, a.nodes, a.split_over) == (1, 3, {"gpu": "yes"}, ("n1", "n2"))
    assert (b.min_replicas, b.max_replicas, b.nodes) == (0, 0, {})


@pytest.mark.parametrize(
    ("said", "n_slots", "expected"),
    [(None, 3, 0), (None, 4, 1), (None, 16, 1), (0, 8, 0), (3, 8, 3), (9, 8, 7), (1, 1, 0)],
)
def test_some_slots_are_left_to_interactive_jobs_and_one_at_least_to_bulk_ones(
    said: int | None, n_slots: int, expected: int
) -> None:
    assert reserved_slots(n_slots, said, parks=False) == expected


def test_no_slot_is_left_empty_for_interactive_jobs_where_bulk_ones_can_be_parked(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")

    models = catalog_of(tmp_path, defaults={"slots": 8}, models={"b": {"parking": False}}).models

    assert [models[ModelId(name)].info.reserved_slots for name in ("a", "b")] == [0, 1]
    assert reserved_slots(8, 2, parks=True) == 2


def test_a_model_reserves_what_its_section_says_and_else_what_the_defaults_say(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")

    models = catalog_of(
        tmp_path, defaults={"slots": 8, "reserved_slots": 2}, models={"a": {"reserved_slots": 0}}
    ).models

    assert [models[ModelId(name)].info.reserved_slots for name in ("a", "b")] == [0, 2]


def test_named_file_has_its_id_even_against_an_earlier_folder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one" / "smollm2.gguf")
    named = write_gguf(tmp_path / "two" / "SmolLM2.Q4_1.gguf")

    catalog = catalog_of(tmp_path / "one", tmp_path / "two", models={"smollm2": {"file": "SmolLM2.Q4_1.gguf"}})

    assert ids(catalog) == ["smollm2"]
    assert catalog.models[ModelId("smollm2")].path == named
    assert "claimed by" in faults(catalog)["smollm2.gguf"]


def test_split_model_is_named_by_its_first_part(tmp_path: Path) -> None:
    write_parts(tmp_path, "big", 1, 2, count=2)

    assert ids(catalog_of(tmp_path, models={"giant": {"file": "big-00001-of-00002.gguf"}})) == ["giant"]


def test_aliases_lead_to_their_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")

    catalog = catalog_of(tmp_path, models={"a": {"aliases": ["tiny", "small"]}})

    assert catalog.aliases == {"tiny": "a", "small": "a"}
    assert catalog.find("tiny") is catalog.find("a") is catalog.models[ModelId("a")]
    assert catalog.find("other") is None


def test_alias_that_is_the_id_of_a_file_is_a_fault(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    b = write_gguf(tmp_path / "b.gguf")

    catalog = catalog_of(tmp_path, models={"a": {"aliases": ["b"]}})

    assert catalog.aliases == {}
    assert catalog.models[ModelId("b")].path == b
    assert "alias 'b' of 'a'" in faults(catalog)["packtrain.toml"]


@pytest.mark.parametrize(("options", "missing"), [({}, "no model 'x'"), ({"file": "x.gguf"}, "no file 'x.gguf'")])
def test_section_without_a_model_is_a_fault(tmp_path: Path, options: Mapping[str, str], missing: str) -> None:
    catalog = catalog_of(tmp_path, models={"x": {**options, "aliases": ["y"]}})

    assert missing in faults(catalog)["packtrain.toml"]
    assert catalog.aliases == {}


# Looking again


def test_header_is_read_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(path: Path) -> GgufHeader:
        reads.append(path.name)
        return read_header(path)

    monkeypatch.setattr(catalog_module, "read_header", counted)
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", b"broken")
    scanner = CatalogScanner([tmp_path], CatalogConfig(), MIB)

    first = scanner.scan()
    assert scanner.scan() is first
    write_gguf(tmp_path / "b.gguf")
    second = scanner.scan()

    assert reads == ["a.gguf", "b.gguf", "b.gguf"]
    assert ids(second) == ["a", "b"]


def test_removed_model_leaves_the_catalog(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    scanner = CatalogScanner([tmp_path], CatalogConfig(), MIB)
    assert ids(scanner.scan()) == ["a"]

    path.unlink()

    assert ids(scanner.scan()) == []


# packtrain.toml


def config_of(home: Path, text: str) -> CatalogConfig:
    (home / "packtrain.toml").write_text(text, encoding="utf-8")
    return load_catalog_config(home)


def complaint(home: Path, text: str) -> str:
    with pytest.raises(SetupError) as caught:
        config_of(home, text)
    assert str(home / "packtrain.toml") in str(caught.value)
    return str(caught.value)


def test_without_the_file_there_are_defaults(tmp_path: Path) -> None:
    assert load_catalog_config(tmp_path) == CatalogConfig()


def test_whole_file_is_understood(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        [defaults]
        context = 8192
        [models.smollm2]
        file = "SmolLM2-135M-Instruct.Q4_1.gguf"
        aliases = ["smol", "tiny"]
        context = 2048
        slots = 16
        keep_alive = "10m"
        pinned = true
        [models."qwen3-0.6b"]
        """,
    )

    assert config.defaults.context == 8192
    assert config.models["smollm2"].aliases == ("smol", "tiny")
    assert config.models["smollm2"].keep_alive == 600
    assert config.models["qwen3-0.6b"].slots is None


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("2", (2, 2)), ("{min = 1}", (1, None)), ("{max = 3}", (0, 3)), ("{min = 1, max = 3}", (1, 3))],
)
def test_replicas_are_a_number_or_a_range(tmp_path: Path, text: str, bounds: tuple[int, int | None]) -> None:
    replicas = config_of(tmp_path, f"[models.a]\nreplicas = {text}").models["a"].replicas

    assert (replicas.min, replicas.max) == bounds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("-1", -1), ('"30s"', 30), ('"10m"', 600), ('"2h"', 7200), ('"-1s"', -1), ("0", 0)],
)
def test_keep_alive_is_seconds_or_a_duration(tmp_path: Path, text: str, seconds: float) -> None:
    assert config_of(tmp_path, f"[defaults]\nkeep_alive = {text}").defaults.keep_alive == seconds


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[defaults\n", ["is not TOML", "line 1"]),
        ("[model.a]", ["model: unknown key", "defaults, models"]),
        ("[defaults]\nslot = 1", ["defaults.slot: unknown key", "context, slots, reserved_slots, keep_alive"]),
        ("[models.a]\ncontxt = 1", ["models.a.contxt: unknown key", "file, aliases, context"]),
        ("[models.a]\nslots = 0", ["models.a.slots = 0", "greater than or equal to 1"]),
        ("[models.a]\nslots = 257", ["models.a.slots = 257", "less than or equal to 256"]),
        ("[models.a]\ncontext = '4k'", ["models.a.context = '4k'"]),
        ("[models.a]\ncontext = true", ["models.a.context = True"]),
        ("[models.a]\npinned = 'yes'", ["models.a.pinned = 'yes'"]),
        ("[models.a]\nreplicas = {min = 3, max = 2}", ["models.a.replicas", "min = 3 is more than max = 2"]),
        ("[models.a]\nreplicas = {least = 1}", ["models.a.replicas.least: unknown key", "min, max"]),
        (
            '[models.a]\nsplit = ["n1"]',
            ["models.a.split = ['n1']", "one node holds a model by itself; name two"],
        ),
        ('[models.a]\nsplit = ["n1", "n1"]', ["models.a.split", "a node stands there twice; name each once"]),
        ('[models.a]\nsplit = ["n1", "N 2"]', ["models.a.split.1 = 'N 2'", "use lower-case letters"]),
        ("[models.a]\nsplit = true", ["models.a.split = True", "valid tuple"]),
        (
            '[models.a]\nsplit = ["n1", "n2"]\n[models.a.remote]\nurl = "https://x.example/v1"',
            ["models.a.split: the model is remote", "remove it"],
        ),
        ("[models.a]\nreplicas = 0", ["models.a.replicas.max = 0", "greater than or equal to 1"]),
        ("[models.a]\nreplicas = true", ["models.a.replicas = True"]),
        ("[models.a]\nnodes = {gpu = true}", ["models.a.nodes.gpu = True"]),
        ("[models.a]\nnodes = {'g p u' = 'x'}", ["models.a.nodes", "'g p u=x' is not a label"]),
        ("[models.a]\nnodes = {gpu = ''}", ["models.a.nodes", "'gpu=' is not a label"]),
        ("[models.a]\nkeep_alive = 'soon'", ["models.a.keep_alive = 'soon'", '"10m"']),
        ("[models.a]\nkeep_alive = inf", ["models.a.keep_alive = inf"]),
        ("[models.a]\nkeep_alive = nan", ["models.a.keep_alive = nan"]),
        ("[models.a]\nkeep_alive = true", ["models.a.keep_alive = True", '"10m"']),
        (f"[models.a]\nkeep_alive = 1{'0' * 400}", ["models.a.keep_alive = 1000"]),
        ("[models.a]\nfile = '../secret.gguf'", ["models.a.file = '../secret.gguf'", "without folders"]),
        ("[models.a]\nfile = 'model.bin'", ["models.a.file = 'model.bin'"]),
        ("[models.'Big Model']", ["Big Model", "lower-case letters"]),
        ("[models.a]\naliases = ['Über']", ["models.a.aliases.0 = 'Über'", "lower-case letters"]),
        ('[models.a]\naliases = ["x\\n"]', ["models.a.aliases.0", "lower-case letters"]),
        ("[models.a]\naliases = 'x'", ["models.a.aliases = 'x'"]),
        ("[models.a]\naliases = ['a']", ["'a' is itself the id"]),
        ("[models.a]\naliases = ['b']\n[models.b]", ["models.a.aliases: 'b' is itself the id"]),
        ("[models.a]\naliases = ['x']\n[models.b]\naliases = ['x']", ["models.b.aliases: 'x'", "alias of 'a'"]),
        ("[models.a]\nfile = 'f.gguf'\n[models.b]\nfile = 'f.gguf'", ["models.b.file: 'f.gguf'", "id 'a'"]),
    ],
)
def test_mistake_is_refused_with_file_key_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = complaint(tmp_path, text)

    for part_of_it in parts:
        assert part_of_it in message


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "packtrain.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(SetupError, match="is not TOML"):
        load_catalog_config(tmp_path)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "packtrain.toml").mkdir()

    with pytest.raises(SetupError, match="cannot be read"):
        load_catalog_config(tmp_path)
