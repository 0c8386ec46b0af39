import re
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from simzss.concepts.bank import ConceptBank, Entry
from simzss.data.batch import Batch, CaptionEncoder
from simzss.data.shards import Skipped, write_shard
from simzss.data.stream import ImageBlock, OrderedBlocks, TrainingStream, load_image
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.errors import InputError
from tests.support.files import PIPELINE, annotation, caption, make_shards, sample, write_tar
from tests.support.language import tokenizer


def encoder() -> CaptionEncoder:
    return CaptionEncoder(SimpleNamespace(tokenizer=tokenizer(), context_length=77), ConceptBank([Entry("dog")]))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return make_shards(tmp_path_factory.mktemp("shards"), [4, 4, 3])


def stream(urls, *, seed=0, epoch=0, batch_size=4, shuffle=6, transform=None) -> TrainingStream:
    transform = transform or RandomCrop(8, 0.5)
    return TrainingStream(urls, transform, encoder(), batch_size, shuffle, seed, epoch)


def batches(dataset: TrainingStream, count: int = 3, num_workers: int = 0) -> list[Batch]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="fork" if num_workers else None,
    )
    return list(islice(loader, count))


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a.image, b.image)
        and torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.concept_image, b.concept_image)
        for a, b in zip(one, two, strict=True)
    )


def numbers(found: list[Batch]) -> list[str]:
    """The caption of each image, in order; the tokenizer parts the digits of a number."""
    texts = [tokenizer().decode(ids, skip_special_tokens=True).strip() for batch in found for ids in batch.input_ids]
    return [re.sub(r"(?<=\d) (?=\d)", "", text) for text in texts]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_is_a_function_of_seed_and_epoch(shards, num_workers):
    first = batches(stream(shards), num_workers=num_workers)
    torch.rand(3)  # the run's own random numbers have no part in it
    assert same(first, batches(stream(shards), num_workers=num_workers))
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not same(first, batches(stream(shards, **other), num_workers=num_workers))
        assert numbers(first) != numbers(batches(stream(shards, **other), num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shape_of_batches(shards, num_workers):
    for batch in batches(stream(shards, batch_size=5), num_workers=num_workers):
        assert batch.image.shape == (5, 3, 8, 8)
        assert batch.image.dtype == torch.uint8
        assert len(batch.input_ids) == 5
        assert batch.concept_image.tolist() == [0, 1, 2, 3, 4]
        assert batch.skipped == ()


def test_stream_leaves_the_random_state_of_the_run_alone(shards):
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    batches(stream(shards))
    assert torch.equal(torch.rand(2), expected)


def test_stream_does_not_reseed_the_gpu(shards, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("all devices are seeded"))
    next(iter(stream(shards)))


def test_every_image_comes_once_per_pass(shards):
    found = numbers(batches(stream(shards, batch_size=11, shuffle=0), count=3))
    everything = sorted(f"dog number {i}" for i in range(11))
    assert sorted(found[:11]) == sorted(found[11:22]) == sorted(found[22:]) == everything


def test_workers_share_the_shards(shards):
    found = numbers(batches(stream(shards[:2], batch_size=4, shuffle=0), count=2, num_workers=2))
    assert sorted(found) == sorted(f"dog number {i}" for i in range(8))


def test_image_and_caption_stay_together(tmp_path):
    samples = [sample(i, [caption(f"dog number {i}")]) for i in range(6)]
    write_shard(tmp_path / "s.tar", samples, PIPELINE)
    transform = WholeImage(8)
    expected = {f"dog number {i}": load_image(samples[i], transform) for i in range(6)}
    (batch,) = batches(stream([str(tmp_path / "s.tar")], batch_size=6, transform=transform), count=1)
    for text, image in zip(numbers([batch]), batch.image, strict=True):
        assert torch.equal(image, expected[text])


def test_captions_of_an_image_take_turns_at_random(tmp_path):
    write_shard(tmp_path / "s.tar", [sample(0, [caption("red"), caption("green"), caption("blue")])], PIPELINE)
    found = numbers(batches(stream([str(tmp_path / "s.tar")], batch_size=30, shuffle=0), count=1))
    assert set(found) == {"red", "green", "blue"}
    assert found != sorted(found)


def test_what_is_skipped_is_reported_with_the_batch(tmp_path, shards):
    bad = [("no.png", b"no image"), ("no.json", annotation()), ("notext.png", b"x"), ("notext.json", b"{}")]
    write_tar(tmp_path / "bad.tar", bad)
    found = batches(stream([str(tmp_path / "bad.tar"), shards[0]], batch_size=4, shuffle=0), count=3)
    skipped = {record.key: record.reason for batch in found for record in batch.skipped}
    assert set(skipped) == {"no", "notext"}
    assert {record.shard for batch in found for record in batch.skipped} == {str(tmp_path / "bad.tar")}
    assert "unreadable image" in skipped["no"] and "bad annotation" in skipped["notext"]
    assert all(len(batch.input_ids) == 4 for batch in found)


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
        batches(stream([str(tmp_path / "bad.tar")], shuffle=shuffle), num_workers=num_workers)
    message = str(caught.value)
    assert message.startswith("no readable sample") and "bad.tar" in message and reason in message
    assert "\n" not in message


def test_load_image():
    assert load_image(sample(0), WholeImage(8)).shape == (3, 8, 8)
    skipped = load_image(sample(5, image=b"no image"), WholeImage(8))
    assert isinstance(skipped, Skipped) and skipped.key == "000000005"


def test_an_error_of_the_transform_is_not_taken_for_a_bad_image():
    class Broken:
        least = None

        def __call__(self, image: Image.Image) -> torch.Tensor:
            raise RuntimeError("transform is broken")

    with pytest.raises(RuntimeError, match="transform is broken"):
        load_image(sample(0), Broken())


def blocks(urls, block_size: int, num_workers: int) -> list[ImageBlock]:
    dataset = OrderedBlocks(urls, WholeImage(8), block_size)
    context = "fork" if num_workers else None
    return list(DataLoader(dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_ordered_blocks_do_not_depend_on_the_workers(shards, num_workers):
    found = blocks(shards, 2, num_workers)
    texts = [captions[0].text for block in found for captions in block.captions]
    assert texts == [f"dog number {i}" for i in range(11)]
    assert [len(block.image) for block in found] == [2, 2, 2, 2, 2, 1]
    expected = torch.stack([load_image(sample(i), WholeImage(8)) for i in range(11)])
    assert torch.equal(torch.cat([block.image for block in found]), expected)


def test_images_of_a_block_are_pinned(shards, monkeypatch):
    (block,) = blocks(shards[:1], 4, 0)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert pin_memory(block).captions == block.captions and pinned == [block.image]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ordered_blocks_report_what_they_skip(tmp_path, shards, num_workers):
    bad = [("a.png", b"no image"), ("a.json", annotation()), ("b.png", b"x"), ("b.json", b"{}")]
    write_tar(tmp_path / "bad.tar", bad)
    found = blocks([str(tmp_path / "bad.tar"), shards[0]], 2, num_workers)
    assert [len(block.image) for block in found] == [0, 2, 2]
    assert [len(block.captions) for block in found] == [0, 2, 2]
    assert [record.key for record in found[0].skipped] == ["a", "b"]
    assert found[1].skipped == found[2].skipped == ()
