"""CLIP's vocabulary (Radford et al. 2021), as published by OpenAI and OpenCLIP; single files do not contain it."""

import gzip

from latentdiff.checkpoints.key_names import DATA
from latentdiff.text.tokenizer import END, SPECIAL, START, WORD_END, CLIPTokenizer

MERGES = 49152 - 256 - 2  # the file lists more merges than the vocabulary uses
VISIBLE = ((ord("!"), ord("~")), (ord("¡"), ord("¬")), (ord("®"), ord("ÿ")))


def clip_tokenizer(length: int, pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer for texts of `length` tokens. OpenCLIP pads with `!`, token 0."""
    lines = gzip.decompress((DATA / "clip_bpe.txt.gz").read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : 1 + MERGES])]
    letters = _letters()
    pieces = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocabulary, merges, length, {**SPECIAL, "pad_token": pad_token})


def _letters() -> list[str]:
    """A printable character for each byte (Radford et al. 2019), in CLIP's order: its own, or one with a code of 256 or
    more.
    """
    own = [code for low, high in VISIBLE for code in range(low, high + 1)]
    others = [chr(256 + k) for k in range(256 - len(own))]
    return [*map(chr, own), *others]
