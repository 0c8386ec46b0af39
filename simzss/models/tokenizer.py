"""Tokenizers with character offsets: CLIP's byte pairs for the tower from scratch, a directory's own otherwise."""

import gzip
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from simzss.errors import InputError

_VOCABULARY_SIZE = 49_408  # 512 byte symbols + 48,894 merges + start and end of text


def clip_tokenizer() -> PreTrainedTokenizerBase:
    """CLIP's lower-casing byte-pair tokenizer, built from the vocabulary file inside `open-clip-torch`."""
    file = resources.files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1 : _VOCABULARY_SIZE - 512 - 2 + 1]]
    symbols = _byte_symbols()
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges)


def directory_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a transformers directory.

    Raises:
        InputError: no tokenizer there, or one without character offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, use_fast=True)
        letter = tokenizer.encode("a", add_special_tokens=False)
    except Exception as error:
        # A broken file fails in as many ways as it can be broken; the tokenizers library raises bare Exception.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"no tokenizer in {path}: {reason}") from error
    # Without its files transformers makes up a tokenizer to which every word is unknown.
    if letter == [tokenizer.unk_token_id] or not len(tokenizer):
        raise InputError(f"the tokenizer in {path} has no vocabulary")
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {path} gives no character offsets (not a fast tokenizer)")
    return tokenizer


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in the order of CLIP's vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
