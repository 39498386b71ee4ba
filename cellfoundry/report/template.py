"""Templates of this folder, filled; whatever is filled in is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The text of the template named ``template``; a value that it lacks raises jinja2.UndefinedError."""
    environment = Environment(
        loader=PackageLoader("cellfoundry.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
