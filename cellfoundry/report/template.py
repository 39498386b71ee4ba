"""Templates of this folder, filled, in the style of the benchmarks' pages; whatever is filled in is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The text of the template named ``template``; a value that it lacks raises jinja2.UndefinedError."""
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("cellfoundry.report", ""), PackageLoader("cellfoundry_bench", "")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
