"""The agent's picture of its nodes, as an account with the agent's rights sees them at a real API server that also goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Access, Options, connect
from orchestrator.adapters.kube.watching import Watching
from tests.kube.agents import Objects, until
from tests.kube.control_plane import ControlPlane
from tests.kube.rights import Account, Grants, make_account, role

pytestmark = pytest.mark.timeout(240)

JOB = "j"
GRANTS = Grants(
    cluster=role("manifests/base", "ClusterRole", names.AGENT), namespaced=role("manifests/namespace", "Role", names.AGENT)
)


class Story:
    """A namespace with an account, nodes n0, n1, ... of the test's, and pods of a job on some of them."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.objects = Objects(plane, plane.namespace("nodes"))
        self.objects.install()
        self.account: Account = make_account(plane, namespace=self.objects.namespace, name=names.AGENT, grants=GRANTS)
        self.stop = threading.Event()
        self.connected: list[Access] = []

    def name(self, number: int) -> str:
        """Of a node, which belongs to the whole cluster."""
        return f"{self.objects.namespace}-n{number}"

    def nodes(self, *numbers: int) -> None:
        """Make them, all at once."""
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(self.objects.node, map(self.name, numbers)))

    def pods(self, *numbers: int) -> None:
        """A pod on each of these nodes."""
        for i in numbers:
            self.objects.pod(JOB, ordinal=i, node=self.name(i), address=f"10.9.0.{i + 1}")

    def delete_node(self, number: int) -> None:
        """The object, as a cloud's controller does it."""
        self.plane.kubectl("delete", "node", self.name(number))

    def watch(self, *, each_max: int) -> Watching:
        """A picture that is kept from now on until the end of the test."""
        access = connect(Options(kubeconfig=str(self.account.kubeconfig), namespace=self.objects.namespace))
        self.connected.append(access)
        watching = Watching(
            access,
            namespace=self.objects.namespace,
            job=JOB,
            stop=self.stop,
            changed=lambda: None,
            detect_within_ms=500,
            each_max=each_max,
        )
        watching.start()
        return watching

    def see(self, watching: Watching, **ready: str | None) -> None:
        """Wait until exactly these nodes are known, and are so; None: not there."""
        wanted = {self.name(int(number.removeprefix("n"))): state for number, state in ready.items()}

        def look() -> dict[str, str | None] | None:
            picture = watching.picture()
            return {n: None if s is None else s.ready for n, s in picture.nodes.items()} if picture.complete else None

        until(look, lambda seen: seen == wanted, what="the nodes as they are")

    def asked(self) -> list[str]:
        """The field selectors of all requests for nodes; "" where there was none."""
        lines = self.plane.audit_log.read_text().splitlines()
        entries = [e for e in map(json.loads, lines) if e["user"]["username"] == self.account.user]
        about = [e for e in entries if (e.get("objectRef") or {}).get("resource") == "nodes"]
        assert {e["verb"] for e in about} <= {"list", "watch"}
        return [parse_qs(urlsplit(e["requestURI"]).query).get("fieldSelector", [""])[0] for e in about]


@pytest.fixture
def story(plane: ControlPlane) -> Iterator[Story]:
    made = Story(plane)
    yield made
    made.stop.set()
    if not plane.api_runs:
        plane.start_api()
    made.objects.clear_nodes()
    until(watchers, lambda alive: not alive, what="the streams end, each by its own time-out")
    for access in made.connected:
        access.api.client.close()


def watchers() -> list[str]:
    """Threads of a picture that still run."""
    return [t.name for t in threading.enumerate() if t.name.startswith("watch-")]


def test_nodes_are_followed_one_by_one_and_a_deletion_is_seen_through_an_absence_of_the_api_server(story: Story) -> None:
    story.nodes(0, 1, 2)
    story.pods(0, 1)
    watching = story.watch(each_max=64)
    story.see(watching, n0="True", n1="True")
    story.objects.node(story.name(1), ready="Unknown")
    story.see(watching, n0="True", n1="Unknown")
    story.plane.stop_api()
    until(watching.picture, lambda p: not p.complete and p.nodes == {}, what="nothing is known while the API server is away")
    story.plane.start_api()
    story.delete_node(1)  # before or after its stream is there again
    story.see(watching, n0="True", n1=None)
    story.pods(2)
    story.see(watching, n0="True", n1=None, n2="True")
    story.objects.plane.kubectl("-n", story.objects.namespace, "delete", "pod", "j-worker-2-1", "--grace-period=0", "--force")
    story.see(watching, n0="True", n1=None)
    story.stop.set()
    assert set(story.asked()) == {f"metadata.name={story.name(i)}" for i in range(3)}


def test_a_job_on_more_nodes_than_the_limit_follows_all_in_one_stream_and_proves_a_loss_by_name(story: Story) -> None:
    story.nodes(0, 1, 2)
    story.pods(0, 1, 2)
    watching = story.watch(each_max=2)
    story.see(watching, n0="True", n1="True", n2="True")
    story.objects.node(story.name(0), ready="False")
    story.see(watching, n0="False", n1="True", n2="True")
    story.delete_node(2)
    story.see(watching, n0="False", n1="True", n2=None)
    story.stop.set()
    assert set(story.asked()) == {"", f"metadata.name={story.name(2)}"}
