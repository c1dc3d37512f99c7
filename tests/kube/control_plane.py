"""A real control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, on loopback or on a machine of a lab.

Nothing about it is faked: RBAC, admission, service account tokens, garbage collection, taints and eviction are the real ones.
Only its clocks are short: a node whose lease lapses is NotReady after eight seconds and not after forty. Its processes end with
the one that started it, however that ends; folders that a killed run left are removed by the next one.

    with ControlPlane(root=new_root()) as plane:
        plane.kubectl("get", "namespaces")
        client.CoreV1Api(plane.api()).list_namespace()
        name = plane.namespace()      # a fresh one in which pods can be created at once
        plane.stop_api(); plane.start_api()
"""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
from kubernetes import client, config

from tests.kube import assets
from tests.kube.kubectl import kubectl
from tests.kube.processes import LOOPBACK, free_port, here, tree

LIMIT_S: Final = 180.0  # for a part to come up, on a machine that does other things
LOST_S: Final = 8  # a node whose lease is not renewed for so long is NotReady; it is renewed each second
POLL_S: Final = 0.05
SERVICE_CIDR: Final = "198.19.0.0/16"
SERVICE_IP: Final = "198.19.0.1"  # the first one is the API server's own
NAMES: Final = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
FLAGS_GONE: Final = 24  # --port, --insecure-port and old feature gates are errors since this minor version

Start = Callable[[Sequence[str], Path], "subprocess.Popen[bytes]"]


class ControlPlaneError(RuntimeError):
    """A part did not do what was asked; the text has the end of its log."""


class ControlPlane:
    """Use as a context: up inside, gone afterwards. `root` is a folder for its files, `data` the one that etcd makes for itself
    (by default there).

    `start` runs a program where the control plane lives, there on `address`:`port`; `reach` says, after the API server was
    started, under which host:port this process reaches it (by default the same).
    """

    def __init__(
        self,
        *,
        root: Path,
        data: Path | None = None,
        start: Start = here,
        address: str = LOOPBACK,
        port: int | None = None,
        reach: Callable[[], str] | None = None,
    ) -> None:
        self.root = root
        self.kubeconfig = root / "admin.kubeconfig"  # for this machine
        self.inner_kubeconfig = root / "inner.kubeconfig"  # for whoever lives where the control plane does
        self.ca = root / "tls.crt"
        self.key = root / "tls.key"
        self.audit_log = root / "audit.log"  # one JSON object per request of a service account
        self.server = ""
        self._data = data or root / "etcd"
        self._start = start
        self._address = address
        self._port = port or free_port()
        self._reach = reach or (lambda: f"{LOOPBACK}:{self._port}")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._token = secrets.token_hex(16)
        self._etcd_ports = (free_port(), free_port())
        self._clients: list[client.ApiClient] = []
        self._names = itertools.count()

    def __enter__(self) -> Self:
        try:
            self._assets = assets.find()
            self._minor = assets.minor_version(self._assets)
            self._write_files()
            self._start_etcd()
            self.start_api(first=True)
            self._start_controllers()
            self._until(lambda: self._get("/api/v1/namespaces/default/serviceaccounts/default"), "service accounts")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all parts; idempotent. Their files stay until the next run, or whoever made `root`, removes them."""
        for made in self._clients:
            made.close()
        self._clients.clear()
        for name in reversed(list(self._processes)):
            self._end(name)

    # ---- use

    def api(self) -> client.ApiClient:
        """A new client of the administrator's; it is closed with the control plane."""
        made: client.ApiClient = config.new_client_from_config(str(self.kubeconfig))
        self._clients.append(made)
        return made

    def kubectl(self, *argv: str, input: str | None = None, check: bool = True, limit_s: float = LIMIT_S) -> str:
        """What kubectl prints (stdout; with check=False also stderr). Raises KubectlError when it fails, if `check`."""
        return kubectl(
            *argv, kubeconfig=self.kubeconfig, cache=self.root / "kubectl-cache", input=input, check=check, limit_s=limit_s
        )

    def namespace(self, prefix: str = "test", **labels: str) -> str:
        """The name of a fresh namespace, with its default service account already there."""
        name = f"{prefix}-{next(self._names)}-{secrets.token_hex(2)}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("create", "-f", "-", input=json.dumps(body))
        self._until(lambda: self._get(f"/api/v1/namespaces/{name}/serviceaccounts/default"), f"the service account of {name}")
        self._until(lambda: self._get(f"/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt"), f"the CA of {name}")
        return name

    @property
    def api_runs(self) -> bool:
        """Whether the API server has not been stopped."""
        return "kube-apiserver" in self._processes

    def stop_api(self) -> None:
        """The API server is gone, at once and without a word; etcd and the controllers stay."""
        self._end("kube-apiserver", hard=True)

    def start_api(self, *, first: bool = False) -> None:
        """The API server is back, on the same port, with the same data; returns when it is ready."""
        self._spawn("kube-apiserver", *self._api_flags())
        if first:
            self.server = f"https://{self._reach()}"
            self._write_kubeconfigs()
        self._until(lambda: self._get("/readyz") == b"ok", "kube-apiserver", part="kube-apiserver")

    def log(self, part: str) -> str:
        """What a part has said so far."""
        return (self.root / f"{part}.log").read_text(errors="replace")

    # ---- parts

    def _start_etcd(self) -> None:
        clients, peers = (f"http://{LOOPBACK}:{port}" for port in self._etcd_ports)
        self._spawn(
            "etcd",
            f"--data-dir={self._data}",
            "--max-wals=2",  # of 64 MiB
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            *(["--unsafe-no-fsync"] if self._etcd_may_skip_fsync() else []),
        )

    def _etcd_may_skip_fsync(self) -> bool:
        said = subprocess.run([self._assets / "etcd", "--help"], capture_output=True, text=True, timeout=LIMIT_S)
        return "--unsafe-no-fsync" in said.stdout + said.stderr

    def _api_flags(self) -> list[str]:
        return [
            f"--etcd-servers=http://{LOOPBACK}:{self._etcd_ports[0]}",
            f"--bind-address={'0.0.0.0' if self._address != LOOPBACK else LOOPBACK}",  # 0.0.0.0: of a lab's namespace
            f"--advertise-address={self._address}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.key}",
            f"--token-auth-file={self.root}/tokens.csv",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={self.root}/sa.key",
            f"--service-account-signing-key-file={self.root}/sa.key",
            f"--service-account-issuer={ISSUER}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--cert-dir={self.root}/certs",
            "--kubelet-preferred-address-types=InternalIP",
            "--endpoint-reconciler-type=none" if self._address == LOOPBACK else "--endpoint-reconciler-type=lease",
            f"--audit-policy-file={self.root}/audit-policy.json",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=blocking",
            *self._old("--insecure-port=0", "--feature-gates=BoundServiceAccountTokenVolume=true"),
        ]

    def _start_controllers(self) -> None:
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={self.inner_kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={self.root}/sa.key",
            f"--root-ca-file={self.ca}",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={LOST_S}s",
            "--node-eviction-rate=10",  # else only one lost node in ten seconds is tainted
            "--secondary-node-eviction-rate=10",
            "--unhealthy-zone-threshold=1",  # else two lost nodes of three stop all evictions
            "--enable-hostpath-provisioner",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            *self._old("--port=0", "--feature-gates=BoundServiceAccountTokenVolume=true"),
        )
        self._spawn(
            "kube-scheduler",
            f"--kubeconfig={self.inner_kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            *self._old("--port=0"),
        )

    def _old(self, *flags: str) -> list[str]:
        return list(flags) if self._minor < FLAGS_GONE else []

    def _spawn(self, name: str, *flags: str) -> None:
        self._processes[name] = self._start([str(self._assets / name), *flags], self.root / f"{name}.log")

    def _end(self, name: str, *, hard: bool = False) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        for number in (signal.SIGKILL,) if hard or name == "kube-apiserver" else (signal.SIGTERM, signal.SIGKILL):
            for target in tree(process.pid):
                with suppress(psutil.NoSuchProcess):
                    target.send_signal(number)
            try:
                process.wait(5.0)
                return
            except subprocess.TimeoutExpired:
                continue
        process.wait(LIMIT_S)

    # ---- files

    def _write_files(self) -> None:
        addresses = ",".join(f"IP:{a}" for a in sorted({LOOPBACK, self._address, SERVICE_IP}))
        names = ",".join(f"DNS:{n}" for n in NAMES)
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        key: list[str | Path] = [*curve, "-nodes", "-keyout", self.key, "-out", self.ca]
        subject = ["-days", "30", "-subj", "/CN=orchestrator-lab", "-addext", f"subjectAltName={addresses},{names}"]
        commands: tuple[list[str | Path], ...] = (
            ["openssl", "req", "-x509", *key, *subject],
            ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.root / "sa.key"],
        )
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
        }
        (self.root / "audit-policy.json").write_text(json.dumps(policy))
        self._private("tokens.csv", f'{self._token},admin,1,"system:masters"\n')

    def _write_kubeconfigs(self) -> None:
        self._private(self.kubeconfig.name, self.kubeconfig_for(self._token))
        self._private(
            self.inner_kubeconfig.name, self.kubeconfig_for(self._token, server=f"https://{self._address}:{self._port}")
        )

    def kubeconfig_for(self, token: str, *, server: str = "", namespace: str = "default") -> str:
        """The text of a kubeconfig with this bearer token; by default for use on this machine."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab", "namespace": namespace}}],
            "clusters": [{"name": "lab", "cluster": {"server": server or self.server, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "lab", "user": {"token": token}}],
        }
        return json.dumps(document)

    def _private(self, name: str, text: str) -> None:
        path = self.root / name
        path.touch(mode=0o600)
        path.write_text(text)

    # ---- waiting

    def _get(self, path: str) -> bytes:
        """Empty when there is no such answer (yet)."""
        request = urllib.request.Request(self.server + path, headers={"Authorization": f"Bearer {self._token}"})
        context = ssl.create_default_context(cafile=str(self.ca))
        try:
            with urllib.request.urlopen(request, timeout=5.0, context=context) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as refusal:
            refusal.close()  # it is an answer, with a connection of its own
            return b""
        except (OSError, http.client.HTTPException):
            return b""

    def _until(self, condition: Callable[[], object], what: str, *, part: str = "") -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if part and self._processes[part].poll() is not None:
                raise ControlPlaneError(f"{part} ended:\n{self.log(part)[-3000:]}")
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in self._processes)
                raise ControlPlaneError(f"{what}: not there within {LIMIT_S} s\n{logs}")
            time.sleep(POLL_S)
