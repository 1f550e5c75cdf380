"""The states of a model: only the moves that are drawn are possible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlserve.lifecycle import Lifecycle, ModelState

UNLOADED, LOADING, WARMING, READY, RESTARTING, FAILED, DRAINING, STOPPED = ModelState

LEGAL = {
    (UNLOADED, LOADING),
    (UNLOADED, STOPPED),
    (LOADING, WARMING),
    (LOADING, FAILED),
    (LOADING, DRAINING),
    (WARMING, READY),
    (WARMING, FAILED),
    (WARMING, DRAINING),
    (READY, RESTARTING),
    (READY, FAILED),
    (READY, DRAINING),
    (RESTARTING, READY),
    (RESTARTING, FAILED),
    (RESTARTING, DRAINING),
    (FAILED, READY),
    (FAILED, LOADING),
    (FAILED, DRAINING),
    (DRAINING, STOPPED),
    (STOPPED, LOADING),
}

states = st.sampled_from(ModelState)


def test_a_model_is_unloaded_at_first() -> None:
    life = Lifecycle()

    assert life.state is UNLOADED
    assert life.reason is None
    assert not life.is_ready


def test_a_model_goes_from_loading_to_stopped() -> None:
    life = Lifecycle()

    for state in (LOADING, WARMING, READY, DRAINING, STOPPED):
        life.move(state)
        assert life.is_ready is (state is READY)


def test_a_model_that_is_restarting_admits_requests_but_is_not_ready() -> None:
    life = Lifecycle()
    for state in (LOADING, WARMING, READY, RESTARTING):
        life.move(state)

    assert life.admits
    assert not life.is_ready


@given(st.lists(states, max_size=40))
def test_a_random_walk_makes_legal_moves_only(walk: list[ModelState]) -> None:
    life = Lifecycle()

    for state in walk:
        before = life.state
        is_legal = (before, state) in LEGAL
        assert life.can_move(state) is is_legal
        if is_legal:
            life.move(state)
            assert life.state is state
        else:
            with pytest.raises(ValueError, match="cannot become"):
                life.move(state)
            assert life.state is before


@given(st.lists(states, max_size=40))
def test_a_draining_model_serves_again_only_after_a_new_load(walk: list[ModelState]) -> None:
    life = Lifecycle()
    for state in (LOADING, WARMING, READY, DRAINING):
        life.move(state)

    for state in walk:
        if state is LOADING and life.can_move(state):
            return
        if life.can_move(state):
            life.move(state)
        assert not life.is_ready


def test_an_illegal_move_says_from_where_to_where() -> None:
    with pytest.raises(ValueError, match="A model that is unloaded cannot become ready"):
        Lifecycle().move(READY)


def test_a_reason_lasts_until_the_next_move() -> None:
    life = Lifecycle()
    life.move(LOADING)
    life.move(FAILED, "loading failed with OSError")

    assert life.reason == "loading failed with OSError"
    assert repr(life) == "<Lifecycle failed: loading failed with OSError>"

    life.move(LOADING)

    assert life.reason is None
    assert repr(life) == "<Lifecycle loading>"


class LifecycleMachine(RuleBasedStateMachine):
    """The lifecycle beside the last state and reason that were accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle()
        self.state = UNLOADED
        self.reason: str | None = None

    @rule(state=states, reason=st.none() | st.just("why"))
    def move(self, state: ModelState, reason: str | None) -> None:
        if (self.state, state) in LEGAL:
            self.life.move(state, reason)
            self.state, self.reason = state, reason
        else:
            with pytest.raises(ValueError, match="cannot become"):
                self.life.move(state, reason)

    @invariant()
    def nothing_but_accepted_moves_shows(self) -> None:
        assert (self.life.state, self.life.reason) == (self.state, self.reason)
        assert {s for s in ModelState if self.life.can_move(s)} == {
            after for before, after in LEGAL if before is self.state
        }

    @invariant()
    def there_is_always_a_way_on(self) -> None:
        assert any(self.life.can_move(state) for state in ModelState)


TestLifecycleAgainstTheDrawing = LifecycleMachine.TestCase
