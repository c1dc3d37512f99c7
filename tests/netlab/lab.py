"""Machines made of namespaces: each node has an address, a process tree, a hostname and shared memory of its own.

The nodes hang on a bridge in a namespace without an uplink, so no packet can leave the machine, and two labs cannot meet. A
node's init is its machine: end it and every process of the node is gone; take its port on the bridge down first, and the
others hear nothing of it, as when a power cord is pulled. Everything is named after the process that made it (pid and start
time): what a killed run left behind is found by that name and removed by the next one, and nothing else is ever touched.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import psutil

PREFIX: Final = "orcnet"
NETWORK: Final = "198.18.0"  # RFC 2544's range for tests; it exists inside the lab only
TOOLS: Final = ("ip", "tc", "nft", "unshare", "nsenter", "setpriv")
CAP_SYS_ADMIN: Final = 21
LIMIT_S: Final = 60.0  # for one command of the lab's own
SHM: Final = "512m"
_NAME: Final = re.compile(rf"{PREFIX}-(\d+)-(\d+)-\d+-\w+")
_serial: Final = itertools.count()
# bash as init: it waits for whatever is orphaned below it, and starts nothing
_INIT: Final = "while true; do sleep 3600 & wait $!; done"


class LabError(RuntimeError):
    """The lab could not do what was asked."""


def cannot() -> str:
    """Why this process may not make namespaces; empty when it may."""
    fields = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cap"))
    return (
        ""
        if int(fields["CapEff"], 16) >> CAP_SYS_ADMIN & 1
        else "this process lacks CAP_SYS_ADMIN: run as root to test real hosts"
    )


def missing_tools() -> str:
    """Which programs of TOOLS are not installed, and how to get them; empty when all are there."""
    absent = [t for t in TOOLS if shutil.which(t) is None]
    return f"{', '.join(absent)} missing: apt install iproute2 nftables util-linux" if absent else ""


class Node:
    """One machine. Made by Lab; node 0 is the first."""

    def __init__(self, *, index: int, namespace: str, root: Path, init: subprocess.Popen[bytes], init_pid: int) -> None:
        self.index = index
        self.name = f"node-{index}"
        self.address = f"{NETWORK}.{index + 1}"
        self.namespace = namespace
        self._root = root
        self._init = init
        self._init_pid = init_pid
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def on(self) -> bool:
        """Whether it has power."""
        return self._init.poll() is None

    def command(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> list[str]:
        """What runs `argv` on this machine, with this environment only."""
        if not self.on:
            raise LabError(f"{self.name} is off")
        enter = ["nsenter", f"--target={self._init_pid}", "--mount", "--net", "--pid", "--uts", "--ipc", "--"]
        return [*enter, "env", "-i", f"--chdir={cwd}", *(f"{k}={v}" for k, v in env.items()), *argv]

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path = Path("/"), limit_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; its output is captured. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            self.command(argv, env=env, cwd=cwd), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s
        )

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], output: IO[bytes] | int, cwd: Path = Path("/")
    ) -> subprocess.Popen[bytes]:
        """Start a program, whose output goes to a file (or subprocess.PIPE); the end of the machine ends it."""
        command = self.command(argv, env=env, cwd=cwd)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._started.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """All that runs on it, as this machine's kernel numbers them; without the init."""
        own = os.readlink(f"/proc/{self._init_pid}/ns/pid")
        found = []
        for pid in _pids(self.namespace):
            try:
                if pid != self._init_pid and os.readlink(f"/proc/{pid}/ns/pid") == own:
                    found.append(psutil.Process(pid))
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    def outer_pid(self, pid: int) -> int:
        """What the process that calls itself `pid` on this machine is called outside. Raises LabError when there is none."""
        for process in self.processes():
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            if int(re.findall(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)[0]) == pid:
                return process.pid
        raise LabError(f"no process {pid} on {self.name}")

    def end(self) -> None:
        """Kill its init, and with it everything on it; idempotent."""
        if self.on:
            os.kill(self._init_pid, signal.SIGKILL)  # the kernel ends the others before the init counts as ended
        self._init.wait(LIMIT_S)
        for process in self._started:
            process.wait(LIMIT_S)


class Lab:
    """Use as a context: `nodes` machines inside, none afterwards. `root` is a short path that all of them share.

    `private` is a folder below root that every machine has for itself: its content is at `root/<node name>` from outside.
    """

    def __init__(self, *, nodes: int, root: Path, private: str = "ray") -> None:
        self._name = f"{PREFIX}-{os.getpid()}-{started_ticks(os.getpid())}-{next(_serial)}"
        self._switch = f"{self._name}-switch"
        self._count = nodes
        self.root = root
        self.private = root / private
        self.nodes: dict[int, Node] = {}

    def __enter__(self) -> Lab:
        problem = cannot() or missing_tools()
        if problem:
            raise LabError(problem)
        remove_leftovers()
        try:
            self.private.mkdir(parents=True, exist_ok=True)
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "br0", "up")
            for index in range(self._count):
                self.boot(index)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every machine and take the network away; idempotent."""
        for node in self.nodes.values():
            node.end()
        self.nodes.clear()
        _remove(lambda name: name.startswith(f"{self._name}-"))

    def node(self, index: int) -> Node:
        """The machine of this number."""
        return self.nodes[index]

    def boot(self, index: int) -> Node:
        """Give a machine power: one that is new, or one that was off (it has forgotten what was on its private folder)."""
        if index in self.nodes and self.nodes[index].on:
            raise LabError(f"node {index} is on")
        namespace, port = f"{self._name}-n{index}", f"p{index}"
        _remove(lambda name: name == namespace)
        _run("ip", "-n", self._switch, "link", "del", port, check=False)  # the old cable goes with its namespace, but later
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        _run("ip", "-n", namespace, "addr", "add", f"{NETWORK}.{index + 1}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", namespace, "link", "set", device, "up")
        own = self.root / f"node-{index}"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        prepare = (
            f"mount --make-rprivate / && mount --bind '{own}' '{self.private}' && mount -t tmpfs -o size={SHM} tmpfs /dev/shm"
            f" && hostname node-{index} && echo up && exec bash -c '{_INIT}'"
        )
        isolate = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        with (self.root / f"init-{index}.log").open("wb") as log:
            init = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "ip", "netns", "exec", namespace, *isolate, "bash", "-c", prepare],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert init.stdout is not None
        said = init.stdout.readline()
        init.stdout.close()
        if said != b"up\n":
            init.kill()
            init.wait()
            raise LabError(f"node {index} did not come up: {(self.root / f'init-{index}.log').read_text()}")
        (init_pid,) = [c.pid for c in psutil.Process(init.pid).children()]
        self.nodes[index] = Node(index=index, namespace=namespace, root=self.root, init=init, init_pid=init_pid)
        return self.nodes[index]

    def power_off(self, index: int) -> None:
        """Pull its power cord: all its processes end, and nobody hears a word of it."""
        self.unplug(index)
        self.nodes[index].end()

    def unplug(self, index: int) -> None:
        """Pull its network cable; its processes go on."""
        _run("ip", "-n", self._switch, "link", "set", f"p{index}", "down")

    def plug(self, index: int) -> None:
        """Put the cable back."""
        _run("ip", "-n", self._switch, "link", "set", f"p{index}", "up")

    def throttle(self, index: int, mbit: float | None) -> None:
        """Limit its link to so many megabits per second in each direction; None lifts the limit."""
        for namespace, device in ((self._switch, f"p{index}"), (self.nodes[index].namespace, "eth0")):
            _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root", check=False)  # there is perhaps none
            if mbit is not None:
                limit = ["rate", f"{mbit}mbit", "burst", "32kb", "latency", "500ms"]
                _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def drop(self, index: int, percent: int) -> None:
        """Lose this share of the packets that reach it and that leave it; 0 loses none."""
        if not 0 <= percent <= 100:
            raise ValueError(f"a share in percent, not {percent}")
        nft = ["ip", "netns", "exec", self.nodes[index].namespace, "nft"]
        _run(*nft, "add table inet lab; delete table inet lab")
        if percent:
            unlucky = f"numgen random mod 100 <= {percent - 1} drop"
            _run(
                *nft,
                "table inet lab {"
                f" chain in {{ type filter hook input priority 0; iifname eth0 {unlucky}; }};"
                f" chain out {{ type filter hook output priority 0; oifname eth0 {unlucky}; }}; }}",
            )


def remove_leftovers() -> list[str]:
    """End what labs of dead processes left behind; returns the names of their namespaces."""

    def orphaned(name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and not _lives(int(match[1]), int(match[2]))

    return _remove(orphaned)


def _remove(ours: Callable[[str], bool]) -> list[str]:
    gone = [name for name in namespaces() if ours(name)]
    for name in gone:
        try:
            for pid in _pids(name):
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            _run("ip", "netns", "del", name)
        except LabError:
            if name in namespaces():
                raise
            # else another process has just removed it: labs that start at the same time find the same leftovers
    return gone


def namespaces() -> list[str]:
    """Of all labs on this machine."""
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.startswith(f"{PREFIX}-")]


def _pids(namespace: str) -> list[int]:
    return [int(p) for p in _run("ip", "netns", "pids", namespace).split()]


def _lives(pid: int, ticks: int) -> bool:
    return started_ticks(pid) == ticks


def started_ticks(pid: int) -> int:
    """When a process began, in the kernel's ticks since boot; 0 when there is none.

    Not in seconds since 1970: about those two observers may differ, because each rounds the time of the boot.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
