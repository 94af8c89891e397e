"""What every error is over HTTP: status, error object, and whether clients shall try again."""

from __future__ import annotations

import pytest

from packtrain.broker import errors
from packtrain.broker.errors import PacktrainError
from packtrain.client.openai import Fault, fault_of

pytestmark = pytest.mark.unit

TOO_LONG = errors.PromptTooLong(model="m", num_tokens=900, limit=512)
FULL = errors.QueueFull(model="m", waiting=10, limit=10, retry_after_s=2.3)
CASES: list[tuple[PacktrainError, int, str, str]] = [
    (errors.InvalidRequest("no"), 400, "invalid_request_error", "invalid_request"),
    (errors.InvalidParameter("no"), 400, "invalid_request_error", "invalid_parameter"),
    (errors.PromptEmpty(), 400, "invalid_request_error", "prompt_empty"),
    (TOO_LONG, 400, "invalid_request_error", "context_length_exceeded"),
    (errors.UnknownModel(model="x", known=[]), 404, "invalid_request_error", "model_not_found"),
    (errors.AdapterUnavailable(adapter="a", model="m", usable=[]), 400, "invalid_request_error", "adapter_unavailable"),
    (errors.MediaUnsupported(model="m"), 400, "invalid_request_error", "media_unsupported"),
    (errors.MediaUnreadable("no"), 400, "invalid_request_error", "media_unreadable"),
    (errors.MediaGone(sha256="0"), 400, "invalid_request_error", "media_gone"),
    (errors.UnknownJob(job_id="x"), 404, "invalid_request_error", "unknown_job"),
    (errors.UnknownNode(node="x", known=[]), 404, "invalid_request_error", "unknown_node"),
    (errors.IdempotencyConflict(job_id="x"), 409, "invalid_request_error", "idempotency_conflict"),
    (errors.NotDeterministic(model="m", reason="r"), 400, "invalid_request_error", "not_deterministic"),
    (FULL, 429, "rate_limit_error", "queue_full"),
    (errors.BlobsFull(size=9, limit=8), 503, "unavailable_error", "blobs_full"),
    (errors.TryLater("later"), 503, "unavailable_error", "try_later"),
    (errors.BrokerUnavailable(url="redis://x", reason="r"), 503, "unavailable_error", "broker_unavailable"),
    (errors.AnswerBegunAnew(job_id="x"), 503, "unavailable_error", "answer_begun_anew"),
    (errors.ResultTimeout(job_id="x", timeout_s=1, state="RUNNING"), 504, "timeout_error", "result_timeout"),
    (errors.JobError("no"), 500, "server_error", "job_error"),
    (errors.JobFailed("no"), 500, "server_error", "job_failed"),
    (errors.JobDead(attempts=3, instance="i", cause="died"), 500, "server_error", "job_dead"),
    (errors.RemoteFailed("no"), 502, "server_error", "remote_failed"),
    (errors.FleetLoop("no"), 400, "invalid_request_error", "fleet_loop"),
    (errors.JobCancelled("no"), 409, "invalid_request_error", "job_cancelled"),
    (errors.JobExpired("no"), 504, "timeout_error", "job_expired"),
    (errors.ModelGone(model="m", waited_s=600, known=[]), 503, "unavailable_error", "model_gone"),
    (errors.ModelError("no"), 503, "unavailable_error", "model_error"),
    (errors.ModelFileInvalid(path="p", reason="r"), 503, "unavailable_error", "model_file_invalid"),
    (errors.ModelTooLarge("no"), 503, "unavailable_error", "model_too_large"),
    (errors.ModelLoadFailed("no"), 503, "unavailable_error", "model_load_failed"),
    (errors.ModelFetchFailed("no"), 503, "unavailable_error", "model_fetch_failed"),
    (errors.SetupError("no"), 500, "server_error", "setup_error"),
    (PacktrainError("no"), 500, "server_error", "internal_error"),
]
#: The same request will fail again, so clients shall not send it again though 409 and 5xx ask for it.
IN_VAIN = {
    *(
        "idempotency_conflict",
        "result_timeout",
        "job_expired",
        "job_cancelled",
        "job_error",
        "job_failed",
        "remote_failed",
        "job_dead",
    ),
    *("model_error", "model_file_invalid", "model_too_large", "model_load_failed", "model_fetch_failed"),
    *("setup_error", "internal_error"),
}


def every_class(of: type[PacktrainError] = PacktrainError) -> set[type[PacktrainError]]:
    return {of, *(found for sub in of.__subclasses__() for found in every_class(sub))}


def test_no_class_is_forgotten() -> None:
    ours = {kind for kind in every_class() if kind.__module__ == errors.__name__}

    assert {type(error) for error, *_ in CASES} == ours


@pytest.mark.parametrize(("error", "status", "kind", "code"), CASES, ids=lambda case: type(case).__name__)
def test_status_and_error_object(error: PacktrainError, status: int, kind: str, code: str) -> None:
    fault = fault_of(error)
    body = fault.body()["error"]

    assert fault.status == status
    assert {"message", "type", "param", "code"} <= body.keys()
    assert (body["type"], body["code"], body["message"]) == (kind, code, error.message)


@pytest.mark.parametrize(("error", "status", "kind", "code"), CASES, ids=lambda case: type(case).__name__)
def test_whether_to_try_again(error: PacktrainError, status: int, kind: str, code: str) -> None:
    headers = fault_of(error).headers()

    assert headers.get("x-should-retry") == ("false" if code in IN_VAIN else None)
    assert ("Retry-After" in headers) == (status in (429, 503) and code not in IN_VAIN)


@pytest.mark.parametrize(("seconds", "said"), [(0.01, "1"), (2.3, "3"), (120, "120"), (4000, "120")])
def test_clients_come_back_when_there_may_be_room(seconds: float, said: str) -> None:
    """Whole seconds, and none above 120: openai-python does not try again at all then."""
    error = errors.QueueFull(model="m", waiting=1, limit=1, retry_after_s=seconds)

    assert fault_of(error).headers()["Retry-After"] == said


def test_a_prompt_that_is_too_long_says_its_size_by_llama_servers_names() -> None:
    about = fault_of(TOO_LONG).body()["error"]

    assert (about["n_prompt_tokens"], about["n_ctx"]) == (900, 512)


@pytest.mark.parametrize(
    ("field", "param"),
    [("params.temperature", "temperature"), ("messages.0.role", "messages.0.role"), ("expires_in_ms", "expires_in")],
)
def test_the_field_is_named_as_the_client_knows_it(field: str, param: str) -> None:
    assert fault_of(errors.InvalidParameter("no", field=field)).param == param


def test_headers_of_single_statuses() -> None:
    assert Fault(401, "t", "c", "m").headers() == {"WWW-Authenticate": "Bearer"}
    assert Fault(405, "t", "c", "m", allow="GET").headers() == {"Allow": "GET"}
