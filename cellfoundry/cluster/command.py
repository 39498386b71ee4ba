"""A command line that shall run elsewhere: checked by the real parser here, its paths changed to what holds there.

What an argument means follows from how the command declares it:

- outputs (``OUTPUTS``) stay as they are, for the cluster writes them;
- a ``Path``, a source or a store that exists here travels, and so does any other value that looks like a file (it has
  a folder or a suffix) and is one, such as ``--config mine.yaml`` or ``--set deepspeed=zero.json``;
- an absolute path that does not exist here is the cluster's, a URL anybody's.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cellfoundry.cluster.errors import ClusterError

OUTPUTS = {"out", "run"}
OUTPUT_STORES = {("data", "ingest")}  # elsewhere a store is read
OUT_BESIDE_INPUT = {
    ("data", "report"),
    ("train", "report"),
}  # where --out is left out; others write below "."
STRINGS_THAT_ARE_PATHS = {"sources", "store"}  # declared as strings because they may be URLs
LOCAL_COMMANDS = {"submit", "jobs", "serve"}  # serve listens on loopback only
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Place = Callable[[Path], str]


@dataclass(frozen=True)
class Command:
    """A command that the parser has accepted.

    Attributes:
        words: name of the command, such as ("data", "ingest").
        context: the parser's context: declared parameters and their values.
    """

    words: tuple[str, ...]
    context: Any

    def on_cluster(self, place: Place, shared: Sequence[Path] = ()) -> list[str]:
        """The arguments as they hold in the job.

        Args:
            place: called for every local input; notes that it travels and returns its path in the job.
            shared: folders that the cluster sees under the same path; nothing below them travels.

        Raises:
            ClusterError: an output that is relative, or is left out and would lie in the job's folder or beside an
                input that travels; or a relative input that does not exist here.
        """
        shared = [folder.absolute() for folder in shared]
        travelling: list[Path] = []

        def noted(path: Path) -> str:
            travelling.append(path)
            return place(path)

        options: list[str] = []
        positional: list[str] = []
        for parameter in self.context.command.params:
            value = self.context.params.get(parameter.name)
            if value is None:
                continue
            output = self._is_output(parameter.name)
            if not self._was_given(parameter.name):
                if output and isinstance(value, Path):  # a default such as ./quickstart
                    _output_path(parameter, value, shared)
                continue
            if isinstance(value, bool):
                options += (parameter.opts if value else parameter.secondary_opts)[:1]
                continue
            texts = []
            for item in value if isinstance(value, list | tuple) else [value]:
                texts += (
                    [_output_path(parameter, item, shared)]
                    if output
                    else _input_texts(parameter, item, noted, shared)
                )
            if parameter.param_type_name == "argument":
                positional += texts
            else:
                options += [f"{parameter.opts[0]}={text}" for text in texts]
        no_out = "out" in self.context.params and self.context.params["out"] is None
        if no_out and (travelling or self.words not in OUT_BESIDE_INPUT):
            where = (
                f"beside the job's copy of {travelling[0]}" if travelling else "to the job's temporary folder"
            )
            raise ClusterError(
                f"without --out the result would be written {where} and lost: give --out, an absolute path on storage "
                "that the cluster shares."
            )
        separator = ["--"] if any(text.startswith("-") for text in positional) else []
        return [*self.words, *options, *separator, *positional]

    def _is_output(self, name: str) -> bool:
        return name in OUTPUTS or (name == "store" and self.words in OUTPUT_STORES)

    def _was_given(self, name: str) -> bool:
        return str(self.context.get_parameter_source(name).name) == "COMMANDLINE"


def parse_command(root: Any, arguments: Sequence[str]) -> Command:
    """Find and check the command that ``arguments`` name, without running it.

    Args:
        root: the command line's root group, as ``typer.main.get_command`` gives it.
        arguments: words, options and values, without the program's name.

    Raises:
        ClusterError: a command that only makes sense here.
        typer's usage error: an unknown command or option, a missing or bad value; it names what is wrong.
    """
    command, context, name, rest = root, None, "cellfoundry", list(arguments)
    words: list[str] = []
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return Command(tuple(words), context)
        name, command, rest = command.resolve_command(context, rest)
        words.append(name)
        if words[0] in LOCAL_COMMANDS:
            raise ClusterError(f"cellfoundry {words[0]} runs on this machine: submit another command.")


def _output_path(parameter: Any, value: Any, shared: Sequence[Path]) -> str:
    text = str(value)
    if URL.match(text) or Path(text).is_absolute():
        return text
    if _is_below(Path(text).absolute(), shared):
        return str(Path(text).absolute())
    raise ClusterError(
        f"{_name(parameter)} {text} would be written to the job's temporary folder and lost: give an absolute path on "
        "storage that the cluster shares, or a URL."
    )


def _input_texts(parameter: Any, value: Any, place: Place, shared: Sequence[Path]) -> list[str]:
    """The texts that stand for one input value: several for a pattern that matches several files."""
    if isinstance(value, Path) or parameter.name in STRINGS_THAT_ARE_PATHS:
        return [_input_path(parameter, text, place, shared) for text in _matches(str(value))]
    text = str(value.value if isinstance(value, Enum) else value)
    key, equals, named = text.rpartition("=")
    if _looks_like_a_file(named) and Path(named).exists():
        return [key + equals + _input_path(parameter, named, place, shared)]
    return [text]


def _input_path(parameter: Any, text: str, place: Place, shared: Sequence[Path]) -> str:
    path = Path(text)
    if URL.match(text):
        return text
    if _is_below(path.absolute(), shared):
        return str(path.absolute())
    if path.exists():
        return place(path)
    if path.is_absolute():
        return text
    raise ClusterError(
        f"{_name(parameter)} {text} does not exist here, and the cluster reads a relative path in the job's own "
        "folder: give a file that exists, an absolute path that the cluster sees, or a URL."
    )


def _matches(text: str) -> list[str]:
    if URL.match(text) or not glob.has_magic(text) or Path(text).exists():
        return [text]
    return sorted(glob.glob(text, recursive=True)) or [text]  # noqa: PTH207 Path.glob takes no absolute pattern


def _looks_like_a_file(text: str) -> bool:
    return "/" in text or Path(text).suffix != ""


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _name(parameter: Any) -> str:
    option = parameter.param_type_name != "argument"
    return str(parameter.opts[0] if option else (parameter.metavar or parameter.name))
