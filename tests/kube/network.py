"""Network of a node's pods: each has a namespace, an address on the lab's one flat network, and the names of all services.

A node's cable ends in a bridge on which its pods hang too, so pulling it cuts off the node with all its pods. There is no
kube-proxy: a service's cluster IP is an extra address of the pod that is its first ready endpoint, announced to the others when
it moves; the ports must therefore be those of the pod. There is no DNS server: every pod's /etc/hosts holds the services' names,
also the headless. Network policies are not enforced.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.kube.api import Object, name_of, namespace_of
from tests.netlab.namespaces import enter

BRIDGE: Final = "pods0"
NETWORK_BITS: Final = 15  # 198.18.0.0/15: nodes 198.18.0.x, pods of node n 198.18.n.x, services 198.19.x.x
LIMIT_S: Final = 20.0
ANNOUNCE_S: Final = (0.0, 0.3, 1.2)  # others may refuse a second change of an address within a second
DOMAIN: Final = "svc.cluster.local"
SANDBOX: Final = "hostname {name} && ip link set lo up && echo up && exec sleep infinity"


class Addresses:
    """Of one node's pods. The last one given is kept in a file, so that a node that was off does not begin with those it had."""

    def __init__(self, index: int, file: Path) -> None:
        self._prefix = f"198.18.{index + 1}"
        self._file = file
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def take(self) -> str:
        """A free one."""
        with self._lock:
            last = int(self._file.read_text()) if self._file.exists() else 0
            number = next(n for n in ((last + k) % 254 + 1 for k in range(254)) if n not in self._used)
            self._used.add(number)
            self._file.write_text(str(number))
            return f"{self._prefix}.{number}"

    def give_back(self, address: str) -> None:
        """The pod is gone."""
        with self._lock:
            self._used.discard(int(address.rpartition(".")[2]))


class Sandbox:
    """The namespaces that a pod's containers share, held by a process that sleeps. Raises OSError when they cannot be had."""

    def __init__(self, *, hostname: str, address: str, serial: int) -> None:
        self.address = address
        script = SANDBOX.format(name=hostname[:63])
        self._process = subprocess.Popen(
            ["unshare", "--net", "--ipc", "--uts", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        with self._process.stdout as said:
            if said.readline() != b"up\n":
                raise OSError(f"the sandbox of {hostname} did not come up")
        outer = f"v{serial}"
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        run("ip", "link", "set", outer, "master", BRIDGE, "up")
        self.ip("addr", "add", f"{address}/{NETWORK_BITS}", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.network = os.readlink(f"/proc/{self.pid}/ns/net")
        self.announce(address)

    def ip(self, *argv: str, check: bool = True) -> None:
        """An `ip` command inside."""
        run("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *argv, check=check)

    def announce(self, address: str) -> None:
        """Tell every machine that this address is here, whatever they knew before."""
        thread = threading.Thread(target=_announce, args=(self.pid, address), daemon=True)
        thread.start()

    def close(self) -> None:
        """The network is gone when its last process is."""
        self._process.kill()
        self._process.wait()


def _announce(pid: int, address: str) -> None:
    """In a thread of its own, because it moves into the pod's network for good."""
    try:
        enter(Path(f"/proc/{pid}/ns/net"))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            mac, ip = raw.getsockname()[4], socket.inet_aton(address)
            head = b"\xff" * 6 + mac + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x01"  # broadcast, ARP request
            for wait_s in ANNOUNCE_S:
                time.sleep(wait_s)
                raw.send(head + mac + ip + b"\x00" * 6 + ip)
    except OSError:
        return  # the pod ended meanwhile


@dataclass(slots=True)
class _Member:
    """A pod of this node."""

    namespace: str
    name: str
    hosts: Path
    sandbox: Sandbox
    cluster_ips: set[str] = field(default_factory=set)


class Services:
    """What the cluster has of them, and what follows for the pods of this node. Safe for use by many threads."""

    def __init__(self) -> None:
        self._services: dict[tuple[str, str], Object] = {}
        self._endpoints: dict[tuple[str, str], Object] = {}
        self._pods: dict[str, _Member] = {}  # by address
        self._lock = threading.RLock()

    def set(self, kind: str, things: Sequence[Object]) -> None:
        """All services, or all endpoints."""
        with self._lock:
            table = {(namespace_of(t), name_of(t)): t for t in things}
            if kind == "services":
                self._services = table
            else:
                self._endpoints = table
            self._apply()

    def change(self, kind: str, change: str, thing: Object) -> None:
        """One of them was added, modified or deleted."""
        with self._lock:
            table = self._services if kind == "services" else self._endpoints
            key = (namespace_of(thing), name_of(thing))
            if change == "DELETED":
                table.pop(key, None)
            else:
                table[key] = thing
            self._apply()

    def all(self) -> list[Object]:
        """The services."""
        with self._lock:
            return list(self._services.values())

    def join(self, sandbox: Sandbox, *, namespace: str, name: str, hosts: Path) -> None:
        """A pod has come up."""
        with self._lock:
            self._pods[sandbox.address] = _Member(namespace, name, hosts, sandbox)
            self._apply()

    def leave(self, address: str) -> None:
        """A pod is gone."""
        with self._lock:
            self._pods.pop(address, None)

    def _apply(self) -> None:
        holders = self._holders()
        for address, member in self._pods.items():
            own = f"127.0.0.1 localhost\n{address} {member.name}\n"
            write_in_place(member.hosts, own + self._names(member.namespace))
            wanted = {cluster_ip for cluster_ip, holder in holders if holder == address}
            for lost in member.cluster_ips - wanted:
                member.sandbox.ip("addr", "del", f"{lost}/32", "dev", "eth0", check=False)
            for new in wanted - member.cluster_ips:
                member.sandbox.ip("addr", "add", f"{new}/32", "dev", "eth0", check=False)
                member.sandbox.announce(new)
            member.cluster_ips = wanted

    def _ready(self, key: tuple[str, str]) -> list[Object]:
        subsets = self._endpoints.get(key, {}).get("subsets") or []
        return sorted((a for s in subsets for a in s.get("addresses") or []), key=lambda a: str(a["ip"]))

    def _holders(self) -> list[tuple[str, str]]:
        """(cluster IP, address of the pod that answers for it)."""
        found = []
        for key, service in self._services.items():
            cluster_ip, ready = service["spec"].get("clusterIP"), self._ready(key)
            if cluster_ip not in (None, "", "None") and ready:
                found.append((cluster_ip, ready[0]["ip"]))
        return found

    def _names(self, namespace: str) -> str:
        lines = []
        for (where, name), service in sorted(self._services.items()):
            forms = [f"{name}.{where}.{DOMAIN}", f"{name}.{where}.svc", f"{name}.{where}"] + [name] * (where == namespace)
            if service["spec"].get("clusterIP") != "None":
                lines.append(f"{service['spec'].get('clusterIP')} {' '.join(forms)}")
                continue
            for ready in self._ready((where, name)):
                lines.append(f"{ready['ip']} {' '.join(forms)}")
                if ready.get("hostname"):
                    lines.append(" ".join([ready["ip"], *(f"{ready['hostname']}.{form}" for form in forms)]))
        return "".join(f"{line}\n" for line in lines)


def write_in_place(file: Path, text: str) -> None:
    """Same inode, because it is bound into running containers; a reader never finds it empty."""
    data = text.encode()
    if file.exists() and file.read_bytes() == data:
        return
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def run(*argv: str, check: bool = True) -> None:
    """A command of the node's. Raises OSError with what it said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S)
    if check and done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
