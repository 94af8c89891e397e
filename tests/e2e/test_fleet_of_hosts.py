"""Three hosts, each with room for two of five models, and a mixed stream of jobs over all five."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import hosts
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.mixed_load import BUDGET, compare

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not()),
    pytest.mark.timeout(600),
]


def test_every_job_of_a_mixed_stream_is_right_and_models_are_loaded_seldom(tmp_path: Path) -> None:
    model = demo_model_folder() / f"{MODEL}.gguf"

    ours, first_come = compare(tmp_path, model, count=20, seed=1, per_s=5)

    assert ours.wrong == first_come.wrong == []
    assert ours.samples > 10
    assert set(ours.peaks) == {"n1", "n2", "n3"}
    assert all(peak <= BUDGET for peak in ours.peaks.values()), ours
    assert ours.loads <= first_come.loads / 2, (ours, first_come)
    assert ours.longest_wait_s < 60
