"""Extract concepts from a parsed caption (SimZSS, section 3.2: noun chunk -> last compound modifier + root)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simzss.concepts.concept import Concept

if TYPE_CHECKING:
    from spacy.tokens import Doc


def lower_same_length(text: str) -> str:
    """Lower-case `text` character by character, so that offsets into the result are offsets into `text`.

    The few characters whose lower case is longer (such as a dotted capital I) stay as they are.
    """
    return "".join(lower if len(lower := char.lower()) == 1 else char for char in text)


def extract_concepts(doc: "Doc", caption: str) -> Iterator[Concept]:
    """Extract the concepts of a caption from its parse.

    Args:
        doc: parse of `lower_same_length(caption)`, with tags, dependencies and lemmas.
        caption: the caption as written; spans are cut from it.

    Yields:
        One concept per noun chunk: the last child of the chunk's root with dependency `compound`, if there is
        one, joined with the root's lemma.
    """
    for chunk in doc.noun_chunks:
        root = chunk.root
        compounds = [child for child in root.children if child.dep_ == "compound"]
        first = compounds[-1] if compounds else root
        lemma = f"{compounds[-1].text} {root.lemma_}" if compounds else root.lemma_
        # A compound can follow its root ("tennis, table"): the span runs from the first of the two to the last.
        start = min(first.idx, root.idx)
        end = max(first.idx + len(first), root.idx + len(root))
        yield Concept(caption[start:end], lemma.lower(), start, end)
