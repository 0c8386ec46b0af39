"""Photo files labelled with words, to overlays and masks."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from simzss.data.images import save_image
from simzss.errors import DataError, InputError, printable
from simzss.evaluation.ledger import Entry, Records, plain_regions, read_regions, stamp_of
from simzss.evaluation.photos import log_done, of_system, pieces, raise_broken
from simzss.progress import progress
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.prepare import read_photo
from simzss.segmentation.prediction import Prediction
from simzss.segmentation.refine.base import Counts
from simzss.segmentation.segmenter import Segmenter

log = logging.getLogger(__name__)


def label_photos(
    segmenter: Segmenter, classifier: Classifier, images: Sequence[Path], output: Path, records: Records
) -> Iterator[Path]:
    """Write `NAME_overlay.png` and `NAME_mask.png` of each image and yield their paths, in the order of the images.

    Args:
        segmenter: protocol.
        classifier: of the words.
        images: files, no two of one name.
        output: folder.
        records: of earlier runs: what they wrote, and is as they left it, is not made again.

    Raises:
        DataError: images that are unreadable, after all others.
    """
    names = [str(path.absolute()) for path in images]
    stamps = {name: stamp_of(path) for name, path in zip(names, images, strict=True)}
    done = records.find(stamps)
    log_done("segment", len(done), len(images))
    regions: Counts | None = None
    broken: list[InputError] = []
    # The chunks of an undisturbed run: see `pieces`.
    starts = range(0, len(images), segmenter.chunk_size)
    for numbers in progress([range(len(images))[start:][: segmenter.chunk_size] for start in starts], len(images),
                            "segment", count=len):  # fmt: skip
        left = [number for number in numbers if names[number] not in done]
        photos = [_read(images[number], broken) for number in left]
        prepared = [None if photo is None else segmenter.prepare(photo) for photo in photos]
        for places, as_undisturbed in pieces(segmenter, prepared):
            photos_of_piece: list[Any] = [photos[place] for place in places]
            inputs: list[Any] = [prepared[place] for place in places]
            entries = {}
            for place, photo, (found,) in zip(places, photos_of_piece, segmenter.predict_prepared(inputs, [classifier]),
                                              strict=True):  # fmt: skip
                name = names[left[place]]
                entries[name] = _write(output / images[left[place]].stem, photo, found)
            if as_undisturbed:
                records.add(left[places[0]], {name: (stamps[name], entry) for name, entry in entries.items()})
            done |= entries
        for number in numbers:
            if entry := done.pop(names[number], None):
                yield from entry.files
                own = read_regions(entry.tensors, entry.note)
                regions = own if regions is None else regions if own is None else regions + own
    raise_broken(broken)
    if regions is not None:
        log.info("regions: %s", _summary(regions.by_name(classifier.names)))


def _read(path: Path, broken: list[InputError]) -> Image.Image | None:
    """Return a photo; None, and the error to the others, for one that is unreadable."""
    try:
        return read_photo(path)
    except DataError as error:
        if failure := of_system(error):
            raise failure from error
        broken.append(error)
        log.warning("%s", printable(str(error)))
        return None


def _write(start: Path, photo: Image.Image, found: Prediction) -> Entry:
    """Write the files of a photo, whose paths begin with `start`."""
    drawn, indices = (start.with_name(f"{start.name}_{what}.png") for what in ("overlay", "mask"))
    save_image(drawn, found.overlay(photo))
    found.save(indices)
    tensors, kind = plain_regions(found.regions)
    return Entry(tensors, kind, (drawn, indices))


def _summary(counts: Mapping[str, Any]) -> str:
    """Return counts of regions on one line, the classes that were lost by name."""
    sums = {key: sum(value.values()) if isinstance(value, Mapping) else value for key, value in counts.items()}
    line = ", ".join(f"{key} {value}" for key, value in sums.items())
    return f"{line} ({', '.join(map(printable, counts['lost']))})" if counts["lost"] else line
