"""Select the group of images that runs the next step, among groups that cannot share a batch."""

import time

from latentdiff.serving.group import Group

TURN_SECONDS = 0.5  # for one group while others wait: long enough to justify changing LoRAs


class Turns:
    """The current group until its turn ends, then the group with the least recent turn."""

    def __init__(self) -> None:
        self._current: Group | None = None
        self._began = 0.0

    def choose(self, ready: list[Group]) -> Group | None:
        """One of the groups that can run a step, or None."""
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
