"""What the taints, conditions and labels that a Kubernetes node may carry mean for a job on it: one table per kind, with its
source.

DRAIN: the node will go, or must not be trusted; its ranks move while they still can. GONE: somebody who knows says that it will
not come back. NOTE: people should know, and nothing is done. What is in no table means nothing to us: `kubectl cordon` alone
drains nothing. Names were read in the projects' own sources and manuals in November 2026.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class Action(StrEnum):
    """What is done about a sign."""

    NOTE = "note"
    DRAIN = "drain"
    GONE = "gone"


TAINTS: Final[dict[str, tuple[Action, str]]] = {
    # Kubernetes itself ("Taints and Tolerations"; "Non-graceful node shutdown": a person or an operator sets out-of-service by
    # hand, and thereby says that the machine is off). The cloud controller sets `shutdown` when the provider says that the
    # machine is off.
    "node.kubernetes.io/out-of-service": (Action.GONE, "its node is out of service"),
    "node.cloudprovider.kubernetes.io/shutdown": (Action.GONE, "the cloud provider says that its machine is shut down"),
    "node.kubernetes.io/memory-pressure": (Action.DRAIN, "its node runs out of memory and begins to evict pods"),
    "node.kubernetes.io/disk-pressure": (Action.NOTE, "its node runs out of disk space"),
    "node.kubernetes.io/pid-pressure": (Action.NOTE, "its node runs out of process ids"),
    # aws-node-termination-handler, pkg/node/node.go
    "aws-node-termination-handler/spot-itn": (Action.DRAIN, "AWS takes the spot instance back in two minutes"),
    "aws-node-termination-handler/scheduled-maintenance": (Action.DRAIN, "AWS has scheduled maintenance of the instance"),
    "aws-node-termination-handler/asg-lifecycle-termination": (Action.DRAIN, "its auto-scaling group ends the instance"),
    "aws-node-termination-handler/rebalance-recommendation": (Action.DRAIN, "AWS expects to take the spot instance back"),
    # GKE: k8s-node-termination-handler (main.go) and the manual of host maintenance on accelerator nodes
    "cloud.google.com/impending-node-termination": (
        Action.DRAIN,
        "Google Cloud ends the machine, for maintenance or as a spot VM",
    ),
    "cloud.google.com/maintenance-window-started": (Action.DRAIN, "the maintenance window of its host has begun"),
    # AKS, "node auto-repair": put on before a spot VM is preempted, redeployed or ended
    "remediator.aks.microsoft.com/unschedulable": (Action.DRAIN, "Azure drains the VM: preempted, redeployed or ended"),
    # Karpenter: v1 and v1beta1
    "karpenter.sh/disrupted": (Action.DRAIN, "Karpenter replaces or removes the node"),
    "karpenter.sh/disruption": (Action.DRAIN, "Karpenter replaces or removes the node"),
    # cluster-autoscaler, utils/taints: the first before it deletes, the second when it considers to
    "ToBeDeletedByClusterAutoscaler": (Action.DRAIN, "the cluster autoscaler deletes the node"),
    "DeletionCandidateOfClusterAutoscaler": (Action.NOTE, "the cluster autoscaler considers deleting the node"),
    # NVSentinel, fault-quarantine: its default rule set taints with this key
    "AggregatedNodeHealth": (Action.DRAIN, "NVSentinel has quarantined the node"),
}

# type -> (status that is bad, action, words); `Ready` has its own rule
CONDITIONS: Final[dict[str, tuple[str, Action, str]]] = {
    "MemoryPressure": ("True", Action.DRAIN, "its node runs out of memory and begins to evict pods"),
    "DiskPressure": ("True", Action.NOTE, "its node runs out of disk space"),
    "PIDPressure": ("True", Action.NOTE, "its node runs out of process ids"),
    "NetworkUnavailable": ("True", Action.NOTE, "the network of its node is not set up"),
    # node-problem-detector, config/*.json
    "KernelDeadlock": ("True", Action.DRAIN, "node-problem-detector found a kernel deadlock"),
    "ReadonlyFilesystem": ("True", Action.DRAIN, "node-problem-detector found a file system that became read-only"),
    "XfsShutdown": ("True", Action.DRAIN, "node-problem-detector found an XFS file system that shut down"),
    "FrequentKubeletRestart": ("True", Action.NOTE, "its kubelet restarts again and again"),
    "FrequentContainerdRestart": ("True", Action.NOTE, "its container runtime restarts again and again"),
    "FrequentUnregisterNetDevice": ("True", Action.NOTE, "network devices of its node are not released"),
    # AKS, "Node Problem Detector in AKS nodes"
    "FilesystemCorruptionProblem": ("True", Action.DRAIN, "a file system of its node is corrupt"),
    "KubeletProblem": ("True", Action.NOTE, "its kubelet is down"),
    "ContainerRuntimeProblem": ("True", Action.NOTE, "its container runtime is down"),
    "VMEventScheduled": ("True", Action.DRAIN, "Azure has scheduled an event for the VM"),
    "GPUMissing": ("True", Action.DRAIN, "a GPU of its node is missing"),
    "NVLinkStatusInactive": ("True", Action.DRAIN, "an NVLink of its node is inactive"),
    "XIDErrors": ("True", Action.DRAIN, "the kernel log of its node has Xid errors"),
    "IBLinkFlapping": ("True", Action.DRAIN, "an InfiniBand link of its node comes and goes"),
    "UnhealthyNvidiaDevicePlugin": ("True", Action.NOTE, "the NVIDIA device plugin of its node is unhealthy"),
    # eks-node-monitoring-agent
    "AcceleratedHardwareReady": ("False", Action.DRAIN, "the accelerators of its node are faulty, says EKS"),
    "KernelReady": ("False", Action.DRAIN, "the kernel of its node is in trouble, says EKS"),
    "NetworkingReady": ("False", Action.NOTE, "the network of its node is in trouble, says EKS"),
    "StorageReady": ("False", Action.NOTE, "the storage of its node is in trouble, says EKS"),
    "ContainerRuntimeReady": ("False", Action.NOTE, "the container runtime of its node is in trouble, says EKS"),
    # NVSentinel, syslog-health-monitor
    "SysLogsXIDError": ("True", Action.DRAIN, "NVSentinel found fatal Xid errors"),
    "SysLogsSXIDError": ("True", Action.DRAIN, "NVSentinel found fatal NVSwitch errors"),
    "SysLogsGPUFallenOff": ("True", Action.DRAIN, "NVSentinel found a GPU that has fallen off the bus"),
}
# NVSentinel, gpu-health-monitor: GpuMemWatch, GpuPcieWatch, GpuNvlinkWatch, GpuInforomWatch, ...; only what is fatal is a
# condition
GPU_WATCH: Final = re.compile(r"Gpu[A-Z][A-Za-z]*Watch")

# GKE, host maintenance on accelerator nodes
LABELS: Final[dict[tuple[str, str], tuple[Action, str]]] = {
    ("cloud.google.com/active-node-maintenance", "ONGOING"): (Action.DRAIN, "maintenance of its host is under way"),
}


def taint_sign(key: str) -> tuple[Action, str] | None:
    """What a taint means, by its key; the effect only says what the scheduler does."""
    return TAINTS.get(key)


def condition_sign(kind: str, status: str) -> tuple[Action, str] | None:
    """What a condition means in this status; None when it is well, unknown, or not known to us."""
    if kind in CONDITIONS:
        bad, action, words = CONDITIONS[kind]
        return (action, words) if status == bad else None
    if GPU_WATCH.fullmatch(kind) and status == "True":
        return Action.DRAIN, "NVSentinel found a fatal GPU fault"
    return None
