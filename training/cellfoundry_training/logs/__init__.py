"""Where a run's numbers go: metrics.jsonl always, and the sinks that the configuration lists."""

from cellfoundry_training.logs.run_log import RunLog
from cellfoundry_training.logs.sinks import SINKS, Sink, check_installed

__all__ = ["SINKS", "RunLog", "Sink", "check_installed"]
