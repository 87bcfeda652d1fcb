"""A web server for the people of one machine: its port, and a guard that lets through only what its page needs."""

import socket
from collections.abc import Sequence
from typing import Any

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")


def check_port(port: int) -> None:
    """Refuse a port that is in use, or none."""
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((HOST, port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: not free here ({error}). Choose another one.") from error


class Guard:
    """An ASGI application around another one. It answers 127.0.0.1 alone, these paths alone, and takes nothing large.

    A page elsewhere could have its own name point to 127.0.0.1 and read what is served here: so the name is checked.
    """

    def __init__(self, app: Any, paths: Sequence[str], most_bytes: int):
        self.app, self.paths, self.most_bytes = app, tuple(paths), most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer why not."""
        refused = self.refusal(scope["path"], dict(scope["headers"])) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        status, text = refused
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and sentence for a request that is not answered."""
        if headers.get(b"host", b"").decode("latin-1").rpartition(":")[0] not in NAMES:
            return 403, "This server answers this machine alone."
        if ".." in path or "\\" in path or (path != "/" and not path.startswith(self.paths)):
            return 404, "Nothing is here."
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers or not length.isdigit() or int(length) > self.most_bytes:
            return 413, "This is too large."
        return None
