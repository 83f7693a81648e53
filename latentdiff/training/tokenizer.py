"""Train the byte-pair vocabulary of a CLIP tokenizer."""

import json

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from latentdiff.text.tokenizer import END, START, WORD_END, CLIPTokenizer, byte_pairs


def train_tokenizer(captions: list[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn merges (Sennrich et al. 2016) on text that is split as in CLIP; every byte has a token."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [START, END, *alphabet, *(letter + WORD_END for letter in alphabet)]
    tokenizer = byte_pairs({}, [])
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    # The trainer keeps only letters that occur in captions; all others are added, so that no prompt has unknown tokens.
    merges = merges[: max(0, vocab_size - len(symbols))]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*symbols, *("".join(pair) for pair in merges)]))}
    return CLIPTokenizer(vocab, merges, max_length)
