"""Which group of images steps next, of those that cannot share a batch."""

import time

from latentdiff.serving.group import Group

TURN_SECONDS = 0.5  # of a group while others wait: long enough to be worth changing LoRAs


class Turns:
    """The current group until its turn is over, then the one whose last turn is longest ago."""

    def __init__(self) -> None:
        self._current: Group | None = None
        self._began = 0.0

    def choose(self, ready: list[Group]) -> Group | None:
        """One of the groups that can step now, or None."""
        now = time.monotonic()
        if self._current in ready and (len(ready) == 1 or now - self._began < TURN_SECONDS):
            return self._current
        if not ready:
            return None
        chosen = min((group for group in ready if group is not self._current), key=lambda group: group.last_turn)
        if self._current is not None:
            self._current.last_turn = now
        self._current, self._began = chosen, now
        return chosen
