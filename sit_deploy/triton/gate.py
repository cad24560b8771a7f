"""What stands before Triton's HTTP port in `serve`, and answers what Triton 2.51 would die of.

Its JSON parser recurses, so brackets ten million deep end the process; a JSON tensor's memory is taken by the shape that it
claims, before its data is looked at; a form is put on a thread's stack, twice; there is no limit on a body, compressed ones
included. gRPC has none of these, and goes straight to the server.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGEST = 256 << 20  # bytes of a body, as sent and decompressed
DEEPEST = 64  # levels of lists and objects in JSON that are taken; the server could do with some ten thousand
_IDLE_SECONDS = 300
_LINGER_SECONDS = 1
_LENGTH = "Inference-Header-Content-Length"  # of the JSON before binary tensors
_FORM = "application/x-www-form-urlencoded"  # what curl says of any body, unless it is told otherwise
_OF_THE_CONNECTION = (
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "expect",
    "upgrade",
    "te",
)
_SHAPE = re.compile(rb'"shape"\s*:\s*\[([^][]*)\]')
_ESCAPED = re.compile(rb"\\u00([0-7][0-9a-fA-F])")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class RefusedError(Exception):
    """A request that does not reach the server.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check_json(text: bytes, body_bytes: int) -> None:
    """Refuse JSON that Triton's parser would not survive.

    Args:
        text: the JSON.
        body_bytes: of the whole body, with the tensors that follow it.

    Raises:
        RefusedError: nested too deep, or of a shape that no such body can hold.
    """
    brackets = text.translate(None, _NO_BRACKET)
    for _ in range(DEEPEST):
        inner = len(brackets)
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(brackets) == inner:
            break
    if len(brackets) > DEEPEST:  # the few that are left can be in strings
        raise RefusedError(400, f"JSON is nested deeper than {DEEPEST}")
    if b"shared_memory_region" in text:
        return
    plain = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text) if b"\\u00" in text else text
    for shape in _SHAPE.finditer(plain):
        sizes = [part.strip() for part in shape[1].split(b",")]
        if all(size.isdigit() and len(size) < 20 for size in sizes):
            elements = math.prod(map(int, sizes))
            if elements > body_bytes:
                raise RefusedError(
                    400,
                    f"shape [{shape[1][:80].decode()}] has {elements:.3g} elements, more than the request can hold",
                )


def decompressed(body: bytes, encoding: str) -> bytes:
    """Return a body without its compression.

    Raises:
        RefusedError: an unknown or damaged one, or larger than `LARGEST`.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise RefusedError(
            415, f"Content-Encoding {encoding[:40]!r} is not taken; send gzip, deflate or none"
        )
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = unpacker.decompress(body, LARGEST + 1)
    except zlib.error as error:
        raise RefusedError(400, f"the body is no {encoding} ({error})") from None
    if len(plain) > LARGEST:
        raise RefusedError(413, f"the body is larger than {LARGEST >> 20} MiB when decompressed")
    if not unpacker.eof:
        raise RefusedError(400, f"the body's {encoding} is cut off")
    return plain


class _Handler(BaseHTTPRequestHandler):
    """Reads a request whole, checks it, asks the server, and passes its answer on. One thread a connection."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: _Server
    _upstream: http.client.HTTPConnection | None = None

    def _handle(self) -> None:
        try:
            try:
                body = self._checked(self._read_body())
            except RefusedError as refused:
                self._refuse(refused.status, str(refused))
                return
            self._pass_on(body)
        except (OSError, http.client.HTTPException):  # a client that has gone, or sent less than it said
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _handle  # noqa: N815

    def handle_expect_100(self) -> bool:
        """Let a client keep a body that would be refused for its length."""
        try:
            self._length()
        except RefusedError as refused:
            self._refuse(refused.status, str(refused))
            return False
        return super().handle_expect_100()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request at all as Triton answers: in JSON."""
        self.command = getattr(self, "command", None) or "GET"
        self._refuse(code, message or http.HTTPStatus(code).phrase)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer, and read on for a moment: a client that is still sending would not see the answer."""
        self.close_connection = True
        self._answer(status, {"Content-Type": "application/json"}, json.dumps({"error": reason}).encode())
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            left = LARGEST
            while left > 0 and (got := len(self.connection.recv(1 << 20))):
                left -= got

    def _length(self) -> int:
        lengths = set(self.headers.get_all("Content-Length", ["0"]))
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise RefusedError(400, f"Content-Length {length[:40]!r} is no length")
        if len(length) > 18 or int(length) > LARGEST:
            raise RefusedError(
                413, f"a body may have {LARGEST >> 20} MiB at most, and this has {length[:40]} bytes"
            )
        return int(length)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "identity").lower() != "identity":
            return b"".join(self._chunks())
        return self._read(self._length())

    def _read(self, count: int) -> bytes:
        data = self.rfile.read(count)
        if len(data) < count:
            raise ConnectionError("the body is cut off")
        return data

    def _chunks(self) -> Iterator[bytes]:
        total = 0
        while True:
            line = self.rfile.readline(1024).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line):
                raise RefusedError(400, "a chunk of the body has no length")
            total += (size := int(line, 16))
            if total > LARGEST:
                raise RefusedError(413, f"a body may have {LARGEST >> 20} MiB at most")
            if size == 0:
                while self.rfile.readline(65536).strip():  # trailers
                    pass
                return
            yield self._read(size)
            self.rfile.readline(1024)

    def _checked(self, body: bytes) -> bytes:
        body = decompressed(body, self.headers.get("Content-Encoding", "").strip().lower())
        lengths = self.headers.get_all(_LENGTH, [])
        if len(lengths) > 1:
            raise RefusedError(400, f"{_LENGTH} is given {len(lengths)} times")
        text = body
        if lengths and re.fullmatch(r"\d{1,18}", lengths[0].strip()):
            text = body[: int(lengths[0])]
        check_json(text, len(body))
        return body

    def _pass_on(self, body: bytes) -> None:
        headers = self._kept(self.headers.items(), "content-encoding")
        if headers.get("Content-Type", "").lower().startswith(_FORM):
            headers["Content-Type"] = "application/octet-stream"
        headers["Content-Length"] = str(len(body))
        for first in (True, False):
            fresh = self._upstream is None
            if self._upstream is None:
                self._upstream = http.client.HTTPConnection(*self.server.upstream)
            try:
                self._upstream.request(self.command, self.path, body, headers)
                answer = self._upstream.getresponse()
                content = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self._upstream.close()
                self._upstream = None
                if fresh or not first:  # an idle connection may have been closed: once more, on a new one
                    self._refuse(503, "Triton does not answer")
                    return
        self._answer(answer.status, self._kept(answer.getheaders()), content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @staticmethod
    def _kept(headers: Any, *without: str) -> dict[str, str]:
        return {name: value for name, value in headers if name.lower() not in (*_OF_THE_CONNECTION, *without)}

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: Triton has a log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break."""


@contextlib.contextmanager
def guarding(host: str, port: int, upstream: tuple[str, int]) -> Iterator[None]:
    """Answer HTTP on a port for a server elsewhere until the block ends.

    Args:
        host: the address to answer at.
        port: likewise.
        upstream: address and port of the server.

    Raises:
        OSError: the port cannot be used.
    """
    server = _Server((host, port), upstream)
    thread = threading.Thread(target=server.serve_forever, name="gate", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
