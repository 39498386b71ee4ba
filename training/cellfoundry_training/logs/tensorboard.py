"""TensorBoard event files in RUN/tensorboard; a resumed run marks the steps it will repeat as void."""

from __future__ import annotations

from collections.abc import Mapping

from cellfoundry_training.logs.sinks import RunInfo, Sink

FLUSH_S = 10
"""Seconds that an event waits for the disk at most: what a killed process loses of the picture."""


class TensorBoardSink:
    """Writes events with tensorboardX, which Ray Train brings along; to look at them install tensorboard."""

    def __init__(self, info: RunInfo) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard drops events of this step and later that an earlier attempt wrote.
        self._writer = SummaryWriter(
            str(info.folder / "tensorboard"),
            purge_step=info.resumed_step + 1,
            flush_secs=FLUSH_S,
            # Files are named by the second: attempts that follow each other at once must not share one.
            filename_suffix=f".{info.resumed_step}",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Sink``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        """See ``Sink``."""
        self._writer.close()


def open_sink(info: RunInfo) -> Sink:
    """The sink of a run."""
    return TensorBoardSink(info)
