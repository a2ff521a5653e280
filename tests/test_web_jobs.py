import asyncio
import threading
import warnings

import pytest

from patch_diffusion.errors import InputError, Note
from patch_diffusion.web import jobs
from patch_diffusion.web.jobs import BusyError, Jobs


def after(job, *seen, wait=0.0):
    """Its state and news."""
    return asyncio.run(job.after(*seen, wait=wait))


def over(job):
    """The state in which a job ended, and its events."""
    state, events = after(job, 0)
    while not job.is_over:
        state, events = after(job, len(events) + 1, state, wait=20)
    return after(job, 0)


def test_one_after_the_other_in_their_order(tmp_path):
    queue, order, gate = Jobs(tmp_path), [], threading.Event()

    def task(number):
        def work(job):
            gate.wait(20)
            order.append(number)
            job.tell("step", number=number)

        return work

    added = [queue.add(task(number)) for number in range(20)]
    after(added[0], 0, "waiting", wait=20)
    assert [queue.ahead_of(job) for job in added[:4]] == [0, 1, 2, 3]
    gate.set()
    assert [over(job) for job in added] == [("done", [{"event": "step", "number": number}]) for number in range(20)]
    assert order == list(range(20)) and queue.find(added[3].id) is added[3] and queue.find("other") is None


def test_what_fails_does_not_stop_the_next(tmp_path, capsys):
    queue = Jobs(tmp_path)

    def fail(error):
        def work(job):
            raise error

        return work

    wrong, gone, defect = (
        queue.add(fail(error))
        for error in (InputError("too many steps"), FileNotFoundError(2, "No such file", "runs/x"), MemoryError())
    )
    last = queue.add(lambda job: job.tell("step"))
    assert over(last)[0] == "done"
    assert (wrong.state, wrong.reason) == ("failed", "too many steps")
    assert (gone.state, gone.reason) == ("failed", "No such file: runs/x")
    assert defect.state == "failed" and "MemoryError" in defect.reason and "Traceback" in capsys.readouterr().err


def test_jobs_are_stopped_running_and_waiting(tmp_path):
    queue, gate, begun = Jobs(tmp_path), threading.Event(), threading.Event()

    def work(job):
        begun.set()
        gate.wait(20)
        job.tell("step")
        raise AssertionError("it was not stopped")

    running, waiting, last = queue.add(work), queue.add(work), queue.add(lambda job: None)
    assert begun.wait(20)
    queue.stop(waiting)
    assert waiting.state == "stopped" and queue.ahead_of(last) == 1
    queue.stop(running)
    gate.set()
    assert over(running) == ("stopped", [{"event": "step"}]) and over(last)[0] == "done"


def test_a_job_that_no_page_asks_for_is_stopped(tmp_path, monkeypatch):
    queue, gate = Jobs(tmp_path), threading.Event()

    def work(job):
        gate.wait(20)
        job.tell("step")

    monkeypatch.setattr(jobs, "_LONELY_SECONDS", -1.0)
    lonely = queue.add(work)
    gate.set()
    while not lonely.is_over:
        gate.wait(0.01)
    assert lonely.state == "stopped"


def test_a_job_that_no_page_asks_for_gives_way_to_others(tmp_path, monkeypatch):
    queue, gate, begun = Jobs(tmp_path), threading.Event(), threading.Event()

    def work(job):
        job.tell("step")  # nobody waits yet
        begun.set()
        gate.wait(20)
        job.tell("step")
        job.tell("never")

    monkeypatch.setattr(jobs, "_LONELY_IN_THE_WAY", -1.0)
    lonely = queue.add(work)
    assert begun.wait(20)
    other = queue.add(lambda job: None)
    gate.set()
    assert over(other)[0] == "done" and len(lonely.events) == 2
    assert lonely.state == "stopped" and "its page was closed" in lonely.reason


def test_what_is_over_is_told_the_newest_first(tmp_path):
    queue, gate = Jobs(tmp_path), threading.Event()
    first, second = (queue.add(lambda job: None, {"seed": seed}) for seed in (1, 2))
    running = queue.add(lambda job: gate.wait(20))
    assert over(second)[0] == "done"
    assert [job.about["seed"] for job in queue.over()] == [2, 1] and first.asked_at <= second.asked_at
    gate.set()
    assert over(running)[0] == "done" and queue.over()[0] is running


def test_not_too_many_wait_and_not_too_many_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_WAITING", 2)
    monkeypatch.setattr(jobs, "_KEPT", 1)
    queue, gate, begun = Jobs(tmp_path), threading.Event(), threading.Event()

    def work(job):
        begun.set()
        (job.folder / "picture.png").write_bytes(b"1")
        gate.wait(20)

    first = queue.add(work)
    assert begun.wait(20)
    others = [queue.add(work) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting already"):
        queue.add(work)
    gate.set()
    assert [over(job)[0] for job in (first, *others)] == ["done"] * 3
    queue.add(work)
    assert queue.find(first.id) is None and not first.folder.exists() and others[1].folder.exists()


def test_at_the_end_the_step_that_is_taken_is_waited_for(tmp_path):
    queue, begun, ended = Jobs(tmp_path), threading.Event(), []

    def work(job):
        begun.set()
        while not job.asked_to_stop:
            threading.Event().wait(0.01)
        ended.append(1)
        job.tell("step")
        ended.append(2)

    running, waiting = queue.add(work), queue.add(work)
    assert begun.wait(20)
    queue.close()
    assert ended == [1] and (running.state, waiting.state) == ("stopped", "stopped")


def test_news_come_while_the_job_goes_on(tmp_path):
    queue, begin, gate = Jobs(tmp_path), threading.Event(), threading.Event()

    def work(job):
        begin.wait(20)
        job.tell("step")
        gate.wait(20)

    job = queue.add(work)
    threading.Timer(0.1, begin.set).start()
    state, events = after(job, 0, "running", wait=60)
    while not events:  # it had not begun
        state, events = after(job, 0, "running", wait=60)
    assert (state, events) == ("running", [{"event": "step"}]) and not job._wakes
    gate.set()
    queue.close()


def test_notes_are_told_once_each(tmp_path):
    """Those of the package that go to stderr elsewhere; after the job all is as before."""
    queue, before = Jobs(tmp_path), warnings.showwarning

    def work(job):
        for text in ("few steps", "few steps", "a large image"):
            warnings.warn(text, Note, stacklevel=1)

    events = [{"event": "note", "text": text} for text in ("few steps", "a large image")]
    assert over(queue.add(work)) == ("done", events)
    assert warnings.showwarning is before
