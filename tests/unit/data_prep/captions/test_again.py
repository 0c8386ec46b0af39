"""Running again: what is done stays, what is missing is made, and what changed is found."""

import json
import os
import shutil

import pytest

import data_prep.captions.prepare as phases
import data_prep.captions.program as program
from data_prep.captions.output import OutputFolder
from simzss.data.shards import read_shards
from tests.support.files import contents, image_bytes, make_image_folder, picture, write_coco_json, write_tar
from tests.support.official_layouts import voc2012
from tests.support.program import exit_code

CAPTIONS = {f"{number}.png": [f"a dog and {number} cats", "a tree"] for number in range(6)}


class Run:
    """The program on a folder of photos, two to a shard."""

    def __init__(self, tmp_path, monkeypatch, capsys):
        self.images = make_image_folder(tmp_path / "images", CAPTIONS)
        self.captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
        self.output = tmp_path / "shards"
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *more, code=0, source=None):
        """Run; returns what was printed."""
        source = source or [f"images={self.images}", f"captions={self.captions}"]
        arguments = [*source, f"output={self.output}", "samples_per_shard=2", "executor=serial", *more]
        found = exit_code(program.main, arguments, self.monkeypatch)
        printed = self.capsys.readouterr()
        assert found == code, printed.err
        assert code != 2 or printed.err.splitlines()[-1].startswith("error: ")
        return printed.out + printed.err

    def touched(self, before):
        """Names of the shards that were written since."""
        return [name for name, time in self.times().items() if before.get(name) != time]

    def times(self):
        return {path.name: path.stat().st_mtime_ns for path in sorted(self.output.glob("*.tar"))}

    def touch(self, path, data=None):
        """Change a file so that its time tells."""
        path.write_bytes(path.read_bytes() if data is None else data)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    return Run(tmp_path, monkeypatch, capsys)


def test_second_run_writes_nothing(run):
    run()
    times, before = run.times(), contents(run.output)
    assert "3 of 3 tasks are finished already" in run()
    assert run.touched(times) == [] and contents(run.output) == before


@pytest.mark.parametrize("how", ["gone", "short", "record"])
def test_missing_work_is_made_again_and_nothing_else(run, how):
    run()
    before, times = contents(run.output), run.times()
    shard = run.output / "shard-000001-000.tar"
    if how == "record":
        (run.output / ".tasks" / "000001.json").unlink()
    else:
        shard.unlink() if how == "gone" else shard.write_bytes(b"short")
    run()
    assert run.touched(times) == [shard.name] and contents(run.output) == before


def test_index_is_gone_while_shards_are_made(run):
    run()
    (run.output / "shard-000001-000.tar").unlink()
    run.monkeypatch.setattr(phases, "annotate_task", interrupted)
    assert run(code=130).splitlines()[-1] == "interrupted: the same command goes on"
    assert not (run.output / "index.json").exists()


def interrupted(*arguments):
    raise KeyboardInterrupt


def change_image(run):
    run.touch(run.images / "2.png", image_bytes(99))


def change_caption(run):
    write_coco_json(run.captions, CAPTIONS | {"2.png": ["a horse"]})


def lose_image(run):
    (run.images / "2.png").unlink()


@pytest.mark.parametrize("change", [change_image, change_caption, lose_image])
def test_input_that_changed_is_refused_or_done_again(run, change):
    run()
    before, times = contents(run.output), run.times()
    change(run)
    printed = run(code=2)
    assert "input changed" in printed and "images 3 to 4" in printed and "changed=redo" in printed
    assert contents(run.output) == before
    run("changed=redo")
    assert run.touched(times) == ["shard-000001-000.tar"]
    fresh, run.output = run.output, run.output.with_name("fresh")
    run()
    assert contents(run.output) == contents(fresh)


def test_input_that_lost_its_end(run):
    run()
    write_coco_json(run.captions, dict(list(CAPTIONS.items())[:2]))
    assert "task 1, which the input no longer has and 1 more" in run(code=2)
    run("changed=redo")
    assert [path.name for path in sorted(run.output.glob("*.tar"))] == ["shard-000000-000.tar"]
    assert json.loads((run.output / "index.json").read_text())["samples"] == 2


def test_input_that_grew_by_whole_shards(run):
    run()
    times = run.times()
    more = {f"{number}.png": ["a cow"] for number in range(6, 9)}
    for number, name in enumerate(more):
        picture(50 + number).save(run.images / name)
    write_coco_json(run.captions, CAPTIONS | more)
    run()
    assert run.touched(times) == ["shard-000003-000.tar", "shard-000004-000.tar"]


def test_shard_with_fewer_parts_leaves_none_of_the_old_ones(run, tmp_path):
    tar = tmp_path / "in.tar"
    write_tar(tar, [(f"{n}.{s}", d) for n in range(5) for s, d in (("png", image_bytes(n)), ("txt", b"a dog"))])
    source = [f"shards={tar}"]
    run(source=source)
    assert len(run.times()) == 3
    run.touch(tar, write_tar(tmp_path / "x.tar", [("0.png", image_bytes(0)), ("0.txt", b"a cat")]).read_bytes())
    assert f"input changed since output={run.output} was written: {tar}" in run(code=2, source=source)
    run("changed=redo", source=source)
    assert list(run.times()) == ["shard-000000-000.tar"]


def test_tar_that_was_broken_is_done_once_it_is_whole(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        members = [(f"{number}{n}.{s}", d) for n in range(3) for s, d in (("png", image_bytes(n)), ("txt", b"a dog"))]
        write_tar(folder / f"{number}.tar", members)
    source = [f"shards={folder}/*.tar"]
    run(source=source)
    whole, run.output = contents(run.output), run.output.with_name("disturbed")
    good = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(good[:1500])
    printed = run(code=2, source=source)
    last = printed.splitlines()[-1]
    assert last.startswith(f"error: {folder}/1.tar breaks off ")
    index = json.loads((run.output / "index.json").read_text())
    assert not index["complete"] and list(index["failed"]) == [f"{folder}/1.tar"] and index["samples"] == 6
    (folder / "1.tar").write_bytes(good)
    times = run.times()
    run(source=source)
    assert {name.split("-")[1] for name in run.touched(times)} == {"000001"}
    shards = {name: data for name, data in contents(run.output).items() if not name.startswith(".tasks")}
    assert shards == {name: data for name, data in whole.items() if not name.startswith(".tasks")}


@pytest.mark.parametrize("setting", ["samples_per_shard=3", "filters.min_words=2", "parse_batch=7", "filters=web"])
def test_other_settings_need_another_folder(run, setting):
    run()
    before = contents(run.output)
    printed = run(setting, code=2)
    assert "was begun with other settings" in printed and setting.split("=")[0].split(".")[-1] in printed
    assert contents(run.output) == before


@pytest.mark.slow
def test_another_number_of_processes_does_not(run):
    run()
    assert "3 of 3 tasks" in run("executor=local", "executor.processes=2")


def tar_of(path, colour_of, text=b"a dog"):
    """A tar of one image a key; equal colours are equal files."""
    members = [(f"{key}.{s}", d) for key, c in colour_of.items() for s, d in (("png", image_bytes(c)), ("txt", text))]
    return write_tar(path, members)


def names(run):
    return [sample.file_name for sample in read_shards(sorted(map(str, run.output.glob("*.tar"))))]


def test_another_tar_of_the_same_size_and_time_is_other_input(run, tmp_path):
    for name in ("a", "b"):
        tar_of(tmp_path / f"{name}.tar", {"0": 0}, f"a {name}".encode())
        os.utime(tmp_path / f"{name}.tar", ns=(0, 0))
    run(source=[f"shards={tmp_path}/a.tar"])
    assert "input changed" in run(source=[f"shards={tmp_path}/b.tar"], code=2)


def test_several_patterns_of_tars(run, tmp_path):
    for name in ("a", "b", "c"):
        tar_of(tmp_path / f"{name}.tar", {name: 0})
    run(source=[f"shards=[{tmp_path}/c.tar,{tmp_path}/a.tar]"])
    assert names(run) == ["c.png", "a.png"]


def test_repeated_images_of_a_tar_that_failed_come_back_or_go(run, tmp_path):
    """Whatever order the tars become readable in, the output is that of all at once."""
    folder = tmp_path / "in"
    folder.mkdir()
    tar_of(folder / "0.tar", {"a": 1, "b": 2})
    tar_of(folder / "1.tar", {"c": 1, "d": 3})
    tar_of(folder / "2.tar", {"e": 3, "f": 2, "g": 4})
    source, drop = [f"shards={folder}/*.tar"], "filters.exact_duplicates=drop"
    run(drop, source=source)
    assert names(run) == ["a.png", "b.png", "d.png", "g.png"]
    whole, run.output = contents(run.output), run.output.with_name("disturbed")
    good, state = (folder / "0.tar").read_bytes(), (folder / "0.tar").stat()
    (folder / "0.tar").write_bytes(good[:1000])
    run(drop, source=source, code=2)
    assert names(run) == ["c.png", "d.png", "f.png", "g.png"]
    (folder / "0.tar").write_bytes(good)
    os.utime(folder / "0.tar", ns=(state.st_atime_ns, state.st_mtime_ns))
    run(drop, source=source)
    assert contents(run.output) == whole
    # And away again: what was dropped for an image that is gone stays.
    (folder / "0.tar").write_bytes(good[:1000])
    run(drop, "changed=redo", source=source, code=2)
    assert names(run) == ["c.png", "d.png", "f.png", "g.png"]


def test_an_image_without_a_concept_is_nobodys_first_copy(run, tmp_path):
    tar_of(tmp_path / "0.tar", {"a": 1}, b"running fast")
    tar_of(tmp_path / "1.tar", {"b": 1}, b"a dog")
    run("filters.exact_duplicates=drop", "filters.without_concepts=false", source=[f"shards={tmp_path}/?.tar"])
    assert names(run) == ["b.png"]


def test_input_that_changes_while_it_is_read_fails(run, monkeypatch):
    real = phases._compare

    def compare(*arguments):
        stamps = real(*arguments)
        run.touch(run.images / "2.png", image_bytes(99))
        return stamps

    monkeypatch.setattr(phases, "_compare", compare)
    assert "images 3 to 4: its input changed while it was read" in run(code=2)
    monkeypatch.setattr(phases, "_compare", real)
    run()
    assert json.loads((run.output / "index.json").read_text())["samples"] == 6


def test_index_is_gone_before_a_shard_is(run, monkeypatch):
    run()
    change_image(run)
    monkeypatch.setattr(OutputFolder, "forget", interrupted)
    run("changed=redo", code=130)
    assert not (run.output / "index.json").exists()


def test_stray_shard_of_a_task_that_is_gone(run):
    run()
    (run.output / ".tasks" / "000002.json").unlink()
    write_coco_json(run.captions, dict(list(CAPTIONS.items())[:4]))
    run()
    assert len(run.times()) == 2


def test_evaluation_photos_are_the_same_in_another_place(run, tmp_path):
    masks = voc2012(tmp_path / "sets")
    run(f"filters.evaluation_root={tmp_path}/sets")
    index = json.loads((run.output / "index.json").read_text())["evaluation"]
    assert index["sets"] == ["voc20", "voc21"] and index["photos"] == len(masks) and "ade20k" in index["missing"]
    shutil.copytree(tmp_path / "sets", tmp_path / "copy")
    assert "3 of 3 tasks" in run(f"filters.evaluation_root={tmp_path}/copy")
    next((tmp_path / "copy").rglob(f"{min(masks)}.jpg")).unlink()
    run.output = run.output.with_name("other")
    assert min(masks) in run(f"filters.evaluation_root={tmp_path}/copy", code=2)
