"""Which API server is meant, as whom, in which namespace; and what is said when that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.kube.access import Options, connect, contexts_of
from orchestrator.runtime.control import BadRequestError, ControlError, UnreachableError

SERVER = "https://127.0.0.1:1"


def config(path: Path, **contexts: str) -> Path:
    """A kubeconfig with these contexts, each with its namespace; the first one is current."""
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": next(iter(contexts), ""),
        "contexts": [
            {"name": n, "context": {"cluster": "c", "user": "u", **({"namespace": space} if space else {})}}
            for n, space in contexts.items()
        ],
        "clusters": [{"name": "c", "cluster": {"server": SERVER}}],
        "users": [{"name": "u", "user": {"token": "hush-hush"}}],
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig of this machine, and no pod."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def test_the_current_context_names_server_and_namespace(tmp_path: Path) -> None:
    path = config(tmp_path / "k", team="jobs", other="")
    access = connect(Options(kubeconfig=str(path)))
    assert (access.server, access.namespace, access.source) == (SERVER, "jobs", f"context team of {path}")


@pytest.mark.parametrize(
    ("options", "namespace"), [({"context": "other"}, "default"), ({"namespace": "mine"}, "mine"), ({}, "jobs")]
)
def test_what_is_said_comes_before_what_is_written(tmp_path: Path, options: dict[str, str], namespace: str) -> None:
    path = config(tmp_path / "k", team="jobs", other="")
    assert connect(Options(kubeconfig=str(path), **options)).namespace == namespace


def test_the_variable_names_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "k", team="jobs")))
    assert connect(Options()).namespace == "jobs"


def test_a_context_that_is_not_there(tmp_path: Path) -> None:
    path = config(tmp_path / "k", team="jobs", other="")
    with pytest.raises(BadRequestError, match=r"there is no context none in .*; fix: name one of team, other"):
        connect(Options(kubeconfig=str(path), context="none"))


def test_a_login_plugin_that_fails_is_said_once_and_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path / "k", team="jobs")
    document = json.loads(path.read_text())
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin", "interactiveMode": "Never"}
    document["users"] = [{"name": "u", "user": {"exec": plugin}}]
    path.write_text(json.dumps(document))
    with pytest.raises(ControlError, match=r"the credentials of context team of .* cannot be made: .*'no-such-plugin'; fix:"):
        connect(Options(kubeconfig=str(path)))
    assert capsys.readouterr().err == ""


def test_no_kubeconfig_at_all() -> None:
    with pytest.raises(BadRequestError, match=r"there is no kubeconfig at ~/.kube/config and this is no pod; fix: name one"):
        connect(Options())


def test_a_kubeconfig_that_was_named_and_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match=r"there is no kubeconfig at .*none; fix:"):
        connect(Options(kubeconfig=str(tmp_path / "none")))


@pytest.mark.parametrize("text", ["{", "[]", '{"contexts": [{"name": "x"}]}', ""])
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(BadRequestError, match=r"the kubeconfig .* cannot be used: .*; fix: look at `kubectl config view`"):
        connect(Options(kubeconfig=str(path)))


def test_a_pod_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(BadRequestError, match=r"this pod has no service account to ask with"):
        connect(Options())


def test_nobody_answers_and_the_token_is_not_told(tmp_path: Path) -> None:
    access = connect(Options(kubeconfig=str(config(tmp_path / "k", team="jobs"))))
    with pytest.raises(
        UnreachableError, match=rf"the API server at {SERVER} \(context team of .*\) does not answer: .*refused"
    ) as told:
        access.get("/version")
    assert "hush" not in str(told.value)
    with pytest.raises(UnreachableError), access.lines("/api/v1/pods", query={"watch": "true"}, quiet_s=1):
        pass


def test_contexts_for_the_shell(tmp_path: Path) -> None:
    assert contexts_of(Options(kubeconfig=str(config(tmp_path / "k", team="jobs", other="")))) == ["team", "other"]
