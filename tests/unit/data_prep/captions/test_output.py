"""What the folder of caption shards adds to a `TaskFolder`."""

from data_prep.captions.output import OutputFolder
from simzss.atomic import write_json
from tests.support.files import contents


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
    output.index.touch()
    output.skipped.touch()
    output.forget_index()
    assert len(contents(tmp_path)) == 5
