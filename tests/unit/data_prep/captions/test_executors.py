import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from data_prep.captions.executors import Job, LocalExecutor, SerialExecutor, make_executor
from data_prep.captions.settings import LocalSettings
from tests.support.jobs import fail, square, threads
from tests.support.program import ROOT


def jobs(arguments):
    return (Job(number, f"task {number}", argument) for number, argument in enumerate(arguments))


@pytest.fixture(scope="module", params=["serial", "local"])
def executor(request):
    executor = SerialExecutor() if request.param == "serial" else LocalExecutor(2)
    yield executor
    executor.close()


def test_processes_are_kept_from_one_run_to_the_next(monkeypatch):
    executor = LocalExecutor(2)
    pids = [{outcome.result[1] for outcome in executor.run(threads, jobs(range(8)))} for _ in range(2)]
    executor.close()
    assert pids[0] & pids[1] and len(pids[0] | pids[1]) <= 2


def test_every_job_has_one_outcome(executor):
    found = sorted(executor.run(square, jobs(range(20))), key=lambda outcome: outcome.number)
    assert [(outcome.number, outcome.name, outcome.result) for outcome in found] == [
        (number, f"task {number}", number * number) for number in range(20)
    ]
    assert {outcome.error for outcome in found} == {None}


def test_no_jobs(executor):
    assert list(executor.run(square, iter(()))) == []


def test_failures_are_outcomes_and_take_no_other_with_them(executor):
    found = {outcome.number: outcome for outcome in executor.run(fail, jobs([1, "input", 2, "full", "bug", 3]))}
    assert [found[number].result for number in (0, 2, 5)] == [1, 2, 3]
    assert found[1].error == "in.tar: bad" and not found[1].no_space
    assert found[3].error == "No space left on device (x.tar)" and found[3].no_space
    assert found[4].error == "ZeroDivisionError: of nothing"


def test_jobs_are_taken_as_they_are_needed(executor):
    taken = itertools.count()

    def counted():
        for job in jobs(range(100)):
            next(taken)
            yield job

    outcomes = executor.run(square, counted())
    for _ in range(3):
        next(outcomes)
    assert next(taken) <= 3 + 2 * executor.processes + 1
    outcomes.close()


def test_a_killed_process_fails_the_job_that_killed_it_alone():
    arguments = [1, 2, "killed", *range(3, 12), "killed", 12]
    found = {outcome.number: outcome for outcome in LocalExecutor(2).run(fail, jobs(arguments))}
    assert len(found) == len(arguments)
    for number, argument in enumerate(arguments):
        if argument == "killed":
            assert "process died" in found[number].error
        else:
            assert found[number].result == argument and found[number].error is None


def test_processes_have_one_thread_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = list(LocalExecutor(2).run(threads, jobs(range(6))))
    assert {outcome.result[0] for outcome in found} == {"1"}
    assert os.getpid() not in {outcome.result[1] for outcome in found}


def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "from data_prep.captions.executors import Job, LocalExecutor; from tests.support.jobs import beat\n"
        f"jobs = [Job(number, 'x', {str(tmp_path)!r}) for number in range(2)]\n"
        "if __name__ == '__main__': list(LocalExecutor(2).run(beat, iter(jobs)))\n"
    )
    (tmp_path / "driver.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py"], cwd=ROOT, env=environment)

    def beats():
        return {path.name: path.read_text() for path in tmp_path.iterdir() if path.name.isdigit()}

    deadline = time.monotonic() + 60
    while len(beats()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(beats()) == 2
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(1)
    before = beats()
    time.sleep(0.5)
    assert beats() == before


def test_local_takes_every_core():
    assert make_executor(LocalSettings()).processes == len(os.sched_getaffinity(0))
    assert make_executor(LocalSettings(processes=3)).processes == 3
