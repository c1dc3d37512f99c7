"""What the Kubernetes tests share: a control plane without nodes (`plane`), and a cluster whose pods really run (`site`).

Both live as long as the session; what a test has switched off is switched on again after it. Each test makes its own namespace:
`plane.namespace()`, `site.namespace()`. `figure(name, value)` hands a number to the last line of `make test-kube`.
ORCHESTRATOR_TEST_KUBECONFIG makes `site` an existing cluster: docs/kubernetes-tests.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kube import assets
from tests.kube.cli import Place, installed, lease_held, no_operator
from tests.kube.control_plane import ControlPlane
from tests.kube.existing import KUBECONFIG, ExistingCluster
from tests.kube.lab_site import LabSite
from tests.kube.processes import MEMORY, in_memory, new_root
from tests.kube.site import Site
from tests.netlab.lab import cannot, missing_tools

HERE = Path(__file__).parent
KEEP = "NETLAB_KEEP"  # leaves logs and data behind
LIMIT_S = 900  # of a test that names none, for the first one starts a control plane too; what is waited for has shorter ones
# Python 3.11 forgets a TLS socket whose peer resets it before the handshake (ssl.SSLSocket._create raises after a failed recv
# without closing it), as a killed API server does; it has no raddr. Garbage collection then failed whichever test was running.
CUT_OFF = r"ignore:unclosed <ssl\.SSLSocket fd=\d+, family=2, type=1, proto=6, laddr=\('127\.0\.0\.1', \d+\)>$:ResourceWarning"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is marked `kube`; whole jobs, which take longest, come first."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kube)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))
            item.add_marker(pytest.mark.filterwarnings(CUT_OFF))
    items.sort(key=lambda item: item.path != HERE / "test_job.py")


@pytest.fixture(scope="session")
def kube_root() -> Iterator[Path]:
    """A short folder for all that belongs to this session."""
    made = new_root()
    yield made
    shutil.rmtree(MEMORY / made.name, ignore_errors=True)
    if KEEP not in os.environ:
        shutil.rmtree(made)


@pytest.fixture(scope="session")
def plane(kube_root: Path) -> Iterator[ControlPlane]:
    """etcd, API server, controller-manager and scheduler on loopback; no nodes. This machine's, also where `site` is not."""
    try:
        assets.find()
    except assets.AssetsError as error:
        pytest.fail(str(error))
    root = kube_root / "plane"
    root.mkdir()
    with ControlPlane(root=root, data=in_memory(kube_root) / "etcd") as made:
        yield made


@pytest.fixture(scope="session")
def shared_site(kube_root: Path) -> Iterator[Site]:
    """The cluster itself; tests use `site`."""
    root = kube_root / "site"
    root.mkdir()
    if KUBECONFIG in os.environ:
        with ExistingCluster(root=root) as existing:
            yield existing
        return
    if reason := cannot():
        pytest.skip(f"NO POD IS REALLY RUN: {reason}")
    if reason := missing_tools():
        pytest.fail(f"pods cannot be run: {reason}")
    with LabSite(root=root) as made:
        yield made


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """A cluster with a control plane node and test nodes, all of them Ready; afterwards it is as it was before."""
    shared_site.restore()
    yield shared_site
    shared_site.restore()
    shared_site.clear()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """figure(name, value): a number for the last line of `make test-kube`."""
    return lambda name, value: record_property(f"figure:{name}", value)


@pytest.fixture(scope="module")
def ready(plane: ControlPlane) -> ControlPlane:
    """The API server with the CRD, and nobody who acts on it."""
    installed(plane)
    no_operator(plane)
    return plane


@pytest.fixture
def place(ready: ControlPlane, tmp_path: Path) -> Place:
    """A fresh namespace with the accounts of jobs."""
    made = Place(ready, ready.namespace(), folder=tmp_path)
    made.accounts()
    return made


@pytest.fixture
def operator_lease(ready: ControlPlane) -> Iterator[None]:
    """A lease as an operator that works holds it."""
    with lease_held(ready):
        yield
