"""Three hosts with room for two of five models each: a mixed stream, beside first come, first served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.mixed_load import BUDGET, five_models, mixed_stream, run_first_come, run_on_fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_every_job_of_a_mixed_stream_is_right_and_models_are_loaded_seldom(tmp_path: Path) -> None:
    models = five_models(tmp_path / "models", demo_model_folder() / f"{MODEL}.gguf")
    stream = mixed_stream(models.names, 40, seed=1)

    with models.fleet(tmp_path / "fleet") as fleet:
        report = run_on_fleet(fleet, stream, models, per_s=5)
        first_come = run_first_come(fleet, stream, models, per_s=5)

    assert report.wrong == []
    assert first_come.wrong == []
    assert report.loads <= first_come.loads / 2, (report, first_come)
    assert report.longest_wait_s < 60, report
    assert report.samples > 10
    assert set(report.peaks) == {"n1", "n2", "n3"}
    assert all(0 < peak <= BUDGET for peak in report.peaks.values()), report
