import multiprocessing
import random
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from simzss.concepts.bank import ConceptBank, Entry
from simzss.data.shards import Skipped, read_shards, write_shard
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.errors import InputError
from simzss.training.data import stream as stream_module
from simzss.training.data.assemble import assemble
from simzss.training.data.batch import Batch
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption
from simzss.training.data.stream import (
    OrderedImages,
    StreamBlock,
    TrainingStream,
    deal_passes,
    load_image,
    read_parts,
    shuffled,
)
from tests.support.files import PIPELINE, annotation, caption, image_bytes, make_shards, sample, write_tar
from tests.support.language import tokenizer

# More processes than cores: the order in which they come must not matter.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def encoder() -> CaptionEncoder:
    return CaptionEncoder(SimpleNamespace(tokenizer=tokenizer(), context_length=77), ConceptBank([Entry("dog")]))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return make_shards(tmp_path_factory.mktemp("shards"), [4, 4, 3])


def stream(urls, *, seed=0, epoch=0, block_size=3, captions=1, shuffle=6, transform=None) -> TrainingStream:
    transform = transform or RandomCrop(8, 0.5)
    return TrainingStream(urls, transform, encoder(), block_size, captions, shuffle, seed, epoch)


def loader(dataset, num_workers: int = 0) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="fork" if num_workers else None,
    )


def batches(dataset: TrainingStream, images: int, count: int = 3, num_workers: int = 0) -> list[Batch]:
    return list(islice(assemble(loader(dataset, num_workers), images, encoder().pad_id, None), count))


def same(one: list[Batch], two: list[Batch]) -> bool:
    pixels = zip(one, two, strict=True)
    return texts(one) == texts(two) and all(torch.equal(a.images.pixels, b.images.pixels) for a, b in pixels)


def text_of(ids: Iterable[int]) -> str:
    """Return a caption; the tokenizer parts the digits of a number."""
    return re.sub(r"(?<=\d) (?=\d)", "", tokenizer().decode(list(ids), skip_special_tokens=True).strip())


def texts(found: list[Batch]) -> list[str]:
    """Return the captions in order."""
    found_texts = []
    for batch in found:
        in_order = [
            ids[mask.bool()].tolist()
            for block in batch.text
            for ids, mask in zip(block.input_ids, block.attention_mask, strict=True)
        ]
        found_texts += [text_of(in_order[index]) for index in batch.caption_index.tolist()]
    return found_texts


def dogs(*numbers: int) -> list[str]:
    return sorted(f"dog number {number}" for number in numbers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_is_a_function_of_seed_and_epoch(shards, num_workers):
    first = batches(stream(shards), 4, num_workers=num_workers)
    torch.rand(3)  # the run's own random numbers have no part in it
    assert same(first, batches(stream(shards), 4, num_workers=num_workers))
    for other in ({"epoch": 1}, {"seed": 1}):
        others = batches(stream(shards, **other), 4, num_workers=num_workers)
        assert texts(first) != texts(others)


def test_crops_differ_with_the_seed_and_from_image_to_image(tmp_path):
    # One image, again and again.
    write_shard(tmp_path / "s.tar", [sample(0, image=image_bytes(0, (96, 64)))], PIPELINE)
    (first,) = batches(stream([str(tmp_path / "s.tar")]), 4, count=1)
    (other,) = batches(stream([str(tmp_path / "s.tar")], seed=1), 4, count=1)
    assert len({image.numpy().tobytes() for image in [*first.images.pixels, *other.images.pixels]}) == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shape_of_batches(shards, num_workers):
    for batch in batches(stream(shards), 5, num_workers=num_workers):
        assert batch.images.pixels.shape == (5, 3, 8, 8)
        assert batch.images.pixels.dtype == torch.uint8
        assert len(batch) == 5
        assert batch.image_index is None
        assert batch.mention_image.tolist() == [0, 1, 2, 3, 4]
        assert batch.skipped == ()


def test_stream_does_not_touch_the_random_state_of_the_run(shards):
    """Not even while a transform runs: another thread may draw at the same time."""
    states = []

    class Watched(RandomCrop):
        def __call__(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
            states.append(torch.random.get_rng_state())
            crop = super().__call__(image, generator)
            states.append(torch.random.get_rng_state())
            return crop

    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    batches(stream(shards, transform=Watched(8, 0.5)), 4)
    assert len(states) >= 24
    assert all(torch.equal(state, before) for state in [*states, torch.random.get_rng_state()])


@pytest.mark.parametrize("shuffle", [0, 1, 6, 50])
def test_every_image_comes_once_per_pass(shards, shuffle):
    found = texts(batches(stream(shards, shuffle=shuffle), 11))
    passes = [found[:11], found[11:22], found[22:]]
    assert [sorted(one) for one in passes] == [dogs(*range(11))] * 3
    assert len({str(one) for one in passes}) > 1


@pytest.mark.parametrize("shuffle", [0, 6])
@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize(("sizes", "num_workers"), [([11], 2), ([4, 4, 4], 2), ([6, 6], 3), ([5, 5], 2)])
def test_images_of_a_pass_over_few_shards_are_dealt_to_the_workers(tmp_path, sizes, num_workers, block_size, shuffle):
    """The first batch is the whole pass: an image that came twice would be in the place of another."""
    urls = make_shards(tmp_path, sizes)
    (batch,) = batches(stream(urls, block_size=block_size, shuffle=shuffle), sum(sizes), 1, num_workers)
    assert sorted(texts([batch])) == dogs(*range(sum(sizes)))


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("sizes", [[12], [12, 12], [12] * 3, [12] * 4, [12] * 7, [5, 0, 1, 20]])
def test_readers_share_out_every_pass(tmp_path, sizes, readers):
    """Counted over all readers, every record comes once a pass; in shares as even as the shards."""
    urls = make_shards(tmp_path, sizes)
    everything = Counter(read_shards(urls))
    passes = [list(islice(deal_passes(urls, 5, 1, reader, readers), 3)) for reader in range(readers)]
    orders = set()
    for number in range(3):
        shares = [list(read_parts(passes[reader][number])) for reader in range(readers)]
        assert Counter(record for share in shares for record in share) == everything
        assert sum(len(parts[number]) for parts in passes) < len(sizes) + readers, "few shards are read twice"
        if set(sizes) == {12}:
            lengths = [len(share) for share in shares]
            assert max(lengths) - min(lengths) <= (0 if 12 % readers == 0 else 3)
        orders.add(str([[record.key for record in share] for share in shares]))
    assert len(orders) == 3 or len(sizes) < 4


def test_whole_shards_stay_whole():
    urls = [f"s{number}" for number in range(6)]
    for reader in range(3):
        parts = next(deal_passes(urls, 0, 0, reader, 3))
        assert [(part.mine, part.cuts) for part in parts] == [(range(1), 1)] * 2


def test_a_stream_is_that_of_its_rank(shards, monkeypatch):
    """Two ranks with two workers each, one after another."""
    monkeypatch.setattr(stream_module, "world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(stream_module, "rank", lambda rank=rank: rank)
        blocks = list(islice(loader(stream(shards[:2], block_size=2), 2), 2))
        found += [text_of(encoded.input_ids) for block in blocks for (encoded,) in block.captions]
    assert sorted(found) == dogs(*range(8))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_fewer_images_than_workers(tmp_path, num_workers):
    (shard,) = make_shards(tmp_path, [1])
    found = batches(stream([shard]), 4, count=1, num_workers=num_workers)
    assert texts(found) == ["dog number 0"] * 4


@pytest.mark.parametrize("size", [0, 1, 5, 20, 99])
def test_shuffle_buffer(size):
    orders = set()
    for seed in range(20):
        given = iter(range(20))
        first = next(shuffled(given, size, random.Random(seed)))
        read = 20 - len(list(given)) if size < 20 else 20
        assert first <= size and read <= size + 1, "no more than the buffer was read ahead"
        orders.add(tuple(shuffled(range(20), size, random.Random(seed))))
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(orders) == (20 if size else 1)


def test_shuffle_buffer_of_all_is_a_fair_permutation():
    """The first record of three, over many seeds, in both ways through the buffer."""
    for size in (2, 3):
        firsts = Counter(next(shuffled("abc", size, random.Random(seed))) for seed in range(3000))
        assert all(900 < firsts[letter] < 1100 for letter in "abc")


def test_image_and_caption_stay_together(tmp_path):
    samples = [sample(i, [caption(f"dog number {i}")]) for i in range(6)]
    write_shard(tmp_path / "s.tar", samples, PIPELINE)
    transform = WholeImage(8)
    expected = {f"dog number {i}": load_image(samples[i], transform) for i in range(6)}
    for batch in batches(stream([str(tmp_path / "s.tar")], transform=transform, block_size=4), 5):
        for text, image in zip(texts([batch]), batch.images.pixels, strict=True):
            assert torch.equal(image, expected[text])


def test_captions_of_an_image_take_turns_at_random(tmp_path):
    write_shard(tmp_path / "s.tar", [sample(0, [caption("red"), caption("green"), caption("blue")])], PIPELINE)
    found = texts(batches(stream([str(tmp_path / "s.tar")], shuffle=0), 30, count=1))
    assert set(found) == {"red", "green", "blue"}
    assert found != sorted(found)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_captions_of_an_image_are_all_used_before_one_comes_again(tmp_path, count):
    several = [[caption(f"{word} {i}", word) for word in ("dog", "cat", "sun")] for i in range(4)]
    write_shard(tmp_path / "s.tar", [sample(i, several[i]) for i in range(4)], PIPELINE)
    found = batches(stream([str(tmp_path / "s.tar")], captions=count, transform=WholeImage(8)), 4)
    expected = {str(i): load_image(sample(i), WholeImage(8)) for i in range(4)}
    orders = set()
    for batch in found:
        assert len(batch) == 4 * count and len(batch.images) == 4
        assert batch.image_index.tolist() == [image for image in range(4) for _ in range(count)]
        of_image = [texts([batch])[image * count : (image + 1) * count] for image in range(4)]
        mentions = [image for image, some in enumerate(of_image) for text in some if text.startswith("dog")]
        assert batch.mention_image.tolist() == mentions
        for image, some in zip(batch.images.pixels, of_image, strict=True):
            words, numbers = zip(*(text.split() for text in some), strict=True)
            assert len(set(numbers)) == 1 and torch.equal(image, expected[numbers[0]])
            assert words[3:] == words[:-3], "the same order again"
            assert len(set(words[:3])) == min(3, count)
            orders.add(words)
    assert len(orders) > 1


def test_what_is_skipped_is_reported_with_the_batch(tmp_path, shards):
    bad = [("no.png", b"no image"), ("no.json", annotation()), ("notext.png", b"x"), ("notext.json", b"{}")]
    write_tar(tmp_path / "bad.tar", bad)
    found = batches(stream([str(tmp_path / "bad.tar"), shards[0]], shuffle=0), 4)
    skipped = {record.key: record.reason for batch in found for record in batch.skipped}
    assert set(skipped) == {"no", "notext"}
    assert {record.shard for batch in found for record in batch.skipped} == {str(tmp_path / "bad.tar")}
    assert "unreadable image" in skipped["no"] and "bad annotation" in skipped["notext"]
    assert all(len(batch) == len(batch.images) == 4 for batch in found)


def test_readers_of_a_shard_report_each_bad_sample_once(tmp_path):
    members = []
    for i in range(6):
        members += [(f"bad{i}.png", b"no image"), (f"bad{i}.json", annotation())]
        members += [(f"{i}.png", sample(i).image), (f"{i}.json", annotation())]
    write_tar(tmp_path / "s.tar", members)
    (batch,) = batches(stream([str(tmp_path / "s.tar")], shuffle=0, block_size=1), 6, 1, num_workers=3)
    # The one that comes last for its reader goes with the next block of it.
    assert sorted(record.key for record in batch.skipped) == [f"bad{i}" for i in range(5)]


def test_stream_of_unreadable_images_ends_with_the_reason(tmp_path):
    write_tar(tmp_path / "bad.tar", [("no.png", b"no image"), ("no.json", annotation())])
    with pytest.raises(InputError, match="unreadable image"):
        next(iter(stream([str(tmp_path / "bad.tar")], shuffle=0)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [0, 50])
@pytest.mark.parametrize(("data", "reason"), [(b"no tar " * 500, "unreadable tar"), (b"\0" * 10240, "no sample")])
def test_stream_of_broken_tars_ends_with_one_line(tmp_path, data, reason, shuffle, num_workers):
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(InputError) as caught:
        batches(stream([str(tmp_path / "bad.tar")], shuffle=shuffle), 4, num_workers=num_workers)
    message = str(caught.value)
    assert message.startswith("no readable sample") and "bad.tar" in message and reason in message
    assert "\n" not in message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_long_row_of_bad_samples_does_not_end_the_stream(tmp_path, num_workers):
    """A reader whose part of a pass holds nothing has another part in the next."""
    write_tar(tmp_path / "bad.tar", [(f"{i}.json", b"{}") for i in range(300)])
    (good,) = make_shards(tmp_path / "good", [2])
    for seed in range(3):
        found = batches(stream([str(tmp_path / "bad.tar"), good], seed=seed, shuffle=0), 4, 2, num_workers)
        assert set(texts(found)) == set(dogs(0, 1))


def test_an_endless_row_of_bad_samples_ends_the_stream(tmp_path, monkeypatch):
    """Without waiting for the end of the pass, and whatever block has been begun."""
    monkeypatch.setattr(stream_module, "_MAX_SKIPPED", 50)
    members = [("0.png", sample(0).image), ("0.json", annotation())]
    write_tar(tmp_path / "s.tar", members + [(f"bad{i}.json", b"{}") for i in range(51)])
    with pytest.raises(
        InputError, match=r"^no readable sample among the last 51; first: bad0: no image in the sample$"
    ):
        next(iter(stream([str(tmp_path / "s.tar")], shuffle=0)))


def block(*numbers: int, captions: int = 1, skipped: Iterable[str] = ()) -> StreamBlock:
    """Make a block of images that are all their number."""
    image = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    encoded = [tuple(EncodedCaption((number, k), ()) for k in range(captions)) for number in numbers]
    return StreamBlock(image.contiguous(), encoded, tuple(Skipped(key, "bad") for key in skipped))


def contents(batch: Batch) -> tuple[list[int], list[list[int]], list[str]]:
    """Return the images by their number, captions, and what was skipped."""
    ids = [ids for block in batch.text for ids in block.input_ids.tolist()]
    captions = [ids[index] for index in batch.caption_index.tolist()]
    return batch.images.pixels[:, 0, 0, 0].tolist(), captions, [record.key for record in batch.skipped]


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 7, 10, 11])
def test_batches_are_the_blocks_one_after_another(images, captions):
    sizes, start, blocks = [3, 1, 4, 2], 0, []
    for number, size in enumerate(sizes):
        blocks.append(block(*range(start, start + size), captions=captions, skipped=[f"bad{number}"]))
        start += size
    found = [contents(batch) for batch in assemble(blocks, images, 0, None)]
    assert len(found) == 10 // images
    expected = list(range(10 // images * images))
    assert [number for numbers, _, _ in found for number in numbers] == expected
    assert [pair for _, pairs, _ in found for pair in pairs] == [[n, k] for n in expected for k in range(captions)]
    skipped = [key for _, _, keys in found for key in keys]
    assert skipped == [f"bad{number}" for number in range(len(skipped))]
    assert len(skipped) == (4 if images in (1, 2, 10) else 3 if images in (4, 7) else 4 if images == 3 else 0)


def test_text_blocks_are_no_larger_than_asked():
    (batch,) = assemble([block(*range(6), captions=2)], 6, 0, 5)
    assert sum(len(text.input_ids) for text in batch.text) == 12
    assert max(len(text.input_ids) for text in batch.text) <= 5


def test_batches_that_are_handed_over_are_not_kept():
    """While one waits to be taken the next may not take memory, but a reader who is done with one frees it."""
    gone = []
    source = assemble([block(*range(i, i + 3)) for i in range(0, 12, 3)], 3, 0, None)
    for number in range(4):
        batch = next(source)
        weakref.finalize(batch.images.pixels, gone.append, number)
        del batch
        assert gone == list(range(number + 1))


def started(source: Callable[[], Iterator[Batch]]) -> tuple[Iterator[Batch], list]:
    """Call it; return its result and the workers that this started."""
    before = set(multiprocessing.active_children())
    found = source()
    return found, [worker for worker in multiprocessing.active_children() if worker not in before]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_workers_end_with_the_batches(shards, end):
    """Within the time that their small blocks take, not that which torch waits for them."""
    source, workers = started(lambda: assemble(loader(stream(shards, block_size=2), 2), 4, 0, None))
    assert len(workers) == 2, "at once, in this thread"
    next(source)
    start = time.monotonic()
    if end == "close":
        source.close()
    else:
        del source
    assert not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - start < 3


def test_workers_end_with_an_error_of_one_of_them(shards):
    """Though the error, which knows the loader by its traceback, is still at hand."""

    class Broken(WholeImage):
        def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> torch.Tensor:
            raise RuntimeError("transform is broken")

    source, workers = started(lambda: assemble(loader(stream(shards, transform=Broken(8)), 2), 4, 0, None))
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="transform is broken"):
        next(source)
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - start < 3


def test_load_image():
    assert load_image(sample(0), WholeImage(8)).shape == (3, 8, 8)
    skipped = load_image(sample(5, image=b"no image"), WholeImage(8))
    assert isinstance(skipped, Skipped) and skipped.key == "000000005"


def test_an_error_of_the_transform_is_not_taken_for_a_bad_image():
    class Broken:
        min_side = None

        def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> torch.Tensor:
            raise RuntimeError("transform is broken")

    with pytest.raises(RuntimeError, match="transform is broken"):
        load_image(sample(0), Broken())


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_ordered_images_do_not_depend_on_the_workers(tmp_path, shards, num_workers):
    """Blocks of what is readable in two records each; one has nothing."""
    bad = [("a.png", b"no image"), ("a.json", annotation()), ("b.png", b"x"), ("b.json", b"{}")]
    write_tar(tmp_path / "bad.tar", bad)
    urls = [str(tmp_path / "bad.tar"), *shards]
    found = list(loader(OrderedImages(urls, WholeImage(8), 2), num_workers))
    assert [len(pixels) for pixels in found] == [0, 2, 2, 2, 2, 2, 1]
    expected = torch.stack([load_image(sample(i), WholeImage(8)) for i in range(11)])
    assert torch.equal(torch.cat(found[1:]), expected)


def test_images_of_a_block_are_pinned(shards, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    (block,) = islice(stream(shards[:1]), 1)
    assert pin_memory(block).captions == block.captions and pinned == [block.pixels]
