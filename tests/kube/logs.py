"""What containers say: kept line by line with the time, and served on the kubelet's HTTPS port.

So `kubectl logs -f`, also with `--timestamps` and `--since-time`, works through the API server as it does anywhere.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Final
from urllib.parse import parse_qs, urlsplit

PORT: Final = 10250
POLL_S: Final = 0.2  # while somebody follows a log
CHUNK: Final = 65_536
UNKNOWN: Final = ("limitBytes",)

# (namespace, pod, container, previous life?) -> the file, and whether it may still grow. Raises KeyError.
Find = Callable[[str, str, str, bool], tuple[Path, Callable[[], bool]]]


def keep(said: IO[bytes], file: Path) -> None:
    """Write what a container says to a file, each line after the time at which it came; returns when nobody can say more."""
    with file.open("ab", buffering=0) as log:
        for line in said:
            log.write(f"{_stamp(time.time_ns())} ".encode() + line.rstrip(b"\n") + b"\n")


def _stamp(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns % 10**9:09d}Z"


def _since(query: Mapping[str, str]) -> str:
    """The least time stamp that is wanted; they compare as texts."""
    if query.get("sinceTime"):
        wanted = datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00"))
    elif query.get("sinceSeconds"):
        wanted = datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))
    else:
        return ""
    return wanted.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def _lines(file: Path, grows: Callable[[], bool], *, last: int | None, follow: bool) -> Iterator[list[bytes]]:
    """All whole lines as they come, in portions; only so many of those that are there at first."""
    with file.open("rb") as log:
        rest = b""
        while True:
            growing = follow and grows()  # asked before reading, so that the last words are not missed
            data = rest + log.read()
            *whole, rest = data.split(b"\n")
            if last is not None:
                whole, last = whole[-last:] if last else [], None
            if whole:
                yield whole
            if not growing:
                return
            time.sleep(POLL_S)


def serve(find: Find, *, certificate: Path, key: Path) -> None:
    """For ever, on all addresses of this node. Raises OSError when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {k: v[-1] for k, v in parse_qs(url.query).items()}
            parts = url.path.strip("/").split("/")
            if len(parts) != 4 or parts[0] != "containerLogs":
                return self._refuse(404, "the lab's kubelet serves /containerLogs only")
            if unknown := [name for name in UNKNOWN if name in query]:
                return self._refuse(400, f"the lab's kubelet does not do {', '.join(unknown)}")
            try:
                file, grows = find(parts[1], parts[2], parts[3], query.get("previous") == "true")
            except KeyError as error:
                return self._refuse(404, f"no log: {error.args[0]}")
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._tail(file, grows, query)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                self.close_connection = True  # nobody reads any more
            return None

        def _tail(self, file: Path, grows: Callable[[], bool], query: Mapping[str, str]) -> None:
            since, stamped = _since(query).encode(), query.get("timestamps") == "true"
            last = int(query["tailLines"]) if "tailLines" in query else None
            for lines in _lines(file, grows, last=last, follow=query.get("follow") == "true"):
                wanted = [line for line in lines if line >= since]
                self._chunk(b"".join((line if stamped else line.partition(b" ")[2]) + b"\n" for line in wanted))
            self.wfile.write(b"0\r\n\r\n")

        def _chunk(self, data: bytes) -> None:
            for start in range(0, len(data), CHUNK):
                part = data[start : start + CHUNK]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()

        def _refuse(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)  # of this node's own network namespace
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    server.serve_forever()
