"""Names of weights in Stable Diffusion's original layout, which single files have, and in diffusers' layout.

The tables are data that scripts/key_tables.py generates from diffusers' converters.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")
BLOCK = re.compile(r"(text_model\.encoder\.layers\.|transformer\.resblocks\.)(\d+)")
QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class KeyTable:
    """Corresponding prefixes of names in both layouts; the rest of a name is equal in both."""

    diffusers: dict[str, str]
    original: dict[str, str]

    def to_diffusers(self, name: str) -> str | None:
        """diffusers' name of a weight; None if it is not in the table."""
        return _translate(name, self.diffusers)

    def to_original(self, name: str) -> str | None:
        """The original name of a weight; None if it is not in the table."""
        return _translate(name, self.original)


def _translate(name: str, prefixes: dict[str, str]) -> str | None:
    """Replace the longest known prefix; numbered text layers are looked up as layer 0."""
    number = BLOCK.match(name)
    if number:
        name = BLOCK.sub(r"\g<1>0", name, count=1)
    head = name
    while head not in prefixes:
        head, dot, _ = head.rpartition(".")
        if not dot:
            return None
    found = prefixes[head] + name[len(head) :]
    return BLOCK.sub(rf"\g<1>{number[2]}", found, count=1) if number else found


@cache
def _tables() -> dict[str, list[tuple[str, str]]]:
    tables: dict[str, list[tuple[str, str]]] = json.loads((DATA / "key_tables.json").read_text(encoding="utf-8"))
    return tables


def unet_table(levels: int, attention: Callable[[str], bool] | None = None) -> KeyTable | None:
    """The table for U-Nets with 3 (XL) or 4 levels and two residual blocks per level; None for other shapes.

    attention: whether a block (`up_blocks.1`) has attention, which shifts the index of the upsampling convolution in
    the original layout. Only needed for writing.
    """
    rows = _tables().get(f"unet_{levels}")
    if rows is None:
        return None
    wanted = [row for row in rows if attention is None or _is_upsampler_of(row, attention)]
    return _table(wanted, rows)


def unet_table_of(config: Any) -> KeyTable | None:
    """The table for writing a U-Net with this config; None if it has no original layout."""
    blocks = getattr(config, "up_block_types", None)
    if blocks is None or config.layers_per_block != 2:
        return None
    return _writing_table(tuple(blocks))


@cache
def _writing_table(up_blocks: tuple[str, ...]) -> KeyTable | None:
    return unet_table(len(up_blocks), lambda block: up_blocks[int(block.split(".")[1])] == "CrossAttnUpBlock2D")


def _is_upsampler_of(row: tuple[str, str], attention: Callable[[str], bool]) -> bool:
    block, found, _ = row[0].partition(".upsamplers.")
    return not found or row[1].endswith(".2.conv" if attention(block) else ".1.conv")


@cache
def vae_table() -> KeyTable:
    """The table for VAEs with 4 levels."""
    return _table(_tables()["vae"])


@cache
def open_clip_table() -> KeyTable:
    """The table for OpenCLIP's text encoders, whose layers join queries, keys and values in `in_proj`."""
    return _table(_tables()["open_clip"])


def _table(rows: Iterable[tuple[str, str]], readable: Iterable[tuple[str, str]] | None = None) -> KeyTable:
    rows = list(rows)
    return KeyTable({theirs: ours for ours, theirs in readable or rows}, dict(rows))


def split_in_proj(name: str) -> tuple[str, list[str]] | None:
    """OpenCLIP's `….attn.in_proj_weight`: its diffusers names for queries, keys and values, in the order stored."""
    head, found, kind = name.rpartition(".in_proj_")
    if not found or kind not in ("weight", "bias"):
        return None
    output = open_clip_table().to_diffusers(f"{head}.out_proj.{kind}")
    if output is None:
        return None
    return kind, [output.replace("out_proj", projection) for projection in QKV]
