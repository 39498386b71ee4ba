"""What configurations of every kind of run share: `key=value` overrides and faults in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import ValidationError

from cellfoundry_training.errors import TrainingError


def parse_override(text: str) -> tuple[str, Any]:
    """``key=value`` as key and YAML value; TrainingError if it is not that."""
    key, equals, value = text.partition("=")
    if not equals:
        raise TrainingError(f"--set {text}: write key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise TrainingError(f"--set {text}: the value is not valid YAML") from None


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic found wrong: field, rule, and the value where there is one."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("str", "dict[str,any]"))
    message = first["msg"].removeprefix("Value error, ")
    where = f"{field}: " if field else ""
    given = f", not {first['input']!r}" if field and first["type"] != "missing" else ""
    return f"{where}{message}{given}"


def nearest(key: str, known: Iterable[str]) -> str:
    """``; the nearest is 'KEY'``, to end a sentence about an unknown key; empty if nothing is known."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"; the nearest is {close[0]!r}" if close else ""
