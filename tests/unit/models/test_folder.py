"""Model folders are replaced whole: killed, without space, through a link, or as it should be."""

import errno
import os
import stat
import sys

import pytest

from simzss.checksums import SUMS, changed_files
from simzss.models import folder as folders
from simzss.models.checkpoint import load_model, save_model
from simzss.models.simzss import SimZSS
from tests.support.files import contents
from tests.support.models import make_backbone, make_bert, refused, save_backbone, save_bert, shaken
from tests.support.processes import forked

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod", "shutil.rmtree")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models that differ in their text encoders."""
    home = tmp_path_factory.mktemp("models")
    backbone = make_backbone(weights=str(save_backbone(home / "vit.safetensors")))
    encoders = [shaken(make_bert(save_bert(home / "bert"), 64), seed) for seed in (5, 9)]
    return [SimZSS(backbone, encoder).eval() for encoder in encoders]


@pytest.fixture
def saved(models, tmp_path):
    """A folder of the first model with a note, and what it and one of the second model hold, undisturbed."""
    folder = tmp_path / "home" / "model"
    found = []
    for model in reversed(models):
        save_model(model, folder)
        (folder / "README.md").write_text("a note")
        found.append(contents(folder))
    return folder, *reversed(found)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_every_step(exchange, models, saved, tmp_path, monkeypatch):
    """Before each call of the system: there is one of the two models then, and the next save is as any other."""
    folder, old, new = saved
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)

    def work(last: int) -> None:
        left = [last]

        def kill(event, arguments):
            if event in STEPS and str(arguments[0]).startswith(str(folder.parent)):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(kill)
        save_model(models[1], folder)

    found, step, code = [], 0, 9
    while code == 9:
        code, said = forked(lambda last=step: work(last), tmp_path / "log")
        assert code in (0, 9), said
        there = folders.find_folder(folder)
        found.append(contents(there))
        assert found[-1] in (old, new), f"step {step}"
        assert not changed_files(there / SUMS)
        if found[-1] != found[-2:][0] or not folder.exists():
            load_model(folder)
        step += 1
        for model in models[::-1] if code == 9 else ():
            save_model(model, folder)
            assert contents(folder) == (new if model is models[1] else old)
            assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert old in found and found[-1] == new and step > 20


def test_disk_that_is_full(models, saved, monkeypatch):
    """The old model stays, nothing is left beside it, and the error names the folder that was asked for."""
    folder, old, _ = saved

    def full(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("simzss.atomic.sync", full)
    with pytest.raises(OSError, match="No space") as caught:
        save_model(models[1], folder)
    assert caught.value.filename == str(folder / "model.safetensors")
    assert contents(folder.parent) == {f"model/{name}": content for name, content in old.items()}


def test_what_is_kept(models, saved, tmp_path):
    """Notes, links, the folder's mode and the link that it is reached by; files have the modes of any others."""
    folder, _, new = saved
    (folder / "notes" / "more").mkdir(parents=True)
    (folder / "notes" / "more" / "a.txt").write_text("kept")
    (folder / "link").symlink_to("gone")
    folder.chmod(0o750)
    (tmp_path / "other").symlink_to(folder)
    save_model(models[1], tmp_path / "other")
    assert (tmp_path / "other").is_symlink() and (folder / "link").is_symlink()
    (folder / "link").unlink()
    assert contents(folder) == new | {"notes/more/a.txt": b"kept"}
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_two_writers(models, saved):
    folder, old, _ = saved
    with pytest.raises(KeyError), folders.replaced_folder(folder, ()):
        refused(lambda: save_model(models[1], folder), str(folder), "another process")
        raise KeyError
    assert contents(folder) == old


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer/tokenizer.json", SUMS])
def test_damage_is_named(name, models, saved):
    folder, *_ = saved
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    refused(lambda: load_model(folder), str(folder), SUMS if name == SUMS else name)
