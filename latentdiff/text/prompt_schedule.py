"""`[from:to:when]` and `[a|b]` of AUTOMATIC1111's web UI: prompts that change with the sampling step."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")
PIECE = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]")
CLOSING = {"(": ")", "[": "]"}
MAX_DEPTH = 100  # brackets inside brackets; deeper ones are text


class TextFrom(NamedTuple):
    """The text of a prompt from a step on; steps start at 0."""

    step: int
    text: str


@dataclass(frozen=True)
class _Separator:
    text: str  # ":" or "|"


@dataclass(frozen=True)
class _Switch:
    """`before` up to step `when`, then `after`. `when` with a decimal point is a fraction of the steps."""

    before: list["_Node"]
    after: list["_Node"]
    when: str

    def at(self, step: int, steps: int) -> list["_Node"]:
        value = float(self.when) * (steps if "." in self.when else 1)
        return self.before if step <= min(steps, value) // 1 else self.after


@dataclass(frozen=True)
class _Alternation:
    """One option per step, starting over after the last."""

    options: list[list["_Node"]]

    def at(self, step: int, steps: int) -> list["_Node"]:
        return self.options[(step - 1) % len(self.options)]


_Node = str | _Separator | _Switch | _Alternation


@dataclass
class _Group:
    opening: str
    nodes: list[_Node] = field(default_factory=list)


def schedule_prompt(prompt: str, steps: int) -> list[TextFrom]:
    """The texts of a prompt during `steps` sampling steps, each with its first step; the first starts at step 0.

    `[from:to:when]`, `[to:when]` and `[from::when]` change after step `when`, which is a fraction of all steps if it
    has a decimal point. `[a|b|c]` alternates. Both can be nested. Brackets that match no rule are text.
    """
    nodes: list[_Node] = _parse(prompt) if "[" in prompt else [prompt]
    changes = [TextFrom(0, _render(nodes, 1, steps))]
    for step in range(2, steps + 1):
        if (text := _render(nodes, step, steps)) != changes[-1].text:
            changes.append(TextFrom(step - 1, text))
    return changes


def _render(nodes: list[_Node], step: int, steps: int) -> str:
    parts = (node if isinstance(node, str) else _text(node, step, steps) for node in nodes)
    return "".join(parts)


def _text(node: _Separator | _Switch | _Alternation, step: int, steps: int) -> str:
    return node.text if isinstance(node, _Separator) else _render(node.at(step, steps), step, steps)


def _parse(prompt: str) -> list[_Node]:
    """Parse in one pass with a stack of open groups. Unpaired brackets turn all groups around them into text.

    As in the web UI, the complete prompt is one text if it has a bar or a backslash outside a rule.
    """
    if sum(match.end() - match.start() for match in PIECE.finditer(prompt)) != len(prompt):
        return [prompt]
    stack = [_Group("")]
    for piece in PIECE.findall(prompt):
        if piece in CLOSING:
            if len(stack) > MAX_DEPTH:
                _make_text(stack)
            stack.append(_Group(piece))
        elif piece in CLOSING.values():
            _close(stack, piece)
        else:
            stack[-1].nodes.append(_Separator(piece) if piece in ":|" else piece)
    _make_text(stack)
    return [prompt] if _Separator("|") in stack[0].nodes else stack[0].nodes


def _close(stack: list[_Group], bracket: str) -> None:
    group = stack[-1]
    nodes = _meaning(group) if CLOSING.get(group.opening) == bracket else None
    if nodes is None:
        _make_text(stack)
        stack[0].nodes.append(bracket)
        return
    stack.pop()
    stack[-1].nodes += nodes


def _make_text(stack: list[_Group]) -> None:
    """Close every open group as text; the schedules inside them remain."""
    for group in stack[1:]:
        stack[0].nodes += [group.opening, *group.nodes]
    del stack[1:]


def _meaning(group: _Group) -> list[_Node] | None:
    """The meaning of a closed group; None if it matches no rule."""
    separators = [node.text for node in group.nodes if isinstance(node, _Separator)]
    if len(separators) == 0 or (group.opening == "(" and separators == [":"]):
        inner: list[_Node] = [node.text if isinstance(node, _Separator) else node for node in group.nodes]
        return [group.opening, *inner, CLOSING[group.opening]]
    if group.opening == "(":
        return None
    parts = _split(group.nodes)
    if set(separators) == {"|"}:
        return [_Alternation(parts)]
    number = NUMBER.fullmatch(parts[-1][0]) if len(parts[-1]) == 1 and isinstance(parts[-1][0], str) else None
    if number is None or separators not in ([":"], [":", ":"]):
        return None
    before = parts[0] if len(parts) == 3 else []
    return [_Switch(before, parts[-2], number[1])]


def _split(nodes: list[_Node]) -> list[list[_Node]]:
    parts: list[list[_Node]] = [[]]
    for node in nodes:
        if isinstance(node, _Separator):
            parts.append([])
        else:
            parts[-1].append(node)
    return parts
