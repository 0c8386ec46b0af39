import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.captions.output import OutputFolder, opened
from simzss.atomic import partial_path, write_json
from simzss.errors import InputError
from tests.support.files import contents
from tests.support.program import ROOT

RECIPE = {"format": 1, "filters": {"min_words": 3}, "roots": ("a", "b")}


def test_finished_needs_the_record_and_every_shard_whole(tmp_path):
    output = OutputFolder(tmp_path)
    output.tasks.mkdir()
    assert output.finished(3) is None
    record = {"task": "x", "stamp": "y", "repeats": ""}
    record["shards"] = [{"name": output.shard(3, part).name, "bytes": 5} for part in range(2)]
    write_json(output.record(3), record)
    assert output.finished(3) is None
    for part in range(2):
        output.shard(3, part).write_bytes(b"12345")
    assert output.finished(3) == record
    output.shard(3, 1).write_bytes(b"1234")
    assert output.finished(3) is None
    output.record(3).write_text("{}")
    assert output.finished(3) is None


def test_forget(tmp_path):
    output = OutputFolder(tmp_path)
    output.tasks.mkdir()
    for number in (3, 30):
        parts = (output.shard(number, 0), output.shard(number, 1))
        for path in (output.record(number), output.fingerprints(number), output.dropped(number), *parts):
            path.write_bytes(b"")
    assert output.numbers() == {3, 30}
    output.forget(3)
    assert output.numbers() == {30}
    assert len(contents(tmp_path)) == 5
    assert output.shards(3) == [] and output.shards(30) == [output.shard(30, 0), output.shard(30, 1)]
    output.record(30).unlink()
    output.shard(7, 0).write_bytes(b"")
    assert output.numbers() == {7, 30}


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    with opened(tmp_path / "out", RECIPE) as output:
        output.shard(0, 0).write_bytes(b"whole")
        write_json(output.record(0), {"shards": []})
        partial_path(output.shard(1, 0)).write_bytes(b"half")
        partial_path(output.record(1)).write_bytes(b"half")
        (output.scratch / "coco.sqlite").write_bytes(b"x")
    before = contents(tmp_path / "out")
    with opened(tmp_path / "out", RECIPE):
        pass
    after = contents(tmp_path / "out")
    assert before.keys() - after.keys() == {name for name in before if "partial" in name}
    assert len(before) - len(after) == 2


def test_other_settings_are_refused_and_named(tmp_path):
    with opened(tmp_path / "out", RECIPE) as output:
        output.shard(0, 0).write_bytes(b"whole")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=r"begun with other settings: filters was .*3.* and is .*4"):
        opened(tmp_path / "out", RECIPE | {"filters": {"min_words": 4}}).__enter__()
    with pytest.raises(InputError, match="new was None and is 1"):
        opened(tmp_path / "out", RECIPE | {"new": 1}).__enter__()
    assert contents(tmp_path / "out") == before


def test_lost_settings_are_refused_where_there_is_work(tmp_path):
    with opened(tmp_path / "out", RECIPE) as output:
        output.shard(0, 0).write_bytes(b"whole")
        write_json(output.record(0), {"shards": []})
    (tmp_path / "out" / ".tasks" / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is missing or broken"):
        opened(tmp_path / "out", RECIPE).__enter__()


def test_one_run_at_a_time(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from data_prep.captions.output import opened\n"
        f"with opened(Path({str(tmp_path / 'out')!r}), {RECIPE!r}): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        (tmp_path / "out" / ".tasks" / "scratch" / "coco.sqlite").write_bytes(b"its own")
        before = contents(tmp_path / "out")
        with pytest.raises(InputError, match="being written by another run"):
            opened(tmp_path / "out", RECIPE).__enter__()
        assert contents(tmp_path / "out") == before
    finally:
        other.kill()
        other.wait()
    with opened(tmp_path / "out", RECIPE):
        pass


def test_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), opened(tmp_path / "out", RECIPE) as output:
        output.shard(0, 0).write_bytes(b"whole")
        raise RuntimeError
    descriptor = os.open(tmp_path / "out" / ".tasks" / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_bad_input_before_anything_was_made_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="bad"), opened(tmp_path / "out", RECIPE) as output:
        partial_path(output.shard(0, 0)).write_bytes(b"half")
        raise InputError("bad")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out cannot be written: broken"), opened(tmp_path / "out", RECIPE):
        raise OSError("broken")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), InputError("full")])
@pytest.mark.parametrize("made", ["000000.fingerprints.npz", "evaluation.npz"])
def test_what_took_long_stays(tmp_path, error, made):
    with pytest.raises(type(error)), opened(tmp_path / "out", RECIPE) as output:
        (output.tasks / made).write_bytes(b"hours")
        raise error
    assert (tmp_path / "out" / ".tasks" / made).exists()


def test_half_a_shard_alone_is_no_other_content(tmp_path):
    (tmp_path / "out").mkdir()
    partial_path(OutputFolder(tmp_path / "out").shard(0, 0)).write_bytes(b"half")
    with opened(tmp_path / "out", RECIPE) as output:
        output.shard(0, 0).write_bytes(b"whole")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == ["shard-000000-000.tar"]


def test_path_is_absolute_within(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(Path("out"), RECIPE) as output:
        assert output.path == tmp_path / "out"


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
def test_output_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output=.* (cannot be made|is no folder)"):
        opened(tmp_path / name, RECIPE).__enter__()


def test_settings_are_plain_json(tmp_path):
    with opened(tmp_path / "out", RECIPE) as output:
        assert json.loads((output.tasks / "settings.json").read_text()) == RECIPE | {"roots": ["a", "b"]}
