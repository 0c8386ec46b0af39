"""What every program that makes index masks must do: exact masks, runs that go on, errors of one line."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simzss.atomic import PARTIAL
from simzss.data.benchmark import Benchmark
from simzss.data.settings import BenchmarkSettings
from simzss.settings.compose import load_choice
from tests.support import official_layouts
from tests.support.official_layouts import Masks, stored
from tests.support.program import exit_code

Expected = Mapping[Path, np.ndarray]


class MaskSet:
    """A benchmark as its download leaves it, and the masks that its program must make.

    Args:
        name: of the program.
        folder: empty.

    Attributes:
        root: argument of the program.
        folder: of the set.
        truth: stored labels by name.
        expected: the same by file.
        photos: folder of the photos.
        photo: one of them.
    """

    _PATHS = {
        # photos, one of them, masks
        "cityscapes": ("leftImg8bit/val", "frankfurt/frankfurt_000000_000019_leftImg8bit.png",
                       "gtFine/val/{}_gtFine_labelTrainIds.png"),
        "coco_object": ("images/val2017", "000000000139.jpg", "annotations/val2017/{}_instanceTrainIds.png"),
        "coco_stuff": ("images/val2017", "000000000139.jpg", "annotations/val2017/{}_labelTrainIds.png"),
        "context": ("JPEGImages", "2008_000002.jpg", "SegmentationClassContext/{}.png"),
    }  # fmt: skip

    def __init__(self, name: str, folder: Path) -> None:
        found = getattr(official_layouts, name)(folder)
        self.splits: dict[str, Masks] = found if name == "context" else {"val": found}
        self.root = folder / "VOCdevkit" if name == "context" else folder
        self.folder = self.root / "VOC2010" if name == "context" else folder
        self.truth: Masks = {image: mask for split in self.splits.values() for image, mask in split.items()}
        photos, photo, masks = self._PATHS[name]
        self.expected = {self.folder / masks.format(image): mask for image, mask in self.truth.items()}
        self.photos = self.folder / photos
        self.photo = self.photos / photo


class MaskProgram:
    """A program with arguments that fit its fixture."""

    def __init__(
        self,
        main: Callable[[], None],
        arguments: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.main = main
        self.arguments = arguments
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def run(self, *more: str) -> tuple[str, str]:
        """What it says on stdout and stderr; it must succeed."""
        self.capsys.readouterr()
        code = exit_code(self.main, [*self.arguments, *more], self.monkeypatch)
        said = self.capsys.readouterr()
        assert code == 0, said.err
        return said.out, said.err

    def refuse(self, *more: str) -> str:
        """The one line of its error."""
        self.capsys.readouterr()
        assert exit_code(self.main, [*self.arguments, *more], self.monkeypatch) == 2
        lines = self.capsys.readouterr().err.splitlines()
        assert [line.startswith("error: ") for line in lines].count(True) == 1
        assert lines[-1].startswith("error: ")
        return lines[-1]


def assert_masks(expected: Expected) -> None:
    """These files hold these labels; beside them lies no half-written one."""
    for path, mask in expected.items():
        assert np.array_equal(stored(path), mask), path
        with Image.open(path) as image:
            assert image.mode == "L"
        assert not list(path.parent.glob(f".*{PARTIAL}*"))


def assert_same(found: Masks, expected: Masks) -> None:
    """The same images with the same labels."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


def assert_reruns(program: MaskProgram, expected: Expected) -> None:
    """A second run keeps finished masks and makes the others again; `overwrite=true` makes all again."""
    total = len(expected)
    assert f"({total} made, 0 already there)" in program.run()[0]
    assert_masks(expected)
    dates = {path: path.stat().st_mtime_ns for path in expected}
    assert f"(0 made, {total} already there)" in program.run()[0]
    assert {path: path.stat().st_mtime_ns for path in expected} == dates
    broken = list(expected)[:6]
    broken[0].write_bytes(broken[0].read_bytes()[:-25])
    broken[1].write_bytes(b"")
    broken[2].write_text("no image", encoding="utf-8")
    Image.new("L", (3, 5)).save(broken[3])
    Image.new("RGB", expected[broken[4]].shape[::-1]).save(broken[4])
    Image.new("L", expected[broken[5]].shape[::-1], 200).save(broken[5])
    said = program.run()[0]
    assert f"(0 made, {total - 6} already there)" in said
    assert "6 finished masks could not be read or did not fit, and were made again" in said
    assert all(path.name in said for path in broken)
    assert_masks(expected)
    Image.fromarray(np.zeros_like(expected[broken[0]])).save(broken[0])
    program.run()
    assert not stored(broken[0]).any()  # a readable mask that fits is not looked at again …
    assert f"({total} made, 0 already there)" in program.run("overwrite=true")[0]
    assert_masks(expected)  # … until asked for


def seen_by_benchmark(name: str, root: Path) -> Masks:
    """The stored labels that `simzss eval` would take from a folder, before its mapping to classes."""
    changes = {"root": str(root), "label_offset": 0, "background": {"kind": "threshold", "threshold": 0.5}}
    benchmark = Benchmark(BenchmarkSettings.of({**load_choice("benchmark", name), **changes}))
    return {name: benchmark[i].mask.numpy().astype(np.uint8) for i, name in enumerate(benchmark.names)}
