"""Load and check a spaCy pipeline and parse captions in batches. The only spaCy import."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from simzss.concepts.concept import Caption
from simzss.concepts.extract import extract_concepts, lower_same_length
from simzss.errors import ConfigError, nearest
from simzss.extras import need

if TYPE_CHECKING:
    from spacy.language import Language

# Parts that noun chunks and lemmas do not need; leaving them out is a quarter of the time.
_UNUSED = ["ner", "textcat", "textcat_multilabel", "entity_linker", "entity_ruler"]
# String-store growth is bounded by dropping it after so many captions.
_ZONE = 8192


class ConceptPipeline:
    """Find the concepts of captions with a spaCy pipeline.

    Args:
        name: installed package name or path of a pipeline folder.
        batch_size: captions parsed together; 256 is 3.7 times as fast as one by one on CPU.
        accelerator: run on one, as transformer pipelines should; spaCy needs CuPy for it.

    Raises:
        ConfigError: not installed, not a pipeline, or without the parts that concepts need; no accelerator.
    """

    def __init__(self, name: str, batch_size: int = 256, accelerator: bool = False) -> None:
        if accelerator:
            _use_accelerator()
        self.nlp = _load(name)
        self.batch_size = batch_size

    @property
    def info(self) -> dict[str, str]:
        """Return name and version of the pipeline and of spaCy, as recorded in every shard."""
        meta, spacy = self.nlp.meta, need("spacy", "prep")
        return {"name": f"{meta['lang']}_{meta['name']}", "version": meta["version"], "spacy": spacy.__version__}

    def annotate(self, captions: Iterable[str]) -> Iterator[Caption]:
        """Yield captions with their concepts, one for one and in order."""
        stream = iter(captions)
        while texts := list(islice(stream, _ZONE)):
            with self.nlp.memory_zone():
                # Inside the zone only plain strings may leave: a Doc is void when the zone ends.
                docs = self.nlp.pipe(map(lower_same_length, texts), batch_size=self.batch_size)
                annotated = [
                    Caption(text, tuple(extract_concepts(doc, text))) for text, doc in zip(texts, docs, strict=True)
                ]
            yield from annotated


def _use_accelerator() -> None:
    try:
        need("spacy", "prep").require_gpu()  # before loading: it decides where the weights go
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"parse_on_accelerator: spaCy finds none (it needs CuPy: pip install cupy-cuda12x): {reason}"
        ) from error


def _load(name: str) -> "Language":
    spacy = need("spacy", "prep")
    logging.getLogger("spacy").setLevel(logging.ERROR)
    try:
        nlp: Language = spacy.load(name, exclude=_UNUSED)
    except OSError as error:
        installed = spacy.util.get_installed_models()
        hint = nearest(name, installed) if installed else "none is installed"
        reason = "is not a spaCy pipeline folder" if Path(name).exists() else "is not installed"
        raise ConfigError(f"spacy={name} {reason}; {hint}") from error
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        # A package that is no pipeline has no `load`; a language, or what its tokenizer needs, may not import.
        raise ConfigError(f"spacy={name} does not load: {error}") from error
    present = set(nlp.pipe_names)
    if "parser" not in present:
        raise ConfigError(f"spacy={name} has no parser (it has: {', '.join(nlp.pipe_names) or 'nothing'}): "
                         "noun chunks need one")  # fmt: skip
    if not present & {"lemmatizer", "trainable_lemmatizer"}:
        raise ConfigError(f"spacy={name} has no lemmatizer (it has: {', '.join(nlp.pipe_names)}): concepts need lemmas")
    try:
        list(nlp("a cat").noun_chunks)
    except NotImplementedError as error:
        raise ConfigError(f"spacy={name}: spaCy has no noun chunks for language {nlp.lang!r}") from error
    return nlp
