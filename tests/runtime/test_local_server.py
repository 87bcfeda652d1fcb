"""The guard: this machine alone, the paths of the page alone, nothing large; a port that is in use is a sentence."""

import asyncio
import socket

import pytest

from ldm_us.runtime.local_server import HOST, Guard, check_port


def status(path, headers=(), **more):
    """What the guard answers; 200 is the application's own."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    given = {b"host": b"127.0.0.1:7860"} | dict(headers)
    scope = {"type": "http", "path": path, "headers": list(given.items())} | more
    asyncio.run(Guard(app, ("/assets/", "/queue/join"), 1000)(scope, None, send))
    return sent[0]["status"]


def test_what_the_page_needs_is_answered():
    assert [status(path) for path in ("/", "/assets/index.js", "/queue/join")] == [200] * 3
    assert status("/", {b"host": b"localhost:7860"}) == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/upload", "/proxy=http://example.org/"),
        *("/assets/../../etc/passwd", "/assets/..\\..\\etc", "/assets", "//etc/passwd", "/etc/passwd", ""),
    ],
)
def test_no_other_path_is_answered(path):
    assert status(path) == 404


@pytest.mark.parametrize("host", [b"example.org", b"example.org:7860", b"127.0.0.1.example.org:7860", b""])
def test_a_name_that_points_here_from_elsewhere_is_refused(host):
    assert status("/", {b"host": host}) == 403


def test_what_is_large_or_does_not_say_how_large_it_is_is_refused():
    assert status("/queue/join", {b"content-length": b"1000"}) == 200
    assert status("/queue/join", {b"content-length": b"1001"}) == 413
    assert status("/queue/join", {b"content-length": b"-1"}) == 413
    assert status("/queue/join", {b"transfer-encoding": b"chunked"}) == 413


def test_a_port_in_use_or_out_of_range_is_a_sentence():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: not free here"):
            check_port(port)
    check_port(port)
    with pytest.raises(ValueError, match="--port 99999"):
        check_port(99999)
