"""The options of `generate` for a refiner, a second model that runs the last steps."""

from dataclasses import dataclass
from typing import Any

from latentdiff.errors import InputError
from latentdiff.recipe import Recipe

NAMES = ("refiner", "refiner_switch")


@dataclass(frozen=True)
class Refining:
    """The refiner's model, and the fraction of the schedule from which it takes over."""

    model: str
    switch: float

    def open(self, pipe: Any, how: dict[str, Any]) -> Any:
        """Open the refiner with the device and options of the base model. how: the base model's opening options."""
        from latentdiff.checkpoints.locate_model import has_folder

        options = pipe.options
        return type(pipe).from_pretrained(
            self.model, str(pipe.device), pipe.dtype, options.optimize, options.approximate, options.low_memory,
            variant=how.get("variant") if has_folder(self.model) else None, allow_pickle=bool(how.get("allow_pickle")),
        )  # fmt: skip

    def recipe(self, refiner: Any, old: Recipe | None) -> dict[str, Any]:
        """The recipe entries. old: the recipe to reproduce, if any; raises InputError if it has a different refiner."""
        from latentdiff.recipe.model_hash import hash_model

        found = hash_model(refiner.source)
        if old is not None and old.refiner_hash not in (None, found):
            raise InputError(
                f"the recipe's refiner is {old.refiner_hash}, {self.model} is {found}; pass the former with --refiner"
            )
        return {"refiner": self.model, "refiner_switch": self.switch, "refiner_hash": found}


def take_refiner(settings: dict[str, Any], hires: Any) -> Refining | None:
    """Remove the refiner's options from the settings; returns None without a refiner. Raises InputError."""
    from latentdiff.refiner import SWITCH

    chosen = {name: value for name in NAMES if (value := settings.pop(name, None)) is not None}
    if not chosen:
        return None
    if "refiner" not in chosen:
        raise InputError("--refiner-switch requires a refiner; pass it with --refiner")
    if hires is not None:
        raise InputError("--refiner cannot be combined with --hires; omit one of them")
    return Refining(chosen["refiner"], chosen.get("refiner_switch", SWITCH))
