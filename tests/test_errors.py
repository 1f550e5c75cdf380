"""The tree of errors: what each class promises and what its message says."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlserve
from mlserve import errors
from mlserve.errors import (
    AbandonedError,
    BodyTimeoutError,
    BodyTooLargeError,
    CapacityError,
    ConfigurationError,
    ContextLengthError,
    DeadlineExceededError,
    DrainingError,
    InvalidInputError,
    InvalidJSONError,
    InvalidTimeoutError,
    MLServeError,
    ModelError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelOutputError,
    OutOfMemoryError,
    OverloadedError,
    QueueFullError,
    ReplicaDiedError,
    RequestError,
    SchemaViolationError,
    UnsupportedMediaTypeError,
    UnsupportedParameterError,
)

CLASSES: list[type[MLServeError]] = [getattr(errors, name) for name in errors.__all__]

EXAMPLES: list[tuple[MLServeError, int, str]] = [
    (InvalidJSONError("The body is not JSON."), 400, "invalid_json"),
    (InvalidTimeoutError(), 400, "invalid_timeout"),
    (SchemaViolationError([], 1), 422, "validation_error"),
    (InvalidInputError("`text` is empty."), 422, "invalid_input"),
    (ContextLengthError("The prompt has 200 tokens."), 400, "context_length_exceeded"),
    (ModelNotFoundError("bert"), 404, "model_not_found"),
    (UnsupportedMediaTypeError("Send JSON."), 415, "unsupported_media_type"),
    (UnsupportedParameterError("best_of"), 400, "unsupported_parameter"),
    (BodyTooLargeError(100), 413, "body_too_large"),
    (BodyTimeoutError(2.5), 408, "request_timeout"),
    (AbandonedError(), 499, "client_closed_request"),
    (QueueFullError("bert", 64), 503, "queue_full"),
    (OverloadedError("bert", 1.5), 503, "overloaded"),
    (OutOfMemoryError("bert"), 507, "out_of_memory"),
    (ModelNotReadyError("bert", "loading"), 503, "model_not_ready"),
    (DrainingError("bert"), 503, "draining"),
    (ModelFailedError("bert", "loading failed"), 503, "model_failed"),
    (DeadlineExceededError("queue", 1.5), 504, "deadline_exceeded"),
    (ModelError(), 500, "model_error"),
    (ModelOutputError("`infer` returned a dict."), 500, "model_error"),
    (ReplicaDiedError("bert"), 502, "replica_died"),
    (ConfigurationError("`max_size` is missing."), 500, "configuration_error"),
]

DETAIL = st.fixed_dictionaries({"loc": st.lists(st.text()), "msg": st.text()})
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "details": st.lists(DETAIL),
    "limit": st.integers(),
    "limit_bytes": st.integers(),
    "batch_size": st.integers(1, 64),
    "n_errors": st.integers(),
    "param": st.none() | st.text(),
    "retry_after_s": st.floats(allow_nan=False),
    "timeout_s": st.floats(allow_nan=False),
    "wait_s": st.floats(allow_nan=False),
}


def pickled(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - it was pickled here


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, pickled]


class TooLongError(InvalidInputError):
    """A user's own, with facts and a constructor of its own."""

    def __init__(self, n_tokens: int, *, limit: int) -> None:
        super().__init__(f"{n_tokens} tokens are more than {limit}.", param="text")
        self.n_tokens = n_tokens


class GoneError(InvalidInputError, OSError):
    """A user's own, with a second base whose `__new__` reads the arguments."""


@st.composite
def raised(draw: st.DrawFn) -> MLServeError:
    """Draw an error of any class, made with any arguments that its constructor takes."""
    cls = draw(st.sampled_from(CLASSES))
    if not inspect.isfunction(cls.__init__):
        return cls(*draw(st.lists(st.text(), max_size=2)))  # as any exception
    names = list(inspect.signature(cls).parameters)
    return cls(**{name: draw(ARGUMENTS.get(name, st.text())) for name in names})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_is_in_the_tree_and_exported_by_the_package(cls: type[MLServeError]) -> None:
    assert issubclass(cls, MLServeError)
    assert getattr(mlserve, cls.__name__) is cls


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_is_drawn_at_the_top_of_the_module(cls: type[MLServeError]) -> None:
    drawing = errors.__doc__ or ""

    assert f" {cls.__name__} " in f"{drawing} ".replace("\n", " ").replace(":", " ")


@pytest.mark.parametrize(("error", "status", "code"), EXAMPLES, ids=lambda x: getattr(x, "code", x))
def test_every_error_has_its_own_status_and_code(
    error: MLServeError, status: int, code: str
) -> None:
    assert (error.status, error.code) == (status, code)


@pytest.mark.parametrize("error", [row[0] for row in EXAMPLES], ids=lambda error: error.code)
def test_every_message_is_a_sentence(error: MLServeError) -> None:
    assert str(error).endswith(".")


def test_every_class_that_can_be_raised_has_an_example_here() -> None:
    shown = {type(error) for error, _, _ in EXAMPLES}

    assert shown | {MLServeError, RequestError, CapacityError} == set(CLASSES)


def test_the_kinds_say_who_should_act() -> None:
    kinds = {type(error): error.kind for error, _, _ in EXAMPLES}

    assert {kind for cls, kind in kinds.items() if issubclass(cls, RequestError)} == {
        "RequestError"
    }
    assert {kind for cls, kind in kinds.items() if issubclass(cls, CapacityError)} == {
        "CapacityError"
    }
    assert {kind for cls, kind in kinds.items() if issubclass(cls, ModelError)} == {"ModelError"}
    assert MLServeError().kind == ReplicaDiedError("bert").kind == "ServerError"


def test_lack_of_capacity_says_when_to_try_again_and_a_spent_budget_does_not() -> None:
    assert QueueFullError("bert", 64).retry_after_s == 1.0
    assert ModelFailedError("bert", "it broke down").retry_after_s == 5.0
    assert DeadlineExceededError("infer", 1.0).retry_after_s is None
    assert OutOfMemoryError("bert").retry_after_s is None
    assert OutOfMemoryError("bert", batch_size=8).retry_after_s == 1.0
    assert QueueFullError("bert", 64, retry_after_s=2.5).retry_after_s == 2.5
    assert InvalidTimeoutError().retry_after_s is None
    assert ReplicaDiedError("bert").retry_after_s == 1.0


def test_a_configuration_error_is_a_value_error_too() -> None:
    assert isinstance(ConfigurationError("Wrong."), ValueError)


def test_an_invalid_input_names_the_field_at_fault() -> None:
    error = InvalidInputError("`text` is too long.", param="text")

    assert str(error) == "`text` is too long."
    assert error.param == "text"
    assert InvalidInputError("Too long.").param is None


def test_an_invalid_timeout_names_the_header() -> None:
    assert InvalidTimeoutError().param == "X-Request-Timeout"


def test_a_schema_violation_names_the_first_field() -> None:
    details: list[dict[str, object]] = [
        {"type": "missing", "loc": ["body", "items", 0, "text"], "msg": "Field required"}
    ]

    error = SchemaViolationError(details, n_errors=3)

    assert error.param == "items.0.text"
    assert error.details == details
    assert str(error).startswith("3 fields do not fit the schema.")
    assert "First at `items.0.text`: Field required." in str(error)


@pytest.mark.parametrize("location", [["text"], ["query", "text"], ["body", "text"]])
def test_a_schema_violation_leaves_out_where_the_field_was_sent(location: list[str]) -> None:
    error = SchemaViolationError([{"type": "missing", "loc": location, "msg": "Required"}], 1)

    assert error.param == "text"


@pytest.mark.parametrize("details", [[], [{"loc": ["body"], "msg": "No"}], [{"msg": "No"}]])
def test_a_schema_violation_of_the_whole_body_names_no_field(
    details: list[dict[str, object]],
) -> None:
    error = SchemaViolationError(details, n_errors=1)

    assert error.param is None
    assert str(error) == "1 field does not fit the schema. See `detail` for each."


def test_an_unknown_model_and_an_unknown_version_are_told_apart() -> None:
    assert "no model `bert`" in str(ModelNotFoundError("bert"))
    assert "no version `v9` of model `bert`" in str(ModelNotFoundError("bert", "v9"))


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (ModelNotFoundError("bert", "v2"), {"name": "bert", "version": "v2"}),
        (BodyTooLargeError(100), {"limit_bytes": 100}),
        (BodyTimeoutError(2.5), {"timeout_s": 2.5}),
        (QueueFullError("bert", 64), {"model": "bert", "limit": 64}),
        (OverloadedError("bert", 1.5), {"model": "bert", "wait_s": 1.5}),
        (OutOfMemoryError("bert"), {"model": "bert"}),
        (OutOfMemoryError("bert", batch_size=8), {"model": "bert", "batch_size": 8}),
        (ModelNotReadyError("bert", "loading"), {"model": "bert", "state": "loading"}),
        (DrainingError("bert"), {"model": "bert"}),
        (ModelFailedError("bert", "it broke"), {"model": "bert", "reason": "it broke"}),
        (DeadlineExceededError("queue", 1.5), {"stage": "queue", "timeout_s": 1.5}),
        (ReplicaDiedError("bert"), {"model": "bert"}),
    ],
    ids=lambda x: getattr(x, "code", ""),
)
def test_an_error_with_facts_keeps_them_and_says_them(
    error: MLServeError, facts: dict[str, object]
) -> None:
    for name, value in facts.items():
        assert getattr(error, name) == value
        assert str(value) in str(error)


def test_whoever_died_says_that_the_request_may_have_had_an_effect() -> None:
    assert "may or may not have had an effect" in str(ReplicaDiedError("bert"))


@pytest.mark.parametrize("duplicate", COPIES, ids=lambda x: x.__name__)
@given(error=raised())
def test_any_error_survives_pickle_and_copy_with_all_that_it_says(
    duplicate: Callable[[Any], Any], error: MLServeError
) -> None:
    other = duplicate(error)

    assert other is not error
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert (other.args, vars(other)) == (error.args, vars(error))


@pytest.mark.parametrize("duplicate", COPIES, ids=lambda x: x.__name__)
@pytest.mark.parametrize(
    "error", [TooLongError(9, limit=8), GoneError("No such page.", param="page")], ids=repr
)
def test_a_users_own_error_survives_too(
    duplicate: Callable[[Any], Any], error: InvalidInputError
) -> None:
    other = duplicate(error)

    assert (type(other), str(other), other.param) == (type(error), str(error), error.param)
    assert vars(other) == vars(error)


def test_cause_and_traceback_stay_behind_and_notes_do_not() -> None:
    error = InvalidInputError("`text` is empty.")
    error.add_note("Seen at night.")
    with pytest.raises(InvalidInputError):
        raise error from KeyError("text")

    other = pickled(error)

    assert (other.__cause__, other.__traceback__) == (None, None)
    assert other.__notes__ == ["Seen at night."]


def test_a_copy_has_attributes_of_its_own() -> None:
    error = QueueFullError("bert", 64)

    copy.copy(error).retry_after_s = 9.0

    assert error.retry_after_s == 1.0
