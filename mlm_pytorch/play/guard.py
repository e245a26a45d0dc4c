"""Who may speak to the page: this machine's own browser, showing this page.

A page from elsewhere that is open in the same browser must not read or steer this one. Three checks stand against that:
the Host header (a name that an attacker lets point to 127.0.0.1 is refused: DNS rebinding), the Origin of requests that
ask for work, and their content type, which no form can have.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Nothing from elsewhere, no code but ours, no text that becomes markup, no frame around the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",  # what people type is nobody else's business
}


@dataclass(frozen=True)
class Hosts:
    """The names under which the server may be addressed.

    The port is not compared: it is another one where the page is reached through a tunnel
    (`ssh -L 9000:localhost:8000`), and an attacker's name is wrong with any.

    Attributes:
        names: in lower case, IPv6 addresses without brackets.
        any_address: whether all addresses are, as where the server is bound to all. Rebinding needs a name.
    """

    names: frozenset[str]
    any_address: bool = False

    @classmethod
    def of(cls, host: str) -> "Hosts":
        """For a server that is bound to `host`."""
        name = host.lower()
        return cls(frozenset({name, *LOOPBACK}), any_address=name in ("0.0.0.0", "::"))  # noqa: S104 -- compared only

    def allow(self, header: str) -> bool:
        """Whether a Host header names this server.

        >>> hosts = Hosts.of("127.0.0.1")
        >>> [hosts.allow(name) for name in ("localhost:8000", "[::1]:8000", "evil.example:8000", "")]
        [True, True, False, False]
        """
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:@/\s]+))(?::[0-9]{1,5})?", header)
        if found is None:
            return False
        name = (found[1] or found[2]).lower()
        return name in self.names or (self.any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """An ASGI application that lets through what comes from the page itself, and puts `HEADERS` on every answer."""

    def __init__(self, app: App, hosts: Hosts):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, by itself or through the application."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        app = self._refusal(scope["method"], Headers(scope=scope)) or self.app

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                added = ((name.encode(), value.encode()) for name, value in HEADERS.items())
                message["headers"] = [*message["headers"], *((n, v) for n, v in added if n not in own)]
            await send(message)

        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        """The answer to a request that is not the page's own."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.hosts.allow(hosts[0]):
            return refusal(421, "this server goes by another name; open the address that mlm play printed")
        if method in ("GET", "HEAD"):
            return None
        origins = headers.getlist("origin")
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return refusal(403, "the request comes from another page")
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return refusal(403, "the request comes from another page")
        if method == "POST" and not _is_json(headers.getlist("content-type")):
            return refusal(415, "the content type is not application/json")
        return None


def _is_json(content_types: Iterable[str]) -> bool:
    return [kind.partition(";")[0].strip().lower() for kind in content_types] == ["application/json"]


def refusal(status: int, message: str) -> JSONResponse:
    """An answer that says in one line why there is no other."""
    return JSONResponse({"error": message}, status)
