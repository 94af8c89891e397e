"""Every Redis key that Packtrain writes, with its type and how long it lives.

| key                    | type   | lives                                      | holds |
|------------------------|--------|--------------------------------------------|--------------------------------------|
| pt:job:<id>            | hash   | 7 d from submit, 24 h from the end (settable)| state, epoch, spec, outcome ... |
| pt:out:<id>            | stream | 24 h from the start, 1 h from the end      | tokens and the end of one job |
| pt:ready:<route>:i / b | zset   | while jobs wait                            | job id → order, by lane |
| pt:waiting             | set    | while jobs wait                            | routes with a ready job |
| pt:leases              | zset   | while jobs run                             | job id → lease deadline, ms |
| pt:deadlines           | zset   | while such jobs live                       | job id → deadline, ms |
| pt:meant               | hash   | while such jobs live, 7 d from submit      | job id → who alone may run it |
| pt:prefixes            | hash   | while such jobs live, 7 d from submit      | job id → hashes of its prefixes |
| pt:begun               | hash   | while such jobs live, 7 d from the last    | job id → numerics class of its tokens |
| pt:movable:<route>:i / b| zset  | 7 d from the last such submit              | waiting jobs with several targets |
| pt:held:<instance>     | set    | 24 h from the last claim                   | jobs leased to this instance |
| pt:recent              | zset   | permanent, trimmed to 10,000               | job id → submit time, ms |
| pt:fair:<model>:i / b  | zset   | 7 d from the last submit                   | user → finish tag, '' → clock |
| pt:queued:<model>:i / b| hash   | 7 d from the last submit                   | user → jobs that wait |
| pt:rate:<route>        | hash   | 24 h from the last end                     | how fast jobs are served: rates.py |
| pt:tally:<model>:i / b | hash   | 30 d from the last end                     | counters of its jobs: tally.py |
| pt:ends                | list   | until they are counted, 30 d               | ends of jobs: tally.py |
| pt:used:<kind>         | hash   | 30 d from the last end                     | who used what: tally.py |
| pt:deeds               | hash   | 30 d from the last of them                 | counters of the fleet: deeds.py |
| pt:deeds:told          | zset   | 7 d from the last of them                  | those of instances that are counted |
| pt:waits               | hash   | 10 s from the last plan                    | route → why it must wait, '' |
| pt:order               | string | permanent, in fleets from before the tags  | highest order of a job without a tag |
| pt:blob:<sha256>       | string | 24 h from the last job that names it       | bytes of an image or sound: blobs.py |
| pt:blobs               | zset   | 24 h from the last of them                 | hash and size of each → when it goes |
| pt:blobs:bytes         | string | 24 h from the last of them                 | bytes of all of them |
| pt:model:<id>          | hash   | 24 h from the last report                  | `ModelInfo` |
| pt:models              | zset   | permanent, pruned by the coordinator       | model id → last report, ms |
| pt:node:<id>           | hash   | 10 s from the last beat                    | `NodeBeat` |
| pt:nodes               | zset   | permanent, pruned by the coordinator       | node id → last beat, ms |
| pt:offers:<node>       | hash   | 10 s from the last beat                    | models as it would load them, digest |
| pt:inst:<id>           | hash   | 15 s from the beat, 10 min from the end    | `InstanceBeat` |
| pt:instances           | zset   | permanent, pruned by the coordinator       | instance id → last beat, ms |
| pt:secret              | string | 24 h from the last use                     | what nodes sign tokens with |
| pt:pull:<id>           | string | 15 s from the last word, 1 h from the end  | `PullStatus` |
| pt:desired             | hash   | permanent                                  | model id → `Desired` |
| pt:journal             | stream | 7 d from the last entry, 10,000 of them    | placement decisions: journal.py |
| pt:history             | stream | 25 h from the last sample, 24 h of them    | samples of the fleet: history.py |
| pt:faults              | zset   | 7 d from the last fault, 1,000 of them     | instances FAILED or LOST → when |
| pt:firsts              | stream | 1 h from the last one, some 4,000 of them  | ms until a job's first token |
| pt:snapshots           | stream | 24 h from the last one, 300 of them        | what the latest were planned from |
| pt:nodes:wishes        | hash   | permanent                                  | node id → `NodeWish` |
| pt:invite:<id>         | hash   | as long as it was made for, at most a day  | code, secret, uses and tries left |
| pt:invite              | string | as the invitation                          | id of the one whose code is asked for |
| pt:pairing             | string | 15 s from the last sign of it              | `PairingPlace`: where machines join |
| pt:apikeys             | hash   | permanent                                  | name → `ApiKey` |
| pt:apikey:<name>:busy  | zset   | 60 s from the last sign of a request       | request → until when it counts |
| pt:apikey:<name>:rows  | zset   | the same of a row of its batches           | job → until when it counts |
| pt:apikey:<name>:spent | hash   | 120 s from the last charge                 | second → tokens charged in it |
| pt:process:<id>        | string | 15 s from the last sign                    | `ProcessBeat`: what it speaks |
| pt:processes           | zset   | 60 s from the last sign of any             | process id → last sign, ms |
| pt:leader              | string | 5 s                                        | id of the leading coordinator |
| pt:term                | string | permanent                                  | counter: the coordinator's epoch |
| pt:schema              | string | permanent                                  | version of this table |

Celery's own keys stand beside them under their usual names: a list per queue, `_kombu.binding.*`, `unacked*`.
"""

from __future__ import annotations

from typing import Final, Literal

from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId, Route

#: Another one wherever data of an earlier version can no longer be read. A field that is only added is no such change:
#: the scripts say what a record without it means (`place_of` in prelude.lua).
SCHEMA_VERSION: Final = "1"

JOB_PREFIX: Final = "pt:job:"
OUT_PREFIX: Final = "pt:out:"
READY_PREFIX: Final = "pt:ready:"
MOVABLE_PREFIX: Final = "pt:movable:"
HELD_PREFIX: Final = "pt:held:"
FAIR_PREFIX: Final = "pt:fair:"
QUEUED_PREFIX: Final = "pt:queued:"
RATE_PREFIX: Final = "pt:rate:"
TALLY_PREFIX: Final = "pt:tally:"
ENDS: Final = "pt:ends"
USED_PREFIX: Final = "pt:used:"
MODEL_PREFIX: Final = "pt:model:"
BLOB_PREFIX: Final = "pt:blob:"
WAITING: Final = "pt:waiting"
LEASES: Final = "pt:leases"
DEADLINES: Final = "pt:deadlines"
MEANT: Final = "pt:meant"
PREFIXES: Final = "pt:prefixes"
BEGUN: Final = "pt:begun"
RECENT: Final = "pt:recent"
ORDER: Final = "pt:order"
MODELS: Final = "pt:models"
BLOBS: Final = "pt:blobs"
BLOBS_BYTES: Final = "pt:blobs:bytes"
NODES: Final = "pt:nodes"
INSTANCES: Final = "pt:instances"
DESIRED: Final = "pt:desired"
SECRET: Final = "pt:secret"  # noqa: S105
NODE_WISHES: Final = "pt:nodes:wishes"
INVITE: Final = "pt:invite"
PAIRING: Final = "pt:pairing"
API_KEYS: Final = "pt:apikeys"
DEEDS: Final = "pt:deeds"
DEEDS_TOLD: Final = "pt:deeds:told"
WAITS: Final = "pt:waits"
JOURNAL: Final = "pt:journal"
SNAPSHOTS: Final = "pt:snapshots"
HISTORY: Final = "pt:history"
FAULTS: Final = "pt:faults"
FIRSTS: Final = "pt:firsts"
PROCESSES: Final = "pt:processes"
LEADER: Final = "pt:leader"
TERM: Final = "pt:term"
SCHEMA: Final = "pt:schema"

QUEUED_TTL_MS: Final = 7 * 24 * 3600 * 1000
ENDED_TTL_MS: Final = 24 * 3600 * 1000
STREAM_TTL_MS: Final = 24 * 3600 * 1000
STREAM_ENDED_TTL_MS: Final = 3600 * 1000
RATE_TTL_MS: Final = 24 * 3600 * 1000
TALLY_TTL_MS: Final = 30 * 24 * 3600 * 1000
DEEDS_TOLD_TTL_MS: Final = 7 * 24 * 3600 * 1000
BLOB_TTL_MS: Final = 24 * 3600 * 1000
MODEL_TTL_MS: Final = 24 * 3600 * 1000
NODE_TTL_MS: Final = 10_000
INSTANCE_TTL_MS: Final = 15_000
INSTANCE_ENDED_TTL_MS: Final = 600_000
SECRET_TTL_MS: Final = 24 * 3600 * 1000
WAITS_TTL_MS: Final = 10_000
JOURNAL_TTL_MS: Final = 7 * 24 * 3600 * 1000
JOURNAL_MAX: Final = 10_000
SNAPSHOTS_TTL_MS: Final = 24 * 3600 * 1000
SNAPSHOTS_MAX: Final = 300
HISTORY_TTL_MS: Final = 25 * 3600 * 1000
FAULTS_TTL_MS: Final = 7 * 24 * 3600 * 1000
FIRSTS_TTL_MS: Final = 3600 * 1000
FIRSTS_MAX: Final = 4_000
PROCESS_TTL_MS: Final = 15_000
PROCESSES_TTL_MS: Final = 60_000
LEADER_TTL_MS: Final = 5_000
PAIRING_TTL_MS: Final = 15_000
RECENT_MAX: Final = 10_000
#: Ends of jobs that are added to the counters together.
TALLY_FOLD: Final = 64
#: The same, at most: a script must not hold the server for long.
TALLY_MOST: Final = 500
#: Of each kind of `used`: rows of (name, model) that are told apart. All further ones are one, of a name that neither a
#: user nor a tag can have.
USED_MAX: Final = 1000
USED_OTHERS: Final = "(other)"

#: Keys that may stand without a TTL. Tests check that nothing else does.
PERMANENT: Final = frozenset({RECENT, ORDER, MODELS, NODES, INSTANCES, DESIRED, NODE_WISHES, API_KEYS, TERM, SCHEMA})


def job(job_id: JobId) -> str:
    """The record of a job."""
    return JOB_PREFIX + job_id


def out(job_id: JobId) -> str:
    """The event stream of a job."""
    return OUT_PREFIX + job_id


def ready(route: Route, lane: str) -> str:
    """The ready set of a route and lane (`interactive` or `bulk`)."""
    return f"{READY_PREFIX}{route}:{lane[0]}"


def movable(route: Route, lane: str) -> str:
    """Of the ready set of a route and lane, the jobs that may go to another model."""
    return f"{MOVABLE_PREFIX}{route}:{lane[0]}"


def rate(route: Route) -> str:
    """How fast the jobs of a route are served."""
    return RATE_PREFIX + route


def tally(model_id: ModelId, lane: str) -> str:
    """Counters of the jobs of a model in a lane."""
    return f"{TALLY_PREFIX}{model_id}:{lane[0]}"


def used(kind: Literal["user", "tag"]) -> str:
    """What users, or tags, have used."""
    return USED_PREFIX + kind


def held(instance: InstanceId) -> str:
    """The jobs leased to an instance."""
    return HELD_PREFIX + instance


def model(model_id: ModelId) -> str:
    """What a catalog says of a model."""
    return MODEL_PREFIX + model_id


def blob(sha256: str) -> str:
    """The bytes of an image or sound, by their hash."""
    return BLOB_PREFIX + sha256


def node(node_id: NodeId) -> str:
    """The last beat of a node."""
    return f"pt:node:{node_id}"


def offers(node_id: NodeId) -> str:
    """What a node's own catalog says of its models."""
    return f"pt:offers:{node_id}"


def instance(instance_id: InstanceId) -> str:
    """The last beat of an instance."""
    return f"pt:inst:{instance_id}"


def process(process_id: str) -> str:
    """What a process says of itself."""
    return f"pt:process:{process_id}"


def pull(pull_id: str) -> str:
    """How far a pull is."""
    return f"pt:pull:{pull_id}"


def invite(invite_id: str) -> str:
    """An invitation to join."""
    return f"{INVITE}:{invite_id}"


def api_busy(key_id: str) -> str:
    """Requests of an API key that are under way."""
    return f"pt:apikey:{key_id}:busy"


def api_rows(key_id: str) -> str:
    """Jobs of an API key's batches that are under way."""
    return f"pt:apikey:{key_id}:rows"


def api_spent(key_id: str) -> str:
    """Tokens that an API key was charged lately."""
    return f"pt:apikey:{key_id}:spent"


def model_queue(route: Route) -> str:
    """The Celery queue of a route's doorbells, consumed only by READY instances of its model."""
    return f"model.{route}"


def node_queue(node_id: NodeId) -> str:
    """The Celery queue of commands to a node's agent."""
    return f"node.{node_id}"
