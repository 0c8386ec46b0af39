import json
import subprocess
import sys
from pathlib import Path

import pytest

from simzss.atomic import partial_path, write_json
from simzss.errors import InputError
from simzss.tasks import TaskFolder, differences
from tests.support.files import contents
from tests.support.models import refused
from tests.support.program import ROOT

SETTINGS = {"format": 1, "filters": {"min_words": 3}, "roots": ("a", "b")}


class Folder(TaskFolder):
    result_name = "shard"
    result_suffix = ".tar"
    manifest_name = "settings.json"


def enter(path, settings=SETTINGS):
    with Folder.open(path, settings):
        pass


def begun(path) -> Folder:
    """A folder with one finished task of two chunks."""
    with Folder.open(path, SETTINGS) as folder:
        for chunk in range(2):
            folder.result(3, chunk).write_bytes(b"whole")
        write_json(folder.record(3), {})
    return folder


def test_what_is_there_by_task(tmp_path):
    folder = begun(tmp_path / "out")
    (folder.tasks / "000030.fingerprints.npz").touch()
    folder.result(1234567, 0).touch()
    assert folder.listing() == {
        3: {folder.record(3), folder.result(3, 0), folder.result(3, 1)},
        30: {folder.tasks / "000030.fingerprints.npz"},
        1234567: {folder.result(1234567, 0)},
    }


def test_the_done_marker_is_removed_first(tmp_path, monkeypatch):
    folder = begun(tmp_path / "out")
    (folder.tasks / "000003-001.json").touch()
    order = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: order.append(path.name))
    folder.remove(folder.listing()[3])
    assert order == ["000003.json", "000003-001.json", "shard-000003-001.tar", "shard-000003-000.tar"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    folder = begun(tmp_path / "out")
    before = contents(folder.path)
    folder.scratch.mkdir()
    for path in (partial_path(folder.result(1, 0)), partial_path(folder.record(1)), folder.scratch / "coco.sqlite"):
        path.write_bytes(b"half")
    enter(folder.path)
    assert contents(folder.path) == before and not folder.scratch.exists()


def test_half_a_result_alone_is_no_other_content(tmp_path):
    partial_path(Folder(tmp_path).result(0, 0)).write_bytes(b"half")
    begun(tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("[!.]*"))] == ["shard-000003-000.tar", "shard-000003-001.tar"]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"filters": {"min_words": 4}}, "filters.min_words was 3 and is 4"), ({"new": 1}, "new was null and is 1")],
)
def test_other_settings_are_refused_and_named(tmp_path, change, says):
    folder = begun(tmp_path / "out")
    assert json.loads(folder.manifest.read_text()) == SETTINGS | {"roots": ["a", "b"]}
    before = contents(folder.path)
    refused(lambda: enter(folder.path, SETTINGS | change), f"output={folder.path}", says)
    assert contents(folder.path) == before


def test_lost_settings_are_refused_where_there_is_work(tmp_path):
    folder = begun(tmp_path / "out")
    folder.manifest.write_text("{")
    before = contents(folder.path)
    refused(lambda: enter(folder.path), "settings.json is missing or broken", "remove the folder")
    assert contents(folder.path) == before


def test_differences_are_named_with_both_values():
    was = {"a": {"x": 1, "gone": "z"}, "grid": [4, 4], "same": None}
    now = {"a": {"x": 2.5}, "grid": [4, 5], "same": None, "new": True}
    assert differences(was, now) == [
        "a.gone was z and is null",
        "a.x was 1 and is 2.5",
        "grid was [4, 4] and is [4, 5]",
        "new was null and is true",
    ]


HOLD = """
import os, time
from pathlib import Path
from simzss.tasks import TaskFolder
class Folder(TaskFolder):
    result_name, result_suffix, manifest_name = "shard", ".tar", "settings.json"
with Folder.open(Path({path!r}), {settings}) as folder:
    (folder.scratch / "own").touch()
    if not os.fork():  # a process that decodes, say, and outlives this one
        print("held", flush=True)
    time.sleep(5)
"""


def test_one_run_at_a_time_and_none_after_a_kill(tmp_path):
    folder = begun(tmp_path / "out")
    command = [sys.executable, "-c", HOLD.format(path=str(folder.path), settings=SETTINGS)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        before = contents(folder.path)
        refused(lambda: enter(folder.path), f"output={folder.path} is being written by another run")
        assert contents(folder.path) == before
    finally:
        other.kill()
        other.wait()
    enter(folder.path)
    assert not folder.scratch.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), InputError("full"), OSError("broken")])
@pytest.mark.parametrize("made", [None, "shard-000000-000.tar", ".tasks/000000.fingerprints.npz"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_error_leaves_results_or_nothing(tmp_path, error, made, exists):
    path = tmp_path / "out"
    if exists:
        path.mkdir()
    with (
        pytest.raises(InputError if isinstance(error, OSError) else type(error)),
        Folder.open(path, SETTINGS) as folder,
    ):
        write_json(folder.record(0), {})
        write_json(folder.index, {})
        if made is not None:
            (path / made).write_bytes(b"hours")
        raise error
    if made is None:
        assert list(tmp_path.rglob("*")) == [path] * exists
    else:
        assert (path / made).exists()
        enter(path)


def test_an_error_of_the_system_is_one_line(tmp_path):
    def fails():
        with Folder.open(tmp_path / "out", SETTINGS) as folder:
            write_json(folder.path / "below" / "x", {})

    refused(fails, f"{tmp_path}/out/below/x: No such file", "the same command goes on")


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "file", "link", "full"])
def test_places_where_it_cannot_be(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    refused(lambda: enter(tmp_path / name), f"output={tmp_path / name} ")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_path_is_absolute_within(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Folder.open(Path("out"), SETTINGS) as folder:
        assert folder.path == tmp_path / "out"
