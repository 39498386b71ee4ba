"""The endpoint's log: a line for each request and each trouble, as text or JSON, with the id of the request."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

from cellfoundry_serving.endpoint.request_record import in_hand

access_logger = logging.getLogger("cellfoundry_serving.access")
PLAIN = re.compile(r"[\w./{}:+-]+", re.ASCII)
"""What a line of text shows without quotes."""

LogFormat = Literal["text", "json"]


def configure_logs(form: LogFormat, access: bool = True) -> None:
    """All loggers of this process write to standard error in one form.

    Args:
        form: "text" for people, "json" for machines.
        access: a line a request, too.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger("cellfoundry_serving").setLevel(logging.INFO)
    access_logger.setLevel(logging.INFO if access else logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """``time``, ``level``, ``logger``, ``message``, ``request_id``, the line's own facts, ``traceback``."""
        line = {
            "time": moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage().strip(),
            **facts(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """``TIME LEVEL message key=value ...``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        words = [moment(record), record.levelname, " ".join(record.getMessage().split())]
        words += [f"{name}={shown(value)}" for name, value in facts(record).items() if value is not None]
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


def moment(record: logging.LogRecord) -> str:
    """When, in UTC."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def facts(record: logging.LogRecord) -> dict[str, Any]:
    """The id of the request in hand, and what the line was given as ``extra={"facts": ...}``."""
    request = in_hand.get()
    of_request = {} if request is None else {"request_id": request.id}
    return of_request | getattr(record, "facts", {})


def shown(value: object) -> str:
    """One word: in quotes, with everything unusual escaped, unless it is plain."""
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)
