"""Options of `generate` for a second model, the refiner."""

from dataclasses import dataclass
from typing import Any

from latentdiff.errors import InputError
from latentdiff.recipe import Recipe

NAMES = ("refiner", "refiner_switch")


@dataclass(frozen=True)
class Refining:
    """What was chosen: a model, and the fraction of the noise levels that it begins at."""

    model: str
    switch: float

    def open(self, pipe: Any, how: dict[str, Any]) -> Any:
        """The refiner, on the device and with the options of the base model. how: the base model is opened."""
        options = pipe.options
        return type(pipe).from_pretrained(
            self.model, str(pipe.device), pipe.dtype, options.optimize, options.approximate, options.low_memory,
            variant=how.get("variant"), allow_pickle=bool(how.get("allow_pickle")),
        )  # fmt: skip

    def recipe(self, refiner: Any, old: Recipe | None) -> dict[str, Any]:
        """What the recipe says. old: the one that an image is made again by. Raises InputError for another refiner."""
        from latentdiff.recipe.model_hash import hash_model

        found = hash_model(refiner.source)
        if old is not None and old.refiner_hash not in (None, found):
            raise InputError(
                f"the recipe's refiner is {old.refiner_hash}, {self.model} is {found}; name another by --refiner"
            )
        return {"refiner": self.model, "refiner_switch": self.switch, "refiner_hash": found}


def take_refiner(settings: dict[str, Any], hires: Any) -> Refining | None:
    """Take the options of a refiner out of the settings; None without one. Raises InputError."""
    from latentdiff.refiner import SWITCH

    chosen = {name: value for name in NAMES if (value := settings.pop(name, None)) is not None}
    if not chosen:
        return None
    if "refiner" not in chosen:
        raise InputError("--refiner-switch needs a second model; name it by --refiner")
    if hires is not None:
        raise InputError("--refiner does not go with --hires; leave one of them out")
    return Refining(chosen["refiner"], chosen.get("refiner_switch", SWITCH))
