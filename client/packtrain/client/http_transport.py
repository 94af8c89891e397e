"""The way to the fleet by HTTP, for programs that reach one of its gateways and hold an API key.

Every call may be sent again without harm, so one whose connection broke is, for some seconds: a gateway that restarts,
or that a balancer replaces by another, is not noticed. Events come by long polls, or over one connection that is kept
open, see http_feed.py.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from packtrain.broker import trace_context
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chunks import Event
from packtrain.broker.explain import Explanation
from packtrain.broker.ids import JobId, ModelId, NodeId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeChange, NodeWish
from packtrain.broker.orders import Desired
from packtrain.broker.outcome import JobStatus
from packtrain.broker.pulls import PullRequest, PullStatus
from packtrain.broker.states import JobState
from packtrain.client import native_wire as wire
from packtrain.client.http_errors import Lost, answer, away, is_final
from packtrain.client.http_feed import Feed, Feeds, feed_cursors
from packtrain.client.http_options import FEED_TIMEOUT, HttpOptions

#: Before each further try, seconds: 2.6 s in all, as over Redis. The first comes at once: a kept connection that the
#: gateway has just closed for want of use looks like a gateway that died.
PAUSES_S = (0.0, 0.1, 0.2, 0.4, 0.8, 1.1)
#: Of a read of events: who reads has patience.
FEW_PAUSES_S = (0.0,)
#: Records of ended jobs that came with their events and that nobody has asked for yet.
MAX_RECORDS = 1000
#: Of a request for a stream of events.
FEED_HEADERS = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}

_M = TypeVar("_M", bound=BaseModel)


class HttpTransport:
    """A `Transport` through a gateway. Safe to share between threads."""

    def __init__(self, options: HttpOptions) -> None:
        self.options = options
        self.url = options.url
        self._http = httpx2.Client(**options.client())
        self._feeds: Feeds[httpx2.Response, Iterator[bytes]] = Feeds()
        self._lock = threading.Lock()
        self._ended: OrderedDict[JobId, JobStatus] = OrderedDict()  # an ended record changes no more

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        body = f'{{"id":"{job_id}","spec":{spec.to_json(with_media=True)}}}'
        return wire.SUBMITTED.validate_json(self._send("POST", "/jobs", body))

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        after = askable(after)
        if not after:
            return []
        if self._feeds.pay(after, block_s) and (found := self._follow(after)) is not None:
            return found
        return self.took(self._send("POST", "/events", events_body(after, block_s), pauses_s=FEW_PAUSES_S))

    def took(self, answer: bytes) -> list[Event]:
        """Events of an answer. Records that came along are what is asked for next."""
        found = wire.Events.model_validate_json(answer)
        with self._lock:
            self._ended.update((JobId(status.id), status) for status in found.records)
            while len(self._ended) > MAX_RECORDS:
                self._ended.popitem(last=False)
        return found.events

    def status(self, job_id: JobId) -> JobStatus | None:
        with self._lock:
            ended = self._ended.pop(job_id, None)
        return ended or self._of_job(JobStatus, job_id, "")

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus | None]:
        with self._lock:
            found = {job_id: self._ended.pop(job_id, None) for job_id in job_ids}
        possible = [job_id for job_id, status in found.items() if status is None and wire.is_job_id(job_id)]
        for begin in range(0, len(possible), wire.MAX_JOBS):
            body = wire.Lookup(ids=possible[begin : begin + wire.MAX_JOBS])
            found |= self._ask(wire.Found, "POST", "/jobs/lookup", body).jobs
        return found

    def spec(self, job_id: JobId) -> JobSpec | None:
        return self._of_job(JobSpec, job_id, "/spec")

    def explain(self, job_id: JobId) -> Explanation | None:
        return self._of_job(Explanation, job_id, "/explanation")

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        if not wire.is_job_id(job_id):
            return None
        found = self._find("POST", f"/jobs/{job_id}/cancel{'?forget=true' * forget}", absent="unknown_job")
        return None if found is None else wire.Cancelled.model_validate_json(found).state

    def recent(self, limit: int) -> list[JobStatus]:
        return self._ask(wire.Jobs, "GET", f"/jobs?limit={limit}").jobs

    def waiting(self) -> dict[Route, int]:
        found = self._ask(wire.Waiting, "GET", "/waiting").waiting
        return {Route(route): count for route, count in found.items()}

    def models(self) -> list[ModelInfo]:
        return self._ask(wire.Models, "GET", "/models").models

    def nodes(self) -> list[NodeBeat]:
        return self._ask(wire.Nodes, "GET", "/nodes").nodes

    def instances(self) -> list[InstanceBeat]:
        return self._ask(wire.Instances, "GET", "/instances").instances

    def waits(self) -> dict[Route, str]:
        found = self._ask(wire.Waiting, "GET", "/waiting").reasons
        return {Route(route): reason for route, reason in found.items()}

    def set_desired(self, model: ModelId, *, replicas: int, unload: bool) -> Desired:
        body = wire.DesiredBody(replicas=replicas, unload=unload)
        return self._ask(Desired, "PUT", f"/models/{_part(model)}/desired", body)

    def pull(self, node: NodeId, request: PullRequest) -> None:
        body = wire.PullBody(**request.model_dump())
        self._ask(wire.PullAsked, "POST", f"/nodes/{_part(node)}/pulls", body)

    def pull_status(self, pull_id: str) -> PullStatus | None:
        found = self._find("GET", f"/pulls/{_part(pull_id)}", absent="unknown_pull")
        return None if found is None else PullStatus.model_validate_json(found)

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        return self._ask(NodeWish, "PATCH", f"/nodes/{_part(node)}", change)

    def close(self) -> None:
        for feed in self._feeds.take_all():
            feed.response.close()
        self._http.close()

    def _follow(self, after: Mapping[JobId, str]) -> list[Event] | None:
        """What a feed of these jobs says next. None: there is none now, and a poll will say why."""
        for stale in self._feeds.take_stale(time.monotonic()):
            stale.response.close()
        feed = self._feeds.take(after)
        try:
            feed = feed or self._open_feed(after)
            if feed is None:
                return None
            while (events := feed.parser.take(next(feed.pieces))) is None:
                pass
        except BaseException as error:
            if feed:
                feed.response.close()
                self._feeds.failed(feed, error)
            if isinstance(error, httpx2.TransportError | StopIteration):
                return None
            raise
        if feed.took(events):
            if other := self._feeds.put(feed, time.monotonic()):
                other.response.close()
        else:
            feed.response.close()
        return None if feed.parser.has_failed and not events else events

    def _open_feed(self, after: Mapping[JobId, str]) -> Feed[httpx2.Response, Iterator[bytes]] | None:
        request = self._http.build_request(
            "POST", "/events", content=events_body(after, 0), headers=FEED_HEADERS, timeout=FEED_TIMEOUT
        )
        response = self._http.send(request, stream=True)
        if response.status_code != 200:
            response.close()
            return None
        return Feed(response, response.iter_raw(), feed_cursors(after))

    def _of_job(self, kind: type[_M], job_id: JobId, what: str) -> _M | None:
        found = self._find("GET", f"/jobs/{job_id}{what}", absent="unknown_job") if wire.is_job_id(job_id) else None
        return None if found is None else kind.model_validate_json(found)

    def _ask(self, kind: type[_M], method: str, path: str, body: BaseModel | None = None) -> _M:
        return kind.model_validate_json(self._send(method, path, body.model_dump_json() if body else None))

    def _send(self, *args: Any, **kwargs: Any) -> bytes:
        found = self._find(*args, **kwargs)
        assert found is not None, "nothing was called absent"
        return found

    def _find(
        self, method: str, path: str, body: str | None = None, *, absent: str = "", pauses_s: Sequence[float] = PAUSES_S
    ) -> bytes | None:
        """What the gateway answers; None: by the code `absent`.

        Raises:
            PacktrainError
        """
        for pause_s in (*pauses_s, None):
            try:
                response = self._http.request(method, path, content=body, headers=_trace())
                return answer(self.url, response.status_code, response.content, absent=absent)
            except (httpx2.TransportError, Lost) as error:
                if pause_s is None or is_final(error):
                    raise away(self.url, error) from error
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")


def askable(after: Mapping[JobId, str]) -> dict[JobId, str]:
    """Of these jobs, those that one request may name: who has more hears of the first ones first."""
    return dict(islice(((job_id, at) for job_id, at in after.items() if wire.is_job_id(job_id)), wire.MAX_JOBS))


def events_body(after: Mapping[JobId, str], wait_s: float) -> str:
    """A request for the events of these jobs."""
    return wire.EventsBody(after=dict(after), wait_s=wait_s, records=True).model_dump_json()


def _part(text: str) -> str:
    """A part of a path, whatever stands in it."""
    return quote(text, safe="")


def _trace() -> dict[str, str]:
    """The trace that a request is part of, as a header."""
    traceparent = trace_context.current()
    return {trace_context.HEADER: traceparent} if traceparent else {}
