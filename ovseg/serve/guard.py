"""Keep other web pages away from the server, and let each answer arrive."""

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    # A page of ours loosens it for its own style and script.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # One request a connection: so limits of time hold for all that a client sends.
    "Connection": "close",
}
# How long the rest of an upload is read after an answer that did not need it. A connection that is
# closed at once is reset, and the client may not see the answer.
LINGER_SECONDS = 2.0


class Guard:
    """ASGI middleware around the whole application.

    It refuses requests of other web pages, sets `SECURITY_HEADERS`, and reads what is left of a
    refused upload. The rule for pages is that of Go's net/http: browsers tell in Sec-Fetch-Site
    where a request is from, and older ones in Origin.

    Args:
        app: what is guarded.
        hosts: names by which clients may call the server; None for any. On a loopback address this
            keeps out pages whose own name was made to lead here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None):
        self.app = app
        self.hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body_is_read = False

        async def receive_and_note() -> Message:
            nonlocal body_is_read
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                body_is_read = True
            return message

        async def read_the_rest() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while not body_is_read:
                        await receive_and_note()

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif not message.get("more_body", False) and not body_is_read:
                await send({**message, "more_body": True})
                await read_the_rest()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        refusal = self._find_fault(scope)
        if refusal:
            await _refuse(refusal, send_safely)
        else:
            await self.app(scope, receive_and_note, send_safely)

    def _find_fault(self, scope: Scope) -> str:
        """Why a request is refused; empty if it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            return (
                f"This server answers only to the names {', '.join(sorted(self.hosts))}. Open it "
                "by one of them."
            )
        if scope["method"] in ("GET", "HEAD"):
            return ""
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        if site is not None:
            is_own = site in ("same-origin", "none")
        else:
            is_own = origin is None or origin.partition("://")[2] == host
        return "" if is_own else "Pages of other sites may not use this server."


def _name_of(host: str) -> str:
    """The name in a Host header, without the port, in small letters; empty for a broken one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(reason: str, send: Send) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
