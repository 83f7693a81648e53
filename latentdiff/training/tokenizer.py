"""A byte-pair vocabulary of one's own, as transformers' CLIPTokenizer."""

import json

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn merges (Sennrich et al. 2016) over CLIP's own splitting of text; any byte stays writable."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [START, END, *alphabet, *(letter + "</w>" for letter in alphabet)]
    empty = CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[])
    learnt = empty.train_new_from_iterator(captions, vocab_size, show_progress=False)
    merges = [tuple(pair) for pair in json.loads(learnt.backend_tokenizer.to_str())["model"]["merges"]]
    # The trainer keeps only letters it met; all of them are put back, so that no prompt holds an unknown one.
    merges = merges[: max(0, vocab_size - len(symbols))]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*symbols, *("".join(pair) for pair in merges)]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    tokenizer.model_max_length = max_length
    return tokenizer
