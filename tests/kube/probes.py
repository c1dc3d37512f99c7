"""Probes and hooks: a command in the container, a TCP connection, or an HTTP request, each with a limit.

Commands join all namespaces of the container's first process, with its user and its environment. Connections are made from inside
the pod's network, because the kubelet's own bridge would do as well but this needs no route.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from tests.kube.api import Object
from tests.netlab.namespaces import enter

DEFAULTS: Final = {
    "periodSeconds": 10,
    "timeoutSeconds": 1,
    "failureThreshold": 3,
    "successThreshold": 1,
    "initialDelaySeconds": 0,
}


def command(pid: int, argv: list[str], *, env: Mapping[str, str], uid: int, gid: int, limit_s: float) -> str:
    """Run it in the container; empty when it ended with 0, else what was wrong."""
    enter_all = ["/usr/bin/nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd"]
    try:
        done = subprocess.run(
            [*enter_all, f"--setuid={uid}", f"--setgid={gid}", "--", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            env=dict(env),
        )
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within {limit_s} s"
    return f"{argv[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}" if done.returncode else ""


def _from_inside(pid: int, act: Callable[[], str]) -> str:
    """Do it in the network of a process, in a thread of its own."""
    answer: Future[str] = Future()

    def work() -> None:
        try:
            enter(Path(f"/proc/{pid}/ns/net"))
            answer.set_result(act())
        except (OSError, http.client.HTTPException) as error:
            answer.set_result(f"{type(error).__name__}: {error}")

    threading.Thread(target=work, daemon=True).start()
    return answer.result()


def check(probe: Object, pid: int, *, spec: Object, address: str, env: Mapping[str, str], uid: int, gid: int) -> str:
    """Whether a probe succeeds now; empty when it does, else why not."""
    limit_s = float(probe.get("timeoutSeconds", DEFAULTS["timeoutSeconds"]))
    if "exec" in probe:
        return command(pid, probe["exec"]["command"], env=env, uid=uid, gid=gid, limit_s=limit_s)
    if "tcpSocket" in probe:
        at = (probe["tcpSocket"].get("host", address), port(probe["tcpSocket"]["port"], spec))

        def connect() -> str:
            socket.create_connection(at, timeout=limit_s).close()
            return ""

        return _from_inside(pid, connect)
    if "httpGet" in probe:
        return _from_inside(pid, lambda: _http(probe["httpGet"], spec=spec, address=address, limit_s=limit_s))
    return f"the lab's kubelet does not do {', '.join(probe)}"


def _http(get: Object, *, spec: Object, address: str, limit_s: float) -> str:
    connection = http.client.HTTPConnection(get.get("host", address), port(get["port"], spec), timeout=limit_s)
    try:
        connection.request("GET", get.get("path", "/"))
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if 200 <= status < 400 else f"HTTP {status}"


def port(wanted: int | str, spec: Object) -> int:
    """A port by number or by the name that the container gives it."""
    if isinstance(wanted, int):
        return wanted
    found: int = next(p["containerPort"] for p in spec.get("ports") or [] if p.get("name") == wanted)
    return found
