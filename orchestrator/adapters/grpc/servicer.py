"""ControlService: the control API's calls, handed to a ControlHandler and answered in protos.

All judgement is the handler's. Here requests become core values (what makes no sense is INVALID_ARGUMENT with the whole
message), errors become status codes, and a bug becomes INTERNAL with its traceback in the log instead of in the answer.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc

from orchestrator.adapters.grpc import convert
from orchestrator.adapters.grpc.mirror import ConvertError
from orchestrator.adapters.grpc.options import DETAILS_MAX
from orchestrator.adapters.grpc.pb.v1 import control_pb2 as pb
from orchestrator.adapters.grpc.pb.v1 import control_pb2_grpc, types_pb2
from orchestrator.runtime.control import BadRequestError, ControlHandler, NotFoundError, NotPossibleError

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Serves one ControlHandler."""

    def __init__(self, handler: ControlHandler) -> None:
        self._handler = handler

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Context) -> pb.SubmitJobResponse:
        async with _errors_mapped(context):
            job = convert.job_from_json(request.job_json)
            return pb.SubmitJobResponse(name=await self._handler.submit(job=job, yaml_text=request.yaml_text))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.JobStatus:
        async with _errors_mapped(context):
            return convert.status_to_proto(await self._handler.get(request.name))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        async with _errors_mapped(context):
            jobs = await self._handler.list_jobs()
            return pb.ListJobsResponse(jobs=[convert.status_to_proto(s) for s in jobs])

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[pb.Record]:
        async with _errors_mapped(context):
            if request.after_seq < 0:
                raise ConvertError(f"after_seq is {request.after_seq}, less than 0")
            records = self._handler.watch_events(request.name, after_seq=request.after_seq, follow=request.follow)
            async with aclosing(records):
                async for record in records:
                    yield convert.record_to_proto(record)

    async def WatchStatus(self, request: pb.WatchStatusRequest, context: Context) -> AsyncIterator[pb.JobStatus]:
        async with _errors_mapped(context), aclosing(self._handler.watch_status(request.name)) as statuses:
            async for status in statuses:
                yield convert.status_to_proto(status)

    async def TailLogs(self, request: pb.TailLogsRequest, context: Context) -> AsyncIterator[pb.LogLine]:
        async with _errors_mapped(context):
            rank = request.rank if request.HasField("rank") else None
            if rank is not None and rank < 0:
                raise ConvertError(f"rank is {rank}, less than 0")
            async with aclosing(self._handler.tail_logs(request.name, rank=rank, follow=request.follow)) as lines:
                async for line in lines:
                    yield convert.log_line_to_proto(line)

    async def ExplainEvent(self, request: pb.ExplainEventRequest, context: Context) -> pb.Explanation:
        async with _errors_mapped(context):
            return convert.explanation_to_proto(await self._handler.explain(request.name, seq=request.seq))

    async def InjectFault(self, request: pb.InjectFaultRequest, context: Context) -> pb.InjectFaultResponse:
        async with _errors_mapped(context):
            fault = convert.fault_from_proto(request.fault)
            await self._handler.inject(request.name, fault=fault, who=request.who)
            return pb.InjectFaultResponse()

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        async with _errors_mapped(context):
            await self._handler.cancel(request.name, who=request.who)
            return pb.CancelJobResponse()

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            if not request.node_id:
                raise ConvertError("node_id is empty")
            drain = self._handler.drain(request.name, node_id=request.node_id, who=request.who, why=request.why)
            return convert.decided_to_proto(await drain)

    async def DeclareNodeGone(self, request: pb.DeclareNodeGoneRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            if not request.node_id:
                raise ConvertError("node_id is empty")
            gone = self._handler.node_gone(request.name, node_id=request.node_id, who=request.who, evidence=request.evidence)
            return convert.decided_to_proto(await gone)

    async def SuspendJob(self, request: pb.SuspendJobRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            return convert.decided_to_proto(await self._handler.suspend(request.name, who=request.who, why=request.why))

    async def ContinueJob(self, request: pb.ContinueJobRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            return convert.decided_to_proto(await self._handler.go_on(request.name, who=request.who))

    async def ScaleJob(self, request: pb.ScaleJobRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            layers = tuple(request.layers_per_stage)
            scale = self._handler.scale(request.name, nodes=request.nodes, layers_per_stage=layers, who=request.who)
            return convert.decided_to_proto(await scale)

    async def ReplaceWorker(self, request: pb.ReplaceWorkerRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            rank = request.rank if request.HasField("rank") else None
            replace = self._handler.replace_worker(request.name, worker_id=request.worker_id, rank=rank, who=request.who)
            return convert.decided_to_proto(await replace)

    async def TakeCheckpoint(self, request: pb.TakeCheckpointRequest, context: Context) -> pb.Decided:
        async with _errors_mapped(context):
            return convert.decided_to_proto(await self._handler.take_checkpoint(request.name, who=request.who))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        async with _errors_mapped(context):
            found = await self._handler.list_checkpoints(request.name, uri=request.uri)
            return pb.ListCheckpointsResponse(checkpoints=[convert.checkpoint_to_proto(c) for c in found])

    async def VerifyCheckpoint(self, request: pb.VerifyCheckpointRequest, context: Context) -> pb.CheckpointVerdict:
        async with _errors_mapped(context):
            verify = self._handler.verify_checkpoint(request.name, uri=request.uri, step=_step(request))
            return convert.verdict_to_proto(await verify)

    async def ExportCheckpoint(self, request: pb.ExportCheckpointRequest, context: Context) -> pb.ExportedModel:
        async with _errors_mapped(context):
            dtype = convert.export_type_of(request.dtype)
            export = self._handler.export_checkpoint(
                request.name, uri=request.uri, step=_step(request), path=request.path, dtype=dtype
            )
            return convert.exported_to_proto(await export)

    async def GetCluster(self, request: pb.GetClusterRequest, context: Context) -> types_pb2.ClusterView:
        async with _errors_mapped(context):
            return convert.cluster_to_proto(await self._handler.cluster())

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownResponse:
        async with _errors_mapped(context):
            await self._handler.shutdown(who=request.who)
            return pb.ShutdownResponse()


def _step(request: pb.VerifyCheckpointRequest | pb.ExportCheckpointRequest) -> int | None:
    if not request.HasField("step"):
        return None
    if request.step < 0:
        raise ConvertError(f"step is {request.step}, less than 0")
    return request.step


@asynccontextmanager
async def _errors_mapped(context: Context) -> AsyncIterator[None]:
    try:
        yield
    except NotFoundError as e:
        await _abort(context, grpc.StatusCode.NOT_FOUND, str(e))
    except (ConvertError, BadRequestError) as e:
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(e))
    except NotPossibleError as e:
        await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(e))
    except grpc.aio.AbortError:
        raise
    except Exception as e:
        log.exception("a control call failed")
        await _abort(context, grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e} (the supervisor's log has the traceback)")


async def _abort(context: Context, code: grpc.StatusCode, details: str) -> None:
    await context.abort(code, details[:DETAILS_MAX])
