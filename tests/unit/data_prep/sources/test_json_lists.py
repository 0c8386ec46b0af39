import json
import random
from pathlib import Path

import pytest

from data_prep.captions.sources import json_lists as module
from data_prep.captions.sources.json_lists import read_lists

TEXTS = ["", "a dog", 'quote " and \\', "😀", "\ud83d", "é\u2028", "\x00\t\n", "[{,:}]", "\\u00"]


def any_value(rng: random.Random, depth: int = 3):
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [any_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(TEXTS) + str(i): any_value(rng, depth - 1) for i in range(rng.randrange(4))}
    return rng.choice([None, True, -12, 10**20, 1.5, -2e-30, *TEXTS, *TEXTS])


def write(path: Path, content: object, rng: random.Random) -> Path:
    escaped = rng.random() < 0.5
    text = json.dumps(content, ensure_ascii=escaped, indent=rng.choice([None, 1]))
    path.write_text(text.replace("\ud83d", "\\ud83d"), encoding="utf-8")
    return path


@pytest.mark.parametrize("block", [1, 2, 3, 7, 50, 1 << 16])
def test_entries_are_what_json_loads_gives(tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = random.Random(block)
    total = 0
    for _ in range(30):
        content = {key: any_value(rng) for key in rng.sample(["a", "b", "c", "é", ""], 5)}
        content |= {key: [any_value(rng) for _ in range(rng.randrange(5))] for key in rng.sample(["a", "b"], 2)}
        path = write(tmp_path / "x.json", content, rng)
        assert json.loads(path.read_text(encoding="utf-8")) == content
        found = list(read_lists(path, ("b", "a")))
        assert found == [(key, entry) for key in content if key in "ab" and key for entry in content[key]]
        total += len(found)
    assert total > 50


def test_every_beginning_of_a_file_is_refused(tmp_path):
    text = b'{"a": [1, {"b": "\xc3\xa9\\u00e9"}, true], "c": {"d": []}, "e": -1.5e3, "f": null}'
    path = tmp_path / "x.json"
    path.write_bytes(text)
    assert list(read_lists(path, ["a"])) == [("a", 1), ("a", {"b": "éé"}), ("a", True)]
    for end in range(len(text)):
        path.write_bytes(text[:end])
        with pytest.raises(ValueError, match=r"at character|utf-8"):
            list(read_lists(path, ["a"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": [1 2]}', "expected , or ], at character 10"),
        (b'{"a": [1,]}', "at character 10"),
        (b'{"a": [1],}', "at character 11"),
        (b'{"a" [1]}', "expected :, at character 6"),
        (b"{1: [1]}", "key 1 is no text"),
        (b'{"a": [1]} {}', "text after the end, at character 12"),
        (b'{"a": [x]}', "Expecting value, at character 8"),
        (b'\n{"a":\n[01]}', "expected , or ], at character 10"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 16])
def test_place_of_an_error(tmp_path, monkeypatch, content, message, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        list(read_lists(path, ["a"]))
    assert message in str(caught.value)


def test_quote_that_does_not_end_does_not_read_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST", 1 << 17)
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": [1, "' + b"x" * (1 << 22))
    with pytest.raises(ValueError, match="Unterminated string starting at, at character 11"):
        list(read_lists(path, ["a"]))
    path.write_bytes(b'{"a": [1, "' + b"x" * (1 << 17) + b'"]}')
    assert len(list(read_lists(path, ["a"]))) == 2
