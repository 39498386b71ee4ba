"""What a user of a cluster can mend."""


class ClusterError(Exception):
    """One sentence: what is wrong with the cluster or the job, where, and what to do."""
