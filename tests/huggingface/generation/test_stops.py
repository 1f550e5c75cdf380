"""Stops are cut from a text, however it comes in pieces."""

from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.huggingface.generation.stops import StopFinder

letters = st.text("ab\n", min_size=1, max_size=4)


def whole(text: str, stops: list[str]) -> str:
    """Cut a text at its first stop."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


@given(text=st.text("ab\n", max_size=30), stops=st.lists(letters, max_size=4), data=st.data())
@example(text="aab", stops=["ab"], data=None)
def test_pieces_make_up_the_text_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject | None
) -> None:
    finder, got, at = StopFinder(stops), "", 0
    while at < len(text):
        n = 1 if data is None else data.draw(st.integers(1, 5))
        got += finder.feed(text[at : at + n])
        at += n
        assert not any(stop in got for stop in stops)
        if finder.is_stopped:
            break
    got += finder.finish()

    # Of two stops that overlap, which one comes first depends on the pieces.
    assert whole(text, stops).startswith(got) or got == whole(text[:at], stops)
    if not stops or not any(stop in text for stop in stops):
        assert got == text


@given(text=st.text("ab", max_size=20), stop=letters)
def test_one_stop_cuts_in_the_same_place_whatever_the_pieces(text: str, stop: str) -> None:
    finder = StopFinder([stop])
    got = "".join(finder.feed(letter) for letter in text) + finder.finish()

    assert got == whole(text, [stop])
    assert finder.is_stopped is (stop in text)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    finder = StopFinder(["END"])

    assert finder.feed("one E") == "one "
    assert finder.feed("N") == ""
    assert finder.feed("O") == "ENO"
    assert finder.feed("E") == ""
    assert finder.finish() == "E"


def test_nothing_is_let_through_after_a_stop() -> None:
    finder = StopFinder(["."])

    assert finder.feed("a. b") == "a"
    assert finder.feed("c") == ""
    assert finder.finish() == ""
