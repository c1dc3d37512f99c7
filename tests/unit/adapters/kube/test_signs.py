"""What the signs of a node mean, written out once more: whoever changes a row of signs.py says so here too.

The names are those that Kubernetes, cloud providers, node-problem-detector and NVSentinel use, spelled as they spell them.
"""

from __future__ import annotations

import pytest

from orchestrator.adapters.kube.signs import CONDITIONS, LABELS, TAINTS, condition_sign, taint_sign

TAINTED = {
    "node.kubernetes.io/out-of-service": "gone",
    "node.cloudprovider.kubernetes.io/shutdown": "gone",
    "node.kubernetes.io/memory-pressure": "drain",
    "node.kubernetes.io/disk-pressure": "note",
    "node.kubernetes.io/pid-pressure": "note",
    "aws-node-termination-handler/spot-itn": "drain",
    "aws-node-termination-handler/scheduled-maintenance": "drain",
    "aws-node-termination-handler/asg-lifecycle-termination": "drain",
    "aws-node-termination-handler/rebalance-recommendation": "drain",
    "cloud.google.com/impending-node-termination": "drain",
    "cloud.google.com/maintenance-window-started": "drain",
    "remediator.aks.microsoft.com/unschedulable": "drain",
    "karpenter.sh/disrupted": "drain",
    "karpenter.sh/disruption": "drain",
    "ToBeDeletedByClusterAutoscaler": "drain",
    "DeletionCandidateOfClusterAutoscaler": "note",
    "AggregatedNodeHealth": "drain",
}
BAD_WHEN_TRUE = {
    "MemoryPressure": "drain",
    "DiskPressure": "note",
    "PIDPressure": "note",
    "NetworkUnavailable": "note",
    "KernelDeadlock": "drain",
    "ReadonlyFilesystem": "drain",
    "XfsShutdown": "drain",
    "FrequentKubeletRestart": "note",
    "FrequentContainerdRestart": "note",
    "FrequentUnregisterNetDevice": "note",
    "FilesystemCorruptionProblem": "drain",
    "KubeletProblem": "note",
    "ContainerRuntimeProblem": "note",
    "VMEventScheduled": "drain",
    "GPUMissing": "drain",
    "NVLinkStatusInactive": "drain",
    "XIDErrors": "drain",
    "IBLinkFlapping": "drain",
    "UnhealthyNvidiaDevicePlugin": "note",
    "SysLogsXIDError": "drain",
    "SysLogsSXIDError": "drain",
    "SysLogsGPUFallenOff": "drain",
}
BAD_WHEN_FALSE = {
    "AcceleratedHardwareReady": "drain",
    "KernelReady": "drain",
    "NetworkingReady": "note",
    "StorageReady": "note",
    "ContainerRuntimeReady": "note",
}


def test_each_taint_means_what_is_written_here() -> None:
    assert {key: sign[0].value for key in TAINTED if (sign := taint_sign(key))} == TAINTED
    assert set(TAINTS) == set(TAINTED)


@pytest.mark.parametrize(("bad", "good", "table"), [("True", "False", BAD_WHEN_TRUE), ("False", "True", BAD_WHEN_FALSE)])
def test_each_condition_means_what_is_written_here(bad: str, good: str, table: dict[str, str]) -> None:
    assert {kind: sign[0].value for kind in table if (sign := condition_sign(kind, bad))} == table
    assert not any(condition_sign(kind, status) for kind in table for status in (good, "Unknown"))


def test_no_condition_is_missing_here() -> None:
    assert set(CONDITIONS) == set(BAD_WHEN_TRUE) | set(BAD_WHEN_FALSE)


def test_the_maintenance_label_of_gke() -> None:
    assert {sign: action.value for sign, (action, _) in LABELS.items()} == {
        ("cloud.google.com/active-node-maintenance", "ONGOING"): "drain"
    }
