"""What the tasks raise for input a user can mend."""

from __future__ import annotations


class TaskError(ValueError):
    """Cells, labels or a model that a task cannot use; the message says what is wrong, where, and what to do."""
