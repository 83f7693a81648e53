"""A byte-pair vocabulary of one's own, as transformers' CLIPTokenizer."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn merges (Sennrich et al. 2016) over CLIP's own splitting of text; any byte stays writable."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [START, END, *alphabet, *(letter + "</w>" for letter in alphabet)]
    empty = CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[])
    tokenizer = empty.train_new_from_iterator(captions, vocab_size, show_progress=False)
    tokenizer.model_max_length = max_length
    return tokenizer
