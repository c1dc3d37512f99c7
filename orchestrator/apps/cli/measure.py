"""What `doctor` measures on this machine, each as a Check: a value, whether it is good enough, and what to do if not.

Every measurement is short and bounded (megabytes, milliseconds, a time-out), touches loopback and the orchestrator's own
directory only, and leaves nothing behind. The limits come from the ladder of time-outs: a disk is slow when its fsync eats what a
heartbeat may take.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.apps import units
from orchestrator.core.timeouts import Timeouts

PROBE_LIMIT_S = 120.0
LOOPBACK_BYTES = 64 << 20
PINGS = 200
FSYNCS = 20
CLOCK_READS = 50_000
WAKES = 100
OPEN_FILES_MIN = 4096
SHM_BYTES_MIN = 256 << 20
MEMORY_BYTES_MIN = 2 << 30
LOOPBACK_GB_PER_S_MIN = 0.2
RAY_PORTS = ((6379, "Ray's GCS"), (8265, "Ray's dashboard"))
_PROBE = """
import importlib, json, sys, time
out = {"now": time.monotonic()}
for name in ("torch", "ray", "grpc"):
    began = time.monotonic()
    try:
        module = importlib.import_module(name)
        out[name] = {"version": module.__version__, "seconds": time.monotonic() - began}
    except Exception as error:
        out[name] = {"error": repr(error)}
torch = sys.modules.get("torch")
out["cuda"] = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
print(json.dumps(out))
"""


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"  # works, and something will be slower or less sure than it could be
    FAIL = "fail"  # jobs will not run


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    level: Level
    value: str  # for people
    fix: str = ""  # what to do about it
    number: float | None = None  # the value for programs, in the unit that `unit` says
    unit: str = ""


def python() -> Check:
    """The interpreter."""
    return Check("python", Level.OK, ".".join(map(str, sys.version_info[:3])))


def libraries(limit_s: float = PROBE_LIMIT_S) -> list[Check]:
    """torch, ray and grpc, imported by a process of their own; and whether two processes share a monotonic clock."""
    began = time.monotonic()
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=limit_s, check=True)
        told = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [Check("imports", Level.FAIL, f"not done after {limit_s:.0f} s", "the disk or the CPU is very busy; try again")]
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        return [Check("imports", Level.FAIL, words, "install the project again: pip install orchestrator")]
    ended = time.monotonic()
    checks = []
    for name in ("torch", "ray", "grpc"):
        if "error" in told[name]:
            fix = "install it again: pip install --force-reinstall " + ("grpcio" if name == "grpc" else name)
            checks.append(Check(name, Level.FAIL, told[name]["error"], fix))
        else:
            seconds = told[name]["seconds"]
            checks.append(Check(name, Level.OK, f"{told[name]['version']}, imported in {seconds:.1f} s", "", seconds, "s"))
    checks.append(Check("accelerators", Level.OK, f"{told['cuda']} CUDA devices", "", told["cuda"], "devices"))
    if began <= told["now"] <= ended:
        checks.append(Check("clock shared", Level.OK, "processes of this machine read the same monotonic clock"))
    else:
        value = f"another process reads {told['now'] - began:+.3f} s"
        checks.append(Check("clock shared", Level.WARN, value, "times in reports of this machine will not line up"))
    return checks


def clock() -> list[Check]:
    """Whether monotonic time ever runs backwards, and how fast wall time runs away from it."""
    before = previous = time.monotonic_ns()
    wall = time.time_ns()
    back = 0
    for _ in range(CLOCK_READS):
        now = time.monotonic_ns()
        back = max(back, previous - now)
        previous = now
    threading.Event().wait(0.2)
    passed = time.monotonic_ns() - before
    skew_ms = abs((time.time_ns() - wall) - passed) / 1e6
    if back:
        monotonic = Check("clock monotonic", Level.FAIL, f"ran backwards by {back} ns", "the kernel's clock source is broken")
    else:
        monotonic = Check("clock monotonic", Level.OK, f"never ran backwards in {CLOCK_READS} reads", "", 0.0, "ns")
    level = Level.OK if skew_ms < 5 else Level.WARN
    fix = "" if level is Level.OK else "wall time is being set while we look; let one time service (chrony, ntpd) slew it"
    return [monotonic, Check("clock skew", level, f"{skew_ms:.3f} ms in {passed / 1e6:.0f} ms", fix, skew_ms, "ms")]


def wake_up(timeouts: Timeouts) -> Check:
    """How late a thread wakes up: a machine that is busier than its heartbeats allow looks dead to others."""
    late_ms = []
    for _ in range(WAKES):
        began = time.monotonic()
        time.sleep(0.001)
        late_ms.append((time.monotonic() - began) * 1000 - 1)
    worst = max(late_ms)
    value = f"median {statistics.median(late_ms):.2f} ms, worst {worst:.1f} ms late"
    if worst > timeouts.suspect_ms / 4:
        return Check("wake-up", Level.WARN, value, "the machine is very busy: raise resilience.detect_within", worst, "ms")
    return Check("wake-up", Level.OK, value, "", worst, "ms")


def ports() -> list[Check]:
    """Whether loopback gives ports, and whether somebody has Ray's usual ones."""
    held = []
    try:
        for _ in range(16):
            s = socket.socket()
            held.append(s)
            s.bind(("127.0.0.1", 0))
            s.listen()
    except OSError as error:
        return [Check("ports", Level.FAIL, f"loopback gives no port: {error.strerror}", "bring lo up: ip link set lo up")]
    finally:
        for s in held:
            s.close()
    taken = [f"{number} ({what})" for number, what in RAY_PORTS if not _free(number)]
    if not taken:
        return [Check("ports", Level.OK, "loopback gives ports, Ray's usual ones are free")]
    fix = "fine for `orchestrator run`, which picks its own; a Ray head started by hand needs other ports"
    return [Check("ports", Level.WARN, f"in use: {', '.join(taken)}", fix)]


def _free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def loopback() -> list[Check]:
    """Bandwidth and round trip of a TCP connection of this machine with itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        client = socket.create_connection(server.getsockname(), timeout=10)
        peer, _ = server.accept()
    peer.settimeout(10)
    with client, peer:
        for s in (client, peer):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echo = threading.Thread(target=_serve, args=(peer,), daemon=True)
        echo.start()
        trips_ms = []
        for _ in range(PINGS):
            began = time.monotonic()
            client.sendall(b"x")
            client.recv(1)
            trips_ms.append((time.monotonic() - began) * 1000)
        chunk = bytes(1 << 20)
        began = time.monotonic()
        for _ in range(LOOPBACK_BYTES // len(chunk)):
            client.sendall(chunk)
        client.recv(1)  # the peer has read it all
        rate = LOOPBACK_BYTES / (time.monotonic() - began) / 1e9
        echo.join(10)
    level = Level.OK if rate >= LOOPBACK_GB_PER_S_MIN else Level.WARN
    fix = "" if level is Level.OK else "the machine is busy or very small: recoveries that move state will take longer"
    trip = statistics.median(trips_ms)
    return [
        Check("loopback bandwidth", level, f"{rate:.2f} GB/s", fix, rate, "GB/s"),
        Check("loopback round trip", Level.OK, f"{trip:.3f} ms, worst {max(trips_ms):.2f} ms", "", trip, "ms"),
    ]


def _serve(peer: socket.socket) -> None:
    for _ in range(PINGS):
        peer.sendall(peer.recv(1))
    left, buffer = LOOPBACK_BYTES, bytearray(1 << 20)
    while left:
        left -= peer.recv_into(buffer, min(len(buffer), left))
    peer.sendall(b"y")


def memory() -> Check:
    """Free memory."""
    import psutil

    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    value = f"{units.size(free)} free of {units.size(total)}"
    if free < MEMORY_BYTES_MIN:
        fix = f"an embedded cluster wants {units.size(MEMORY_BYTES_MIN)} at least: end something, or ask for fewer nodes"
        return Check("memory", Level.WARN, value, fix, free, "B")
    return Check("memory", Level.OK, value, "", free, "B")


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """Room in /dev/shm, where Ray keeps its object store."""
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Check("shared memory", Level.FAIL, f"{path}: {error.strerror}", "Ray needs it: mount a tmpfs there")
    value = f"{units.size(free)} free in {path}"
    if free < SHM_BYTES_MIN:
        fix = "Ray falls back to a slow disk; in a container start it with a larger --shm-size"
        return Check("shared memory", Level.WARN, value, fix, free, "B")
    return Check("shared memory", Level.OK, value, "", free, "B")


def disk(home: Path, timeouts: Timeouts) -> list[Check]:
    """Whether the home directory can be written, how long an fsync takes there, and how much room there is."""
    spent_ms = []
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            for _ in range(FSYNCS):
                file.write(bytes(4096))
                file.flush()
                began = time.monotonic()
                os.fsync(file.fileno())
                spent_ms.append((time.monotonic() - began) * 1000)
        room = shutil.disk_usage(home).free
    except OSError as error:
        return [Check("disk", Level.FAIL, f"{home}: {error.strerror}", "choose another directory with --home")]
    middle, worst = statistics.median(spent_ms), max(spent_ms)
    slow = middle > timeouts.heartbeat_ms
    fix = "every decision waits for the journal: put --home on a faster disk" if slow else ""
    value = f"median {middle:.2f} ms, worst {worst:.1f} ms in {home}"
    return [
        Check("disk fsync", Level.WARN if slow else Level.OK, value, fix, middle, "ms"),
        Check("disk room", Level.OK if room > (1 << 30) else Level.WARN, f"{units.size(room)} free", "", room, "B"),
    ]


def limits() -> list[Check]:
    """Cores and how busy they are, and how many files a process may open."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    busy = load > 2 * cores
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN
    return [
        Check(
            "cores",
            Level.WARN if busy else Level.OK,
            f"{cores} cores, load {load:.1f}",
            "steps and recoveries will be slow while others use the machine" if busy else "",
            load,
            "load",
        ),
        Check(
            "open files",
            Level.WARN if few else Level.OK,
            f"{soft} (hard limit {hard})",
            f"Ray opens many: ulimit -n {OPEN_FILES_MIN}" if few else "",
            soft,
            "files",
        ),
    ]


def everything(home: Path, timeouts: Timeouts, progress: Callable[[str], None]) -> list[Check]:
    """All checks, in the order in which they are shown."""
    checks = [python()]
    progress("importing torch, ray and grpc in a process of its own ...")
    checks += libraries()
    progress("measuring clock, loopback and disk ...")
    checks += clock()
    checks.append(wake_up(timeouts))
    checks += ports()
    checks += loopback()
    checks += [memory(), shared_memory()]
    checks += disk(home, timeouts)
    checks += limits()
    return checks
