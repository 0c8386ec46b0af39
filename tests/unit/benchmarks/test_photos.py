"""Made-up photos and captions cost what COCO's cost, and are a function of their numbers alone."""

import io
import random
import statistics

import numpy as np
import pytest
from PIL import Image

from benchmarks.photos import CAPTIONS, SIZE, coco_like_captions, made_up_caption, photo, write_photos
from simzss.concepts.bank import ConceptBank
from simzss.data.shards import count_samples, read_shards
from simzss.models.tokenizer import clip_tokenizer
from simzss.settings.compose import find_file

SMALL = (48, 40)


def test_photos_are_of_the_size_of_photos():
    files = [photo(0, number) for number in range(12)]
    assert len(set(files)) == 12
    assert Image.open(io.BytesIO(files[0])).size == SIZE
    assert 60_000 < statistics.mean(map(len, files)) < 100_000


def test_detail_falls_with_the_frequency():
    grey = np.asarray(Image.open(io.BytesIO(photo(0, 1))).convert("L"), dtype=float)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1])[None])
    coarse, fine = (power[(low < frequency) & (frequency < high)].mean() for low, high in ((0.01, 0.03), (0.1, 0.3)))
    assert 50 < coarse / fine < 5000  # 1 / f^2.6 makes 400 of it, white noise 1


def test_captions_are_as_long_as_those_of_coco():
    rng = random.Random(0)
    captions = [made_up_caption(rng) for _ in range(2000)]
    assert statistics.mean(len(caption.text.split()) for caption in captions) == pytest.approx(10.4, abs=0.3)
    tokens = clip_tokenizer()([caption.text for caption in captions])["input_ids"]
    assert statistics.mean(map(len, tokens)) == pytest.approx(13.6, abs=1)
    bank = ConceptBank.from_file(find_file("concepts/banks/everyday.txt"))
    for caption in captions:
        assert caption.concepts
        for concept in caption.concepts:
            assert caption.text[concept.start : concept.end] == concept.text
            assert bank.lookup(concept) is not None


@pytest.mark.slow
def test_shards_do_not_depend_on_the_processes(tmp_path):
    one = write_photos(tmp_path / "one", 7, size=SMALL, per_shard=3)
    two = write_photos(tmp_path / "two", 7, size=SMALL, per_shard=3, processes=2)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    urls = [str(path) for path in one]
    assert count_samples(urls) == 7
    samples = list(read_shards(urls))
    assert [len(sample.captions) for sample in samples] == [CAPTIONS] * 7
    assert len({sample.image for sample in samples}) == 7


def test_given_captions_go_to_their_images(tmp_path, monkeypatch):
    monkeypatch.delenv("SIMZSS_DATA", raising=False)
    captions = coco_like_captions(7 * CAPTIONS)
    urls = [str(path) for path in write_photos(tmp_path / "s", 7, size=SMALL, per_shard=3, captions=captions)]
    assert [caption for sample in read_shards(urls) for caption in sample.captions] == captions
