import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.scenes.compose import MIN_VISIBLE
from data_prep.scenes.drawings import KINDS
from data_prep.scenes.grounds import CLASSES, GROUNDS
from data_prep.scenes.objects import COLOURS, MATERIALS, render_object
from data_prep.scenes.program import ScenesSettings, generate, make_scene
from simzss.errors import InputError

PLURALS = {f"{name}s": name for name in KINDS} | {"butterflies": "butterfly"}
SCENES = [make_scene(3, "train", i, 128) for i in range(60)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def named_classes(caption: str) -> set[str]:
    words = [PLURALS.get(word, word) for word in re.findall("[a-z]+", caption.lower())]
    return {word for word in words if word in CLASSES}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ScenesSettings:
    folder = tmp_path_factory.mktemp("scenes")
    config = ScenesSettings(output=folder / "new" / "out", train=14, val=4, seed=5, size=96, workers=1)
    assert generate(config)
    return config


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(written, tmp_path):
    assert generate(written.replace(output=tmp_path / "two", workers=2))
    assert contents(tmp_path / "two") == contents(written.output)


def test_another_seed_split_or_number_gives_another_scene():
    first = make_scene(0, "train", 0, 64)[0].image
    for other in ((1, "train", 0), (0, "val", 0), (0, "train", 1)):
        assert not np.array_equal(first, make_scene(*other, 64)[0].image)


def test_every_pixel_has_a_class_of_the_scene():
    for scene, _ in SCENES:
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        assert scene.mask.shape == (128, 128) and scene.mask.dtype == np.uint8
        found = {CLASSES[i] for i in np.unique(scene.mask)}
        assert found <= {t.kind for t in scene.things} | set(scene.grounds)
        assert found >= {t.kind for t in scene.things}


def test_captions_name_only_what_is_visible():
    for scene, captions in SCENES:
        share = np.bincount(scene.mask.ravel(), minlength=len(CLASSES)) / scene.mask.size
        for caption in captions:
            for name in named_classes(caption):
                assert share[CLASSES.index(name)] > 0.01, caption


def test_captions_count_and_describe_truly():
    for scene, captions in SCENES:
        kinds = [t.kind for t in scene.things]
        for caption in captions:
            for count, words in re.findall(r"\b(an?|two) ([a-z ]+)", caption.lower()):
                phrase = words.split()
                at = next(i for i, w in enumerate(phrase) if PLURALS.get(w, w) in CLASSES)
                kind = PLURALS.get(phrase[at], phrase[at])
                if kind in GROUNDS:
                    continue
                assert kinds.count(kind) == (2 if count == "two" else 1), caption
                members = [t for t in scene.things if t.kind == kind]
                for word in phrase[:at]:
                    assert all(word in (t.colour, t.material) for t in members), caption


def test_captions_are_varied_and_left_without_stray_spaces():
    captions = [caption for _, three in SCENES for caption in three]
    assert len(set(captions)) > 0.9 * len(captions)
    assert not [c for c in captions if "  " in c or " ," in c or " ." in c or c != c.strip()]


def test_occlusions_happen_and_hide_no_object():
    assert sum(bool(scene.occlusions) for scene, _ in SCENES) >= 10
    for kind in KINDS:
        lone = [s for s, _ in SCENES if [t.kind for t in s.things].count(kind) == 1]
        for scene in lone:
            side = next(t.side for t in scene.things if t.kind == kind)
            # The thinnest drawing fills about a sixth of its square; less than a third of it would be hidden.
            assert (scene.mask == CLASSES.index(kind)).sum() > MIN_VISIBLE * 0.15 * side**2


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_shows_its_colour_and_fits_its_patch(kind):
    for material in MATERIALS:
        patch = render_object(kind, "red", material, 60, (0.5, 0.8), np.random.default_rng(0))
        assert patch.colour.shape == (*patch.cover.shape, 3)
        assert patch.opacity.min() >= 0 and (patch.opacity <= patch.cover + 1e-6).all()
        assert patch.cover.max() == 1
        border = np.concatenate([patch.cover[0], patch.cover[-1], patch.cover[:, 0], patch.cover[:, -1]])
        assert not border.any()
        red, green, blue = (float(patch.colour[..., c].sum()) for c in range(3))
        assert red > 1.05 * green and red > 1.05 * blue


def test_materials_and_colours_change_the_picture():
    def drawn(colour: str, material: str) -> bytes:
        return render_object("mug", colour, material, 60, (0.5, 0.8), np.random.default_rng(0)).colour.tobytes()

    assert len({drawn(c, "plain") for c in COLOURS}) == len(COLOURS)
    assert len({drawn("blue", m) for m in MATERIALS}) == len(MATERIALS)


def test_layout_of_the_folder(written):
    folder = written.output
    assert (folder / "classes.txt").read_text().split() == list(CLASSES)
    assert len(CLASSES) == len(set(CLASSES)) == 25
    for split, count in (("train", 14), ("val", 4)):
        captions = json.loads((folder / f"captions_{split}.json").read_text())
        assert len(captions["images"]) == count and len(captions["annotations"]) == 3 * count
        assert {a["image_id"] for a in captions["annotations"]} == {i["id"] for i in captions["images"]}
        for entry in captions["images"]:
            with Image.open(folder / "images" / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"]) == (96, 96)
            with Image.open(folder / "annotations" / split / entry["file_name"].replace("jpg", "png")) as mask:
                assert mask.mode == "L" and mask.size == (96, 96) and np.asarray(mask).max() < len(CLASSES)


def test_the_same_settings_again_write_nothing_and_others_are_refused(written, tmp_path):
    before = contents(written.output)
    assert not generate(written.replace(workers=2))
    with pytest.raises(InputError, match="other settings"):
        generate(written.replace(seed=6))
    assert contents(written.output) == before
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no scenes"):
        generate(written.replace(output=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_run_that_dies_leaves_nothing(tmp_path, monkeypatch):
    def die(job: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.scenes.program._write_scene", die)
    with pytest.raises(KeyboardInterrupt):
        generate(ScenesSettings(output=tmp_path / "out", train=1, val=0, size=64, workers=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"train": -1}, {"train": 0, "val": 0}, {"size": 16}, {"seed": -3}])
def test_impossible_settings_are_refused(wrong, tmp_path):
    with pytest.raises(InputError):
        ScenesSettings(**{"output": tmp_path, "train": 1, "val": 1} | wrong)


def test_program(tmp_path):
    command = [
        sys.executable,
        "-m",
        "data_prep.scenes",
        f"output={tmp_path / 'out'}",
        "train=1",
        "val=1",
        "size=64",
    ]
    root = Path(__file__).parents[3]
    first, again, other = (
        subprocess.run([*command, *extra], cwd=root, capture_output=True, text=True) for extra in ([], [], ["val=2"])
    )
    assert (first.returncode, again.returncode, other.returncode) == (0, 0, 2)
    assert "already" in again.stdout
    assert other.stderr.startswith("error: ") and other.stderr.count("\n") == 1
