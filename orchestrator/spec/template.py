"""The job.yaml that `orchestrator init` writes: it runs as it is, and shows every key with its default and its
meaning.

What most people change first is written out; the rest stands as comments that hold the defaults, so that removing a
`#` changes nothing. A test holds the comments to the models.
"""

from __future__ import annotations

from pydantic_core import PydanticCustomError

from orchestrator.spec.errors import Problem, SpecError
from orchestrator.spec.values import checked_name

TEMPLATE = """\
# A job of the orchestrator. Check it with "orchestrator validate job.yaml", start it with "orchestrator run job.yaml".
# Lines that begin with "# " and hold a key show its default; remove the "# " to change it.

name: @NAME@    # a-z, 0-9 and inner hyphens, at most 63 characters

# What to train: the ready task gpt, your own path/to/file.py:Class, or package.module:Class.
task:
  target: gpt
  options: {layers: 4, width: 128, heads: 4, context: 128, batch_size: 4, dropout: 0.0}

train:
  steps: 200             # optimizer steps of the whole run
  micro_batches: 8       # in a step, over all ranks together; never fewer than parallel.data
  # seed: 1              # everything random is drawn from it
  # consistency: exact   # exact: equal bits whatever fails; fast: the communication library orders the sums
  # precision: fp32      # fp32 or bf16; weights and moments stay fp32
  # digest_every: 10     # steps between digests of the state; 0: only at the end
  # eval_every: 50       # steps between held-out evaluations; 0: only at the end
  # eval_micro_batches: 4
  optimizer:             # AdamW, linear warm-up, cosine decay
    lr: 3.0e-4
    # betas: [0.9, 0.95]
    # eps: 1.0e-8
    # weight_decay: 0.1
    # warmup_steps: 20   # absent: a tenth of the steps, at most 100
    # min_lr_ratio: 0.1  # the cosine ends at lr times this
    # clip_grad_norm: 1.0  # 0 does not clip

cluster:
  nodes: 4               # nodes that train
  spares: 1              # warm workers that wait to replace a lost one
  # slots_per_node: 1    # workers on one node
  # device: cpu          # cpu or cuda

parallel:                # or just auto: the planner measures the workers and chooses; keys given beside plan: auto stay fixed
  # plan: given          # given: as the keys below say; auto
  zero: 1                # sharded over the data ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too
  # data: 4              # ranks that take turns on the micro-batches; absent: what pipeline and tensor leave of the slots
  # shard: 4             # ranks that a sharded state is spread over, a divisor of data; absent: all of them
  # copies: 1            # second holders, on other nodes, of state that no replica has; absent: 1 where it helps and fits
  # pipeline: 1          # ranks that the layers are cut over
  # stages_per_rank: 1   # more than 1: interleaved
  # layers_per_stage: []  # such as [3, 5]; absent: balanced by parameters
  # schedule: 1f1b       # 1f1b, interleaved or zero-bubble
  # tensor: 1            # ranks that each layer's matrices are cut over
  # recompute: false     # true: activations are computed again instead of kept; or a list, by stage
  # shares: []           # such as [3, 5]: micro-batches of each data rank; absent: even

checkpoint:              # durable checkpoints; without this section there are none
  uri: ./checkpoints     # a folder beside this file, or a URL such as s3://bucket/run
  # every: 50            # steps; 0: only at the end; auto: what is best for goodput (with parallel.plan auto)
  # keep: 3

# resilience:
  # detect_within: 4s    # a hang is detected within this; every other time-out is derived from it
  # failures: 5          # tolerated without progress between them
  # refill_after_steps: 50  # committed steps that give one of them back
  # slow_factor: 2.0     # a rank this many times slower than its peers' median, for long, is slow
  # min_ranks: 1         # the job waits rather than trains with fewer
  # grow_after_steps: 10  # steps after a change of size before the job grows back
  # on_bad_step: fail    # a loss that is not finite, or a spike: fail, skip (its update) or rollback (to a checkpoint)
  # loss_spike_factor: 0  # a loss this many times the usual one is a bad step; 0: none is
  # policy:              # what to do about each class of failure: the first action that is possible
    # default: [swap, shrink, wait]       # for the classes below but worker-slow, where they say no more
    # worker-exited: [swap, shrink, wait]
    # node-lost: [swap, shrink, wait]
    # worker-hung: [swap, shrink, wait]
    # worker-slow: [report]               # or swap, shrink, recut (the pipeline), fail
    # corrupt-state: [swap, shrink, fail]  # or rollback (to a checkpoint)

# kubernetes:            # read on Kubernetes only; without a default: an example
  # image: registry.example/team/train@sha256:0123  # of all pods; with the orchestrator and your code in it, under /workspace
  # imagePullPolicy: IfNotPresent  # absent: as Kubernetes decides by the tag
  # imagePullSecrets: [registry]
  # backend: auto        # pods: made by the operator; kuberay: by a RayCluster; auto: kuberay where it is installed
  # worker:              # the pods that train, and those of spares; one pod is one node of the cluster section
    # cpu: 8
    # memory: 64Gi
    # resources: {nvidia.com/gpu: 1}
    # nodeSelector: {pool: train}
    # tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
    # priorityClass: training
  # spare:
    # priorityClass: spares  # absent: as the workers'
  # head:                # Ray's head and the supervisor; takes the keys of worker but resources, and
    # storage: 1Gi       # size of its volume
    # storageClass: standard  # absent: the cluster's default
  # topologyKey: kubernetes.io/hostname  # workers and spares are spread evenly over the values of this node label
  # volumes: [{claim: checkpoints, path: /workspace/checkpoints}]  # in all pods; checkpoint.uri, if a folder, must be on one
  # env: {NCCL_DEBUG: WARN}  # everybody who may read the job sees it
  # queue: training      # local queue of Kueue
  # scheduler: volcano   # absent: the cluster's own
  # activeDeadline: 72h  # the job fails when it takes longer
  # ttlAfterFinished: 24h  # the TrainingJob is deleted so long after its end
  # gangTimeout: 10m     # pods that are not all scheduled within this are given back, and asked for again later
"""


def render(name: str) -> str:
    """The text of a new job file for a job of this name. Raises SpecError where the name is no DNS label."""
    try:
        return TEMPLATE.replace("@NAME@", checked_name(name))
    except PydanticCustomError as error:
        context = error.context or {}
        problem = Problem(file="", line=0, column=0, path="name", message=context["message"], fix=context["fix"])
        raise SpecError([problem]) from None
