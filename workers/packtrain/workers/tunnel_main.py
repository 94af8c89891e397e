"""Composition root of one end of a tunnel: it says where it listens, and leads connections until its parent is gone."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path

from packtrain.broker import lifeline, logs
from packtrain.workers.tunnel.forward import Forwarder
from packtrain.workers.tunnel.handshake import tls
from packtrain.workers.tunnel.messages import TunnelConfig, TunnelReady

EXIT_DEAF = 3


async def _run(config: TunnelConfig) -> None:
    files = {"certificate_file": Path(config.certificate_file), "key_file": Path(config.key_file)}
    context = tls(config.role, peer=config.peer, **files)
    target = (config.target_host, config.target_port)
    server = await Forwarder(config.role, tls=context, peer=config.peer, target=target).listen(config.host, config.port)
    ready = TunnelReady(port=server.sockets[0].getsockname()[1])
    sys.stdout.write(ready.model_dump_json() + "\n")
    sys.stdout.flush()
    await server.serve_forever()


def main(argv: list[str]) -> int:
    """Entry point; returns only when it cannot listen."""
    config = TunnelConfig.model_validate_json(argv[1])
    logs.configure("INFO")
    lifeline.watch(lambda: os._exit(0))
    try:
        asyncio.run(_run(config))
    except (OSError, ssl.SSLError) as error:
        sys.stderr.write(f"packtrain tunnel: cannot listen at {config.host}:{config.port}: {error}\n")
    return EXIT_DEAF


if __name__ == "__main__":
    sys.exit(main(sys.argv))
