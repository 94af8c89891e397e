"""The doors of a fleet: `Packtrain` for programs, its twin `AsyncPacktrain`, and the command line.

>>> from packtrain.client import Packtrain
>>> fleet = Packtrain()  # doctest: +SKIP
>>> fleet.generate("smollm2", "Name three colours.").text  # doctest: +SKIP
"""

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chat import CallDelta, Message, Tool, ToolCall
from packtrain.broker.errors import (
    AdapterUnavailable,
    AnswerBegunAnew,
    BlobsFull,
    BrokerUnavailable,
    FleetLoop,
    IdempotencyConflict,
    InvalidParameter,
    InvalidRequest,
    JobCancelled,
    JobDead,
    JobError,
    JobExpired,
    JobFailed,
    MediaGone,
    MediaUnreadable,
    MediaUnsupported,
    ModelError,
    ModelFetchFailed,
    ModelFileInvalid,
    ModelGone,
    ModelLoadFailed,
    ModelTooLarge,
    NotDeterministic,
    PacktrainError,
    PromptEmpty,
    PromptTooLong,
    QueueFull,
    RemoteFailed,
    ResultTimeout,
    SetupError,
    TryLater,
    UnknownJob,
    UnknownModel,
    UnknownNode,
)
from packtrain.broker.explain import Explanation
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeWish
from packtrain.broker.outcome import Cause, JobStatus, Receipt, Timings, Usage
from packtrain.broker.pieces import Piece, text_of
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.states import InstanceState, JobState
from packtrain.client.aio import AsyncPacktrain
from packtrain.client.aio_job import AsyncJob, AsyncTextStream
from packtrain.client.client import Packtrain
from packtrain.client.job import Job, TextStream
from packtrain.client.request import Tokens
from packtrain.client.result import AnswerDelta, Result
from packtrain.client.verify import Verification

__all__ = [
    "AdapterUnavailable",
    "AnswerBegunAnew",
    "AnswerDelta",
    "AsyncJob",
    "AsyncPacktrain",
    "AsyncTextStream",
    "BlobsFull",
    "BrokerUnavailable",
    "CallDelta",
    "Cause",
    "Explanation",
    "FleetLoop",
    "IdempotencyConflict",
    "InstanceBeat",
    "InstanceState",
    "InvalidParameter",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobDead",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobState",
    "JobStatus",
    "MediaGone",
    "MediaUnreadable",
    "MediaUnsupported",
    "Message",
    "ModelError",
    "ModelFetchFailed",
    "ModelFileInvalid",
    "ModelGone",
    "ModelInfo",
    "ModelLoadFailed",
    "ModelTooLarge",
    "NodeBeat",
    "NodeWish",
    "NotDeterministic",
    "Packtrain",
    "PacktrainError",
    "Piece",
    "PromptEmpty",
    "PromptTooLong",
    "QueueFull",
    "Receipt",
    "RemoteFailed",
    "Result",
    "ResultTimeout",
    "SamplingParams",
    "SetupError",
    "TextStream",
    "Timings",
    "Tokens",
    "Tool",
    "ToolCall",
    "TryLater",
    "UnknownJob",
    "UnknownModel",
    "UnknownNode",
    "Usage",
    "Verification",
    "text_of",
]
