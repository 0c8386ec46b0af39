"""Tokenizers with character offsets: CLIP's byte-pair tokenizer, or that of a transformers folder."""

from functools import cache
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from simzss.errors import ModelError
from simzss.models.pretrained import reason


def clip_tokenizer() -> PreTrainedTokenizerBase:
    """Build CLIP's lower-casing byte-pair tokenizer from the vocabulary inside `open-clip-torch`."""
    tokens, merges = _clip_vocabulary()
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges))


@cache
def _clip_vocabulary() -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Read the tokens and merges, once; a whole tokenizer is not kept, since threads must not share its state."""
    source = SimpleTokenizer()
    tokens = (*list(source.encoder)[:-2], "<|startoftext|>", "<|endoftext|>")  # which open_clip names otherwise
    return tokens, tuple(source.bpe_ranks)


def directory_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a transformers folder; code in it is not run.

    Raises:
        ModelError: no tokenizer there, or one without character offsets.
    """
    if not path.is_dir():  # whose name would be looked up on the hub
        raise ModelError(f"no tokenizer in {path}: there is no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, use_fast=True)
        letter = tokenizer.encode("a", add_special_tokens=False)
    except BaseException as error:
        # A broken file fails in as many ways as it can be broken; the tokenizers library raises bare Exception, and
        # where it panics an error that is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"no tokenizer in {path}: {reason(error)}") from error
    # Without its files transformers makes up a tokenizer to which every word is unknown.
    if letter == [tokenizer.unk_token_id] or not len(tokenizer):
        raise ModelError(f"the tokenizer in {path} has no vocabulary")
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer in {path} gives no character offsets (not a fast tokenizer)")
    return tokenizer
