"""Many things at a time, in order."""

import gc
import threading

import pytest

from patch_diffusion.data.reading.parallel import in_order


def test_results_are_in_order_and_errors_take_the_place_of_theirs():
    found = list(in_order(lambda number: 6 // number, range(100), ""))
    assert [number for number, _ in found] == list(range(100))
    assert isinstance(found[0][1], ZeroDivisionError) and [result for _, result in found[1:]] == [
        6 // number for number in range(1, 100)
    ]


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.slow
def test_what_is_not_read_to_its_end_waits_for_no_thread(forgotten):
    """It may be closed by any thread at any time: one that has begun to read and was given up, as after an error."""
    go, ended, begun = threading.Event(), [], threading.Event()

    def task(number):
        if number:
            begun.set()
            go.wait(5)
            ended.append(number)
        return number

    found = in_order(task, range(8), "")  # one at a time to each thread
    assert next(found) == (0, 0)
    assert begun.wait(5)
    if forgotten:
        cycle = [found]
        cycle.append(cycle)
        del found, cycle
        gc.collect()
    else:
        found.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not ended
    go.set()
