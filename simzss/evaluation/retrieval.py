"""Image-text retrieval on a COCO captions file: which caption belongs to an image, which image to a caption."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.data.benchmark import require_folder
from simzss.data.names import checked_name
from simzss.data.settings import RetrievalSettings
from simzss.data.shards import Skipped
from simzss.distributed import rank, world_size
from simzss.errors import DataError
from simzss.evaluation.ledger import Ledger
from simzss.evaluation.results import RetrievalResult
from simzss.evaluation.vectors import gather_by_index, image_vectors, place_model, protocol, ranks, vectors_key
from simzss.models.simzss import SimZSS

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class CaptionedImages:
    """n images that have a caption, by file name, and m captions; `owners[j]` is the image of `texts[j]`."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    owners: tuple[int, ...]
    skipped: tuple[Skipped, ...]


def retrieve(
    model: SimZSS,
    settings: RetrievalSettings,
    precision: str = "auto",
    device: torch.device | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
    ledger: Ledger | None = None,
) -> RetrievalResult:
    """Rank all captions for every image and all images for every caption, by cosine of the two sentence-level vectors.

    An image is its normalised class token, squashed whole to the training size; a caption is its pooled vector, read
    as it stands. An image is found at k if any of its captions is among the first k, a caption if its image is; ties
    count against both (see `simzss.evaluation.vectors.ranks`). What cannot be read leaves with its captions.

    Args:
        model: moved to `device`.
        settings: images and captions.
        precision: `auto`, `bf16-mixed`, `32-true`.
        device: None for the accelerator when there is one.
        batch_size: images at a time, on each rank.
        num_workers: decoding processes of each rank.
        ledger: keeps the images' vectors, so that the same call goes on where it was stopped; None: nothing is kept.

    Returns:
        On every rank the scores of the whole set.

    Raises:
        InputError: bad folder or file, or no readable image.
    """
    data = read_captioned_images(settings)
    device, precision = place_model(model, precision, device)
    found = image_vectors(
        model,
        Path(settings.root),
        data.names,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        records=None if ledger is None else ledger.records(vectors_key(model, precision, data.names)),
    )
    images = gather_by_index(found.vectors, found.index, len(data.names))
    readable = gather_by_index(torch.ones_like(found.index), found.index, len(data.names)).bool()
    is_readable = readable.tolist()
    kept = [j for j, owner in enumerate(data.owners) if is_readable[owner]]
    texts = text_vectors(model, [data.texts[j] for j in kept])
    text_owners = torch.tensor([data.owners[j] for j in kept], device=device)
    image_owners = readable.nonzero()[:, 0]
    images = images[image_owners]
    return RetrievalResult(
        image_to_text=recalls(ranks(images, image_owners, texts, text_owners)),
        text_to_image=recalls(ranks(texts, text_owners, images, image_owners)),
        images=len(images),
        captions=len(texts),
        skipped=(*data.skipped, *found.skipped),
        protocol=protocol(model, settings.limit, precision, text="caption", readout="sentence"),
    )


def recalls(found: Tensor) -> dict[str, float]:
    """Compute R@1, R@5, R@10 in per cent of (Q,) ranks."""
    return {f"R@{k}": 100 * int((found <= k).sum()) / len(found) for k in RECALLS}


def text_vectors(model: SimZSS, texts: Sequence[str]) -> Tensor:
    """Encode texts as (m, D) unit vectors, by all ranks together.

    Equal texts are encoded once: beside other neighbours in the batch their vectors would differ in the last bits, and
    captions that two images share must tie.
    """
    # Texts of like length side by side need little padding.
    distinct = {text: index for index, text in enumerate(sorted(dict.fromkeys(texts), key=len))}
    pooled, _ = model.text_encoder.encode(list(distinct)[rank() :: world_size()])
    index = torch.arange(rank(), len(distinct), world_size(), device=pooled.device)
    everyone = gather_by_index(F.normalize(pooled, dim=-1), index, len(distinct))
    return everyone[torch.tensor([distinct[text] for text in texts], device=pooled.device)]


def read_captioned_images(settings: RetrievalSettings) -> CaptionedImages:
    """Read the first images of the file and their captions; `skipped` has images and captions without text.

    Raises:
        DataError: folder or file missing, JSON of another shape, an id twice, a caption of no image, an image without
            a file, no caption at all.
    """
    root, path = require_folder(settings.root, "benchmark.root"), Path(settings.captions)
    records, annotations = _parse_coco(path)
    known = {image_id for image_id, _ in records}
    stray = [image_id for image_id, _ in annotations if image_id not in known]
    if stray:
        raise DataError(f"benchmark.captions={path}: a caption has image_id {stray[0]!r}, which is no image of the "
                        f"file ({len(stray)} such captions)")  # fmt: skip
    records = records[: settings.limit]
    missing = [name for _, name in records if not (root / name).is_file()]
    if missing:
        raise DataError(f"benchmark {settings.name}: {root / missing[0]} does not exist "
                        f"({len(missing)} of {len(records)} missing)")  # fmt: skip
    captions: dict[Any, list[str]] = {image_id: [] for image_id, _ in records}
    for image_id, text in annotations:
        if image_id in captions:
            captions[image_id].append(text)
    return _captioned(settings, records, captions)


def _captioned(
    settings: RetrievalSettings, records: list[tuple[Any, str]], captions: dict[Any, list[str]]
) -> CaptionedImages:
    names: list[str] = []
    texts: list[str] = []
    owners: list[int] = []
    skipped: list[Skipped] = []
    for image_id, name in records:
        written = [text for text in captions[image_id] if text]
        if not written:
            skipped.append(Skipped(name, "no caption"))
            continue
        skipped += [Skipped(name, "a caption is empty")] * (len(captions[image_id]) - len(written))
        texts += written
        owners += [len(names)] * len(written)
        names.append(name)
    if not names:
        raise DataError(f"benchmark.captions={settings.captions} has no caption for its first {len(records)} images")
    return CaptionedImages(tuple(names), tuple(texts), tuple(owners), tuple(skipped))


def _parse_coco(path: Path) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
    """Return (image id, file name) and (image id, caption) in the order of the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"benchmark.captions={path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"benchmark.captions={path} is not readable JSON: {error}") from error
    try:
        source = f"benchmark.captions={path}"
        records = [(image["id"], checked_name(_text(image, "file_name"), source)) for image in content["images"]]
        annotations = [(entry["image_id"], _text(entry, "caption").strip()) for entry in content["annotations"]]
        times = Counter(image_id for image_id, _ in records)
        hash(tuple(annotations))  # an id that is a list or an object cannot be looked up: TypeError
    except (KeyError, TypeError) as error:
        raise DataError(f"benchmark.captions={path} is no COCO captions file: it needs images[].id, "
                         "images[].file_name, annotations[].image_id and annotations[].caption "
                         f"({error!r})") from error  # fmt: skip
    twice = [image_id for image_id, count in times.items() if count > 1]
    if twice:
        raise DataError(f"benchmark.captions={path}: two images have the id {twice[0]!r}")
    return records, annotations


def _text(record: Any, key: str) -> str:
    text = record[key]
    # Half a surrogate pair is legal JSON, but no tokenizer takes it and no terminal shows it.
    if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TypeError(f"{key} {text!r} is no text")
    return text
