"""Which adapters a job gets, which files are adapters of a model, and what a receipt says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from packtrain.broker.adapters import check_adapters
from packtrain.broker.errors import AdapterUnavailable, InvalidParameter, SetupError
from packtrain.broker.job_spec import JobSpec, parse_spec
from packtrain.broker.model_info import AdapterInfo, ModelInfo
from packtrain.broker.outcome import Outcome
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.states import JobState
from packtrain.client.request import build_spec
from packtrain.client.verify import request_again
from packtrain.workers.adapters import Adapter, AdapterFile, adapters_of
from packtrain.workers.catalog import Catalog, load_catalog
from packtrain.workers.catalog_config import load_catalog_config
from packtrain.workers.gguf import read_header
from packtrain.workers.receipts import Build, Computer, adapter_sha256
from tests.support.factories import model_info, spec
from tests.support.gguf_files import Raw, Tensor, Value, gguf_bytes, metadata, write_gguf
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.unit

OFFERED = {"pirate": Adapter(0.5), "polite": Adapter(), "broken": Adapter(fault="it is a model")}
PAIR = (Tensor("blk.0.attn_q.weight.lora_a", (64, 4)), Tensor("blk.0.attn_q.weight.lora_b", (4, 64)))


def test_a_name_alone_takes_the_scale_that_is_set_and_zero_is_no_adapter() -> None:
    asked = spec(adapters={"polite": 0.0, "pirate": None})

    assert adapters_of(asked, OFFERED) == (("pirate", 0.5),)
    assert adapters_of(spec(), OFFERED) == ()


def test_sets_are_equal_however_they_were_written() -> None:
    one, other = ({"pirate": 0.5, "polite": 1}, {"polite": 1.0, "pirate": None})

    assert adapters_of(spec(adapters=one), OFFERED) == adapters_of(spec(adapters=other), OFFERED)


@pytest.mark.parametrize(("name", "said"), [("unheard", "has no adapter 'unheard'"), ("broken", "it is a model")])
def test_one_that_cannot_be_used_is_refused_with_those_that_can(name: str, said: str) -> None:
    infos = tuple(AdapterInfo(name=known, fault=adapter.fault) for known, adapter in OFFERED.items())
    models = [model_info(adapters=infos), ModelInfo(id="little", alias_of="tiny")]

    with pytest.raises(AdapterUnavailable, match=f"{said}.*can use: pirate, polite"):
        adapters_of(spec(adapters={name: 1}), OFFERED)
    for model in ("tiny", "little"):
        with pytest.raises(AdapterUnavailable, match=f"'tiny'.*{said}.*can use: pirate, polite"):
            check_adapters(spec(model=model, adapters={name: 1}), models)


def test_a_good_name_and_an_unknown_model_pass_the_check_at_the_submit() -> None:
    models = [model_info(adapters=(AdapterInfo(name="pirate"),))]

    check_adapters(spec(adapters={"pirate": 2}), models)
    check_adapters(spec(model="unknown", adapters={"pirate": 2}), models)


def test_a_deterministic_job_takes_one_adapter_at_most() -> None:
    fields: dict[str, object] = {"model": "m", "kind": "complete", "prompt": "x", "deterministic": True}

    assert parse_spec({**fields, "adapters": {"pirate": 1}}).adapters == {"pirate": 1}
    with pytest.raises(InvalidParameter, match="one of `adapters` at most"):
        parse_spec({**fields, "adapters": {"pirate": 1, "polite": 1}})


@pytest.mark.parametrize(
    "fields",
    [
        {"adapters": {"Bad Name": 1}},
        {"adapters": {"a": float("nan")}},
        {"adapters": {"a": 101}},
        {"adapters": dict.fromkeys("abcde", 1)},
        {"adapters": {"a": 1}, "kind": "embed"},
    ],
    ids=["name", "nan", "scale", "five", "embed"],
)
def test_adapters_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter, match="adapters"):
        parse_spec({"model": "m", "kind": "complete", "prompt": "x", **fields})


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a", {"a": None}), (["a", "b"], {"a": None, "b": None}), ({"a": 0.5}, {"a": 0.5}), (None, {}), ((), {})],
)
def test_clients_name_them_as_it_suits(given: object, expected: dict[str, float | None]) -> None:
    made = build_spec("m", "x", raw=False, stream=False, expires_in=None, options={"adapters": given})

    assert made.adapters == expected


def test_prefixes_of_jobs_with_other_adapters_have_nothing_in_common() -> None:
    text = "x" * 5000
    hashes = [prefix_hashes(spec(text, adapters=a)) for a in ({}, {"a": 1}, {"a": 0.5}, {"b": 1})]

    assert all(found for found in hashes)
    assert len({one for found in hashes for one in found}) == sum(map(len, hashes))


def test_a_class_tells_adapter_files_apart_and_not_their_names() -> None:
    def computer(**hashes: str) -> Computer:
        return Computer(Build("l", "f", ""), "0" * 64, "deterministic", "serial", hashes)

    one, other = computer(a="11", b="22"), computer(a="33", c="11")

    assert one.class_with(()) == one.numerics_class == other.numerics_class
    assert one.class_with((("a", 1.0),)) == other.class_with((("c", 1.0),))
    assert len({one.class_with(s) for s in ((), (("a", 1.0),), (("b", 1.0),))}) == 3
    assert one.class_with((("a", 1.0),)) != other.class_with((("a", 1.0),))


def test_a_receipt_names_the_adapters_and_a_job_is_verified_with_their_scales(tmp_path: Path) -> None:
    path = write_tiny_lora(tmp_path / "pirate.gguf")
    files = [AdapterFile(name="pirate", path=str(path)), AdapterFile(name="gone", path=str(tmp_path / "gone.gguf"))]
    hashes = adapter_sha256(files, tmp_path / "hashes.json")
    computer = Computer(Build("l", "f", ""), "0" * 64, "fast", "fast", hashes)
    receipt = computer.receipt(threads=1, seed=1, prompt=[1], output=[2], adapters=(("pirate", 0.5),))
    outcome = Outcome(state=JobState.SUCCEEDED, text="x", receipt=receipt)
    again = request_again("j", spec(adapters={"pirate": None}), outcome, model="tiny", on=None)

    assert [(a.name, a.scale, len(a.sha256)) for a in receipt.adapters] == [("pirate", 0.5, 64)]
    assert receipt.numerics_class == computer.class_with((("pirate", 0.5),))
    assert again.adapters == {"pirate": 0.5}
    assert set(hashes) == {"pirate"}


def test_a_job_survives_the_way_to_its_instance() -> None:
    asked = spec(adapters={"pirate": None, "polite": 0.25})

    assert JobSpec.model_validate_json(asked.model_dump_json()) == asked


def catalog(tmp_path: Path, toml: str) -> Catalog:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "packtrain.toml").write_text(toml)
    return load_catalog([tmp_path / "models"], load_catalog_config(tmp_path / "home"), 2**40)


def test_a_model_is_offered_with_its_adapters_and_what_they_take(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_tiny_lora(folder / "lora" / "pirate.gguf")
    write_tiny_model(folder / "tiny.gguf")
    plain = catalog(tmp_path, "")
    found = catalog(
        tmp_path,
        """
        [models.tiny.adapters]
        pirate = "lora/pirate.gguf"
        quiet = {path = "lora/pirate.gguf", scale = 0.25}
        """,
    )
    before, entry = plain.models[next(iter(plain.models))], found.models[next(iter(found.models))]

    assert not found.faults
    assert [(a.name, a.file, a.scale) for a in entry.info.adapters] == [
        ("pirate", "pirate.gguf", 1.0),
        ("quiet", "pirate.gguf", 0.25),
    ]
    assert [a.path for a in entry.adapters] == [str(folder / "lora" / "pirate.gguf")] * 2
    assert entry.adapter_bytes == 2 * 2 * 2 * 2 * 64 * 4 * 4  # files x layers x weights x parts x elements x bytes
    assert entry.info.required_bytes - before.info.required_bytes == entry.adapter_bytes
    assert entry.fingerprint != before.fingerprint


def test_an_adapter_that_cannot_be_used_is_listed_with_its_fault_and_hides_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_tiny_lora(folder / "good.gguf")
    write_tiny_model(folder / "tiny.gguf")
    write_tiny_lora(folder / "qwen.gguf", architecture="qwen3")
    write_tiny_lora(folder / "marked.gguf", invocation=(1, 2))
    write_gguf(folder / "torn.gguf", b"GGUF" + b"\xff" * 100)
    names = ("good", "qwen", "marked", "torn", "tiny", "gone")
    lines = "\n".join(f'{name} = "{name}.gguf"' for name in names)
    (entry,) = (found := catalog(tmp_path, f"[models.tiny.adapters]\n{lines}")).models.values()
    faults = {adapter.name: adapter.fault for adapter in entry.info.adapters}

    assert [adapter.name for adapter in entry.adapters] == ["good"]
    assert faults["good"] == ""
    assert "made for 'qwen3', this model is 'llama'" in faults["qwen"]
    assert "aLoRA" in faults["marked"]
    assert "download it again" in faults["torn"]
    assert "no adapter but a model" in faults["tiny"]
    assert "no file 'gone.gguf'" in faults["gone"]
    assert {f.file for f in found.faults} == {f"{name}.gguf" for name in names[1:]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('a = "/etc/passwd.gguf"', "below a model folder"),
        ('a = "../x.gguf"', "below a model folder"),
        ('a = "x.bin"', "below a model folder"),
        ('a = {path = "x.gguf", scale = 1000}', "scale"),
        ('a = {path = "x.gguf", sclae = 1}', "unknown key; remove it, or use one of path, scale"),
        ("a = 3", "adapters"),
        ('"A B" = "x.gguf"', "not a usable name"),
    ],
)
def test_a_mistake_in_the_configuration_names_its_place(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        catalog(tmp_path, f"[models.tiny.adapters]\n{line}")


def lora_fault(
    tmp_path: Path, tensors: Sequence[Tensor] = PAIR, *, base: dict[str, Value] | None = None, **changes: Value | None
) -> str:
    """Why a model with the header `base` cannot use an adapter with these tensors and keys."""
    keys: dict[str | bytes, Value] = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del keys[key]
        else:
            keys[key] = value
    adapter = read_header(write_gguf(tmp_path / "lora.gguf", gguf_bytes(keys, tensors)))
    model = read_header(write_gguf(tmp_path / "model.gguf", gguf_bytes(metadata(**(base or {})))))
    return model.fault_of_adapter(adapter)


def pair(
    a: tuple[int, ...], b: tuple[int, ...], weight: str = "blk.0.attn_q.weight", kind: str = "F32"
) -> list[Tensor]:
    return [Tensor(f"{weight}.lora_a", a, kind), Tensor(f"{weight}.lora_b", b, kind)]


def test_a_whole_adapter_has_no_fault(tmp_path: Path) -> None:
    assert lora_fault(tmp_path) == ""
    assert lora_fault(tmp_path, [*PAIR, Tensor("blk.0.attn_norm.weight", (64,))]) == ""
    assert lora_fault(tmp_path, pair((4, 8), (4, 64), "token_embd.weight")) == ""
    experts = pair((64, 4, 6), (4, 128, 6), "blk.0.ffn_up_exps.weight")
    assert lora_fault(tmp_path, experts, base={"llama__expert_count": 6}) == ""


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (PAIR[:1], "alone"),
        ([], "changes no weight"),
        ([*PAIR, Tensor("blk.0.attn_k.weight", (64, 4))], "no part of a LoRA"),
        (pair((64, 4), (8, 64)), "ranks 4 and 8"),
        (pair((4, 64), (8, 64), "token_embd.weight"), "ranks 4 and 8"),
        (pair((64, 4, 2), (4, 64, 2)), "shapes"),
        (pair((64, 4, 2), (4, 64), "blk.0.ffn_up_exps.weight"), "shapes"),
        (pair((64, 4, 2), (4, 64, 2), "blk.0.ffn_up_exps.weight"), "mixtures of 2 experts, this model has 0"),
        (pair((64, 4), (4, 64), kind="I32"), "the type I32"),
    ],
)
def test_what_llama_cpp_would_end_the_process_over_is_found_in_the_header(
    tmp_path: Path, tensors: Sequence[Tensor], said: str
) -> None:
    assert said in lora_fault(tmp_path, tensors)


def test_keys_of_the_wrong_kind_are_found_in_the_header(tmp_path: Path) -> None:
    assert "no 32-bit float" in lora_fault(tmp_path, adapter__lora__alpha=8)
    assert "no 32-bit float" in lora_fault(tmp_path, adapter__lora__alpha=Raw(12, b"\0" * 8))
    assert "only LoRA adapters" in lora_fault(tmp_path, adapter__type=3)
    assert "only LoRA adapters" in lora_fault(tmp_path, adapter__type="dora")
    assert "control vector" in lora_fault(tmp_path, general__architecture="controlvector", adapter__type=None)
