"""The way of a person to an API server: which one, as whom, in which namespace; calls and streams whose errors say what to do.

A kubeconfig is taken where there is one, else the service account of the pod that this runs in. KubeApi does the calls; here each
of its refusals becomes an error in words (refusals.py), and long answers are read line by line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.adapters.kube.refusals import QuietError, refusal, unreachable
from orchestrator.adapters.kube.resources import JSON
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive
from orchestrator.runtime.control import BadRequestError, ControlError

if TYPE_CHECKING:
    from orchestrator.adapters.kube.api import KubeApi

ANSWER_S = derive(DETECT_WITHIN_MS).measure_ms / 1000
CONNECT_S = derive(DETECT_WITHIN_MS).lost_ms / 1000
CONNECTIONS_KEPT_MAX = 128  # idle ones, for the next request: an agent has a stream for each node of its job

INSTALL = "pip install 'orchestrator[kubernetes]'"

_KUBECONFIG = "~/.kube/config"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person said about the way; empty where nothing was said."""

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""


class Access:
    """An API server as one user, and the namespace that is meant where none is named. Threads may share it."""

    def __init__(self, api: KubeApi, *, namespace: str, source: str) -> None:
        self.api = api
        self.namespace = namespace
        self.source = source  # where the configuration came from, for people
        self.server = api.server

    def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
        """The JSON at a path. Raises ControlError."""
        return self.call("GET", path, query=query)

    def call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> Any:
        """One request and the JSON of its answer. Raises ControlError (see refusals.py)."""
        from orchestrator.adapters.kube.api import KubeError

        with self._credentials():
            try:
                return self.api.request(method, path, query=query, body=body, content_type=content_type)
            except KubeError as error:
                if not error.status:
                    raise unreachable(error.__cause__ or error, server=self.server, source=self.source) from None
                raise refusal(error, what=f"{method} {path}", server=self.server) from None

    @contextmanager
    def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Iterator[Iterator[bytes]]:
        """A stream, line by line without their ends. Ends in QuietError after `quiet_s` seconds without a byte."""
        from kubernetes.client.exceptions import ApiException
        from urllib3 import exceptions

        from orchestrator.adapters.kube.api import failure

        broken = (exceptions.HTTPError, OSError, ApiException)
        client = self.api.client
        with self._credentials():
            try:
                request = client.param_serialize("GET", path, query_params=list(query.items()), auth_settings=["BearerToken"])
                answer = client.call_api(*request, _request_timeout=(CONNECT_S, quiet_s)).response
            except broken as error:
                raise unreachable(error, server=self.server, source=self.source) from None
        try:
            if answer.status != 200:
                raise refusal(failure(answer.status, answer.data), what=f"GET {path}", server=self.server)

            def split() -> Iterator[bytes]:
                rest = b""
                try:
                    for chunk in answer.stream(amt=None, decode_content=True):
                        *whole, rest = (rest + chunk).split(b"\n")
                        yield from whole
                except exceptions.ReadTimeoutError:
                    raise QuietError(f"{path} brought nothing for {quiet_s:.0f} s") from None
                except broken as error:
                    raise unreachable(error, server=self.server, source=self.source) from None
                if rest:
                    yield rest

            yield split()
        finally:
            answer.close()

    @contextmanager
    def _credentials(self) -> Iterator[None]:
        """Credentials that cannot be made (an expired login, a plugin that is not there) in words."""
        from kubernetes.config import ConfigException

        try:
            yield
        except ConfigException as error:
            raise ControlError(f"the credentials of {self.source} cannot be used: {_line(error)}; fix: log in again") from None


def connect(options: Options, *, timeout_s: float = ANSWER_S) -> Access:
    """The way that the options, $KUBECONFIG, ~/.kube/config or the pod's service account name. Raises ControlError."""
    try:
        from kubernetes import client, config
    except ModuleNotFoundError:
        raise ControlError(f"the Python package `kubernetes` is not installed; fix: {INSTALL}") from None
    from orchestrator.adapters.kube.api import KubeApi

    settings = client.Configuration()
    settings.retries = False  # whoever follows a job counts the tries
    settings.connection_pool_maxsize = CONNECTIONS_KEPT_MAX
    files = _files(options)
    if _present(files):
        namespace, source = _from_file(config, settings, files, options)
    elif options.kubeconfig or options.context or os.environ.get("KUBECONFIG"):
        raise BadRequestError(f"there is no kubeconfig at {files}; fix: name one with --kubeconfig or $KUBECONFIG")
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        namespace, source = _from_pod(config, settings)
    else:
        raise BadRequestError(
            f"there is no kubeconfig at {_KUBECONFIG} and this is no pod; fix: name one with --kubeconfig or $KUBECONFIG"
        )
    api = KubeApi(client.ApiClient(settings), timeout_s=timeout_s)
    return Access(api, namespace=options.namespace or namespace or "default", source=source)


def contexts_of(options: Options) -> list[str]:
    """The names of the contexts that the kubeconfig holds; raises whatever is wrong with it."""
    from kubernetes import config

    contexts, _ = config.list_kube_config_contexts(config_file=_files(options))
    return [str(c["name"]) for c in contexts]


def _files(options: Options) -> str:
    return options.kubeconfig or os.environ.get("KUBECONFIG", "") or _KUBECONFIG


def _present(files: str) -> bool:
    return any(Path(f).expanduser().is_file() for f in files.split(os.pathsep) if f)


def _from_file(config: Any, settings: Any, files: str, options: Options) -> tuple[str, str]:
    """The namespace of the context, and where it all came from."""
    import yaml

    try:
        contexts, active = config.list_kube_config_contexts(config_file=files)
        names = [str(c["name"]) for c in contexts]
        if options.context and options.context not in names:
            raise BadRequestError(f"there is no context {options.context} in {files}; fix: name one of {', '.join(names)}")
        chosen = next((c for c in contexts if c["name"] == options.context), active)
        with _complaints() as complaints:
            config.load_kube_config(
                config_file=files, context=options.context or None, client_configuration=settings, persist_config=False
            )
    except (config.ConfigException, yaml.YAMLError, KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        raise BadRequestError(
            f"the kubeconfig {files} cannot be used: {_line(error)}; fix: look at `kubectl config view`"
        ) from None
    source = f"context {chosen['name']} of {files}"
    if complaints:
        raise ControlError(
            f"the credentials of {source} cannot be made: {complaints[0]}; fix: install what makes them, or log in"
        )
    return str(chosen["context"].get("namespace") or ""), source


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the client only logs, on the root logger, before it goes on without credentials: a login or a plugin that failed."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)


def _from_pod(config: Any, settings: Any) -> tuple[str, str]:
    """The namespace of this pod, and where it all came from."""
    try:
        config.load_incluster_config(client_configuration=settings)
        namespace = _NAMESPACE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise BadRequestError(
            f"this pod has no service account to ask with: {_line(error)}; fix: mount its token, or name a kubeconfig"
        ) from None
    return namespace, "the pod's service account"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
