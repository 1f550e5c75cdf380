"""
What a server tells Prometheus: requests, stages, batches, streams and tokens of each model.

The families are `prometheus_client`'s, in its default registry, as those of a handler's own are.
Labels are names of models, versions, codes and stages: never anything that a client has sent.
"""

from collections import Counter as Counts
from collections.abc import Callable, Mapping
from functools import cache
from itertools import repeat
from operator import itemgetter
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from mlserve.observability.access_log import InferenceLine
from mlserve.observability.gathering import (
    GatheredCounter,
    GatheredHistogram,
    Gathering,
    is_sharing,
)

__all__ = [
    "FAMILIES",
    "BatchMetrics",
    "CacheMetrics",
    "ModelMetrics",
    "batch_metrics",
    "cache_metrics",
    "model_metrics",
    "note_figures",
    "note_records",
    "note_shadow",
]

_MODEL = ("model", "version")
_REQUEST_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_STAGE_S = (
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_COSTS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
_STAGES = ("queue", "preprocess", "infer", "postprocess")
_TOKENS = ("prompt_tokens", "completion_tokens")
_OUTCOMES = ("same", "different", "failed", "dropped")
_CACHE_OUTCOMES = ("hit", "miss", "coalesced")
_OK = "ok"
_NO_ROOM = (429, 503)
_Facts = tuple[Any, ...]
"""Status, code, time, size of the batch, number of chunks, and time in each stage."""
_facts_of = itemgetter(
    "status", "code", "total_ms", "batch_size", "chunks", *(f"{stage}_ms" for stage in _STAGES)
)
_stages_of = itemgetter(slice(5, None))

REQUESTS = GatheredCounter(
    "mlserve_requests", "Requests that have their answer, by its code.", (*_MODEL, "code")
)
REJECTED = GatheredCounter(
    "mlserve_requests_rejected",
    "Requests that were refused since there was no room or no right for them.",
    (*_MODEL, "reason"),
)
DURATION = GatheredHistogram(
    "mlserve_request_duration_seconds",
    "From the head of a request to the end of its answer.",
    _MODEL,
    buckets=_REQUEST_S,
)
STAGE = GatheredHistogram(
    "mlserve_stage_duration_seconds",
    "How long requests were in each stage that they came to.",
    (*_MODEL, "stage"),
    buckets=_STAGE_S,
)
FIRST_CHUNK = GatheredHistogram(
    "mlserve_time_to_first_chunk_seconds",
    "From the head of a request to the first chunk of its stream.",
    _MODEL,
    buckets=_REQUEST_S,
)
BETWEEN_CHUNKS = GatheredHistogram(
    "mlserve_time_between_chunks_seconds",
    "From one chunk of a stream to the next.",
    _MODEL,
    buckets=_STAGE_S,
)
TOKENS = GatheredCounter("mlserve_tokens", "Tokens that were read and written.", (*_MODEL, "kind"))
BATCH_SIZE = GatheredHistogram(
    "mlserve_batch_size", "How many requests a batch had.", _MODEL, buckets=_SIZES
)
BATCH_COST = GatheredHistogram(
    "mlserve_batch_cost", "What the requests of a batch cost together.", _MODEL, buckets=_COSTS
)
PADDING = GatheredHistogram(
    "mlserve_batch_padding_ratio",
    "Which share of a batch was padding, where cost is padded to the longest.",
    _MODEL,
    buckets=_SHARES,
)
SPLITS = Counter(
    "mlserve_batch_splits", "How often a batch that failed was split to find the guilty.", _MODEL
)
ISOLATED = Counter(
    "mlserve_poison_isolated",
    "Requests that made a batch fail and were found, so that the others were answered.",
    _MODEL,
)
OUT_OF_MEMORY = Counter("mlserve_out_of_memory", "How often memory ran out.", _MODEL)
STARTS = Counter(
    "mlserve_replica_starts", "Replicas that were begun: the first ones and each restart.", _MODEL
)
CACHE = Counter(
    "mlserve_cache",
    "Requests to models that keep answers: given one, not, or computed with an equal one.",
    (*_MODEL, "outcome"),
)
CACHE_BYTES = Gauge(
    "mlserve_cache_bytes",
    "How much requests and answers take that are kept.",
    _MODEL,
    multiprocess_mode="livesum",
)
SHADOW = Counter(
    "mlserve_shadow",
    "Copies of requests that a version was tried out with, by what came of them.",
    (*_MODEL, "outcome"),
)
STORE_FAILURES = Counter(
    "mlserve_rate_limit_store_failures", "How often a store of rate limits could not be reached."
)
RECORDS = Counter(
    "mlserve_records", "Records of requests, by what came of them.", ("sink", "outcome")
)
IN_FLIGHT = Gauge(
    "mlserve_requests_in_flight",
    "Requests that were accepted and have no answer yet.",
    _MODEL,
    multiprocess_mode="livesum",
)
QUEUE_DEPTH = Gauge(
    "mlserve_queue_depth", "Requests that wait.", _MODEL, multiprocess_mode="livesum"
)
QUEUE_CAPACITY = Gauge(
    "mlserve_queue_capacity", "How many requests may wait.", _MODEL, multiprocess_mode="livesum"
)
REPLICAS = Gauge("mlserve_replicas", "Replicas that serve.", _MODEL, multiprocess_mode="livesum")
READY = Gauge(
    "mlserve_model_ready", "1 if the model is loaded and warm.", _MODEL, multiprocess_mode="livemin"
)
FAMILIES = tuple(
    value for value in list(globals().values()) if isinstance(value, Counter | Gauge | Histogram)
)
"""All of them, in the order in which they stand here and in the reference."""


class ModelMetrics:
    """
    What is counted of one model in the process that answers its requests. Any thread.

    Args:
        model: The model's name.
        version: Its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self._labels = labels = (model, version)
        self._duration = DURATION.labels(*labels)
        self._stages = [STAGE.labels(*labels, stage) for stage in _STAGES]
        self._requests = Gathering(self._write_requests)
        self._first_chunk = Gathering(FIRST_CHUNK.labels(*labels).observe_all)
        self._between_chunks = Gathering(BETWEEN_CHUNKS.labels(*labels).observe_all)
        self._tokens = {
            kind: Gathering(TOKENS.labels(*labels, kind.removesuffix("_tokens")).inc_all)
            for kind in _TOKENS
        }
        REQUESTS.labels(*labels, _OK)
        REJECTED.labels(*labels, "queue_full")
        for outcome in _OUTCOMES:
            SHADOW.labels(*labels, outcome)

    def note_request(self, line: InferenceLine, annotations: Mapping[str, Any]) -> None:
        """Count a request that has its answer."""
        self._requests.note(_facts_of(line))
        if annotations and line["status"] not in _NO_ROOM:
            for kind, tokens in self._tokens.items():
                n = annotations.get(kind)
                if type(n) is int and n > 0:
                    tokens.note(n)

    def note_chunk(self, seconds: float, *, is_first: bool, n: int = 1) -> None:
        """
        Count a chunk.

        Args:
            seconds: How long it came after the head of the request, or after the chunk before.
            is_first: Whether it is the first one.
            n: How many there are, if others have left in one piece with it.
        """
        (self._first_chunk if is_first else self._between_chunks).note(seconds)
        if n > 1:
            self._between_chunks.note(*repeat(0.0, n - 1))

    def _write_requests(self, noted: list[_Facts]) -> None:
        answered = noted
        for (status, code), n in Counts(map(itemgetter(0, 1), noted)).items():
            REQUESTS.labels(*self._labels, code or _OK).inc(n)
            if status in _NO_ROOM:
                REJECTED.labels(*self._labels, code or _OK).inc(n)
                answered = [facts for facts in answered if facts[0] != status]
        if not answered:
            return
        _, _, totals_ms, sizes, *_ = zip(*answered, strict=True)
        self._duration.observe_all(totals_ms, unit_s=1e-3)
        if 0 in sizes:  # such as those whose input was wrong
            answered = [facts for facts in answered if facts[3] or facts[4]]
        for stage, took_ms in zip(
            self._stages, zip(*map(_stages_of, answered), strict=True), strict=False
        ):
            stage.observe_all(list(filter(None, took_ms)), unit_s=1e-3)

    def __repr__(self) -> str:
        return f"<ModelMetrics {'/'.join(self._labels)}>"


class BatchMetrics:
    """
    What is counted of one model in the process that runs its batches. Any thread.

    Args:
        model: The model's name.
        version: Its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self.labels = labels = (model, version)
        """The model's name and version."""
        self._note_size = _noting(BATCH_SIZE.labels(*labels))
        self._note_cost = _noting(BATCH_COST.labels(*labels))
        self._note_padding = _noting(PADDING.labels(*labels))
        self._splits = SPLITS.labels(*labels)
        self._isolated = ISOLATED.labels(*labels)
        self._out_of_memory = OUT_OF_MEMORY.labels(*labels)
        self._starts = STARTS.labels(*labels)

    def note_batch(self, costs: list[int], *, is_padded: bool) -> None:
        """Count a batch, by what each of its requests costs."""
        self._note_size(len(costs))
        total = sum(costs)
        self._note_cost(total)
        if is_padded and (padded := max(costs) * len(costs)) > 0:
            self._note_padding(1 - total / padded)

    def note_troubles(self, *, n_splits: int, n_isolated: int, n_out_of_memory: int) -> None:
        """Count what went wrong in a batch, if anything did."""
        if n_splits:
            self._splits.inc(n_splits)
        if n_isolated:
            self._isolated.inc(n_isolated)
        if n_out_of_memory:
            self._out_of_memory.inc(n_out_of_memory)

    def note_start(self) -> None:
        """Count a replica that is begun."""
        self._starts.inc()


class CacheMetrics:
    """
    What is counted of one model's kept answers in the process that answers its requests.

    Args:
        model: The model's name.
        version: Its version.
    """

    def __init__(self, model: str, version: str) -> None:
        labels = (model, version)
        self._outcomes = {kind: CACHE.labels(*labels, kind) for kind in _CACHE_OUTCOMES}
        self._bytes = CACHE_BYTES.labels(*labels)

    def note(self, outcome: str) -> None:
        """Count a request that was answered: by a `hit`, a `miss` or `coalesced`."""
        self._outcomes[outcome].inc()

    def note_bytes(self, n_bytes: int) -> None:
        """Set how much is kept, in bytes."""
        self._bytes.set(n_bytes)


def _noting(histogram: GatheredHistogram) -> Callable[[float], None]:
    """Give what observes: at once where others read it, as a batch may kill who runs it."""
    return histogram.observe if is_sharing() else Gathering(histogram.observe_all).note


@cache
def cache_metrics(model: str, version: str) -> CacheMetrics:
    """Give what counts one model's kept answers in this process."""
    return CacheMetrics(model, version)


@cache
def batch_metrics(model: str, version: str) -> BatchMetrics:
    """Give what counts one model's batches in this process."""
    return BatchMetrics(model, version)


@cache
def model_metrics(model: str, version: str) -> ModelMetrics:
    """Give what counts one model's requests in this process."""
    return ModelMetrics(model, version)


def note_records(sink: str, outcome: str, n: int) -> None:
    """
    Count records of requests.

    Args:
        sink: The name of the sink that they are for.
        outcome: `written`, `dropped` for want of room, or `failed`.
        n: How many.
    """
    RECORDS.labels(sink, outcome).inc(n)


def note_shadow(model: str, version: str, outcome: str) -> None:
    """
    Count a copy of a request.

    Args:
        model: The model's name.
        version: The version that it was for.
        outcome: `same`, `different`, `failed` or `dropped`.
    """
    SHADOW.labels(model, version, outcome).inc()


def note_figures(
    model: str,
    version: str,
    *,
    in_flight: int,
    queued: int,
    queue_capacity: int,
    replicas: int,
    is_ready: bool,
) -> None:
    """Set the gauges of one model to what they are now."""
    for gauge, value in (
        (IN_FLIGHT, in_flight),
        (QUEUE_DEPTH, queued),
        (QUEUE_CAPACITY, queue_capacity),
        (REPLICAS, replicas),
        (READY, int(is_ready)),
    ):
        gauge.labels(model, version).set(value)
