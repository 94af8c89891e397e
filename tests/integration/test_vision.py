"""Images in a fleet with a scripted model: what a picture costs that ends the process which looks at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packtrain.broker.states import InstanceState
from packtrain.client import JobDead, MediaUnsupported
from packtrain.workers.backends.scripted import CRASHING_WIDTH
from tests.support.fleets import Fleet, scripted_fleet
from tests.support.pictures import png

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    sees = {"sees": True, "n_slots": 4}
    models = {"eyes": sees, "fragile": sees, "blind": {}, "other": {"step_ms": 20}}
    with scripted_fleet(tmp_path_factory.mktemp("home"), models) as running:
        yield running


def test_a_picture_is_part_of_the_prompt_and_counts_as_its_rows(seeing: Fleet) -> None:
    result = seeing.client.generate("eyes", "What?", images=png(8, 8))

    assert result.text == "?tahW\n####"
    assert result.usage.prompt_tokens == 4 + len("\nWhat?")
    assert seeing.client.count_tokens("eyes", "What?", images=png(8, 8)) == 10
    with pytest.raises(MediaUnsupported, match="eyes"):
        seeing.client.generate("blind", "What?", images=png(8, 8))


def test_a_picture_that_ends_the_process_costs_its_own_job_and_no_other(seeing: Fleet) -> None:
    # Nothing has loaded it yet, so each process that the picture ends has been READY for some milliseconds only.
    others = [seeing.client.submit("other", f"steady {number} !long", max_tokens=100) for number in range(2)]
    mates = [seeing.client.submit("fragile", f"mate {number}", images=png(8, 8)) for number in range(2)]
    hostile = seeing.client.submit("fragile", "What?", images=png(CRASHING_WIDTH, 8))

    with pytest.raises(JobDead, match="SIGABRT"):
        hostile.result(60)
    assert [job.result(30).text for job in mates] == [f"{number} etam\n####" for number in range(2)]
    assert all(job.result(30).usage.completion_tokens == 100 for job in others)
    ended = [i for i in seeing.client.instances() if i.model == "fragile" and i.state is InstanceState.FAILED]
    assert ended
    assert all(i.ready_ms for i in ended), "it could be loaded"
    assert seeing.client.generate("fragile", "Again?", images=png(9, 9), timeout=30).text == "?niagA\n####"
