"""The lab itself: machines see each other and nothing else, its faults are what they are called, and nothing is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netlab.lab import NETWORK, Lab, Node, namespaces, remove_leftovers
from tests.world.jobs import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

ENV = {"PATH": os.environ["PATH"]}
# prints "accepts", "refuses" or "mute"
TRY = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.5).close()
    print("accepts")
except ConnectionRefusedError:
    print("refuses")
except OSError:
    print("mute")
"""
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    began = time.monotonic()
    s.sendall(b"x" * int(sys.argv[3]))
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
    print(time.monotonic() - began)
"""
SINK = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("up", flush=True)
    while True:
        peer, _ = server.accept()
        with peer:
            while peer.recv(65536):
                pass
"""


@pytest.fixture(scope="module")
def lab(root: Path) -> Iterator[Lab]:
    with Lab(nodes=3, root=root / "lab") as made:
        serve(made.node(0))
        yield made


def serve(node: Node) -> None:
    """Something listens on port 7000 of the machine."""
    process = node.start([sys.executable, "-S", "-c", SINK], env=ENV, output=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()


def sign(node: Node, port: int = 7000, *, of: str = f"{NETWORK}.1") -> str:
    """What a machine hears from the first one's port."""
    return node.run([sys.executable, "-S", "-c", TRY, of, str(port)], env=ENV).stdout.strip()


def hears(wanted: str, node: Node, port: int = 7000, *, of: str = f"{NETWORK}.1") -> bool:
    """Whether it hears this in the end: for a machine that was mute the kernel asks once a second, and gives up now and then."""
    deadline = time.monotonic() + 30
    while sign(node, port, of=of) != wanted:
        if time.monotonic() > deadline:
            return False
    return True


def test_machines_have_addresses_names_processes_and_folders_of_their_own(lab: Lab) -> None:
    script = "hostname; cat /proc/1/comm; ls /proc | grep -c '^[0-9]*$'; ls /dev/shm | wc -l; echo $$ > /dev/shm/mine; pwd"
    for node in lab.nodes.values():
        name, init, processes, shared, where = node.run(["bash", "-c", script], env=ENV, cwd=lab.private).stdout.split()
        assert (name, init, shared, where) == (node.name, "bash", "0", str(lab.private))
        assert int(processes) < 10
        node.run(["touch", f"{lab.private}/{node.name}.was-here"], env=ENV)
        assert (lab.root / node.name / f"{node.name}.was-here").exists()
    assert hears("accepts", lab.node(1))
    assert hears("refuses", lab.node(1), 7001)


def test_no_packet_leaves_the_lab(lab: Lab) -> None:
    assert lab.node(1).run(["ip", "route"], env=ENV).stdout.split()[:3] == [f"{NETWORK}.0/24", "dev", "eth0"]
    assert sign(lab.node(1), 53, of="192.0.2.1") == "mute"


def test_a_cable_that_is_pulled_is_mute_and_heals(lab: Lab) -> None:
    lab.unplug(1)
    assert sign(lab.node(1)) == "mute"
    assert hears("accepts", lab.node(2))
    lab.plug(1)
    assert hears("accepts", lab.node(1))


def test_packets_are_dropped_and_links_throttled_until_that_is_lifted(lab: Lab) -> None:
    lab.drop(2, 100)
    assert sign(lab.node(2)) == "mute"
    lab.drop(2, 0)
    assert hears("accepts", lab.node(2))
    send = [sys.executable, "-S", "-c", SEND, f"{NETWORK}.1", "7000", "500000"]

    def seconds() -> float:
        """The best of some tries: others may take the processor, nobody gives a link more than it has."""
        return min(float(lab.node(2).run(send, env=ENV).stdout) for _ in range(4))

    assert seconds() < 0.5
    lab.throttle(2, 4)  # half a megabyte takes a second
    assert seconds() > 0.5
    lab.throttle(2, None)
    assert seconds() < 0.5


def test_a_machine_without_power_has_no_process_and_says_nothing(lab: Lab) -> None:
    node = lab.node(2)
    serve(node)
    (server,) = [p for p in node.processes() if "-S" in p.cmdline()]
    assert node.outer_pid(inner(server.pid)) == server.pid
    lab.power_off(2)
    assert not server.is_running()
    assert sign(lab.node(1), of=node.address) == "mute"
    assert not node.on
    lab.boot(2)
    assert hears("refuses", lab.node(1), of=node.address)


def inner(pid: int) -> int:
    """What the process calls itself."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return int(fields["NSpid"].split()[-1])


def test_what_a_killed_run_left_is_removed_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.netlab.lab import Lab\n"
        "with Lab(nodes=1, root=Path(sys.argv[1])) as lab:\n"
        "    print(lab.node(0).namespace, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    namespace = process.stdout.readline().strip()
    assert namespace not in remove_leftovers(), "its owner lives"
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while left := subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < deadline, f"processes outlive their lab: {left}"
    remove_leftovers()  # or a lab that another process starts just now does it
    assert namespace not in namespaces()
    assert hears("accepts", lab.node(1)), "this lab is untouched"
