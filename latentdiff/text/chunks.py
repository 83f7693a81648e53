"""Split weighted text into chunks of tokens that fit the text encoder, as A1111's web UI does."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from latentdiff.text.prompt_syntax import WeightedText
from latentdiff.text.tokenizer import CLIPTokenizer

COMMA_BACKTRACK = 20  # tokens: the largest distance of such a comma from the end of a full chunk


@dataclass
class Chunk:
    """Token ids and their weights, without start, end and padding."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def cut(self, length: int) -> "Chunk":
        """Keep the first `length` tokens; returns the others."""
        rest = Chunk(self.ids[length:], self.weights[length:])
        del self.ids[length:], self.weights[length:]
        return rest

    def padded(self, tokenizer: CLIPTokenizer) -> tuple[list[int], list[float]]:
        """Ids with start, end and padding to the model's length, and weights, which are 1 outside the text."""
        missing = tokenizer.model_max_length - len(self.ids) - 2
        ids = [tokenizer.bos_token_id, *self.ids, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * missing
        return ids, [1.0, *self.weights, 1.0] + [1.0] * missing


def split_chunks(sections: Sequence[Sequence[WeightedText]], tokenizer: CLIPTokenizer) -> list[Chunk]:
    """Chunks of at most two tokens less than the model's length; every section starts a new chunk.

    If a full chunk has a comma among its last `COMMA_BACKTRACK` tokens, the tokens after it move to the next chunk. The
    vectors of a learned word stay together. A prompt without tokens gives one empty chunk.
    """
    chunks = [chunk for section in sections[:-1] for chunk in _split_section(section, tokenizer)]
    last = _split_section(sections[-1], tokenizer)
    return chunks + [chunk for chunk in last if chunk.ids] or last


def _split_section(section: Sequence[WeightedText], tokenizer: CLIPTokenizer) -> list[Chunk]:
    length, comma = tokenizer.model_max_length - 2, tokenizer.comma_token_id
    chunks, last_comma = [Chunk()], -1
    for piece in section:
        for word in tokenizer.encode_words(piece.text):
            chunk = chunks[-1]
            if word == [comma]:
                last_comma = len(chunk.ids)
            elif len(chunk.ids) == length and last_comma >= 0 and length - last_comma <= COMMA_BACKTRACK:
                chunks.append(chunk.cut(last_comma + 1))
                last_comma = -1
            if len(chunks[-1].ids) + len(word) > length:
                chunks.append(Chunk())
                last_comma = -1
            chunks[-1].ids += word
            chunks[-1].weights += [piece.weight] * len(word)
    return chunks
