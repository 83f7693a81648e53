"""CLIP's tokenizer: byte-pair encoding (Sennrich et al. 2016) of lowercased text, between a start and an end token.

It reads the files of transformers' `CLIPTokenizer` and gives the same ids.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor

from latentdiff.errors import CheckpointError
from latentdiff.files import read_json, write_json

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
WORD_END = "</w>"
LENGTH, SHORTEST = 77, 3
NO_LENGTH = 10**6  # transformers writes a larger number if there is no limit
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
AGAIN = "download or save the model again"


class CLIPTokenizer:
    """Converts text to ids and back. special: the four special tokens by role. added: tokens outside the merges."""

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        model_max_length: int = LENGTH,
        special: Mapping[str, AddedToken | str] = SPECIAL,
        added: Sequence[AddedToken] = (),
    ) -> None:
        self.model_max_length = model_max_length
        self.special = {key: str(getattr(token, "content", token)) for key, token in special.items()}
        self._backend = byte_pairs(vocab, merges, self.special["unk_token"])
        self._backend.add_tokens(list(added))
        self._backend.add_special_tokens(list(special.values()))
        self._vectors = self._learned_words()  # their first id, and how many ids follow one another
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(self._id, ("bos_token", "eos_token", "pad_token"))
        end, start = (self.special["eos_token"], self.eos_token_id), (self.special["bos_token"], self.bos_token_id)
        self._backend.post_processor = processors.RobertaProcessing(
            end, start, trim_offsets=False, add_prefix_space=False
        )

    def _id(self, key: str) -> int:
        found = self._backend.token_to_id(self.special[key])
        assert found is not None  # because it was added later
        return found

    def __len__(self) -> int:
        return self._backend.get_vocab_size()

    def _learned_words(self) -> dict[int, int]:
        """First id and number of ids of each learned word that a saved model stores as tokens `cat`, `cat_1`, …"""
        names = {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}
        found = {}
        for first, name in names.items():
            vectors = 1
            while names.get(first + vectors) == f"{name}_{vectors}":
                vectors += 1
            if vectors > 1:
                found[first] = vectors
        return found

    @property
    def largest_id(self) -> int:
        """The largest token id; it exceeds `len(self) - 1` if ids are missing."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [B, S] with start and end tokens, padded and truncated to the model's length."""
        length, rows = self.model_max_length, []
        for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False):  # on all cores
            ids = [i for word in self._words(one.ids) for i in word]
            row = [self.bos_token_id, *ids[: length - 2], self.eos_token_id]
            rows.append(row + [self.pad_token_id] * (length - len(row)))
        return torch.tensor(rows)

    def encode(self, text: str) -> list[int]:
        """All ids of a text, without start and end tokens."""
        return [i for ids in self.encode_words(text) for i in ids]

    def encode_words(self, text: str) -> list[list[int]]:
        """The ids of `encode` as lists: one list per learned word with several vectors, and one per other id."""
        return self._words(self._backend.encode(text, add_special_tokens=False).ids)

    def _words(self, ids: Sequence[int]) -> list[list[int]]:
        return [list(range(i, i + self._vectors.get(i, 1))) for i in ids]

    @property
    def comma_token_id(self) -> int | None:
        """The id of a comma at the end of a word; None if the vocabulary has none."""
        found: int | None = self._backend.token_to_id("," + WORD_END)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, lowercased; a learned word of several ids is written once."""
        first = {k: i for i, vectors in self._vectors.items() for k in range(i, i + vectors)}
        words = [first.get(k, k) for k in ids]
        kept = [word for n, word in enumerate(words) if ids[n] == word or n == 0 or words[n - 1] != word]
        text: str = self._backend.decode(kept, skip_special_tokens=False)
        return text.replace(WORD_END, " ").strip()

    def knows(self, word: str) -> bool:
        """Whether this is the name of a token, or a word that is a single token."""
        return any(self._backend.token_to_id(name) is not None for name in (word, word + WORD_END))

    def add_word(self, word: str, vectors: int) -> None:
        """Add a learned word of `vectors` tokens with ids from `len(self)` on; it is not matched inside other words."""
        first = len(self)
        alone = word[0].isalnum() or word[-1].isalnum()
        names = word_names(word, vectors)
        self._backend.add_tokens([AddedToken(word, single_word=alone), *map(AddedToken, names[1:])])
        self._vectors[first] = vectors

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the older files, which all versions of transformers' CLIPTokenizer open."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        self._backend.model.save(str(folder))
        added = {str(i): _properties(token) for i, token in self._backend.get_added_tokens_decoder().items()}
        length = {"model_max_length": self.model_max_length, "tokenizer_class": "CLIPTokenizer"}
        write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **self.special, **length})


def word_names(word: str, vectors: int) -> list[str]:
    """The tokens of a learned word, one per vector: `cat`, `cat_1`, … as diffusers names them."""
    return [word, *(f"{word}_{k}" for k in range(1, vectors))]


def byte_pairs(vocab: dict[str, int], merges: list[tuple[str, str]], unknown: str = END) -> Tokenizer:
    """A byte-pair tokenizer that normalises and splits text as CLIP does, without special tokens."""
    model = BPE(vocab, merges, unk_token=unknown, continuing_subword_prefix="", end_of_word_suffix=WORD_END)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read `tokenizer.json`, or `vocab.json` and `merges.txt`. Raises CheckpointError for missing or damaged files.

    Special tokens are read from `tokenizer_config.json`. If it lists no added tokens, as before 2023, special tokens
    are also read from `special_tokens_map.json`, and added ones from `added_tokens.json` and `tokenizer.json`.
    """
    try:
        return _read(folder)
    except CheckpointError:
        raise
    except Exception as error:  # the only class that tokenizers raises
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} contains no readable CLIP tokenizer ({reason}); {AGAIN}") from error


def _read(folder: Path) -> CLIPTokenizer:
    config, tokenizer_json = (_read_if_there(folder / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    added = {int(i): AddedToken(**token) for i, token in config.get("added_tokens_decoder", {}).items()}
    if "added_tokens_decoder" not in config:
        config |= _read_if_there(folder / "special_tokens_map.json")
        added = _added_of_old(folder, config) | _added_of(tokenizer_json)
    by_name = {token.content: token for token in added.values()}
    special = {key: by_name.get(name, _special(config, key)) for key, name in _names(config).items()}
    in_order = [added[i] for i in sorted(added)]
    return CLIPTokenizer(*_pairs(folder, tokenizer_json), _length(folder, config), special, in_order)


def _length(folder: Path, config: dict[str, Any]) -> int:
    """The number of tokens of a text, start and end included."""
    length = config.get("model_max_length", LENGTH)
    if isinstance(length, (int, float)) and length > NO_LENGTH:
        return LENGTH
    if type(length) is not int or length < SHORTEST:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: model_max_length={length!r} must be an integer of {SHORTEST} or more "
            f"(start, one token, end); CLIP's is {LENGTH}"
        )
    return length


def _pairs(folder: Path, tokenizer_json: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if tokenizer_json:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in tokenizer_json["model"]["merges"]]
        return tokenizer_json["model"]["vocab"], [(left, right) for left, right in merges]
    files = [folder / "vocab.json", folder / "merges.txt"]
    if not all(file.is_file() for file in files):
        raise CheckpointError(f"{folder} contains neither tokenizer.json nor vocab.json with merges.txt; {AGAIN}")
    read: tuple[dict[str, int], list[tuple[str, str]]] = BPE.read_file(*map(str, files))
    return read


def _added_of(tokenizer_json: dict[str, Any]) -> dict[int, AddedToken]:
    return {
        token["id"]: AddedToken(**{key: value for key, value in token.items() if key != "id"})
        for token in tokenizer_json.get("added_tokens", [])
    }


def _added_of_old(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    special = set(_names(config).values())
    return {
        i: AddedToken(word, normalized=word not in special, special=word in special)
        for word, i in _read_if_there(folder / "added_tokens.json").items()
    }


def _names(config: dict[str, Any]) -> dict[str, str]:
    """The special tokens as strings; the files may describe them as well."""
    named = {key: config.get(key) or default for key, default in SPECIAL.items()}
    return {key: token["content"] if isinstance(token, dict) else token for key, token in named.items()}


def _special(config: dict[str, Any], key: str) -> AddedToken | str:
    token = config.get(key) or SPECIAL[key]
    if isinstance(token, str):
        return token
    return AddedToken(
        **{name: value for name, value in token.items() if name not in ("__type", "special")}, special=True
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _properties(token: AddedToken) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}
