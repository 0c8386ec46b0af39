import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from simzss.data.shards import Skipped
from simzss.data.transforms import RandomCrop
from simzss.training.data.assemble import assemble
from simzss.training.data.batch import Batch, collate
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption
from simzss.training.data.images import Pixels
from simzss.training.data.prefetch import Prefetched, is_stopped
from simzss.training.data.stream import NothingReadableError, TrainingStream
from tests.support.files import make_shards, write_tar
from tests.support.language import tokenizer

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    images = Pixels(torch.full((1, 3, 2, 2), number, dtype=torch.uint8))
    return collate([EncodedCaption((number,), ())], 0, images, skipped=[Skipped(str(number), "bad")])


def number_of(found: Batch) -> int:
    assert found.text[0].input_ids.item() == found.images.pixels[0, 0, 0, 0].item() == int(found.skipped[0].key)
    return found.text[0].input_ids.item()


class Source:
    """Gives batches by their number, up to an end or an error, and notes what becomes of it."""

    def __init__(self, end: int = 1000, error: Exception | None = None) -> None:
        self.end = end
        self.error = error
        self.calls = self.closed = 0
        self.made: list[weakref.ref] = []  # the images of all that were given

    def __call__(self) -> Iterator[Batch]:
        self.calls += 1
        return self.numbers()

    def numbers(self) -> Iterator[Batch]:
        try:
            for number in range(self.end):
                found = batch(number)
                self.made.append(weakref.ref(found.images.pixels))
                yield found
                del found
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1

    @property
    def alive(self) -> int:
        return sum(made() is not None for made in self.made)


def prefetched(make: Callable[[], Iterator[Batch]], length: int = 5) -> Prefetched:
    return Prefetched(make, CPU, length)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert threads() == []
    yield
    assert threads() == []


@pytest.mark.parametrize(("end", "length", "expected"), [(1000, 5, 5), (3, 5, 3), (5, 5, 5), (0, 5, 0), (1000, 0, 0)])
def test_batches_in_order_up_to_the_length(end, length, expected):
    source = Source(end)
    batches = prefetched(source, length)
    assert len(batches) == length
    for calls in (1, 2):  # every iteration is a new one
        iteration = iter(batches)
        assert source.calls == calls - 1 and threads() == [], "nothing begins before the first batch is asked for"
        assert [number_of(found) for found in iteration] == list(range(expected))
        assert threads() == [] and source.calls == calls and source.closed == calls * (length > 0)
        assert list(iteration) == [], "once at an end, always at an end"
        assert len(source.made) == calls * expected, "nothing is made that is not asked for"


def test_two_iterations_side_by_side():
    batches = prefetched(Source(), 4)
    assert [(number_of(a), number_of(b)) for a, b in zip(batches, batches, strict=True)] == [(i, i) for i in range(4)]


def test_one_batch_is_made_in_a_thread_beyond_the_one_that_is_used():
    source = Source()
    iteration = iter(prefetched(source, 20))
    for taken in range(1, 10):
        found = next(iteration)
        assert wait_until(lambda taken=taken: len(source.made) == taken + 1) and len(threads()) == 1
        time.sleep(0.01)  # for one too many
        assert len(source.made) == taken + 1 and source.alive <= 2
        del found
        assert source.alive <= 1, "what the consumer is done with is gone"
    del iteration
    assert source.alive == 0


def test_batch_that_the_consumer_is_done_with_is_gone_while_the_next_is_made():
    begun, go_on = threading.Event(), threading.Event()
    images = []

    def slow() -> Iterator[Batch]:
        first = batch(0)
        images.append(weakref.ref(first.images.pixels))
        yield first
        del first
        begun.set()
        go_on.wait(5)
        yield batch(1)

    iteration = iter(prefetched(slow))
    found = next(iteration)
    assert begun.wait(5)
    assert images[0]() is found.images.pixels
    del found
    assert images[0]() is None
    go_on.set()
    assert number_of(next(iteration)) == 1
    del iteration


def fail() -> None:
    raise NothingReadableError("no readable sample")


@pytest.mark.parametrize("place", [0, 1, 3])
def test_error_comes_where_its_batch_would_have(place):
    def broken() -> Iterator[Batch]:
        yield from map(batch, range(place))
        fail()

    iteration = iter(prefetched(broken))
    assert [number_of(next(iteration)) for _ in range(place)] == list(range(place))
    with pytest.raises(NothingReadableError, match=r"^no readable sample$") as caught:
        next(iteration)
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-2:] == ["broken", "fail"]
    assert threads() == []
    with pytest.raises(StopIteration):
        next(iteration)


def test_error_of_a_source_that_cannot_be_made_or_closed():
    with pytest.raises(NothingReadableError):
        next(iter(prefetched(lambda: fail())))

    def broken() -> Iterator[Batch]:
        try:
            yield from map(batch, range(9))
        finally:
            fail()

    iteration = iter(prefetched(broken, 2))
    assert [number_of(next(iteration)) for _ in range(2)] == [0, 1]
    with pytest.raises(NothingReadableError):
        next(iteration)


def test_error_leaves_no_circle():
    """One that knew itself by its traceback would keep that, and all that is in it, until the next collection."""
    gc.disable()
    try:
        source = Source(0, NothingReadableError("broken"))
        gone = weakref.ref(source.error)
        with suppress(NothingReadableError):
            next(iter(prefetched(source)))
        source.error = None
        assert gone() is None
    finally:
        gc.enable()


def stop_early(batches: Prefetched) -> None:
    for _ in batches:
        break


def fail_in_between(batches: Prefetched) -> None:
    with pytest.raises(ValueError, match="of the consumer"):
        for _ in batches:
            raise ValueError("of the consumer")


def collect_garbage(batches: Prefetched) -> None:
    iteration = iter(batches)
    next(iteration)
    circle = SimpleNamespace(iteration=iteration)
    circle.circle = circle
    del circle, iteration
    gc.collect()


@pytest.mark.parametrize(
    "end", [stop_early, lambda batches: list(islice(batches, 2)), fail_in_between, collect_garbage]
)
def test_thread_and_source_end_with_the_consumer(end):
    source = Source()
    end(prefetched(source, 100))
    assert threads() == [] and source.closed == 1 and source.alive == 0


def test_iteration_that_its_own_thread_collects(monkeypatch):
    """A thread cannot wait for itself."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    collect = threading.Event()
    done = threading.Event()

    def collecting() -> Iterator[Batch]:
        yield batch(0)
        collect.wait(5)
        gc.collect()
        yield batch(1)
        done.set()

    gc.disable()
    try:
        iteration = iter(prefetched(collecting, 10))
        next(iteration)
        gone = weakref.ref(iteration)
        circle = SimpleNamespace(iteration=iteration)
        circle.circle = circle
        del circle, iteration
        collect.set()
        assert wait_until(lambda: threads() == [])
        assert gone() is None and not done.is_set() and ignored == []
    finally:
        gc.enable()


def test_source_that_takes_long_is_told():
    asked = threading.Event()

    def endless() -> Iterator[Batch]:
        yield batch(0)
        while not is_stopped():
            asked.set()
            time.sleep(0.005)

    iteration = iter(prefetched(endless))
    next(iteration)
    assert asked.wait(5)
    start = time.monotonic()
    del iteration
    assert threads() == [] and time.monotonic() - start < 1
    assert not is_stopped(), "true in that thread only"


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl-C does."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_consumer_who_is_interrupted_while_it_waits():
    def endless() -> Iterator[Batch]:
        while not is_stopped():
            time.sleep(0.005)
        yield batch(0)

    iteration = iter(prefetched(endless))
    with interrupted_after(0.1), pytest.raises(KeyboardInterrupt) as caught:
        next(iteration)
    assert threads() == [], "though the iteration is in the traceback"
    del caught


def streamed(urls: list[str], num_workers: int, images: int = 4) -> Iterator[Batch]:
    encoder = CaptionEncoder(SimpleNamespace(tokenizer=tokenizer(), context_length=77), None)
    loader = DataLoader(
        TrainingStream(urls, RandomCrop(8, 0.5), encoder, 2, 1, 4, 0, 0),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="fork" if num_workers else None,
    )
    return assemble(loader, images, encoder.pad_id, None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_in_a_thread_is_the_same_and_leaves_random_numbers_alone(tmp_path, num_workers):
    urls = make_shards(tmp_path, [7, 5])
    expected = [found.images.pixels for found in islice(streamed(urls, num_workers), 6)]
    torch.manual_seed(3)
    numbers = [torch.rand(1) for _ in range(600)]
    torch.manual_seed(3)
    drawn, found = [], []
    for step in prefetched(lambda: streamed(urls, num_workers), 6):
        found.append(step.images.pixels)
        for _ in range(100):  # while the thread makes the next one
            drawn.append(torch.rand(1))
            time.sleep(1e-4)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert torch.equal(torch.cat(drawn), torch.cat(numbers))


def test_stream_that_is_large_ends_soon(tmp_path):
    """In the middle of a batch that would take minutes."""
    urls = make_shards(tmp_path, [7])
    asked = time.monotonic()
    with interrupted_after(0.5), pytest.raises(KeyboardInterrupt):
        next(iter(prefetched(lambda: streamed(urls, 2, images=200_000))))
    assert threads() == [] and time.monotonic() - asked < 4


def test_stream_of_nothing_readable_ends_with_one_line(tmp_path):
    write_tar(tmp_path / "bad.tar", [("0.json", b"{}")])
    with pytest.raises(NothingReadableError, match=r"^no readable sample among the last \d+; first: 0: no image .*$"):
        next(iter(prefetched(lambda: streamed([str(tmp_path / "bad.tar")], 2))))


def test_worker_that_is_killed_ends_the_iteration(tmp_path):
    urls = make_shards(tmp_path, [7])
    before = set(multiprocessing.active_children())
    iteration = iter(prefetched(lambda: streamed(urls, 1), 10_000))
    next(iteration)
    (worker,) = set(multiprocessing.active_children()) - before
    # torch says which worker it was; where it was in the middle of handing a block over, only that the line is dead.
    with pytest.raises((RuntimeError, OSError, EOFError)):
        os.kill(worker.pid, signal.SIGKILL)
        for _ in iteration:
            pass
    del iteration


PROGRAM = """
import sys
from pathlib import Path
from tests.unit.training.data.test_prefetch import make_shards, prefetched, streamed

urls = make_shards(Path(sys.argv[1]), [7])
iteration = iter(prefetched(lambda: streamed(urls, 1, 200), 1000))
kept = [next(iteration), iteration]
kept.append(kept)
print("end")
"""


@pytest.mark.slow
def test_program_ends_in_the_middle_of_an_iteration(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
