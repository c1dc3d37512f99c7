"""The cluster that the other tests stand on: pods run as they say, and what is called a fault is one.

Whoever brings a cluster of their own (docs/kubernetes-tests.md) runs these first: what fails here fails everywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.kube.kubectl import KubectlError, until
from tests.kube.site import Site

Object = dict[str, Any]
LIMIT_S: Final = 180.0  # a cluster with the usual settings calls a node lost after 50 s
POLL_S: Final = 0.2
PORT: Final = 8000
RESTRICTED: Final = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONFINED: Final = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
SERVE: Final = (
    "import http.server, os, socketserver\n"
    "class Answer(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(os.environ['HOSTNAME'].encode())\n"
    f"http.server.ThreadingHTTPServer(('', {PORT}), Answer).serve_forever()"
)
SERVE_UNREADY: Final = SERVE.replace(
    "self.send_response", "self.path == '/ready' and open('/tmp/ready', 'w').close(); self.send_response"
)
ASK: Final = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
ASK_UNTIL_IT_ANSWERS: Final = f"""
import time
while True:
    try:
        {ASK}
        break
    except OSError:
        time.sleep(0.1)
"""
END_WITH_THE_API_SERVER: Final = """
import os, socket, sys, time
at = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
while True:
    try:
        socket.create_connection(at, timeout=30).close()
    except OSError:
        sys.exit(4)
    time.sleep(0.1)
"""
WHO_AM_I: Final = """
import json, os, socket, ssl, urllib.error, urllib.request
def status(path):
    here = "/var/run/secrets/kubernetes.io/serviceaccount"
    headers = {"Authorization": "Bearer " + open(here + "/token").read()}
    request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=here + "/ca.crt")).status
    except urllib.error.HTTPError as error:
        return error.code
def refused(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
facts = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(), "groups": os.getgroups(), "capabilities": int(facts["CapEff"], 16) | int(facts["CapBnd"], 16),
    "no new privileges": facts["NoNewPrivs"], "pid": os.getpid(), "host": socket.gethostname(),
    "root": refused("/x"), "sources": refused(os.path.join(os.path.dirname(json.__file__), "x")), "tmp": refused("/tmp/x"),
    "version": status("/version"), "secrets": status("/api/v1/secrets"),
}))
"""


class Bench:
    """A namespace of one test, with the few verbs that it needs."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.name = site.namespace()

    def kubectl(self, *argv: str, input: str | None = None, check: bool = True) -> str:
        """In this namespace."""
        return self.site.kubectl("-n", self.name, *argv, input=input, check=check)

    def create(self, kind: str, name: str, spec: Object, **labels: str) -> None:
        """Create an object of the core API."""
        metadata = {"name": name, "labels": labels}
        self.kubectl(
            "create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec})
        )

    def pod(
        self, pod_name: str, *command: str, container: Object | None = None, labels: Object | None = None, **spec: Any
    ) -> None:
        """Create a pod with one container, which is confined as "restricted" says."""
        made = {"name": "c", "image": self.site.image, "command": [*command], "securityContext": CONFINED, **(container or {})}
        defaults = {"containers": [made], "securityContext": RESTRICTED, "terminationGracePeriodSeconds": 5}
        self.create("Pod", pod_name, {**defaults, **spec}, **(labels or {}))

    def get(self, kind: str, name: str) -> Object:
        """Empty when there is none."""
        said = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        found: Object = json.loads(said) if said else {}
        return found

    def until(self, name: str, wanted: Callable[[Object], object], what: str, *, kind: str = "pod") -> Object:
        """The object once it is as wanted."""
        seen: Object = {}

        def look() -> bool:
            nonlocal seen
            seen = self.get(kind, name)
            return bool(wanted(seen))

        try:
            until(look, what, limit_s=LIMIT_S, poll_s=POLL_S)
        except TimeoutError as error:
            words = self.kubectl("logs", name, check=False)
            raise AssertionError(f"{error}\n{json.dumps(seen, indent=1)}\n{words}") from None
        return seen

    def ready(self, name: str) -> Object:
        """The pod once it is ready."""
        return self.until(name, is_ready, f"{name} ready")

    def over(self, name: str) -> Object:
        """The pod once it has ended."""
        return self.until(name, lambda p: p["status"].get("phase") in ("Succeeded", "Failed"), f"{name} over")


def is_ready(pod: Object) -> bool:
    """By its own condition."""
    return {"Ready": "True"}.items() <= conditions(pod).items()


def conditions(thing: Object) -> dict[str, str]:
    """Type -> status."""
    return {c["type"]: c["status"] for c in thing.get("status", {}).get("conditions") or []}


def ended(pod: Object) -> Object:
    """How its container did."""
    found: Object = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return found


@pytest.fixture
def bench(site: Site) -> Bench:
    return Bench(site)


def test_what_a_pod_says_is_read_through_the_api_server(bench: Bench) -> None:
    bench.pod("talker", "sh", "-c", "echo one; echo two >&2; sleep 2; echo three", restartPolicy="Never")
    bench.until("talker", lambda p: p["status"].get("phase") != "Pending", "talker started")
    assert bench.kubectl("logs", "-f", "talker").splitlines() == ["one", "two", "three"]  # ends with the container
    assert bench.kubectl("logs", "--tail=2", "talker").splitlines() == ["two", "three"]
    stamps = [line.split()[0] for line in bench.kubectl("logs", "--timestamps", "talker").splitlines()]
    assert stamps == sorted(stamps)
    since = stamps[2][:19]  # whole seconds; all three are in the same one only where the machine has slept
    later = bench.kubectl("logs", "talker", f"--since-time={since}Z").splitlines()
    assert later == [word for word, stamp in zip(("one", "two", "three"), stamps, strict=True) if stamp >= since]
    assert ended(bench.over("talker"))["exitCode"] == 0
    with pytest.raises(KubectlError, match="no-such"):
        bench.kubectl("logs", "talker", "-c", "no-such")


def test_a_container_is_confined_as_it_says_and_speaks_to_the_api_server_as_its_account(bench: Bench) -> None:
    tmp: Object = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    mounts = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    bench.pod("who", "python", "-c", WHO_AM_I, restartPolicy="Never", container=mounts, **tmp)
    bench.over("who")
    assert json.loads(bench.kubectl("logs", "who")) == {
        "uid": 1000,
        "groups": [1000],
        "capabilities": 0,
        "no new privileges": "1",
        "pid": 1,
        "host": "who",
        "root": "Read-only file system",
        "sources": "Read-only file system",
        "tmp": None,
        "version": 200,
        "secrets": 403,
    }


def test_a_claim_is_the_same_volume_wherever_the_pod_is(bench: Bench) -> None:
    claim = {"claimName": bench.site.share(bench.name)}
    volume: Object = {"volumes": [{"name": "data", "persistentVolumeClaim": claim}], "restartPolicy": "Never"}
    container = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    first, second = bench.site.nodes[:2]
    bench.pod("writer", "sh", "-c", "echo kept > /data/file", container=container, **volume, nodeSelector=on(first))
    assert bench.over("writer")["status"]["phase"] == "Succeeded"
    bench.kubectl("delete", "pod", "writer")
    bench.pod("reader", "cat", "/data/file", container=container, **volume, nodeSelector=on(second))
    bench.over("reader")
    assert bench.kubectl("logs", "reader") == "kept\n"


def on(node: str) -> dict[str, str]:
    """The nodeSelector of exactly this node."""
    return {"kubernetes.io/hostname": node}


def test_a_service_answers_from_pods_that_are_ready(bench: Bench) -> None:
    probe = {"readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1}}
    tmp: Object = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    mounts = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    bench.create("Service", "web", {"selector": {"app": "web"}, "ports": [{"port": PORT}]})
    bench.pod("server", "python", "-c", SERVE_UNREADY, labels={"app": "web"}, container={**probe, **mounts}, **tmp)
    runs = bench.until("server", lambda p: p["status"].get("phase") == "Running", "server runs")
    assert not addresses(bench), "it is not ready yet"
    told = f"http://{runs['status']['podIP']}:{PORT}/ready"
    bench.pod("herald", "python", "-c", ASK_UNTIL_IT_ANSWERS, told, restartPolicy="Never")
    server = bench.ready("server")
    bench.until("web", lambda _: addresses(bench) == [server["status"]["podIP"]], "an endpoint", kind="endpoints")
    for kind, url in (
        ("name", f"http://web:{PORT}"),
        ("env", f"http://$(WEB_SERVICE_HOST):{PORT}"),
        ("ip", f"http://{server['status']['podIP']}:{PORT}"),
    ):
        bench.pod(f"client-{kind}", "python", "-c", ASK_UNTIL_IT_ANSWERS, url, restartPolicy="Never")
        bench.over(f"client-{kind}")
        assert bench.kubectl("logs", f"client-{kind}") == "server\n", kind


def addresses(bench: Bench) -> list[str]:
    """Of the service `web`."""
    return [a["ip"] for subset in bench.get("endpoints", "web").get("subsets") or [] for a in subset.get("addresses") or []]


def test_a_pod_is_restarted_as_its_policy_says(bench: Bench) -> None:
    bench.pod("never", "sh", "-c", "echo once; exit 3", restartPolicy="Never")
    bench.pod("always", "sh", "-c", "echo again; exit 3")
    sick = {"livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1}}
    bench.pod("sick", "sleep", "600", container=sick, terminationGracePeriodSeconds=1)
    assert ended(bench.over("never"))["exitCode"] == 3
    assert bench.get("pod", "never")["status"]["phase"] == "Failed"
    for name in ("always", "sick"):
        bench.until(name, lambda p: p["status"]["containerStatuses"][0]["restartCount"] >= 2, f"{name} restarted twice")
    assert bench.kubectl("logs", "always", "--previous") == "again\n"


def test_a_pod_that_is_deleted_runs_its_hook_before_it_is_told_to_end(bench: Bench) -> None:
    script = "trap 'echo told; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 1"]}}}
    bench.pod("polite", "sh", "-c", script, container={"lifecycle": hook}, terminationGracePeriodSeconds=30)
    bench.ready("polite")
    with subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(bench.site.kubeconfig), bench.name, "polite"], stdout=subprocess.PIPE, text=True
    ) as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == "up\n"
        bench.kubectl("delete", "pod", "polite")
        assert follow.stdout.read() == "hook\ntold\n"


FOLLOW: Final = (
    "import os, sys; c, n, p = sys.argv[1:]; os.execvp('kubectl', ['kubectl', '--kubeconfig', c, '-n', n, 'logs', '-f', p])"
)


def test_a_pod_on_a_node_without_power_is_evicted_and_stays_terminating_until_the_node_is_back(bench: Bench) -> None:
    victim = bench.site.nodes[0]
    bench.pod("doomed", "sleep", "600", nodeSelector=on(victim), tolerations=[tolerated(5)])
    uid = bench.ready("doomed")["metadata"]["uid"]
    bench.site.power_off(victim)
    lost = bench.until(victim, lambda n: conditions(n)["Ready"] == "Unknown", "NotReady", kind="node")
    assert lost["metadata"]["name"] == victim
    bench.until(victim, lambda n: "node.kubernetes.io/unreachable:NoExecute" in taints(n), "the taint", kind="node")
    doomed = bench.until("doomed", lambda p: "deletionTimestamp" in p["metadata"], "the eviction")
    assert doomed["metadata"]["uid"] == uid
    bench.pod("elsewhere", "sleep", "600")
    assert bench.ready("elsewhere")["spec"]["nodeName"] != victim
    assert bench.get("pod", "doomed")["status"]["phase"] == "Running", "nobody can say that it ended"
    bench.site.power_on(victim)
    bench.until("doomed", lambda p: not p, "its end")
    bench.site.until_ready(victim)


def tolerated(seconds: int) -> Object:
    """For so long a pod stays on a node that cannot be reached."""
    where = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    return {**where, "tolerationSeconds": seconds}


def taints(node: Object) -> list[str]:
    """key:effect"""
    return [f"{t['key']}:{t['effect']}" for t in node["spec"].get("taints") or []]


def test_a_node_without_network_is_lost_with_its_pods_and_comes_back_with_them(bench: Bench) -> None:
    victim, other = bench.site.nodes[:2]
    bench.create("Service", "web", {"selector": {"app": "web"}, "ports": [{"port": PORT}]})
    bench.pod("cut-off", "python", "-c", SERVE, nodeSelector=on(victim), labels={"app": "web"}, tolerations=[tolerated(600)])
    at = bench.ready("cut-off")["status"]["podIP"]
    bench.site.unplug(victim)
    bench.until(victim, lambda n: conditions(n)["Ready"] == "Unknown", "NotReady", kind="node")
    bench.until("cut-off", lambda p: not is_ready(p), "not ready")
    bench.pod("asker", "python", "-c", ASK, f"http://{at}:{PORT}", restartPolicy="Never", nodeSelector=on(other))
    assert bench.over("asker")["status"]["phase"] == "Failed"
    bench.site.plug(victim)
    bench.site.until_ready(victim)
    assert bench.ready("cut-off")["status"]["containerStatuses"][0]["restartCount"] == 0, "it ran on"
    bench.pod("asker-2", "python", "-c", ASK, f"http://{at}:{PORT}", restartPolicy="Never", nodeSelector=on(other))
    assert bench.over("asker-2")["status"]["phase"] == "Succeeded"


def test_pods_run_on_while_the_api_server_is_away_and_their_status_catches_up(bench: Bench) -> None:
    bench.pod("steady", "sleep", "600")
    bench.pod("short", "python", "-c", END_WITH_THE_API_SERVER, restartPolicy="Never")
    began = bench.ready("steady")["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
    bench.ready("short")
    bench.site.stop_api()
    with pytest.raises(KubectlError):
        bench.kubectl("get", "pods")
    bench.site.start_api()
    assert ended(bench.over("short"))["exitCode"] == 4
    steady = bench.get("pod", "steady")["status"]["containerStatuses"][0]
    assert (steady["restartCount"], steady["state"]["running"]["startedAt"]) == (0, began)
    bench.site.until_ready()
