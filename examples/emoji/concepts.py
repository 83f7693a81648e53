"""Names and keywords of emoji in English and Chinese, from emojibase."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.emoji.sources import code_of, read_members

GROUPS = {0: "smileys", 1: "people", 3: "animals", 4: "food", 5: "travel", 6: "activities", 7: "objects"}
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
TONES_ZH = {1: "浅肤色", 2: "中浅肤色", 3: "中等肤色", 4: "中深肤色", 5: "深肤色"}
KEPT_TONES = 0.2


@dataclass(frozen=True)
class Emoji:
    """The meaning of one emoji. concept: shared by all skin tones. aliases: names that no other concept has."""

    code: str
    concept: str
    label: str
    label_zh: str
    group: str
    keywords: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    aliases_zh: tuple[str, ...] = ()


def chance(*key: str) -> float:
    """A deterministic pseudo-random number in [0, 1) computed from the words."""
    return int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:6]) / 2**48


def read_emoji(tarball: Path) -> dict[str, Emoji]:
    """All emoji except symbols, components and flags, by code; about a fifth of the skin tones is kept."""
    files = read_members(tarball, r"package/(en|zh)/data\.json")
    english, chinese = (json.loads(files[f"package/{language}/data.json"]) for language in ("en", "zh"))
    by_code = {code_of(entry["hexcode"]): entry for entry in chinese}
    bases = [_base(entry, by_code[code_of(entry["hexcode"])]) for entry in english if entry.get("group") in GROUPS]
    bases = _with_aliases(bases)
    skins = {code_of(entry["hexcode"]): entry.get("skins", []) for entry in english}
    tones = [tone for base in bases for tone in _tones(base, skins[base.code])]
    return {emoji.code: emoji for emoji in bases + tones}


def _base(entry: dict[str, Any], zh: dict[str, Any]) -> Emoji:
    label, label_zh = _plain(entry["label"]), zh["label"].replace("：", "，").strip()
    return Emoji(
        code=code_of(entry["hexcode"]),
        concept=label,
        label=label,
        label_zh=label_zh,
        group=GROUPS[entry["group"]],
        keywords=tuple(_plain(tag) for tag in entry.get("tags", []) if _plain(tag) != label),
        keywords_zh=tuple(tag for tag in zh.get("tags", []) if tag != label_zh),
    )


def _plain(text: str) -> str:
    return text.lower().replace("’", "'").replace("“", "").replace("”", "").replace(": ", ", ").strip()


def _with_aliases(bases: list[Emoji]) -> list[Emoji]:
    """Use keywords that belong to only one concept as additional names for it."""
    uses = Counter(word for e in bases for word in {e.label, *e.keywords})
    uses_zh = Counter(word for e in bases for word in {e.label_zh, *e.keywords_zh})
    return [
        replace(
            e,
            aliases=tuple(word for word in e.keywords if uses[word] == 1 and len(word) > 3),
            aliases_zh=tuple(word for word in e.keywords_zh if uses_zh[word] == 1),
        )
        for e in bases
    ]


def _tones(base: Emoji, skins: list[dict[str, Any]]) -> list[Emoji]:
    single = [skin for skin in skins if isinstance(skin.get("tone"), int)]
    return [
        replace(
            base,
            code=code_of(skin["hexcode"]),
            label=f"{base.label}, {TONES[skin['tone']]} skin tone",
            label_zh=f"{base.label_zh}，{TONES_ZH[skin['tone']]}",
            aliases=(),
            aliases_zh=(),
        )
        for skin in single
        if chance("tone", skin["hexcode"]) < KEPT_TONES
    ]
