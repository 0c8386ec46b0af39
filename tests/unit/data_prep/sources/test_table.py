import csv
import gzip
import os
import random
from pathlib import Path

import pyarrow
import pytest

from data_prep.captions.records import RawSample
from data_prep.captions.sources import SourceSettings, open_source
from simzss.errors import InputError
from tests.support.caption_sources import Reading, raw_texts, write_csv, write_parquet
from tests.support.files import make_image_folder

NAMES = ["a.png", "b.jpg", "sub/c.png"]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "sub").mkdir()
    return make_image_folder(tmp_path, NAMES)


def read(folder: Path, table: Path, **more) -> Reading:
    return Reading(SourceSettings(table=str(table), **more), folder / "scratch")


def refused(folder: Path, table: Path, *parts, **more) -> None:
    with pytest.raises(InputError) as caught:
        open_source(SourceSettings(table=str(table), **more), folder)
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.CSV", "t.csv.gz", "t.tsv.gz"])
def test_separated(folder, name):
    rows = [
        ["x", "b.jpg", "a dog, running"],
        ["x", "sub/c.png", 'two\nlines\tand a "quote"'],
        ["x", "./b.jpg", " Café \n"],
    ]
    plain = Path(name.removesuffix(".gz"))
    table = write_csv(folder / plain, rows, ["kind", "path", "caption"])
    if name.endswith(".gz"):
        table = folder / name
        table.write_bytes(gzip.compress((folder / plain).read_bytes()))
    found = read(folder, table)
    assert found.items == [
        RawSample("b.jpg", None, ("a dog, running", "Café"), (folder / "b.jpg").read_bytes()),
        RawSample("sub/c.png", None, ('two\nlines\tand a "quote"',), (folder / "sub/c.png").read_bytes()),
    ]
    assert found.outside == []


def test_parquet(folder):
    columns = {"path": ["b.jpg", "a.png", "b.jpg", "sub/c.png"], "n": [1, 2, 3, 4], "caption": ["a", "b", " c ", "d"]}
    found = read(folder, write_parquet(folder / "t.parquet", columns))
    assert found.captions == {"b.jpg": ["a", "c"], "a.png": ["b"], "sub/c.png": ["d"]}
    assert list(found.captions) == ["b.jpg", "a.png", "sub/c.png"]
    assert found.outside == []


@pytest.mark.parametrize(
    "kind",
    [pyarrow.list_(pyarrow.string()), pyarrow.large_list(pyarrow.large_string()), pyarrow.list_(pyarrow.string(), 2)],
)
def test_parquet_with_lists_of_captions(folder, kind):
    captions = pyarrow.array([["a", "b"], ["c", None], None], kind)
    found = read(folder, write_parquet(folder / "t.parquet", {"path": NAMES, "caption": captions}))
    assert found.captions == {"a.png": ["a", "b"], "b.jpg": ["c"]}
    assert found.reasons == {
        ("caption", "b.jpg", "empty caption"),
        ("caption", "sub/c.png", "empty caption"),
        ("image", "sub/c.png", "no caption"),
    }


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_parquet_types_of_text(folder, kind):
    columns = {"path": pyarrow.array(["a.png", "a.png"], kind), "caption": pyarrow.array(["a", "b"], kind)}
    assert read(folder, write_parquet(folder / "t.parquet", columns)).captions == {"a.png": ["a", "b"]}


def test_rows_of_an_image_anywhere_in_the_file(tmp_path):
    names = [f"{i}.png" for i in range(40)]
    make_image_folder(tmp_path, names)
    rng = random.Random(0)
    rows = [[rng.choice(names), f"caption {i}"] for i in range(300)]
    expected: dict[str, list[str]] = {}
    for name, caption in rows:
        expected.setdefault(name, []).append(caption)
    whole = read(tmp_path, write_csv(tmp_path / "t.csv", rows))
    cut = read(tmp_path, tmp_path / "t.csv", samples_per_shard=7)
    columns = dict(zip(("path", "caption"), zip(*rows, strict=True), strict=True))
    parquet = read(tmp_path, write_parquet(tmp_path / "t.parquet", columns, row_group=11))
    for found in (whole, cut, parquet):
        assert found.captions == expected
        assert list(found.captions) == list(expected)
    assert len(cut.source) == len(cut.tasks) == -(-len(expected) // 7)
    assert list(cut.source.tasks()) == cut.tasks
    assert cut.tasks[1].name == f"{tmp_path / 't.csv'}, images 8 to 14"


def test_images_from_another_folder_or_by_whole_paths(folder, tmp_path):
    (tmp_path / "tables").mkdir()
    rows = [["a.png", "a dog"], [str(folder / "b.jpg"), "a cat"]]
    table = write_csv(tmp_path / "tables" / "t.csv", rows)
    assert read(folder, table, images=str(folder)).captions == {"a.png": ["a dog"], str(folder / "b.jpg"): ["a cat"]}
    beside = write_csv(tmp_path / "tables" / "t.csv", [["../a.png", "a dog"]])
    assert read(folder, beside).captions == {"../a.png": ["a dog"]}


def test_columns_of_other_names(folder):
    table = write_csv(folder / "t.csv", [["a dog", "a.png"]], ["text", "file"])
    given = {"path_column": "file", "caption_column": "text"}
    assert read(folder, table, **given).captions == {"a.png": ["a dog"]}
    refused(folder, table, f"table={table} has no column 'txt': give caption_column=NAME", "did you mean text?",
            path_column="file", caption_column="txt")  # fmt: skip
    refused(folder, table, "has no column 'path': give path_column=NAME")
    parquet = write_parquet(folder / "t.parquet", {"text": ["a dog"], "file": ["a.png"]})
    assert read(folder, parquet, **given).captions == {"a.png": ["a dog"]}
    refused(folder, parquet, f"table={parquet} has no column 'files'", "did you mean file?",
            path_column="files", caption_column="text")  # fmt: skip


def test_bad_rows_are_told_by_their_line(folder):
    content = b"".join(
        [
            b"path,caption,n\n",
            b"a.png,a dog,1\n",
            b"b.jpg\n",
            b"\n",
            b'a.png,"two\nlines",1\n',
            b"a.png,caf\xe9,1\n",
            b",a cow,1\n",
            b"a.png,a cow, and grass,1\n",
            b"caf\xe9.png,a cow,1\n",
            b'a.png,"a "cow",1\n',
            b"a.png,short\n",
            b"a.png,long,1,,\n",
            b"a.png, ,1\n",
            b"b.jpg,\xff,1\n",
            b"gone.png,a cow,1\n",
            b"t.csv,a cow,1\n",
            b'a.png,"open\n',
            b"b.jpg,lost,1\n",
        ]
    )
    (folder / "t.csv").write_bytes(content)
    found = read(folder, folder / "t.csv")
    assert found.captions == {"a.png": ["a dog", "two\nlines", "short", "long"]}
    assert found.reasons == {
        ("caption", "line 3", "row with fewer cells than the header"),
        ("caption", "line 7", "caption is not UTF-8"),
        ("caption", "line 8", "row without a path"),
        ("caption", "line 9", "row with more cells than the header"),
        ("caption", "line 10", "path is not UTF-8"),
        ("caption", "line 11", "row that cannot be read"),
        ("caption", "a.png", "empty caption"),
        ("caption", "line 15", "caption is not UTF-8"),
        ("image", "b.jpg", "no caption"),
        ("image", "gone.png", "image file missing"),
        ("image", "t.csv", "suffix is none of jpg, jpeg, png, webp, bmp"),
        ("caption", "line 18", "row that cannot be read"),
    }
    (last,) = [record for record in found.outside if record.name == "line 18"]
    assert last.detail.startswith("lines 18 to 19: ")


def test_bad_rows_of_a_parquet_file(folder):
    columns = {
        "path": raw_texts([b"a.png", b"\xff.png", None, b" ", b"a.png", b"b.jpg"]),
        "caption": raw_texts([b"a dog", b"a", b"a", b"a", b"\xff\xfe", None]),
    }
    found = read(folder, write_parquet(folder / "t.parquet", columns))
    assert found.captions == {"a.png": ["a dog"]}
    assert found.reasons == {
        ("caption", "row 2", "path is not UTF-8"),
        ("caption", "row 3", "row without a path"),
        ("caption", "row 4", "row without a path"),
        ("caption", "row 5", "caption is not UTF-8"),
        ("caption", "b.jpg", "empty caption"),
        ("image", "b.jpg", "no caption"),
    }


def test_long_captions(folder):
    long = "dog " * 2500
    rows = [["a.png", long], ["b.jpg", "x" * (csv.field_size_limit() + 1)], ["b.jpg", "a cat"]]
    found = read(folder, write_csv(folder / "t.csv", rows))
    assert found.captions == {"a.png": [long.strip()], "b.jpg": ["a cat"]}
    assert found.reasons == {("caption", "line 3", "row that cannot be read")}


def test_mark_at_the_start_of_the_file(folder):
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbfpath,caption\r\na.png,a dog\r\n")
    assert read(folder, folder / "t.csv").captions == {"a.png": ["a dog"]}


def test_stamp_is_of_the_records_and_the_files(folder):
    def stamp(caption: str) -> str:
        table = write_csv(folder / "t.csv", [["a.png", caption]])
        (task,) = open_source(SourceSettings(table=str(table)), folder).tasks()
        return task.stamp

    before = stamp("a dog")
    assert stamp("a dog") == before
    assert stamp("a cat") != before
    os.utime(folder / "a.png", ns=(0, 0))
    assert stamp("a dog") != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "has no column 'path'"),
        ("t.csv", b"path,caption\n", "none of the 0 paths"),
        ("t.csv", b"path,caption\nz.png,a dog\n", "none of the 1 paths"),
        ("t.csv", b"path,caption\na.png, \n", "none of the 1 paths"),
        ("t.csv", b"path,caption,path\na.png,a,b.png\n", "2 columns 'path'"),
        ("t.csv", b'path,"caption\n', "header that cannot be read"),
        ("t.csv", "path,caption\na.png,a\n".encode("utf-16"), "has no column 'path'"),
        ("t.csv.gz", b"path,caption\n", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"path,caption\na.png,a dog\n" * 50, mtime=0)[:-20], "cannot be read"),
        ("t.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 99, "cannot be read"),
        ("t.parquet", b"", "cannot be read"),
        ("t.parquet", b"PAR1 no parquet PAR1", "cannot be read"),
        ("t.xlsx", b"x", "is none of .csv, .tsv, .csv.gz, .tsv.gz, .parquet"),
    ],
)
def test_tables_that_are_refused(folder, name, content, message):
    (folder / name).write_bytes(content)
    refused(folder, folder / name, f"{folder / name}", message)


def test_parquet_of_other_types(folder):
    table = write_parquet(folder / "t.parquet", {"path": ["a.png"], "caption": [3], "lists": [["a.png"]]})
    refused(folder, table, "caption_column=caption holds int64, not text")
    refused(folder, table, "path_column=lists holds list<", path_column="lists", caption_column="path")


def test_parquet_that_is_cut(folder):
    table = write_parquet(folder / "t.parquet", {"path": NAMES * 50, "caption": NAMES * 50})
    content = table.read_bytes()
    table.write_bytes(content[:40] + bytes(400) + content[440:])
    refused(folder, table, f"table={table} cannot be read")


def test_table_or_folder_missing(folder):
    refused(folder, folder / "gone.csv", f"table={folder / 'gone.csv'} does not exist")
    (folder / "folder.csv").mkdir()
    refused(folder, folder / "folder.csv", "is no file")
    table = write_csv(folder / "t.csv", [["a.png", "a dog"]])
    refused(folder, table, f"images={folder / 'gone'} is no folder", images=str(folder / "gone"))
