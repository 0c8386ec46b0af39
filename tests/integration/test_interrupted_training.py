"""Runs that are killed, interrupted, damaged or disturbed: one line says so, and `resume=last` ends as undisturbed."""

import errno
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import simzss.models.checkpoint as model_folder
import simzss.training.callbacks as callbacks
import simzss.training.checkpoint_io as checkpoint_io
import simzss.training.trainer as trainer
from simzss.cli import main
from simzss.errors import InputError
from simzss.program import end_with_lost_batch, system_failure
from simzss.tasks import hold_folder
from simzss.training.checkpoint_io import WholeCheckpointIO, read_checkpoint, sum_of
from simzss.training.data.datamodule import CaptionDataModule
from simzss.training.loggers import Table
from simzss.training.module import SimZSSModule
from simzss.training.trainer import Run
from tests.support.files import annotation, write_tar
from tests.support.models import refused
from tests.support.processes import forked, on_two_processes
from tests.support.threads import one_thread  # noqa: F401
from tests.support.training import coloured_shards, tiny_arguments, train

pytestmark = pytest.mark.slow

NARROW = ("text.width=16", "text.layers=1")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of which a sample is skipped, and must be so in what an interrupted run reports."""
    folder = coloured_shards(tmp_path_factory.mktemp("data") / "shards")
    write_tar(folder / "shard-2.tar", [("broken.jpg", b"no image"), ("broken.json", annotation())])
    return folder


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """An undisturbed run, left to be read."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(shards, output, *NARROW)
    assert b"no known format" in (output / "skipped.json").read_bytes()
    return output


def contents(output: Path) -> dict[str, bytes]:
    """Return every file of a run; of checkpoints the names, as they count the restarts too."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes().replace(bytes(output), b"OUTPUT")
        * (path.parent.name != "checkpoints")
        for path in output.rglob("*")
        if path.is_file()
    }


def at_call(number: int, act):
    """Wrap a function: `act` comes in place of a call of it, counted from 1."""
    calls = []

    def wrap(function):
        def called(*arguments, **options):
            calls.append(None)
            if len(calls) == number:
                act(function, *arguments)
            return function(*arguments, **options)

        return called

    return wrap


def die(function, *arguments) -> None:
    os._exit(9)


def die_after(function, *arguments) -> None:
    function(*arguments)
    os._exit(9)


def die_within(function, content, stream) -> None:
    stream.write(b"half a checkpoint")
    stream.flush()
    os._exit(9)


def fail(function, *arguments) -> None:
    raise FULL


def fail_as_torch_does(function, *arguments) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file") from FULL


def press(function, *arguments) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def press_twice(function, *arguments) -> None:
    CaptionDataModule.on_exception = press  # which Lightning calls while it cleans up
    press(function)


MOMENTS = {
    "a step of the first epoch": (SimZSSModule, "training_step", 2, die, 9),
    "the first checkpoint": (checkpoint_io.torch, "save", 1, die_within, 9),
    "another checkpoint": (checkpoint_io.torch, "save", 2, die_within, 9),
    "between sum and checkpoint": (checkpoint_io, "atomic_write", 3, die_after, 9),
    "between checkpoint and link": (callbacks, "lead", 2, die, 9),
    "between link and removal": (callbacks, "lead", 2, die_after, 9),
    "after the last checkpoint": (callbacks, "lead", 3, die_after, 9),
    "before the model": (trainer, "save_model", 1, die, 9),
    "within the model": (model_folder, "write_tensors", 1, die_after, 9),
    "after the model": (trainer, "save_model", 1, die_after, 9),
    "full disk at the first checkpoint": (checkpoint_io.torch, "save", 1, fail, 1),
    "full disk at another": (checkpoint_io.torch, "save", 3, fail_as_torch_does, 1),
    "full disk at the model": (trainer, "save_model", 1, fail, 1),
    "Ctrl-C": (SimZSSModule, "training_step", 6, press, 130),
    "Ctrl-C twice": (SimZSSModule, "training_step", 6, press_twice, 130),
    "Ctrl-C at the model": (trainer, "save_model", 1, press, 130),
}


@pytest.mark.parametrize(("owner", "name", "call", "act", "code"), MOMENTS.values(), ids=MOMENTS)
def test_goes_on_to_the_bytes_of_an_undisturbed_run(whole, shards, tmp_path, owner, name, call, act, code):
    output = tmp_path / "run"
    command = ["train", *tiny_arguments(shards, output, *NARROW)]

    def disturbed() -> None:
        setattr(owner, name, at_call(call, act)(getattr(owner, name)))
        main(command)

    ended, said = forked(disturbed, tmp_path / "log")
    assert ended == code and "Traceback" not in said, said
    if code == 1:
        assert said.splitlines()[-1].endswith(": No space left on device") or name == "save_model"
    if code == 130:
        assert said.splitlines()[-1] == "interrupted: the same command with resume=last goes on"
    assert "resume=last" in refused(lambda: train(shards, output, *NARROW), f"output_dir={output} holds a run already")
    ended, said = forked(lambda: main([*command, "resume=last"]), tmp_path / "log")
    assert ended == 0 and ("is finished" in said) == (name == "save_model" and act is die_after), said
    assert contents(output) == contents(whole)


def test_batch_that_a_worker_cannot_hand_over_is_not_waited_for(capfd):
    images = [lambda: None]  # which no queue takes, as one that is out of files takes no tensor
    loader = DataLoader(images, batch_size=None, num_workers=1, worker_init_fn=end_with_lost_batch, timeout=20)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert "a worker process was killed" in system_failure(caught.value)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("decoding process 0 ends: ")


def test_metrics_that_cannot_be_written_hide_no_result(whole, shards, tmp_path, monkeypatch, caplog):
    """They wait; where some could be written in the end, none is missing."""
    monkeypatch.setattr(Table, "_write", at_call(2, fail)(at_call(2, fail)(Table._write)))
    with caplog.at_level(logging.WARNING, "simzss"):
        train(shards, tmp_path / "run", *NARROW)
    assert contents(tmp_path / "run") == contents(whole)
    (line,) = [entry.getMessage() for entry in caplog.records if "metrics.csv" in entry.getMessage()]
    assert line == f"{tmp_path}/run/metrics.csv cannot be written: No space left on device; training goes on"


# Damage --------------------------------------------------------------------------------------------------------------

STATE = {name: {"a": torch.arange(500)} for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops")}
STATE |= {"epoch": 1, "global_step": 8}


def write_checkpoint(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    WholeCheckpointIO().save_checkpoint(STATE, path)
    return path


def flipped(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 4
    path.write_bytes(data)


DAMAGES = {f"flip at {share}": lambda path, share=share: flipped(path, share) for share in (0, 0.2, 0.4, 0.6, 0.8, 1)}
DAMAGES |= {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "flip in the sum": lambda path: flipped(sum_of(path), 0.1),
    "empty sum": lambda path: sum_of(path).write_bytes(b""),
    "no sum, flip": lambda path: (sum_of(path).unlink(), flipped(path, 0.5)),
    "no sum, cut": lambda path: (sum_of(path).unlink(), os.truncate(path, path.stat().st_size // 2)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_line(tmp_path, damage):
    path = write_checkpoint(tmp_path / "epoch1.ckpt")
    assert read_checkpoint(path)["global_step"] == 8
    damage(path)
    refused(lambda: read_checkpoint(path), str(path))


@pytest.mark.parametrize("older", [False, True])
def test_damaged_last_checkpoint_names_a_way(whole, shards, tmp_path, older):
    folder = tmp_path / "run" / "checkpoints"
    if older:
        write_checkpoint(folder / "epoch0.ckpt")
        os.utime(folder / "epoch0.ckpt", (1, 1))
    flipped(write_checkpoint(folder / "epoch1.ckpt"), 0.5)
    way = f"older one is whole: resume={folder}/epoch0.ckpt" if older else "resume=last begins anew"
    refused(lambda: train(shards, tmp_path / "run", *NARROW, "resume=last"), f"{folder}/epoch1.ckpt is damaged", way)
    if not older:
        (folder / "epoch1.ckpt").unlink()
        train(shards, tmp_path / "run", *NARROW, "resume=last")
        assert contents(tmp_path / "run") == contents(whole)


# One run at a time ---------------------------------------------------------------------------------------------------


def test_folder_is_held_from_the_start_to_the_model(shards, tmp_path, monkeypatch):
    """Against another run that would begin or go on there."""
    output, said = tmp_path / "run", []

    def intrude(function, *arguments) -> None:
        for more in ((), ("resume=last",)):
            said.append(refused(lambda more=more: train(shards, output, *NARROW, *more), "written by another run"))

    monkeypatch.setattr(trainer, "save_model", at_call(1, intrude)(trainer.save_model))
    monkeypatch.setattr(Run, "load_validation", at_call(1, intrude)(Run.load_validation))
    train(shards, output, *NARROW, "trainer.epochs=1")
    assert said == [f"output_dir={output} is being written by another run"] * 4


def test_held_folder_ends_all_processes(tmp_path):
    def begin(rank: int) -> str:
        settings = SimpleNamespace(output_dir=tmp_path / "run", resume=None)
        alone = SimpleNamespace(is_global_zero=rank == 0, loggers=[])
        try:
            with Run(alone, "32-true", settings, None).hold():
                return "held"
        except InputError as error:
            return str(error)

    with hold_folder(tmp_path / "run", "output_dir"):
        first, second = on_two_processes(begin, tmp_path)
    says = f"output_dir={tmp_path}/run is being written by another run"
    assert first == says and second.startswith("process 0 on ") and second.endswith(says)
    assert on_two_processes(begin, tmp_path) == ["held", "held"]
