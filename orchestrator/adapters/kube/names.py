"""Names that the operator, the processes inside pods, the command line and the manifests must agree on.

Every object of a job is named after the job and nothing else, so that whoever starts again after a crash finds what was made.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "orchestrator.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TrainingJob"
PLURAL: Final = "trainingjobs"
FINALIZER: Final = f"{GROUP}/cleanup"

OPERATOR: Final = "orchestrator-operator"  # its field manager, deployment, service account and lease
AGENT: Final = "orchestrator-agent"  # field manager and service account
SUBMITTER: Final = f"{AGENT}-submitted"  # field manager of what the agent writes once: the spec that it submits
WORKER_ACCOUNT: Final = "orchestrator-worker"
SYSTEM_NAMESPACE: Final = "orchestrator-system"

LABEL_JOB: Final = f"{GROUP}/job"
LABEL_ROLE: Final = f"{GROUP}/role"
LABEL_ORDINAL: Final = f"{GROUP}/ordinal"
LABEL_INCARNATION: Final = f"{GROUP}/incarnation"
NOTE_FAILURES: Final = f"{GROUP}/failures"  # an annotation
HEAD: Final = "head"
WORKER: Final = "worker"
SPARE: Final = "spare"

HEAD_CONTAINER: Final = "ray-head"
AGENT_CONTAINER: Final = "agent"
WORKER_CONTAINER: Final = "ray-worker"

GCS_PORT: Final = 6379
CONTROL_PORT: Final = 7400
NODE_MANAGER_PORT: Final = 6380

HOME_PATH: Final = "/var/lib/orchestrator"  # the head's volume: journal, GCS tables, logs
TOKEN_PATH: Final = "/var/run/orchestrator/token"  # the job's Secret
CONTROL_TOKEN: Final = "control-token"  # key of the Secret, and file below TOKEN_PATH
RAY_TOKEN: Final = "ray-token"

ENV_JOB: Final = "ORCHESTRATOR_JOB"
ENV_NAMESPACE: Final = "ORCHESTRATOR_NAMESPACE"
ENV_SLOTS: Final = "ORCHESTRATOR_SLOTS"
ENV_DEVICE: Final = "ORCHESTRATOR_DEVICE"
ENV_GRACE_S: Final = "ORCHESTRATOR_GRACE_SECONDS"
ENV_POD: Final = "POD_NAME"
ENV_POD_IP: Final = "POD_IP"
ENV_NODE: Final = "NODE_NAME"


def head_service(job: str) -> str:
    """The Service in front of the head: GCS and control API."""
    return f"{job}-head"


def pods_service(job: str) -> str:
    """The headless Service of all pods of a job."""
    return f"{job}-pods"


def token_secret(job: str) -> str:
    """The Secret with the job's tokens."""
    return f"{job}-token"


def head_claim(job: str) -> str:
    """The PersistentVolumeClaim of the head."""
    return f"{job}-head"


def pod_name(job: str, *, role: str, ordinal: int, incarnation: int) -> str:
    """Name of a pod; the head has one ordinal only, and does not show it."""
    return f"{job}-{role}-{incarnation}" if role == HEAD else f"{job}-{role}-{ordinal}-{incarnation}"
