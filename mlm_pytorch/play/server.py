"""Serve the application on this machine until it is told to stop."""

import socket
from collections.abc import Callable, Mapping

import uvicorn

from mlm_pytorch.cli.models import OpenedModel
from mlm_pytorch.play.app import create_app
from mlm_pytorch.play.guard import Hosts

GRACE_SECONDS = 30  # for a batch that is being computed when the server is told to stop


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything takes time: who connects is answered when the models are there.

    Args:
        host: a name or address of this machine.
        port: 1 to 65535, or 0 for a free one.

    Raises:
        ValueError: no such port, not free, or no address of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} is outside 0 to 65535; choose another, or 0 for a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"--host {host!r} is no address of this machine ({error}); leave it out to serve this machine alone"
        ) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port, or 0 for a free one"
        ) from None
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the page.

    >>> address_of("127.0.0.1", listen("127.0.0.1", 0))
    'http://127.0.0.1:40123/'
    """
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared only
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"


def serve(models: Mapping[str, OpenedModel], host: str, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is called with the address as soon as it answers."""

    def stopping() -> bool:
        return server.should_exit

    config = uvicorn.Config(
        create_app(models, Hosts.of(host), stopping),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    ready(address_of(host, listener))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has ended its work, and passes on what it was ended by
        pass
    finally:
        listener.close()
