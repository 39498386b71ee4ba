"""Jobs on a Ray cluster: which command is meant, what travels with it, and the cluster's side of it.

``command`` reads a command line and what its arguments name, ``bundle`` lays out the folder that travels,
``connection`` speaks to the cluster and ``follow`` watches a job.
"""
