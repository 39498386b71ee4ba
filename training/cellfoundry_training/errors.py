"""What the training layer raises: one error for input a user can mend, and the end of a run that was told to stop."""

from __future__ import annotations

import signal


class TrainingError(ValueError):
    """A configuration, store or run that cannot be trained; the message says what is wrong, where, and what to do."""


class RunStopped(SystemExit):
    """SIGTERM ended a run, which is saved and can be resumed; a process that does not catch it exits with 143."""

    def __init__(self, sentence: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence
