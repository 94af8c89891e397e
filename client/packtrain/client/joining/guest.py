"""The other machine's side: prove that we know the code, and learn the way to the broker."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from packtrain.broker.errors import SetupError
from packtrain.client.joining.exchange import Exchange, WrongSecret
from packtrain.client.joining.messages import MAX_BODY, Admitted, BrokerPlace, Confirm, Guest, Hello, Joined, Welcome

#: For one address to answer. One that swallows packets must not hide the next.
CONNECT_S = 4.0

_M = TypeVar("_M", bound=BaseModel)


def join(addresses: Sequence[str], port: int, *, secret: str, invite: str, node: str) -> Joined:
    """The way to the broker.

    Args:
        addresses: Of the pairing service; the first that answers is taken.
        secret: The code, or the secret of a token.
        invite: Which one the token names; empty with a code.
        node: Our own id.

    Raises:
        SetupError: Nobody answers, or we are refused; the message says why.
    """
    address = _answering(addresses, port)
    exchange = Exchange("guest", secret, invite)
    try:
        welcome = _ask(address, port, "/hello", Hello(invite=invite, element=exchange.element.hex()), Welcome)
        key = exchange.key(bytes.fromhex(welcome.element))
        proof = key.seal("guest", Guest(node=node).model_dump_json().encode())
        admitted = _ask(address, port, "/confirm", Confirm(session=welcome.session, sealed=proof.hex()), Admitted)
        place = BrokerPlace.model_validate_json(key.open("head", bytes.fromhex(admitted.sealed)))
    except (WrongSecret, ValidationError):
        raise SetupError(
            f"what answers at {address} port {port} does not know the code; is another fleet meant?"
        ) from None
    return Joined(_url(place, address), place.fleet, place.ca)


def _answering(addresses: Sequence[str], port: int) -> str:
    errors = []
    for address in addresses:
        try:
            socket.create_connection((address, port), CONNECT_S).close()
        except OSError as error:
            errors.append(f"{address}: {error.strerror or error}")
        else:
            return address
    raise SetupError(
        f"the head does not answer on port {port} ({'; '.join(errors) or 'it has no address'}); check that "
        "`packtrain up --listen` runs there and that no firewall stands between"
    )


def _ask(address: str, port: int, path: str, message: BaseModel, answer: type[_M]) -> _M:
    connection = http.client.HTTPConnection(address, port, timeout=CONNECT_S * 2)
    try:
        connection.request("POST", path, message.model_dump_json(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read(MAX_BODY)
    except (OSError, http.client.HTTPException) as error:
        raise SetupError(f"the head at {address} broke off ({error}); try again") from error
    finally:
        connection.close()
    if response.status == http.client.OK:
        return answer.model_validate_json(body)
    try:
        reason = str(json.loads(body)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        reason = f"it says {response.status}"
    raise SetupError(f"the head at {address} refused: {reason}")


def _url(place: BrokerPlace, address: str) -> str:
    host = place.host or address
    host = f"[{host}]" if ":" in host else host
    who = f"{quote(place.username, safe='')}:{quote(place.password, safe='')}@" if place.password else ""
    return f"{place.scheme}://{who}{host}:{place.port}/{place.db}"
