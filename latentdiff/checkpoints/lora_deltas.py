"""The change of a weight by a LoRA: low-rank pairs (LoRA, LoCon), DoRA, LoHa, LoKr and full differences.

Each delta is computed in float32 from the factors in a file. The notation is that of LyCORIS (Yeh et al. 2023).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TUCKER = "i j k l, j r, i p -> p r k l"  # core [i, j, kh, kw], factors [j, r] and [i, p]
# Kinds of tensors of a layer, with the names that different programs use.
KINDS = {
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_B.bias": "up_bias",
    "lora_A.default.weight": "down", "lora_B.default.weight": "up",
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "alpha": "alpha", "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "dora_scale": "dora_scale",
    "hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b",
    "hada_t1": "t1", "hada_t2": "t2",
    "lokr_w1": "k1", "lokr_w1_a": "k1_a", "lokr_w1_b": "k1_b",
    "lokr_w2": "k2", "lokr_w2_a": "k2_a", "lokr_w2_b": "k2_b", "lokr_t2": "kt2",
    "diff": "diff", "diff_b": "diff_bias", "w_norm": "diff", "b_norm": "diff_bias",
}  # fmt: skip
COMPLETE = (
    {"down", "up"}, {"down", "up", "mid"}, {"w1_a", "w1_b", "w2_a", "w2_b"},
    {"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}, {"diff"}, {"diff", "diff_bias"}, {"diff_bias"},
    *({*k1, *k2} for k1 in (("k1",), ("k1_a", "k1_b")) for k2 in (("k2",), ("k2_a", "k2_b"), ("k2_a", "k2_b", "kt2"))),
)  # fmt: skip
EXTRA = {"alpha", "magnitude", "dora_scale", "up_bias"}


@dataclass(frozen=True)
class Delta:
    """The tensors of one layer by kind, and alpha / rank (alpha / sqrt(rank) for rank-stabilised LoRA)."""

    tensors: Mapping[str, Tensor]
    scale: float

    @property
    def rank(self) -> int | None:
        """The inner dimension; None for a full difference."""
        return rank_of(self.tensors)

    def shape(self) -> tuple[int, int]:
        """The weight's shape as (outputs, other dimensions), without computing the delta.

        Raises ValueError for factors that cannot be multiplied. A bias alone has (outputs, 0).
        """
        t = {kind: tuple(tensor.shape) for kind, tensor in self.tensors.items()}
        if "diff" in t:
            return t["diff"][0], math.prod(t["diff"][1:])
        if "diff_bias" in t:
            return t["diff_bias"][0], 0
        if "mid" in t:
            return _core(t["mid"], (t["mid"][1], *t["down"][1:2]), t["up"][1::-1], t["down"][0])
        if "down" in t:
            return _product(t["up"], t["down"])
        if "w1_a" in t:
            both = [_factors(t, f"w{k}", f"t{k}") for k in (1, 2)]
            if both[0] != both[1]:
                raise ValueError(f"{both[0]} and {both[1]} differ")
            return both[0]
        (rows, columns), (inner_rows, inner) = (_factors(t, f"k{k}", f"kt{k}") for k in (1, 2))
        return rows * inner_rows, columns * inner

    def apply(self, base: Tensor, strength: float) -> Tensor | None:
        """The change of a float32 weight `base`, float32 or None. strength: for DoRA, applied before normalisation.

        Liu et al. 2024, eq. 5.
        """
        change = _change({kind: tensor.to(base) for kind, tensor in self.tensors.items()})
        if change is None:
            return None
        change = change.reshape(base.shape) * (strength * self.scale)
        if (found := self.magnitude()) is None:
            return change
        magnitude, of_inputs = found
        merged = base + change
        vectors = (merged.transpose(0, 1) if of_inputs else merged).flatten(1)
        shape = [-1, *[1] * (merged.ndim - 1)]
        if of_inputs:
            shape[:2] = [1, -1]
        return merged * (magnitude.to(base) / vectors.norm(dim=1)).view(shape) - base

    def factors(self, strength: float) -> tuple[Tensor, Tensor] | None:
        """float32 [outputs, r] and [r, other dimensions], whose product is the change; None for other kinds."""
        if self.tensors.keys() - {"alpha", "up_bias"} != {"up", "down"}:
            return None
        up, down = (self.tensors[kind].flatten(1).float() for kind in ("up", "down"))
        return up * (strength * self.scale), down

    def magnitude(self) -> tuple[Tensor, bool] | None:
        """DoRA's magnitudes, flattened, and whether they belong to the inputs; None for other kinds.

        peft stores magnitudes of the outputs, LyCORIS those of outputs or inputs, which their shape distinguishes.
        """
        if (peft := self.tensors.get("magnitude")) is not None:
            return peft.flatten(), False
        if (scale := self.tensors.get("dora_scale")) is None:
            return None
        return scale.flatten(), scale.ndim > 1 and scale.shape[0] == 1 < scale.shape[1]

    def bias(self, base: Tensor, strength: float) -> Tensor | None:
        """The change of the layer's bias, float32 or None."""
        if (bias := self.tensors.get("up_bias")) is not None:
            return strength * self.scale * bias.to(base)
        if (bias := self.tensors.get("diff_bias")) is not None:
            return strength * bias.to(base)
        return None


def rank_of(tensors: Mapping[str, Tensor]) -> int | None:
    """The inner dimension of factors; None if there are none."""
    for kind in ("down", "w1_b", "k2_b", "k1_b"):
        if kind in tensors:
            return len(tensors[kind])
    return None


def is_complete(kinds: set[str]) -> bool:
    """Whether the tensors form a complete delta."""
    return kinds - EXTRA in COMPLETE and ("up_bias" not in kinds or "up" in kinds)


def _change(t: Mapping[str, Tensor]) -> Tensor | None:
    if "mid" in t:
        return torch.einsum(
            "o m, m n k l, n i -> o i k l", t["up"].flatten(1), t["mid"], t["down"].flatten(1)
        ).contiguous()
    if "down" in t:
        return t["up"].flatten(1) @ t["down"].flatten(1)
    if "t1" in t:
        first = torch.einsum(TUCKER, t["t1"], t["w1_b"], t["w1_a"])
        return first * torch.einsum(TUCKER, t["t2"], t["w2_b"], t["w2_a"])
    if "w1_a" in t:
        return (t["w1_a"] @ t["w1_b"].flatten(1)) * (t["w2_a"] @ t["w2_b"].flatten(1))
    if "diff" in t:
        return t["diff"]
    if "diff_bias" in t:
        return None
    left = t["k1"] if "k1" in t else t["k1_a"] @ t["k1_b"]
    if "kt2" in t:
        right = torch.einsum(TUCKER, t["kt2"], t["k2_b"], t["k2_a"])
    else:
        right = t["k2"] if "k2" in t else t["k2_a"] @ t["k2_b"].flatten(1)
    return torch.kron(left.view(*left.shape, *[1] * (right.ndim - left.ndim)).contiguous(), right.contiguous())


def _factors(t: Mapping[str, tuple[int, ...]], name: str, core: str) -> tuple[int, int]:
    """The numbers of rows and of all other elements per row of a matrix that is stored complete, as two factors, or as
    two factors and a core.
    """
    if name in t:
        return t[name][0], math.prod(t[name][1:])
    first, second = t[f"{name}_a"], t[f"{name}_b"]
    return _core(t[core], second, first, t[core][1]) if core in t else _product(first, second)


def _product(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, int]:
    if min(len(first), len(second)) < 2 or math.prod(first[1:]) != second[0]:
        raise ValueError(f"{list(first)} and {list(second)} cannot be multiplied")
    return first[0], math.prod(second[1:])


def _core(core: tuple[int, ...], second: tuple[int, ...], first: tuple[int, ...], inner: int) -> tuple[int, int]:
    """core: [i, j, kh, kw], second: [j, r], first: [i, p]."""
    if len(core) != 4 or len(first) != 2 or len(second) != 2 or core[:2] != (first[0], second[0]) or core[1] != inner:
        raise ValueError(f"{list(first)}, {list(core)} and {list(second)} cannot be multiplied")
    return first[1], second[1] * core[2] * core[3]
