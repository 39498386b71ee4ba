"""Parts of the suite `train`: the step on one process and its padded twin, a whole run, ranks beside plain DDP."""
