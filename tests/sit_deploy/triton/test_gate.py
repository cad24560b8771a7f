"""What stands before Triton's HTTP port: what reaches the server as it was sent, and what does not reach it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.triton import gate, server
from sit_deploy.triton.gate import RefusedError, check_json, guarding
from sit_deploy.triton.repository import write_repository
from tests.sit_deploy.conftest import Trained
from tests.sit_deploy.triton.conftest import free_ports, installation, serving

__all__ = ["installation"]  # the fixture
INFER = "/v2/models/net/infer"


class Echo(BaseHTTPRequestHandler):
    """Answers with what reached it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told = json.dumps({"path": self.path, "bytes": len(body), "headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.send_header("Inference-Header-Content-Length", "7")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    def do_GET(self) -> None:
        self.headers["Content-Length"] = "0"
        self.do_POST()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A gate's, before a server that echoes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        made = free_ports().http
        with guarding("127.0.0.1", made, upstream.server_address[:2]):
            yield made
        upstream.shutdown()


def ask(
    port: int, body: Any, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, INFER, body, headers or {}, encode_chunked=not isinstance(body, bytes))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


def sent(port: int, data: bytes) -> bytes:
    """Send bytes as they are; returns the first line of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return connection.makefile("rb").readline().strip()
    return b""


def nested(depth: int) -> bytes:
    return b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"


def test_what_is_right_reaches_the_server_as_it_was_sent(port: int) -> None:
    plain = b'{"id": "a [[ name {", "inputs": [{"shape": [1, 1], "data": ["' + b"A" * 3_000_000 + b'"]}]}'
    json_type = {"Content-Type": "application/json", "X-Mine": "yes"}
    for body, headers in (
        (plain, json_type),
        (
            (plain[i : i + 70_000] for i in range(0, len(plain), 70_000)),
            {**json_type, "Transfer-Encoding": "chunked"},
        ),
        (gzip.compress(plain, 1), {**json_type, "Content-Encoding": "gzip"}),
        (zlib.compress(plain, 1), {**json_type, "Content-Encoding": "deflate"}),
        (plain, {**json_type, "Expect": "100-continue"}),
    ):
        status, told = ask(port, body, headers)
        assert (status, told["path"], told["bytes"]) == (200, INFER, len(plain)), headers
        assert told["headers"]["X-Mine"] == "yes" and "Content-Encoding" not in told["headers"]
        assert told["headers"]["Content-Type"] == "application/json"


def test_a_connection_is_kept_and_may_be_old(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        for method in ("POST", "GET", "HEAD", "POST"):
            connection.request(method, "/v2/health/ready", b"x" if method == "POST" else None)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Inference-Header-Content-Length")) == (200, "7")
            assert bool(answer.read()) is (method != "HEAD")
            assert connection.sock is not None


def test_a_form_is_not_passed_on_as_one(port: int) -> None:
    """Triton takes a form's body from the stack, and curl calls everything a form."""
    _, told = ask(port, b"{}", {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"})
    assert told["headers"]["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (nested(200), {}, 400, "nested deeper than 64"),
        (b"[" * 10_000_000, {}, 400, "nested deeper than 64"),
        (b'{"a":' * 1000, {}, 400, "nested deeper than 64"),
        (b'{"inputs":[{"shape":[1000000000000000000,3,8,8]}]}', {}, 400, "has 1.92e+20 elements"),
        (b'{"inputs":[{ "shape" : [ 1000, 1000 ] , "data":[1]}]}', {}, 400, "more than the request can hold"),
        (rb'{"inputs":[{"sh\u0061pe":[1000,1000],"data":[1]}]}', {}, 400, "more than the request can hold"),
        (gzip.compress(nested(200)), {"Content-Encoding": "gzip"}, 400, "nested deeper"),
        (gzip.compress(b"{}")[:-9], {"Content-Encoding": "gzip"}, 400, "gzip is cut off"),
        (b"{}", {"Content-Encoding": "deflate"}, 400, "the body is no deflate"),
        (b"{}", {"Content-Encoding": "br"}, 415, "send gzip, deflate or none"),
        (b"{}", {"Content-Length": "-5"}, 400, "'-5' is no length"),
        (b"{}", {"Content-Length": "9" * 30}, 413, "256 MiB at most"),
        (b"{}", {"Content-Length": str(257 << 20), "Expect": "100-continue"}, 413, "256 MiB at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_server_would_die_of_is_refused(
    body: bytes, headers: dict[str, str], status: int, reason: str, port: int
) -> None:
    found, told = ask(port, body, headers)
    assert found == status and reason in told["error"]


def test_a_body_is_not_decompressed_beyond_the_limit(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LARGEST", 1 << 20)
    for size, status in ((1 << 20, 200), ((1 << 20) + 1, 413)):
        found, told = ask(port, gzip.compress(b" " * size), {"Content-Encoding": "gzip"})
        assert found == status, told
    assert ask(port, b" " * ((1 << 20) + 1))[0] == 413


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"HTTP/1.1 400 Bad Request"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n{}", b"HTTP/1.1 413 Request Entity Too Large"),
        (b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", b"HTTP/1.1 431 Line too long"),
        (b"X: y\r\n" * 1000 + b"\r\n", b"HTTP/1.1 431 Too many headers"),
        (
            b"Inference-Header-Content-Length: 1\r\n" * 2 + b"Content-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 400 Bad Request",
        ),
        (b"Content-Length: 1000\r\n\r\n{}", b""),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", b""),
    ],
)
def test_requests_that_are_none(data: bytes, line: bytes, port: int) -> None:
    """Of one that ends before it says so there is nothing to answer."""
    found = sent(port, f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode() + data)
    assert found.split()[:2] == line.split()[:2]
    assert ask(port, b"{}")[0] == 200


def test_tensors_after_the_json_are_no_json(port: int) -> None:
    head = b'{"inputs":[{"name":"images","shape":[1,3,8,8],"parameters":{"binary_data_size":768}}]}'
    tensor = b"[" * 768
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert ask(port, head + tensor, headers)[0] == 200
    assert ask(port, tensor, {"Inference-Header-Content-Length": "0"})[0] == 200


def test_json_as_clients_write_it_passes() -> None:
    check_json(nested(63), 200)
    check_json(json.dumps({"shape": [4, 3, 8, 8], "data": np.zeros((4, 3, 8, 8)).tolist()}).encode(), 9000)
    check_json(b'{"shape": [0, 3], "data": []}', 30)
    check_json(b'{"shape": [100000, 100000], "parameters": {"shared_memory_region": "mine"}}', 70)
    with pytest.raises(RefusedError):
        check_json(nested(200), 10_000)


def test_a_server_that_is_gone_is_said_so() -> None:
    ports = free_ports()
    with guarding("127.0.0.1", ports.http, ("127.0.0.1", ports.grpc)):
        assert ask(ports.http, b"{}") == (503, {"error": "Triton does not answer"})


@pytest.mark.slow
def test_the_real_server_lives_on(installation: server.Installation, trained: Trained, tmp_path: Any) -> None:
    """Whatever reaches it, one request after the other and 16 at a time; some of these end it when they are not stopped."""
    repository, ports = tmp_path / "models", free_ports()
    write_repository([(load_bundle(trained.bundle), serving(ensemble=True))], repository)
    inner = ports.behind_a_gate()

    def tensor(shape: list[Any], data: list[Any]) -> bytes:
        fields = {"name": "images", "shape": shape, "datatype": "FP32", "data": data}
        return json.dumps({"inputs": [fields]}).encode()

    def image(*data: Any, shape: Any = (1, 1)) -> bytes:
        fields = {"name": "image", "shape": shape, "datatype": "BYTES", "data": data}
        return json.dumps({"inputs": [fields]}).encode()

    with (
        server.running(installation, repository, tmp_path / "log", inner) as process,
        guarding("127.0.0.1", ports.http, ("127.0.0.1", inner.http)),
    ):
        for body in (
            *(
                tensor(shape, [1.0])
                for shape in ([10**18, 3, 112, 112], [2**61, 4, 2, 2], [10**6, 3, 112, 112])
            ),
            *(tensor(shape, [1.0]) for shape in ([0, 3, 112, 112], [-1], [], ["a"], [1.5], [1] * 10_000)),
            *(image("A" * 5_000_000), image(), image("a", "b"), image(5), image(None), image("%%%")),
            *(image("a", shape=(10**12, 1)), image(shape=(0, 1))),
            *(b"[" * 2_000_000, b"", b"[]", b'{"inputs":3}', b'{"inputs":["a"]}', b"\xff\xfe"),
        ):
            for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
                status, told = ask(ports.http, body, headers)
                assert status in (400, 500) and told["error"], body[:80]
        for length in ("99999999999999999999", "-1", "abc", "4294967297"):
            assert ask(ports.http, b"{}", {"Inference-Header-Content-Length": length})[0] in (400, 500)
        large = [threading.Thread(target=ask, args=(ports.http, image("A" * 6_000_000))) for _ in range(16)]
        for thread in large:
            thread.start()
        for thread in large:
            thread.join()
        images, logits = load_bundle(trained.bundle).golden()
        status, told = ask(ports.http, tensor(list(images[:2].shape), images[:2].ravel().tolist()))
        assert status == 200 and np.allclose(told["outputs"][0]["data"], logits[:2].ravel(), atol=1e-4)
        assert process.poll() is None


@pytest.mark.slow
def test_nothing_is_left_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_LINGER_SECONDS", 0.01)
    ports = free_ports()
    for _ in range(2):  # the port is free again
        with guarding("127.0.0.1", ports.http, ("127.0.0.1", ports.grpc)):
            pass
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", ports.http)):
        pass
