"""Remedies with the user's own files and flags, so that the line that is shown can be pasted as it stands."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from collapsekit.cli._outputs import fresh
from collapsekit.diagnosis import Diagnosis

MOST_POSITIONS = 12
"""Positions of samples in a line."""
STORED = ("train.npz", "val.npz")
"""What remedies call the features of training and held-out samples."""
KEEP = ("--class-names", "--no-relu")
"""First flags of remedies that leave the recipe as it was given."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the user typed, in words of a command line.

    Attributes
    ----------
    path : str
        What was diagnosed.
    stored : bool
        Whether that is a file of features.
    door, rest : dict
        Flags that belong to the path (model, data, head), and further ones of diagnose (held_out, history).
    names : sequence of str or None
        The names of the rows, where the held-out labels alone do not tell them.
    reading, recipe : dict
        Flags of data, and those of the training.
    """

    path: str
    stored: bool
    door: Mapping[str, Any]
    rest: Mapping[str, Any]
    names: Sequence[str] | None
    reading: Mapping[str, Any]
    recipe: Mapping[str, Any]

    def typed(self, remedy: str, found: Diagnosis) -> str:
        """Return a remedy in these words, with positions in place of a Python variable."""
        if remedy.startswith("found.suspects["):
            return _positions(remedy, found.suspects)
        if not remedy.startswith("collapsekit "):
            return remedy
        command, _, comment = remedy.rpartition("  # ") if "  # " in remedy else (remedy, "", "")
        _, verb, *words = shlex.split(command)
        if verb == "diagnose":
            return _line([verb, *self._again(words[1:])], [comment])
        known = dict(zip(STORED, (self.path, self.rest["held_out"]) if self.stored else (None, None), strict=True))
        left = " and ".join(name for name in STORED if name in words and known[name] is None)
        notes = [comment, f"{left}: stored as docs/never_predicted.md says" if left else ""]
        return _line([verb, *self._other(words, known)], notes)

    def _again(self, asked: list[str]) -> list[str]:
        """What is diagnosed, once more; a remedy with flags of a recipe of its own has none of the user's."""
        recipe = self.recipe if asked and asked[0] in KEEP else {}
        own = flags({**self.door, **self.rest, **recipe, **self.reading}, besides=asked)
        if "--class-names" in asked:
            first = asked.index("--class-names")
            asked = [*asked[:first], *named("--class-names", asked[first + 1 :])]
        return [self.path, *own, *asked]

    def _other(self, words: list[str], known: Mapping[str, str | None]) -> list[str]:
        """What adjust and measure are to read."""
        own = [known.get(word) or word for word in words]
        if "head.safetensors" in own:
            own[own.index("head.safetensors")] = fresh("head.safetensors")
        if not self.stored:
            return own
        if "--head" in own:
            own = own[: own.index("--head")]
        head = self.door["head"] or (self.path if "--head" in words else None)
        names = {} if self.names is None or words[0] != "val.npz" else {"class_names": self.names}
        return [*own, *flags({"head": head, **self.reading, **names})]


def _line(words: Sequence[str], notes: Sequence[str]) -> str:
    told = "; ".join(note for note in notes if note)
    return shlex.join(["collapsekit", *words]) + (f"  # {told}" if told else "")


def flags(given: Mapping[str, Any], besides: Sequence[str] = ()) -> list[str]:
    """Return the flags of these values; what takes several words last."""
    words = list[str]()
    for name, value in sorted(given.items(), key=lambda one: isinstance(one[1], tuple)):
        flag = f"--{name.replace('_', '-')}"
        if value is not None and flag not in besides:
            several = value if isinstance(value, tuple) else (value,)
            words += [flag] if value is True else named(flag, map(str, several))
    return words


def changed(group: Any) -> dict[str, Any]:
    """Return the values of a dataclass of flags that are not the defaults."""
    found = {one.name: getattr(group, one.name) for one in fields(group)}
    return {one.name: found[one.name] for one in fields(group) if found[one.name] != one.default}


def named(flag: str, values: Iterable[str]) -> list[str]:
    """Return a flag with its values; one that begins with a dash is joined to the flag, or it would be one itself."""
    listed = [*values]
    if any(value.startswith("-") for value in listed):
        return [f"{flag}={value}" for value in listed]
    return [flag, *listed]


def _positions(remedy: str, suspects: Mapping[str, Sequence[int]]) -> str:
    call, _, advice = remedy.partition("  # ")
    rows = suspects.get(ast.literal_eval(call[len("found.suspects[") : -1]), ())
    shown = ", ".join(map(str, rows[:MOST_POSITIONS]))
    more = f" and {len(rows) - MOST_POSITIONS} more (--json has all)" if len(rows) > MOST_POSITIONS else ""
    return advice.replace("these samples", f"the samples {shown}{more}") if rows else ""
