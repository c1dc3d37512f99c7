"""What fails as one: a node, or the machine that several nodes share.

A node that shares its machine with others (a pod on Kubernetes) says so in its id: `NODE@MACHINE`. Any other node is a machine by
itself. State that must survive is kept on two machines where there are two, else on two nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def machine_of(node_id: str) -> str:
    """The machine that a node is on; itself, where it shares none."""
    return node_id.rpartition("@")[2]


def homes(node_ids: Sequence[str]) -> list[str]:
    """What fails as one, for each node: its machine; the node, where all are on one machine or every node is one."""
    machines = [machine_of(n) for n in node_ids]
    return machines if len(set(machines)) > 1 else list(node_ids)


def elsewhere(here: Iterable[str], others: Iterable[str]) -> frozenset[str]:
    """Those of `others` that would outlive what takes all of `here` at once.

    Nodes on other machines, where all of `here` are on one; if there are none, and `here` is one node, other nodes. Empty where
    `here` is on several machines.
    """
    nodes = frozenset(here)
    machines = {machine_of(n) for n in nodes}
    if len(machines) != 1:
        return frozenset()
    further = frozenset(others) - nodes
    away = frozenset(n for n in further if machine_of(n) not in machines)
    return away or (further if len(nodes) == 1 else frozenset())
