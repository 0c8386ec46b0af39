"""`simzss cache` as a program: killed, by two processes, and as the command line tells it."""

import json
import re
import resource
import signal
import sys

import pytest

from simzss import cli
from simzss.features.folder import FeatureFolder
from simzss.features.store import FeatureStore
from tests.support.caching import cache_arguments, jpeg_shards
from tests.support.files import contents
from tests.support.program import exit_code
from tests.support.threads import one_thread  # noqa: F401
from tests.support.two_nodes import finish, slurm, start, wait_for

SIZES = (40, 40, 7, 90)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    jpeg_shards(folder, SIZES, broken=(5, 100))
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """What one process makes that nobody disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, cache_arguments(shards, output)) == 0
    return contents(output)


def run(monkeypatch, arguments):
    return exit_code(lambda: cli.dispatch(sys.argv[1:]), arguments, monkeypatch)


def test_killed_again_and_again_it_ends_as_if_undisturbed(shards, undisturbed, tmp_path):
    output = tmp_path / "cache"
    folder = FeatureFolder(output)
    moments = [folder.chunk_record(0, 1), folder.record(0), folder.result(1, 4), folder.chunk_record(3, 1)]
    for turn, moment in enumerate(moments):
        arguments = cache_arguments(shards, output, f"data.num_workers={turn % 2}", "batch_size=3")
        (node,) = start(tmp_path / f"kill{turn}", [arguments])
        wait_for(moment, node)
        node.process.kill()
        node.process.join()
        assert node.process.exitcode == -signal.SIGKILL
        assert not folder.index.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("features-000000-*")}
    (node,) = start(tmp_path / "last", [cache_arguments(shards, output)])
    assert finish([node]) == [0], node.log
    assert contents(output) == undisturbed
    assert len(kept) > 1 and {name: (output / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize("launcher", [None, slurm])
def test_two_processes_make_the_bytes_of_one(shards, undisturbed, tmp_path, launcher):
    arguments = cache_arguments(shards, tmp_path / "cache", "data.num_workers=1")
    nodes = start(tmp_path, [arguments] * 2, *([launcher] if launcher else []))
    assert finish(nodes, 100) == [0, 0], [node.log for node in nodes]
    assert contents(tmp_path / "cache") == undisturbed
    assert "features of 175 images" in nodes[0].log and "skipped 2 samples" in nodes[0].log
    assert nodes[1].log == ""
    shares = [FeatureStore.open(tmp_path / "cache", rank, 2) for rank in range(2)]
    assert sum(map(len, shares)) == 175


def test_what_is_wrong_for_one_process_ends_both(shards, tmp_path):
    """Only process 1 sees other shards."""
    other = tmp_path / "other"
    jpeg_shards(other, SIZES[:3])
    arguments = [cache_arguments(folder, tmp_path / "cache") for folder in (shards, other)]
    nodes = start(tmp_path, arguments)
    assert finish(nodes, 100) == [2, 2], [node.log for node in nodes]
    for node in nodes:
        (line,) = [line for line in node.log.splitlines() if line.startswith("error: ")]
        assert "process 1 on" in line and "sees other shards (3)" in line
    assert not (tmp_path / "cache").exists()


def test_a_process_that_fails_stops_the_other(shards, tmp_path):
    """Else the one that failed waits for it longer than a collective does. The disk is full for process 1 alone."""
    nodes = start(tmp_path, [cache_arguments(shards, tmp_path / "cache", "batch_size=1")] * 2)
    resource.prlimit(nodes[1].process.pid, resource.RLIMIT_FSIZE, (5000, 5000))
    assert finish(nodes, 100) == [2, 2], [node.log for node in nodes]
    assert "stopped: another process has failed" in nodes[0].log.splitlines()[-1]
    assert re.search(r"error: .*features-00000[13]-.*: File too large", nodes[1].log.splitlines()[-1])
    assert not (tmp_path / "cache" / "index.json").exists()


def test_command_line(shards, tmp_path, monkeypatch, capsys):
    output = tmp_path / "cache"
    assert run(monkeypatch, cache_arguments(shards, output, "views=2", "storage=int8")) == 0
    captured = capsys.readouterr()
    assert captured.out == f"features: {output} (175 images, 2 skipped)\n"
    index = json.loads((output / "index.json").read_text())
    assert (index["facts"]["transform"]["views"], index["facts"]["storage"]) == (2, "int8")
    assert run(monkeypatch, cache_arguments(shards, output, "views=3", "storage=int8")) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "transform.views was 2 and is 3" in captured.err and "give another output=" in captured.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.shards=gone/*.tar", "data.shards=gone/*.tar matches no file"),
        ("views=5", "views=5"),
        ("backbone.weights=gone", "backbone.weights=gone does not exist"),
        ("view=2", "unknown key 'view'"),
    ],
)
def test_refused_before_anything_is_made(shards, tmp_path, monkeypatch, capsys, override, says):
    arguments = cache_arguments(shards, tmp_path / "cache", override)
    assert run(monkeypatch, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and says in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "cache").exists()
