"""The kubelet's HTTPS port: what containers say, also as it comes, so that `kubectl logs -f` works through the API server."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

PORT: Final = 10250
POLL_S: Final = 0.2  # while somebody follows a log
CHUNK: Final = 65_536
UNKNOWN: Final = ("timestamps", "sinceSeconds", "sinceTime")  # lines are kept without their times

# (namespace, pod, container, previous life?) -> the file, and whether it may still grow. Raises KeyError.
Find = Callable[[str, str, str, bool], tuple[Path, Callable[[], bool]]]


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
            if unknown := [name for name in UNKNOWN if query.get(name, "false") not in ("false", "")]:
                return self._refuse(400, f"the lab's kubelet does not do {', '.join(unknown)}")
            try:
                file, grows = find(parts[1], parts[2], parts[3], query.get("previous") == "true")
            except KeyError as error:
                return self._refuse(404, f"no log: {error}")
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._tail(file, grows, lines=query.get("tailLines"), follow=query.get("follow") == "true")
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                self.close_connection = True  # nobody reads any more
            return None

        def _tail(self, file: Path, grows: Callable[[], bool], *, lines: str | None, follow: bool) -> None:
            with file.open("rb") as log:
                if lines is not None:
                    data = log.read()
                    kept = data.splitlines(keepends=True)[-int(lines) :] if int(lines) else []
                    self._chunk(b"".join(kept))
                while True:
                    growing = follow and grows()  # asked before reading, so that the last words are not missed
                    while data := log.read(CHUNK):
                        self._chunk(data)
                    if not growing:
                        break
                    time.sleep(POLL_S)
            self.wfile.write(b"0\r\n\r\n")

        def _chunk(self, data: bytes) -> None:
            if data:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
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
