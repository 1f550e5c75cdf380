"""What becomes of a request whatever its hooks do; stages are run in the test's own thread."""

import logging
from collections import UserDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlserve.batching.report import BatchReport
from mlserve.contract import read_contract
from mlserve.errors import (
    ConfigurationError,
    DrainingError,
    InvalidInputError,
    MLServeError,
    ModelError,
    ModelOutputError,
)
from mlserve.execution.pipeline import Outcome, Pipeline
from mlserve.execution.stages import run_here
from mlserve.handler import Call, ModelHandler
from mlserve.job import Job
from mlserve.settings import Batching
from mlserve.testing import FakeClock

Handler = ModelHandler[Any, Any, Any]


class Bench:
    """A handler, its pipeline and the jobs of the test."""

    def __init__(self, cls: type[Handler], clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.handler = cls()
        self.pipeline = Pipeline(read_contract(cls), "toy", self.clock)

    def job(self, payload: Any) -> Job:
        return Job(payload, Call(f"r-{payload}", clock=self.clock), timeout_s=60.0)

    def prepare(self, payload: Any) -> Job:
        job = self.job(payload)
        run_here(self.pipeline.prepare(job), self.handler)
        return job

    def infer(self, *payloads: Any) -> list[Outcome]:
        return self.run([self.job(payload) for payload in payloads])

    def run(self, jobs: list[Job]) -> list[Outcome]:
        self.report = BatchReport()
        return run_here(self.pipeline.infer(jobs, self.report), self.handler)

    def finish(self, output: Any, payload: Any = 1) -> Any:
        return run_here(self.pipeline.finish(self.job(payload), output), self.handler)

    def warm_up(self, batching: Batching | None = None) -> int:
        return run_here(self.pipeline.warm_up(batching or Batching()), self.handler)


class Toy(ModelHandler[Any, Any]):
    """A model that gives its inputs back."""

    def infer(self, inputs: list[Any]) -> Any:
        return inputs


def raising(error: BaseException) -> Any:
    def hook(self: Any, value: Any) -> Any:
        raise error

    return hook


def toy_with(**hooks: Any) -> type[Handler]:
    return type("ToyWith", (Toy,), hooks)


def test_a_request_is_preprocessed_and_told_its_cost_and_key() -> None:
    class Words(Toy):
        def preprocess(self, request: str) -> list[str]:
            return request.split()

        def cost(self, item: list[str]) -> int:
            return len(item)

        def batch_key(self, item: list[str], call: Call) -> str:
            return f"{item[0]} of {call.request_id}"

    job = Bench(Words).prepare("a b c")

    assert job.payload == ["a", "b", "c"]
    assert job.cost == 3
    assert job.key == "a of r-a b c"


def test_without_hooks_a_request_is_its_own_input() -> None:
    bench = Bench(Toy)

    job = bench.prepare("a")

    assert (job.payload, job.cost, job.key) == ("a", 1, None)
    assert bench.pipeline.prepares_nothing
    assert not bench.pipeline.prepares_in_thread


def test_the_hooks_before_the_queue_need_a_thread_only_if_all_are_sync() -> None:
    async def in_loop(self: Any, value: Any) -> Any:
        return value

    def in_thread(self: Any, value: Any) -> Any:
        return value

    sync, mixed = toy_with(preprocess=in_thread), toy_with(preprocess=in_thread, cost=in_loop)

    assert Bench(sync).pipeline.prepares_in_thread
    assert not Bench(mixed).pipeline.prepares_in_thread
    assert not Bench(mixed).pipeline.prepares_nothing


def test_how_long_the_hooks_took_is_noted() -> None:
    clock = FakeClock()

    def slow(self: Any, value: Any) -> Any:
        clock.advance(0.5)
        return value

    bench = Bench(toy_with(preprocess=slow, postprocess=slow), clock)
    job = bench.prepare(1)
    run_here(bench.pipeline.finish(job, 1), bench.handler)

    assert (job.times.preprocess_s, job.times.postprocess_s) == (0.5, 0.5)


@pytest.mark.parametrize("hook", ["preprocess", "cost", "batch_key"])
def test_an_invalid_input_keeps_its_message(hook: str) -> None:
    error = InvalidInputError("`text` is too long.", param="text")

    with pytest.raises(InvalidInputError) as caught:
        Bench(toy_with(**{hook: raising(error)})).prepare(1)

    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize(
    "error", [ValueError("SECRET"), UnicodeDecodeError("x", b"", 0, 1, "SECRET")]
)
def test_a_value_error_before_the_queue_is_an_invalid_input_without_its_text(
    error: ValueError, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    with pytest.raises(InvalidInputError) as caught:
        Bench(toy_with(preprocess=raising(error))).prepare(1)

    assert "SECRET" not in str(caught.value)
    assert "SECRET" in caplog.text


@pytest.mark.parametrize("hook", ["preprocess", "cost", "batch_key"])
@pytest.mark.parametrize("error", [KeyError("SECRET"), SystemExit(1), StopIteration(1)])
def test_any_other_exception_before_the_queue_is_the_models_failure(
    hook: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError) as caught:
        Bench(toy_with(**{hook: raising(error)})).prepare(1)

    assert str(caught.value) == "The model failed on this request."
    assert [record.getMessage() for record in caplog.records] == [f"hook.{hook}.failed"]
    assert vars(caplog.records[0])["request_id"] == "r-1"


@pytest.mark.parametrize("hook", ["preprocess", "postprocess"])
@pytest.mark.parametrize("error", [ModelOutputError("Wrong."), DrainingError("other")])
def test_an_error_of_ours_passes_and_is_not_its_own_cause(hook: str, error: MLServeError) -> None:
    bench = Bench(toy_with(**{hook: raising(error)}))
    run_hook = bench.prepare if hook == "preprocess" else bench.finish

    with pytest.raises(MLServeError) as caught:
        run_hook(1)

    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize("hook", ["preprocess", "postprocess"])
@pytest.mark.parametrize("error", [ModelError("/secret"), ConfigurationError("/secret")])
def test_the_text_of_errors_that_are_not_for_clients_stays_in_the_log(
    hook: str, error: MLServeError, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(toy_with(**{hook: raising(error)}))
    run_hook = bench.prepare if hook == "preprocess" else bench.finish

    with pytest.raises(ModelError) as caught:
        run_hook(1)

    assert "secret" not in str(caught.value)
    assert "/secret" in caplog.text


@pytest.mark.parametrize("hook", ["cost", "batch_key"])
def test_a_value_error_is_the_requests_fault_in_preprocess_only(hook: str) -> None:
    with pytest.raises(ModelError):
        Bench(toy_with(**{hook: raising(ValueError("SECRET"))})).prepare(1)


@pytest.mark.parametrize("cost", [-1, 1.5, "3", None, True, [1]])
def test_a_cost_that_is_no_whole_number_is_named(
    cost: object, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelOutputError, match="`cost` must return a whole number") as caught:
        Bench(toy_with(cost=lambda self, item: cost)).prepare(1)

    assert f"`{type(cost).__name__}`" in str(caught.value)
    assert "`cost` must return" in caplog.text


@pytest.mark.parametrize("cost", [0, 7, np.int64(7), torch.tensor(7)])
def test_a_cost_may_be_any_kind_of_whole_number(cost: Any) -> None:
    job = Bench(toy_with(cost=lambda self, item: cost)).prepare(1)

    assert type(job.cost) is int
    assert job.cost == int(cost)


def test_a_key_that_cannot_be_hashed_is_named() -> None:
    with pytest.raises(
        ModelOutputError, match=r"`batch_key` must return something hashable.*`list`"
    ):
        Bench(toy_with(batch_key=lambda self, item: [item])).prepare(1)


def test_a_batch_gives_one_output_per_input_in_order() -> None:
    class Double(Toy):
        def infer(self, inputs: list[int]) -> list[int]:
            return [2 * value for value in inputs]

    assert Bench(Double).infer(1, 2, 3) == [2, 4, 6]


def test_infer_gets_the_calls_in_the_order_of_the_inputs() -> None:
    class Ids(ModelHandler[int, str]):
        def infer(self, inputs: list[int], calls: list[Call]) -> list[str]:
            return [call.request_id for call in calls]

    assert Bench(Ids).infer(1, 2) == ["r-1", "r-2"]


@pytest.mark.parametrize(
    "outputs",
    [[1.0, 2.0], (1.0, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])],
    ids=["list", "tuple", "array", "tensor"],
)
def test_any_sequence_of_outputs_is_taken(outputs: Any) -> None:
    cls = toy_with(infer=lambda self, inputs: outputs)

    assert Bench(cls).infer(1, 2) == [1.0, 2.0]


def test_outputs_stay_arrays_for_a_postprocess() -> None:
    cls = toy_with(
        infer=lambda self, inputs: np.array([[1.0], [2.0]]),
        postprocess=lambda self, output: float(output.max()),
    )
    bench = Bench(cls)

    outputs = bench.infer(1, 2)

    assert all(isinstance(output, np.ndarray) for output in outputs)
    assert [bench.finish(output) for output in outputs] == [1.0, 2.0]


class Columns:
    """Is as long as it has rows, but is iterated by columns, as a data frame is."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b", "c"])


@pytest.mark.parametrize(
    "outputs",
    [
        [1],
        [1, 2, 3],
        [],
        np.zeros(3),
        torch.zeros(1, 2),
        None,
        "ab",
        b"ab",
        {"a": 1, "b": 2},
        UserDict({"a": 1, "b": 2}),
        {1, 2},
        frozenset({1, 2}),
        {"a": 1, "b": 2}.keys(),
        (output for output in (1, 2)),
        map(str, [1, 2]),
        np.array(1.0),
        torch.tensor(1.0),
        5,
        Columns(),
    ],
    ids=lambda outputs: type(outputs).__name__,
)
def test_outputs_that_are_not_one_per_input_are_refused_in_words(
    outputs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    n_calls = 0

    def infer(self: Any, inputs: list[Any]) -> Any:
        nonlocal n_calls
        n_calls += 1
        return outputs

    first, second = Bench(toy_with(infer=infer, idempotent=False)).infer(1, 2)

    assert n_calls == 1
    for outcome in (first, second):
        assert isinstance(outcome, ModelOutputError)
        assert str(outcome).startswith("`infer` of model `toy` returned ")
        assert "one" in str(outcome)
    assert "infer.output.refused" in caplog.text


@given(guilty=st.sets(st.integers(0, 15)), n=st.integers(1, 16))
def test_who_makes_outputs_unusable_stands_alone_in_the_end(guilty: set[int], n: int) -> None:
    def infer(self: Any, inputs: list[int]) -> Any:
        return [*inputs, 0] if guilty & set(inputs) else inputs

    bench = Bench(toy_with(infer=infer))
    outcomes = bench.infer(*range(n))

    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, ModelOutputError) if number in guilty else outcome == number
    assert bench.report.n_splits < n


def test_an_exception_in_the_place_of_an_output_fails_only_that_request() -> None:
    refused = InvalidInputError("Too long.")
    cls = toy_with(infer=lambda self, inputs: [1, ValueError("SECRET"), refused, KeyError("x")])

    first, broken, invalid, missing = Bench(cls).infer(1, 2, 3, 4)

    assert first == 1
    assert type(broken) is ModelError
    assert "SECRET" not in str(broken)
    assert invalid is refused
    assert type(missing) is ModelError


class Faulty(ModelHandler[int, int]):
    """Fails on every batch with a negative number in it."""

    def __init__(self) -> None:
        self.n_calls = 0

    def infer(self, inputs: list[int]) -> list[int]:
        self.n_calls += 1
        if any(value < 0 for value in inputs):
            raise RuntimeError("SECRET")
        return [10 * value for value in inputs]


@given(st.lists(st.integers(-2, 20), min_size=1, max_size=33))
def test_only_the_guilty_requests_of_a_batch_fail(values: list[int]) -> None:
    bench = Bench(Faulty)

    outcomes = bench.infer(*values)

    for value, outcome in zip(values, outcomes, strict=True):
        if value < 0:
            assert type(outcome) is ModelError
        else:
            assert outcome == 10 * value
    assert isinstance(bench.handler, Faulty)
    assert bench.handler.n_calls <= 2 * len(values) - 1


@given(st.integers(2, 64), st.data())
def test_one_guilty_request_costs_few_calls(n: int, data: st.DataObject) -> None:
    values = [1] * n
    values[data.draw(st.integers(0, n - 1))] = -1
    bench = Bench(Faulty)

    bench.infer(*values)

    assert isinstance(bench.handler, Faulty)
    assert bench.handler.n_calls <= 2 * (n - 1).bit_length() + 1


def test_a_batch_of_a_handler_that_is_not_idempotent_is_run_once_only() -> None:
    class Once(Faulty):
        idempotent = False

    bench = Bench(Once)

    outcomes = bench.infer(1, -1, 2)

    assert isinstance(bench.handler, Once)
    assert bench.handler.n_calls == 1
    assert [type(outcome) for outcome in outcomes] == [ModelError] * 3


def test_an_invalid_input_that_infer_raises_reaches_only_its_own_client() -> None:
    class Strict(Toy):
        def infer(self, inputs: list[int]) -> list[int]:
            if -1 in inputs:
                raise InvalidInputError("Must not be negative.")
            return inputs

    first, second, third = Bench(Strict).infer(1, -1, 3)

    assert (first, third) == (1, 3)
    assert isinstance(second, InvalidInputError)
    assert str(second) == "Must not be negative."


def test_a_response_is_validated() -> None:
    class Typed(ModelHandler[int, float]):
        def infer(self, inputs: list[int]) -> list[Any]:
            return inputs

    bench = Bench(Typed)

    assert bench.finish("1.5") == 1.5
    with pytest.raises(ModelOutputError, match="does not fit its response type `float`"):
        bench.finish("SECRET")


@pytest.mark.parametrize("output", ["1.5", "SECRET", 2])
def test_accept_gives_what_finish_gives_or_raises(output: Any) -> None:
    class Typed(ModelHandler[int, float]):
        def infer(self, inputs: list[int]) -> list[Any]:
            return inputs

    bench = Bench(Typed)
    job = bench.job(1)

    response, error = bench.pipeline.accept(job, output)

    try:
        expected: Any = (bench.finish(output), None)
    except ModelOutputError as exc:
        expected = (None, str(exc))
    assert (response, error and str(error)) == expected
    assert job.times.postprocess_at == bench.clock()


def test_postprocess_may_see_the_call() -> None:
    def postprocess(self: Any, output: int, call: Call) -> str:
        return f"{output} for {call.request_id}"

    assert Bench(toy_with(postprocess=postprocess)).finish(5) == "5 for r-1"


@pytest.mark.parametrize("error", [ValueError("SECRET"), SystemExit(1), KeyError("SECRET")])
def test_an_exception_of_postprocess_is_the_models_failure(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError) as caught:
        Bench(toy_with(postprocess=raising(error))).finish(1)

    assert str(caught.value) == "The model failed on this request."
    assert [record.getMessage() for record in caplog.records] == ["hook.postprocess.failed"]


def test_an_invalid_input_of_postprocess_keeps_its_message() -> None:
    error = InvalidInputError("Nothing was found.")

    with pytest.raises(InvalidInputError, match="Nothing was found"):
        Bench(toy_with(postprocess=raising(error))).finish(1)


def test_what_load_raises_passes() -> None:
    def load(self: Any) -> None:
        raise OSError("No such file.")

    bench = Bench(toy_with(load=load))

    with pytest.raises(OSError, match="No such file"):
        run_here(bench.pipeline.call("load"), bench.handler)


class Recording(ModelHandler[int, int, int]):
    """Keeps the batches that it runs."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def examples(self) -> Sequence[int]:
        return [1, 2, 3]

    def infer(self, inputs: list[int]) -> list[int]:
        self.batches.append(inputs)
        return inputs


def batches_of_warm_up(cls: type[Recording], batching: Batching) -> list[list[int]]:
    bench = Bench(cls)
    assert bench.warm_up(batching) == 3
    assert isinstance(bench.handler, Recording)
    return bench.handler.batches


def test_warm_up_runs_the_examples_alone_and_as_the_largest_batch() -> None:
    assert batches_of_warm_up(Recording, Batching(max_size=5)) == [[1], [1, 2, 3, 1, 2]]


def test_warm_up_without_batching_runs_one_batch() -> None:
    assert batches_of_warm_up(Recording, Batching(max_size=1)) == [[1]]


@pytest.mark.parametrize("padded", [False, True])
def test_the_largest_batch_of_warm_up_keeps_within_max_cost(padded: bool) -> None:
    class Costly(Recording):
        def cost(self, item: int) -> int:
            return item

    batching = Batching(max_size=8, max_cost=6, padded=padded)

    alone, largest = batches_of_warm_up(Costly, batching)

    assert alone == [1]
    assert 1 < len(largest) < 8
    assert (max(largest) * len(largest) if padded else sum(largest)) <= 6


def test_warm_up_runs_its_batch_whatever_the_clock_says() -> None:
    bench = Bench(Recording, FakeClock(1e12))

    bench.warm_up(Batching(max_size=2))

    assert isinstance(bench.handler, Recording)
    assert bench.handler.batches == [[1], [1, 2]]


def test_without_examples_nothing_is_warmed_up() -> None:
    assert Bench(Toy).warm_up() == 0


def test_a_warmup_of_the_handlers_own_takes_the_place_of_the_examples() -> None:
    class Own(Recording):
        def warmup(self) -> None:
            self.batches.append([0])

    bench = Bench(Own)

    assert bench.warm_up() == 1
    assert isinstance(bench.handler, Own)
    assert bench.handler.batches == [[0]]


@pytest.mark.parametrize("hook", ["preprocess", "infer", "postprocess"])
def test_an_example_that_fails_in_a_hook_fails_the_warm_up(hook: str) -> None:
    class Example(Recording):
        pass

    setattr(Example, hook, raising(RuntimeError("broken")))

    with pytest.raises(ModelError):
        Bench(Example).warm_up()


def test_an_example_whose_response_does_not_fit_fails_the_warm_up() -> None:
    class Example(Recording):
        def infer(self, inputs: list[int]) -> Any:
            return ["no number" for _ in inputs]

    with pytest.raises(ModelOutputError, match="does not fit its response type"):
        Bench(Example).warm_up()


class Streaming(ModelHandler[int, int, int]):
    """Streams numbers and notes that its generator was closed."""

    chunks: tuple[Any, ...] = (1, 2)
    n_closed = 0

    def examples(self) -> Sequence[int]:
        return [1]

    def stream(self, item: int) -> Iterator[int]:
        try:
            yield from self.chunks
        finally:
            self.n_closed += 1


def test_warm_up_reads_one_chunk_of_a_stream_and_closes_it() -> None:
    bench = Bench(Streaming)

    assert bench.warm_up() == 1
    assert isinstance(bench.handler, Streaming)
    assert bench.handler.n_closed == 1


def test_an_example_that_streams_nothing_is_warm() -> None:
    class Silent(Streaming):
        chunks = ()

    assert Bench(Silent).warm_up() == 1


def test_an_example_whose_chunk_does_not_fit_fails_the_warm_up() -> None:
    class Wrong(Streaming):
        chunks = ("no number",)

    with pytest.raises(ModelOutputError, match="does not fit its chunk type"):
        Bench(Wrong).warm_up()
