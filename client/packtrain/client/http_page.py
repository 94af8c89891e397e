"""The facts of the fleet page, from a gateway, for `packtrain top`."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

import httpx2
from pydantic import BaseModel

from packtrain.broker.history import Series
from packtrain.client.gateway.page_facts import Facts
from packtrain.client.http_errors import Lost, answer, away
from packtrain.client.http_options import HttpOptions

_M = TypeVar("_M", bound=BaseModel)


class HttpWatch:
    """Looks at a fleet through a gateway. Blocking; asks once, for whoever looks each second asks again anyway."""

    def __init__(self, options: HttpOptions) -> None:
        self._url = options.url
        self._http = httpx2.Client(**options.client())

    def __enter__(self) -> HttpWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def look(self) -> Facts:
        """The fleet, as the caller's key may see it.

        Raises:
            PacktrainError
        """
        return self._get(Facts, "/fleet")

    def history(self, span_s: int) -> Series:
        """Curves of the last `span_s` seconds: 900, 3600 or 86400.

        Raises:
            PacktrainError
        """
        return self._get(Series, f"/fleet/history?span_s={span_s}")

    def _get(self, kind: type[_M], path: str) -> _M:
        try:
            response = self._http.get(path)
            body = answer(self._url, response.status_code, response.content)
        except (httpx2.TransportError, Lost) as error:
            raise away(self._url, error) from error
        assert body is not None, "nothing was called absent"
        return kind.model_validate_json(body)
