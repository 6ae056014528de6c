"""The page's server: marimo behind a guard, on this machine's own interface and no other."""

from __future__ import annotations

import os
import socket
import webbrowser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from upconv.spec import SpecError

PORT = 8741
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Guard:
    """Lets through only what this machine's browser asked of this page by a loopback name.

    A web page elsewhere can make a browser call 127.0.0.1, under a name of its own (DNS rebinding) or openly (a
    WebSocket, which no same-origin rule holds back): the Host and the Origin that the browser states give it away.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self.allows(dict(scope["headers"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page answers only to pages of its own address.\n"})

    @staticmethod
    def allows(headers: dict[bytes, bytes]) -> bool:
        """
        >>> Guard.allows({b"host": b"127.0.0.1:8741", b"origin": b"http://127.0.0.1:8741"})
        True
        >>> Guard.allows({b"host": b"127.0.0.1:8741", b"origin": b"https://elsewhere.example"})
        False
        """
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        return urlsplit("//" + host).hostname in LOOPBACK and origin in (None, f"http://{host}".encode("latin-1"))


def application() -> Any:
    """The page as an ASGI application. Raises ImportError with what to install."""
    try:
        marimo = import_module("marimo")
    except ImportError as error:
        raise ImportError("the explorer needs marimo: install it with `pip install 'upconv[explore]'`") from error
    page = Path(__file__).with_name("app.py")
    return Guard(marimo.create_asgi_app(quiet=True).with_app(path="", root=str(page)).build())


def listen(host: str, port: int) -> socket.socket:
    """A socket on a loopback address. Raises SpecError for another interface or a port that cannot be had."""
    if host not in LOOPBACK:
        raise SpecError(f"host is {host!r}: the explorer answers to this machine only; use one of {', '.join(LOOPBACK)}")
    if not 0 <= port <= 65535:
        raise SpecError(f"port is {port}: give 0 (any that is free) to 65535")
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1" if family == socket.AF_INET else host, port))
        held.listen(128)
    except OSError as error:
        held.close()
        raise SpecError(f"port {port} cannot be used ({error.strerror}): choose another, or 0 for any that is free") from None
    return held


def serve(host: str = "127.0.0.1", port: int = PORT, *, browser: bool = True, query: str = "") -> None:
    """Run the explorer until it is interrupted; print its address, and open it where `browser` says so.

    `host` is a loopback name, `port` 0 takes any that is free, `query` is `Settings.query`. Raises ImportError with what
    to install where marimo is absent, SpecError for another interface or a port that cannot be had.
    """
    app = application()
    held = listen(host, port)
    uvicorn = import_module("uvicorn")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{held.getsockname()[1]}/" + (f"?{query}" if query else "")
    try:
        print(f"upconv explore: {address} (stop with Ctrl+C)", flush=True)
        if browser:
            webbrowser.open(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[held])
    except KeyboardInterrupt:
        pass
    finally:
        held.close()
