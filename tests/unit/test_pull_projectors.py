"""Which projector of a repository comes along with a model, as repositories of several makers name theirs."""

from __future__ import annotations

import pytest

from packtrain.broker.errors import ModelFetchFailed
from packtrain.workers.catalog_projectors import key_of, name_of
from packtrain.workers.files.hub import Repo, RepoFile
from packtrain.workers.files.pull_projectors import is_projector, local_names, projector_of

pytestmark = pytest.mark.unit

#: Names as makers give them, by what they do differently.
REPOS = {
    "one for all": ["gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-f16.gguf", "mmproj-model-f16.gguf"],
    "types alone": ["Qwen3-VL-2B-Instruct-UD-Q4_K_XL.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"],
    "the model's name": ["SmolVLM-256M-Q8_0.gguf", "mmproj-SmolVLM-256M-Q8_0.gguf", "mmproj-SmolVLM-256M-f16.gguf"],
    "behind the name": ["Pixtral-12B.Q4_K_M.gguf", "Pixtral-12B.mmproj-Q8_0.gguf", "Pixtral-12B.mmproj-f16.gguf"],
    "another name": ["Llama-3.2-1B-Instruct-Q4_K_M.gguf", "mmproj-ultravox-v0_5-llama-3_2-1b-f16.gguf"],
    "two models": ["a-1b-q8_0.gguf", "a-2b-q8_0.gguf", "mmproj-a-1b-f16.gguf", "mmproj-a-2b-f16.gguf"],
    "folders": ["one/m-q8_0.gguf", "two/m-q8_0.gguf", "one/mmproj-f16.gguf", "mmproj-f16.gguf", "x/mmproj-f16.gguf"],
    "parts": ["Q8/big-00001-of-00002.gguf", "Q8/big-00002-of-00002.gguf", "mmproj-BF16.gguf", "mmproj-odd.gguf"],
    "no eyes": ["tiny-q8_0.gguf", "README.md"],
}  # fmt: skip


def repo(name: str) -> Repo:
    return Repo("pack/tiny", "c0ffee", tuple(RepoFile(path, 9, "ab" * 32) for path in REPOS[name]))


def chosen(name: str, model: str, wish: str = "") -> str:
    found = projector_of(repo(name), model, wish)
    return found.path if found else ""


@pytest.mark.parametrize(
    ("name", "model", "wish", "path"),
    [
        ("one for all", "gemma-3-4b-it-Q4_K_M.gguf", "", "mmproj-model-f16.gguf"),
        ("types alone", "Qwen3-VL-2B-Instruct-UD-Q4_K_XL.gguf", "", "mmproj-F16.gguf"),
        ("types alone", "Qwen3-VL-2B-Instruct-UD-Q4_K_XL.gguf", "bf16", "mmproj-BF16.gguf"),
        ("types alone", "Qwen3-VL-2B-Instruct-UD-Q4_K_XL.gguf", "mmproj-F32.gguf", "mmproj-F32.gguf"),
        ("types alone", "Qwen3-VL-2B-Instruct-UD-Q4_K_XL.gguf", "none", ""),
        ("types alone", "mmproj-F32.gguf", "", ""),
        ("the model's name", "SmolVLM-256M-Q8_0.gguf", "", "mmproj-SmolVLM-256M-f16.gguf"),
        ("the model's name", "SmolVLM-256M-Q8_0.gguf", "q8_0", "mmproj-SmolVLM-256M-Q8_0.gguf"),
        ("behind the name", "Pixtral-12B.Q4_K_M.gguf", "", "Pixtral-12B.mmproj-f16.gguf"),
        ("another name", "Llama-3.2-1B-Instruct-Q4_K_M.gguf", "", "mmproj-ultravox-v0_5-llama-3_2-1b-f16.gguf"),
        ("two models", "a-2b-q8_0.gguf", "", "mmproj-a-2b-f16.gguf"),
        ("folders", "one/m-q8_0.gguf", "", "one/mmproj-f16.gguf"),
        ("folders", "two/m-q8_0.gguf", "", "mmproj-f16.gguf"),
        ("parts", "Q8/big-00002-of-00002.gguf", "", "mmproj-BF16.gguf"),
        ("no eyes", "tiny-q8_0.gguf", "", ""),
    ],
)
def test_a_model_is_given_its_own_projector(name: str, model: str, wish: str, path: str) -> None:
    assert chosen(name, model, wish) == path


@pytest.mark.parametrize("wish", ["q8_0", "mmproj-Q8_0.gguf"])
def test_a_wish_that_the_repository_has_not_is_told_with_what_it_has(wish: str) -> None:
    with pytest.raises(ModelFetchFailed, match=r"it has mmproj-BF16\.gguf, mmproj-F16\.gguf"):
        chosen("types alone", "Qwen3-VL-2B-Instruct-UD-Q4_K_XL.gguf", wish)
    with pytest.raises(ModelFetchFailed, match="it has none"):
        chosen("no eyes", "tiny-q8_0.gguf", wish)


@pytest.mark.parametrize("name", REPOS)
def test_under_each_name_it_may_get_here_the_catalog_finds_it_for_its_model(name: str) -> None:
    for model in REPOS[name]:
        found = None if is_projector(model) or not model.endswith("gguf") else projector_of(repo(name), model)
        stem = model.rpartition("/")[2].removesuffix(".gguf").removesuffix("-00001-of-00002")
        for local in local_names(found.path, stem) if found else ():
            assert is_projector(local)
            assert name_of(local.removesuffix(".gguf"))
            assert key_of(stem).startswith(name_of(local.removesuffix(".gguf")))
