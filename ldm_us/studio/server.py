"""The server around the page: it answers this machine alone, serves no files, and takes nothing large."""

from typing import Any

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from ldm_us.studio.page import LOOK, build
from ldm_us.studio.rooms import Rooms

MOST_BYTES = 32 << 20  # of a request: a file of masks.py as text, and room
NAMES = ("127.0.0.1", "localhost")
# What the page needs of Gradio. Its routes for files, uploads and other servers are not among them.
STATIC = (
    "/assets/",
    "/static/",
    "/theme.css",
    "/favicon.ico",
    "/config",
    "/gradio_api/info",
    "/gradio_api/startup-events",
)
LIVE = ("/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/cancel", "/gradio_api/run/", "/gradio_api/reset")


class Guard:
    """Lets through what the page needs."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] == "http" and (refused := refusal(scope["path"], dict(scope["headers"]))):
            await PlainTextResponse(refused[1], refused[0])(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def refusal(path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
    """Status and sentence for a request that is not to be answered."""
    if headers.get(b"host", b"").decode("latin-1").rpartition(":")[0] not in NAMES:
        return 403, "This server answers this machine alone."
    if ".." in path or (path != "/" and not path.startswith((*STATIC, *LIVE))):
        return 404, "Nothing is here."
    length = headers.get(b"content-length", b"0")
    if b"transfer-encoding" in headers or not length.isdigit() or int(length) > MOST_BYTES:
        return 413, "This is too large."
    return None


def serve(rooms: Rooms, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    page = build(rooms)
    page.queue(max_size=100, api_open=False)
    about: dict[str, Any] = {"share": False, "inbrowser": False, "quiet": True, "ssr_mode": False, "footer_links": []}
    app_kwargs = {"middleware": [Middleware(Guard)]}
    page.launch(server_name=host, server_port=port, prevent_thread_lock=True, app_kwargs=app_kwargs, **about, **LOOK)
    print(f"the studio is at http://{host}:{port}; Ctrl-C ends it", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)
