"""From a URL to the way to its fleet: by HTTP to a gateway, or by Redis to the broker itself."""

from __future__ import annotations

from packtrain.broker.settings import Settings, load_settings
from packtrain.client.redis_transport import AsyncRedisTransport, RedisTransport
from packtrain.client.transport import AsyncTransport, Transport

HTTP_SCHEMES = ("http://", "https://")


def open_transport(url: str | None = None, api_key: str | None = None) -> Transport:
    """The transport that a URL's scheme asks for.

    Args:
        url: None: that of the settings.
        api_key: For a gateway; None: that of the settings.

    Raises:
        SetupError: There can be no fleet at such a URL.
    """
    settings, url = _settings(url, api_key)
    if url.startswith(HTTP_SCHEMES):
        # Not above: most programs never need an HTTP client, whose import takes a tenth of a second.
        from packtrain.client.http_options import parse_options
        from packtrain.client.http_transport import HttpTransport

        return HttpTransport(parse_options(url, settings.api_key, settings.ca))
    return RedisTransport(
        url,
        max_waiting=settings.max_waiting,
        max_waiting_user=settings.max_waiting_user,
        keep_ms=int(settings.keep_s * 1000),
    )


def open_async_transport(url: str | None = None, api_key: str | None = None) -> AsyncTransport:
    """The same for one event loop."""
    blocking = open_transport(url, api_key)
    if isinstance(blocking, RedisTransport):
        return AsyncRedisTransport(blocking)
    from packtrain.client.http_transport import HttpTransport
    from packtrain.client.http_transport_aio import AsyncHttpTransport

    assert isinstance(blocking, HttpTransport)
    return AsyncHttpTransport(blocking)


def _settings(url: str | None, api_key: str | None) -> tuple[Settings, str]:
    given = {"url": url, "api_key": api_key}
    settings = load_settings(**{name: value for name, value in given.items() if value})
    return settings, settings.broker_url()
