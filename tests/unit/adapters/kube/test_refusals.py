"""What an API server refuses, in words: which error it becomes, and the fix that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.adapters.kube.refusals import (
    ForbiddenError,
    GoneError,
    InvalidError,
    OverloadedError,
    refusal,
    unreachable,
)
from orchestrator.runtime.control import (
    BadRequestError,
    ControlError,
    NotFoundError,
    NotPossibleError,
    UnauthenticatedError,
    UnreachableError,
)

WHERE = "https://10.0.0.1:6443"


@dataclass
class Answer:
    """A KubeError."""

    status: int
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def of(status: int, message: str = "", *, what: str = "GET /x", **details: Any) -> ControlError:
    return refusal(Answer(status, message, details), what=what, server=WHERE)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidError),
        (401, UnauthenticatedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, NotPossibleError),
        (410, GoneError),
        (422, InvalidError),
        (429, OverloadedError),
        (503, OverloadedError),
        (418, ControlError),
    ],
)
def test_each_answer_is_one_kind_of_error(status: int, kind: type[ControlError]) -> None:
    assert type(of(status, "words")) is kind


def test_who_tries_again_knows_what_is_passing() -> None:
    assert issubclass(OverloadedError, UnreachableError)
    assert issubclass(InvalidError, BadRequestError)


@pytest.mark.parametrize(
    ("user", "verb", "subject", "role"),
    [
        ("system:serviceaccount:team:bot", "list", "--serviceaccount=team:bot", "--clusterrole=view"),
        ("jane@example.org", "create", "--user=jane@example.org", "--clusterrole=edit"),
    ],
)
def test_a_missing_right_comes_with_the_binding_that_gives_it(user: str, verb: str, subject: str, role: str) -> None:
    asked = f'User "{user}" cannot {verb} resource "trainingjobs" in API group "orchestrator.dev"'
    said = f'x is forbidden: {asked} in the namespace "t"'
    told = str(of(403, said))
    assert told.startswith(f"{user} may not {verb} trainingjobs.orchestrator.dev in namespace t; fix:")
    assert told.endswith(f"{role} {subject}")
    assert "kubectl -n t create rolebinding" in told


def test_a_right_on_the_whole_cluster_is_for_its_administrator() -> None:
    said = 'nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope'
    assert str(of(403, said)) == "jane may not list nodes in the whole cluster; fix: ask who administers it for that verb"
    assert "fix:" in str(of(403, "no, by a webhook"))


def test_what_is_missing_is_named_with_the_way_to_it() -> None:
    assert "there is no namespace t; fix: make it as examples/kubernetes/team-namespace does" in str(
        of(404, "x", kind="namespaces", name="t")
    )
    assert "there is no TrainingJob gpt here" in str(of(404, "x", kind="trainingjobs", name="gpt"))
    path = "GET /apis/orchestrator.dev/v1alpha1/namespaces/t/trainingjobs/gpt"
    assert "does not know the kind TrainingJob; fix: kubectl apply" in str(of(404, "404 page not found", what=path))
    assert str(of(404, "leases x not found", kind="leases", name="x")) == "leases x not found"


def test_the_causes_of_a_refused_object_are_kept() -> None:
    causes = [{"field": "spec.train.steps", "message": "Invalid value: 0"}, {"message": "whole"}]
    error = of(422, "is invalid", causes=causes)
    assert isinstance(error, InvalidError)
    assert error.causes == (("spec.train.steps", "Invalid value: 0"), ("", "whole"))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "failed to create typed patch object: .spec.train.steps: field not declared in schema"),
        (
            500,
            "failed to create typed patch object (t/gpt; g/v1, Kind=X): .spec.train.steps: field not declared in schema",
        ),
        (400, "failed: errors:\n  .spec.train.steps: field not declared in schema\n  .spec.x: field not declared in schema"),
    ],
)
def test_a_field_that_an_older_kind_does_not_have_is_a_refusal_and_not_an_outage(status: int, said: str) -> None:
    error = of(status, said)
    assert isinstance(error, InvalidError)
    assert error.causes[0] == ("spec.train.steps", "field not declared in schema")
    assert len(error.causes) == said.count("not declared")


def test_no_answer_names_the_server_and_where_its_address_came_from() -> None:
    error = unreachable(OSError("Connection refused"), server=WHERE, source="context lab of ~/.kube/config")
    assert isinstance(error, UnreachableError)
    assert str(error).startswith(
        f"the API server at {WHERE} (context lab of ~/.kube/config) does not answer: Connection refused;"
    )


def test_a_wrong_certificate_is_nothing_to_wait_for() -> None:
    error = unreachable(OSError("certificate verify failed"), server=WHERE, source="context lab")
    assert not isinstance(error, UnreachableError)
    assert "take a new kubeconfig" in str(error)
