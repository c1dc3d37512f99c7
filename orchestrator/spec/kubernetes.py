"""The `kubernetes` section of a job file: what the pods of a job ask for, and what becomes of them.

Only the operator and the processes inside pods read it; wherever else the job runs it is checked and then ignored. Keys are
written as Kubernetes writes its own. What is left out is left to the cluster unless a default is named.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from orchestrator.spec import kube_values as values
from orchestrator.spec.errors import quoted
from orchestrator.spec.section import Section
from orchestrator.spec.values import duration_ms, refused

ITEMS_MAX = 100  # of a list in this section


class Backend(StrEnum):
    """Who makes the pods."""

    AUTO = "auto"
    PODS = "pods"
    KUBERAY = "kuberay"


class PullPolicy(StrEnum):
    """When a node fetches the image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class TolerationOperator(StrEnum):
    """How a toleration is compared with a taint."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class TolerationSpec(Section):
    """A taint of nodes that the pods put up with, as in a pod."""

    key: values.LabelKey | None = Field(
        default=None, description="Key of the taint. Absent: every taint; operator is Exists then."
    )
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Exists: any value of the taint. Equal: the value given here."
    )
    value: values.LabelValue | None = Field(default=None, description="Value of the taint, for Equal.")
    effect: TaintEffect | None = Field(default=None, description="Absent: every effect.")
    toleration_seconds: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None,
        alias="tolerationSeconds",
        description="Seconds that a pod stays on a node with a NoExecute taint. Absent: for ever.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.operator is TolerationOperator.EXISTS and self.value is not None:
            raise refused("operator Exists compares no value", fix="remove value, or write operator: Equal")
        if self.operator is TolerationOperator.EQUAL and self.key is None:
            raise refused(
                "a toleration without a key tolerates every taint", fix="write key, or operator: Exists if that is meant"
            )
        if self.toleration_seconds is not None and self.effect is not TaintEffect.NO_EXECUTE:
            raise refused("tolerationSeconds is about NoExecute taints only", fix="write effect: NoExecute, or remove it")
        return self

    def manifest(self) -> dict[str, str | int]:
        """The toleration as a pod holds it."""
        made: dict[str, str | int] = {"operator": self.operator.value}
        if self.key is not None:
            made["key"] = self.key
        if self.operator is TolerationOperator.EQUAL:
            made["value"] = self.value or ""
        if self.effect is not None:
            made["effect"] = self.effect.value
        if self.toleration_seconds is not None:
            made["tolerationSeconds"] = self.toleration_seconds
        return made


Tolerations = Annotated[tuple[TolerationSpec, ...], Field(max_length=ITEMS_MAX)]


class WorkerPodSpec(Section):
    """The pods that train, and those of spares."""

    cpu: values.Cpu | None = Field(default=None, description="CPUs of a pod, for all of its slots together: 4 or 500m.")
    memory: values.Memory | None = Field(default=None, description="Memory of a pod: 16Gi.")
    resources: values.Resources = Field(default_factory=dict, description="Further resources of a pod: nvidia.com/gpu: 8.")
    node_selector: values.Selector = Field(
        default_factory=dict, alias="nodeSelector", description="Labels that a node must have."
    )
    tolerations: Tolerations = Field(default=(), description="Taints of nodes that the pods put up with.")
    priority_class: values.PriorityClassName | None = Field(
        default=None, alias="priorityClass", description="Name of a PriorityClass."
    )


class SparePodSpec(Section):
    """What differs in the pods of spares."""

    priority_class: values.PriorityClassName | None = Field(
        default=None, alias="priorityClass", description="Name of a PriorityClass. Absent: as the workers'."
    )


class HeadPodSpec(Section):
    """The pod of the Ray head and the supervisor, and its volume."""

    cpu: values.Cpu | None = Field(default=None, description="CPUs of the pod.")
    memory: values.Memory | None = Field(default=None, description="Memory of the pod.")
    node_selector: values.Selector = Field(
        default_factory=dict, alias="nodeSelector", description="Labels that the node must have."
    )
    tolerations: Tolerations = Field(default=(), description="Taints of nodes that the pod puts up with.")
    priority_class: values.PriorityClassName | None = Field(
        default=None, alias="priorityClass", description="Name of a PriorityClass."
    )
    storage: values.Memory = Field(default="1Gi", description="Size of the volume: journal, Ray's tables, logs.")
    storage_class: values.StorageClassName | None = Field(
        default=None, alias="storageClass", description="Name of a StorageClass. Absent: the cluster's default."
    )


class VolumeSpec(Section):
    """A claim that every pod of the job mounts."""

    claim: values.ClaimName = Field(description="Name of a PersistentVolumeClaim in the job's namespace.")
    path: values.MountPath = Field(description="Where the pods see it.")
    read_only: bool = Field(default=False, alias="readOnly", description="true: the pods cannot write to it.")


class KubernetesSpec(Section):
    """How the job runs on Kubernetes. Elsewhere it is checked and ignored."""

    image: values.Image = Field(
        default="", description="Image of all pods, with the orchestrator in it. Required on Kubernetes; pin it by digest."
    )
    image_pull_policy: PullPolicy | None = Field(
        default=None,
        alias="imagePullPolicy",
        description="When a node fetches the image. Absent: as Kubernetes decides by its tag.",
    )
    image_pull_secrets: tuple[values.SecretName, ...] = Field(
        default=(), max_length=ITEMS_MAX, alias="imagePullSecrets", description="Names of Secrets for the image's registry."
    )
    backend: Backend = Field(
        default=Backend.AUTO,
        description="pods: the operator makes the pods. kuberay: a RayCluster does. auto: kuberay where it is installed.",
    )
    worker: WorkerPodSpec = Field(default_factory=WorkerPodSpec, description="The pods that train, and those of spares.")
    spare: SparePodSpec = Field(default_factory=SparePodSpec, description="What differs in the pods of spares.")
    head: HeadPodSpec = Field(
        default_factory=HeadPodSpec, description="The pod of the Ray head and the supervisor, and its volume."
    )
    topology_key: values.LabelKey = Field(
        default="kubernetes.io/hostname",
        alias="topologyKey",
        description="Node label over whose values the workers and spares are spread as evenly as there is room.",
    )
    volumes: tuple[VolumeSpec, ...] = Field(default=(), max_length=ITEMS_MAX, description="Claims that every pod mounts.")
    env: values.Env = Field(
        default_factory=dict, description="Environment of every pod. Anybody who may read the job sees it: keep secrets out."
    )
    queue: values.QueueName | None = Field(default=None, description="Local queue of Kueue. Absent: not queued.")
    scheduler: values.SchedulerName | None = Field(
        default=None, description="Name of a scheduler, such as volcano. Absent: the cluster's default."
    )
    active_deadline: values.Deadline | None = Field(
        default=None,
        alias="activeDeadline",
        description="The job fails when it is not done this long after its start. Absent: never.",
    )
    ttl_after_finished: values.Retention | None = Field(
        default=None, alias="ttlAfterFinished", description="The TrainingJob is deleted this long after its end. Absent: never."
    )
    gang_timeout: values.GangTimeout = Field(
        default="10m",
        alias="gangTimeout",
        description="Pods that are not all scheduled within this are given back, and asked for again later.",
    )

    @model_validator(mode="after")
    def _mounts_differ(self) -> Self:
        paths = [volume.path for volume in self.volumes]
        for n, path in enumerate(paths):
            if path in paths[:n]:
                raise refused(f"two volumes have the path {quoted(path)}", fix="give each volume a path of its own")
        return self

    @property
    def active_deadline_s(self) -> int | None:
        """Seconds from the start of the job to its deadline; None: it has none."""
        return None if self.active_deadline is None else duration_ms(self.active_deadline) // 1000

    @property
    def ttl_after_finished_s(self) -> int | None:
        """Seconds from the end of the job to its deletion; None: it stays."""
        return None if self.ttl_after_finished is None else duration_ms(self.ttl_after_finished) // 1000

    @property
    def gang_timeout_s(self) -> int:
        """Seconds within which all pods must be scheduled."""
        return duration_ms(self.gang_timeout) // 1000
