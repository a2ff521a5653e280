import pytest

from kills import differences, kill_and_continue, start


@pytest.mark.scheduled
@pytest.mark.parametrize(("processes", "kills"), [(1, 2), (2, 1)])
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path, processes, kills):
    """`benchmarks/kills.py` does the same with fifty."""
    whole = start(tmp_path / "whole", 20, processes)
    errors = whole.communicate(timeout=300)[1]
    assert whole.returncode == 0, errors
    told = kill_and_continue(tmp_path / "killed", kills=kills, steps=20, seed=0, processes=processes)
    assert told["kills"] == kills
    assert differences(tmp_path / "killed", tmp_path / "whole") == []
