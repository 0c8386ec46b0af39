"""`simzss eval`, `segment` and `threshold` stopped: the same command does the rest, and ends with the same bytes."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simzss.cli import dispatch, main
from simzss.evaluation.ledger import Records
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.tasks import hold_folder
from tests.integration.test_measure import SIZES, WHOLE, write_benchmark
from tests.support.files import contents, picture
from tests.support.models import make_backbone, make_scratch, refused, save_backbone, shaken
from tests.support.processes import on_two_processes
from tests.support.program import exit_code

pytestmark = pytest.mark.slow

COMMON = (*WHOLE, "model=../model", "batch_size=2", "output_dir=out")
EVAL = ["eval", *COMMON, "num_workers=0"]
VOC = ["benchmark.root=../voc", "benchmark=voc20"]
JOBS = {
    "eval": [*EVAL, *VOC, "save_masks=true", "overlays=1"],
    "threshold": ["threshold", *COMMON, "num_workers=0", VOC[0], "benchmark=voc21"],
    "segment": ["segment", *(f"../voc/JPEGImages/2007_{n:06d}.jpg" for n in range(12)), *COMMON, "classes=cat,dog,car"],
    "retrieval": [*EVAL, "benchmark=retrieval", "benchmark.root=../classes", "benchmark.captions=../captions.json"],
    "classification": [*EVAL, "benchmark=classification", "benchmark.root=../classes"],
}
PHOTOS = {"eval": 12, "threshold": 12, "segment": 12, "retrieval": 70, "classification": 70}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, a benchmark and photos in classes; programs run in folders of their own below it."""
    folder = tmp_path_factory.mktemp("stopped")
    weights = str(save_backbone(folder / "vit.safetensors"))
    torch.manual_seed(0)
    save_model(SimZSS(make_backbone(weights=weights), shaken(make_scratch())).eval(), folder / "model")
    (folder / "metrics.csv").write_text("step,train/loss,lr\n1,1e308,nan\n2,-1e308,1e-320\n3,inf,5e-324\n")
    write_benchmark(folder / "voc", sizes=[*SIZES, *SIZES, (64, 64), (64, 64)])
    images = []
    for number in range(70):
        path = folder / "classes" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, (40, 30)).save(path)
        images.append({"id": number, "file_name": str(path.relative_to(folder / "classes"))})
    captions = [{"image_id": number, "caption": f"a cat {number}"} for number in range(70)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


@pytest.fixture(scope="module")
def undisturbed(world):
    """Function that gives the files of a job's undisturbed run, which is made once."""
    found = {}

    def files(job: str) -> dict[str, bytes]:
        if job not in found:
            with pytest.MonkeyPatch.context() as patch:
                (world / f"whole_{job}").mkdir()
                patch.chdir(world / f"whole_{job}")
                dispatch(JOBS[job])
                found[job] = contents(Path("out"))
        return found[job]

    return files


@pytest.fixture
def here(world, monkeypatch):
    """A working folder beside the inputs, with a benchmark that may be changed in `voc`."""
    folder = world / f"run_{len(list(world.iterdir()))}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def kept(monkeypatch):
    """Names of photos that are kept, as they are."""
    names: list[str] = []
    add = Records.add
    monkeypatch.setattr(
        Records, "add", lambda self, number, entries: (add(self, number, entries), names.extend(entries))
    )
    return names


def in_child(work) -> int:
    """Exit code of a forked process that does some work, with its stderr in `log`."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        try:
            work()
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(arguments: list[str], photos: int) -> None:
    """Run a program in a process that dies when so many photos are kept."""

    def work() -> None:
        add, count = Records.add, 0

        def counted(self, number, entries):
            nonlocal count
            add(self, number, entries)
            count += len(entries)
            if count >= photos:
                os._exit(9)

        Records.add = counted
        dispatch(arguments)

    assert in_child(work) == 9


@pytest.mark.parametrize("job", JOBS)
def test_killed(undisturbed, here, kept, job):
    expected = undisturbed(job)
    kept.clear()
    most = 64 if PHOTOS[job] == 70 else PHOTOS[job] - 3
    killed(JOBS[job], most)
    Path("out/masks").mkdir(exist_ok=job == "eval")
    for name in (".results.json", ".a_mask.png", "masks/.a.png"):
        Path("out", f"{name}.partial-host-1").touch()  # what it was writing
    dispatch(JOBS[job])
    assert 0 < len(kept) <= PHOTOS[job] - most
    assert contents(Path("out")) == expected


@pytest.mark.parametrize("job", ["eval", "threshold", "segment"])
def test_broken_photo(undisturbed, here, kept, world, job):
    """The others are kept; when it is mended, it and those that might have been its neighbours are done."""
    expected = undisturbed(job)
    kept.clear()
    path = world / "voc" / "JPEGImages" / "2007_000010.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    try:
        refused(lambda: dispatch(JOBS[job]), str(Path(*path.parts[-3:])), "the same command goes on")
        assert not Path("out/results.json").exists()
    finally:
        path.write_bytes(whole)
    assert len(kept) >= 6
    dispatch(JOBS[job])
    assert len(kept) == len(set(kept)) == PHOTOS[job]
    assert contents(Path("out")) == expected


def test_killed_on_two_processes(undisturbed, here, kept, tmp_path):
    """Stopped with one process, it goes on with two, of which each does the rest of its own share."""
    undisturbed("eval")
    killed(JOBS["eval"], 8)

    def work(rank: int) -> list[str]:
        kept.clear()
        dispatch(JOBS["eval"])
        return list(kept)

    shares = on_two_processes(work, tmp_path)
    assert [len(share) for share in shares] == [2, 2]
    assert contents(Path("out")).keys() == undisturbed("eval").keys()
    assert Path("out/results.json").read_bytes() == undisturbed("eval")["results.json"]


def other_photo(here: Path) -> None:
    picture(1, SIZES[0]).save(here / "voc" / "JPEGImages" / "2007_000000.jpg")


def other_mask(here: Path) -> None:
    (here / "out" / "masks" / "2007_000000.png").write_bytes(b"of another run")


def broken_part(here: Path) -> None:
    first = min((here / "out" / ".progress").rglob("*.part"))
    first.write_bytes(first.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "again"),
    [(other_photo, 5), (other_mask, 5), (broken_part, 6), ("batch_size=1", 4), ("protocol.templates=name", 12),
     ("engineered=false", 12), ("model=../other", 12)],
)  # fmt: skip
def test_nothing_is_taken_from_other_work(here, kept, world, change, again):
    """Each photo whose file, model or settings are others, or whose record is broken, is measured again."""
    shutil.copytree(world / "voc", here / "voc")
    if change == "model=../other":
        model = SimZSS(make_backbone(weights=str(world / "vit.safetensors")), shaken(make_scratch(), 7))
        save_model(model.eval(), world / "other")
    command = [*JOBS["eval"][:-1], "overlays=0", "benchmark.root=voc"]
    killed(command, 8)
    command.append(change) if isinstance(change, str) else change(here)
    dispatch(command)
    assert len(kept) == again
    found = contents(Path("out"))
    shutil.rmtree("out")
    dispatch(command)
    assert contents(Path("out")) == found and not Path("out/.progress").exists()


# One run at a time, whole files ------------------------------------------------------------------------------------
REPORT = ["report", "../whole_eval/out", "../whole_eval/out", "output_dir=out"]


@pytest.mark.parametrize("job", ["eval", "threshold", "segment", "report"])
def test_second_run_in_a_folder(undisturbed, here, job):
    undisturbed("eval")
    with hold_folder(Path("out"), "output_dir"):
        refused(lambda: dispatch(JOBS.get(job, REPORT)), "output_dir=out is being written by another run")


@pytest.mark.parametrize(
    ("job", "name"),
    [("eval", ".part"), ("eval", "2007_000003.png"), ("eval", "results.json"), ("eval", "report.html"),
     ("eval", "results.md"), ("threshold", "threshold.json"), ("segment", "2007_000003_mask.png"),
     ("segment", "2007_000003_overlay.png")],
)  # fmt: skip
def test_full_disk(undisturbed, here, monkeypatch, capsys, job, name):
    """One line; the file is not there, what is finished stays, and the same command goes on."""
    expected = undisturbed(job)
    replace = Path.replace

    def full(self, target):
        if Path(target).name.endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert exit_code(lambda: main(JOBS[job]), [], patch) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: out/") and last.endswith("No space left on device")
    assert not [path for path in Path("out").rglob("*") if path.is_file() and path.name.endswith(name)]
    dispatch(JOBS[job])
    assert contents(Path("out")) == expected


def test_disk_that_is_really_full(undisturbed, here, capsys, monkeypatch):
    Path("out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", "out"], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        assert exit_code(lambda: main(JOBS["segment"]), [], monkeypatch) == 1
        assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
        for path in Path("out").glob("*.png"):
            assert path.read_bytes() == undisturbed("segment")[path.name]
    finally:
        subprocess.run(["umount", "out"], check=True)


@pytest.mark.parametrize("job", ["eval", "threshold", "segment", "classification"])
def test_folder_that_goes_away(here, capsys, monkeypatch, job):
    add = Records.add
    monkeypatch.setattr(Records, "add", lambda self, *given: (shutil.rmtree("out", True), add(self, *given)))
    assert exit_code(lambda: main(JOBS[job]), [], monkeypatch) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: out/") and last.endswith("No such file or directory")


@pytest.mark.parametrize("job", ["eval", "threshold", "segment"])
def test_interrupt_tells_how_it_goes_on(here, capsys, monkeypatch, job):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Records, "add", pressed)
    assert exit_code(lambda: main(JOBS[job]), [], monkeypatch) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: the same command goes on"


@pytest.mark.parametrize("job", ["eval", "retrieval"])
@pytest.mark.parametrize("spare", [6, 16, 20])
def test_few_open_files(here, job, spare):
    """It ends in one line, or well: workers that cannot be started or hand over what they read are not waited for."""

    def work() -> None:
        most = len(list(Path("/proc/self/fd").iterdir())) + spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        signal.alarm(60)
        main([argument.replace("num_workers=0", "num_workers=2") for argument in JOBS[job]])
        os._exit(0)

    code, log = in_child(work), Path("log").read_text()
    assert "Traceback" not in log and code in ((1,) if spare == 6 else (0, 1))
    assert code == 0 or log.splitlines()[-1] == "error: Too many open files: fewer workers need less"
