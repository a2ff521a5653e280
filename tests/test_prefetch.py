"""Items that are prepared ahead, in a thread, while the one before is in use."""

import gc
import threading
from typing import NamedTuple

import pytest

import patch_diffusion as pd
from patch_diffusion.training import prefetch
from patch_diffusion.training.prefetch import Prefetcher


class Item(NamedTuple):
    value: int
    following: int


def item(key):
    return Item(10 * key, key + 1)


def test_gives_the_item_of_each_key_whatever_was_guessed():
    ahead = Prefetcher(item)
    assert [ahead.get(key).value for key in (3, 4, 5, 9, 2, 3)] == [30, 40, 50, 90, 20, 30]


def test_the_next_item_is_prepared_before_it_is_asked_for():
    begun = threading.Event()
    ahead = Prefetcher(lambda key: (begun.set() if key == 1 else None, item(key))[1])
    ahead.get(0)
    assert begun.wait(10)  # nobody asked for it yet


def test_a_guess_that_does_not_fit_is_made_anew():
    """A key may hold what its equality leaves out, such as the spent part of a budget."""

    class Key(NamedTuple):
        step: int
        guess: int

        def __eq__(self, other):
            return self.step == other.step

        __hash__ = None

    class Guessed(NamedTuple):
        guess: int
        following: Key

    made = []

    def make(key):
        made.append(key.guess)
        return Guessed(key.guess, Key(key.step + 1, key.guess))

    ahead = Prefetcher(make, fits=lambda found, key: found.guess == key.guess)
    assert [ahead.get(Key(step, guess)).guess for step, guess in enumerate((7, 7, 8, 8))] == [7, 7, 8, 8]
    assert made[:5] == [7, 7, 7, 8, 8]


def preparing_threads():
    return [thread for thread in threading.enumerate() if thread.name == "preparing batches"]


@pytest.mark.slow
def test_the_thread_goes_with_its_owner():
    before = set(preparing_threads())
    ahead = Prefetcher(item)
    ahead.get(0)
    [thread] = set(preparing_threads()) - before
    del ahead
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_disk_that_does_not_answer_is_told_then_an_error(monkeypatch):
    answers, notes = threading.Event(), []
    monkeypatch.setattr(prefetch, "SECONDS_TO_A_NOTE", 0.05)
    monkeypatch.setattr(prefetch, "SECONDS_TO_THE_END", 0.2)
    ahead = Prefetcher(lambda key: answers.wait(60) and item(key), where=lambda: "a.npy", note=notes.append)
    try:
        with pytest.raises(pd.InputError, match=r"^no data from a\.npy for 0 minutes: is the disk there\?"):
            ahead.get(0)
    finally:
        answers.set()
    assert notes == ["waiting for data since 0 s: a.npy"]


def test_a_disk_that_answers_late_is_told_only(monkeypatch):
    answers, notes = threading.Event(), []
    monkeypatch.setattr(prefetch, "SECONDS_TO_A_NOTE", 0.05)
    ahead = Prefetcher(
        lambda key: answers.wait(60) and item(key), note=lambda text: (notes.append(text), answers.set())
    )
    assert ahead.get(4).value == 40 and len(notes) == 1


def test_errors_come_out_where_the_item_is_asked_for_and_the_thread_lives_on():
    def make(key):
        if key == 1:
            raise MemoryError("too much")
        return item(key)

    ahead = Prefetcher(make)
    ahead.get(0)
    with pytest.raises(MemoryError, match="too much"):
        ahead.get(1)
    assert ahead.get(2).value == 20
