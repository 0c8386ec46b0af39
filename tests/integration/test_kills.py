"""`data_prep.captions` killed again and again: the output is that of an undisturbed run, byte for byte.

`make kills` does it ten times under each executor; the tests of every day do it once.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import data_prep.captions.program as program
from simzss.data.shards import Sample, read_shards
from tests.support.captioned import captioned_photos
from tests.support.files import contents
from tests.support.program import ROOT, exit_code
from tests.support.ray_cluster import ray_cluster

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SIMZSS_KILLS", "1"))
TASKS = max(24, 12 * KILLS)
PHOTOS = 20 * TASKS
PATIENCE = 120  # seconds


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return captioned_photos(tmp_path_factory.mktemp("photos"), PHOTOS)


@pytest.fixture(scope="module")
def arguments(photos):
    images, captions = photos
    return [f"images={images}", f"captions={captions}", "samples_per_shard=20", "filters.exact_duplicates=drop"]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    """The output of a run in one process."""
    output = tmp_path_factory.mktemp("undisturbed") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        assert exit_code(program.main, [*arguments, "executor=serial", f"output={output}"], patch) == 0
    found = list(read_shards(sorted(map(str, output.glob("*.tar")))))
    assert len(found) == PHOTOS and all(isinstance(sample, Sample) for sample in found)
    return contents(output)


def start(arguments, output, *more):
    command = [sys.executable, "-m", "data_prep.captions", *arguments, *more, f"output={output}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def done(output):
    """Files of finished work: fingerprints and records of tasks."""
    return len(list((output / ".tasks").glob("[0-9]*"))) if output.exists() else 0


def kill_at_random_moments(arguments, output, executor, rng):
    """Kill the program so many times, after a random share of the work; returns how much was done at each moment."""
    moments = []
    for _ in range(KILLS):
        program = start(arguments, output, *executor)
        # Counted in work: the seconds of loading libraries before it leave nothing to break.
        goal = done(output) + rng.randrange(2 * TASKS // KILLS)
        deadline = time.monotonic() + PATIENCE
        while program.poll() is None and done(output) < goal and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        program.send_signal(signal.SIGKILL)
        printed, _ = program.communicate()
        assert program.returncode == -signal.SIGKILL, printed
        moments.append(done(output))
    return moments


def check_kills(arguments, tmp_path, undisturbed, executor, seed):
    output = tmp_path / "shards"
    moments = kill_at_random_moments(arguments, output, executor, random.Random(seed))
    print(f"done when it was killed: {moments} of {2 * TASKS}")
    assert any(0 < moment < 2 * TASKS for moment in moments)
    program = start(arguments, output, *executor)
    printed, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, printed
    assert contents(output) == undisturbed


def test_killed_local(arguments, tmp_path, undisturbed):
    check_kills(arguments, tmp_path, undisturbed, ["executor.processes=2"], seed=0)


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster() as address:
        yield address


def test_ray_on_two_nodes_gives_the_bytes_of_one_process(arguments, tmp_path, undisturbed, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not the working directory of the nodes
    executor = ["executor=ray", f"executor.address={cluster}"]
    assert exit_code(program.main, [*arguments, *executor, "output=shards"], monkeypatch) == 0
    assert contents(tmp_path / "shards") == undisturbed


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["executor.cpus=2"], "executor.cpus=2 executor.gpus=0: no machine of the Ray cluster has so many"),
        (["executor.gpus=1"], "no machine of the Ray cluster has so many"),
        (["executor.address=127.0.0.1:1"], "executor.address=127.0.0.1:1: no Ray cluster is reached"),
    ],
)
def test_ray_that_cannot_do_it_is_one_line(arguments, tmp_path, cluster, monkeypatch, capsys, settings, says):
    executor = ["executor=ray", f"executor.address={cluster}", *settings]
    assert exit_code(program.main, [*arguments, *executor, f"output={tmp_path / 'shards'}"], monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and says in last
    assert not (tmp_path / "shards").exists()


def test_killed_ray(arguments, tmp_path, undisturbed, cluster):
    check_kills(arguments, tmp_path, undisturbed, ["executor=ray", f"executor.address={cluster}"], seed=1)
