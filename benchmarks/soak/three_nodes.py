"""A cluster of three nodes with a CPU each, simulated on this machine.

    python three_nodes.py FOLDER

prints its address and the raylet of each node as JSON. A node's number on standard input takes that node away as a
power cut does. The cluster ends with standard input, so with the tests; it is a process of its own because theirs may
be connected to another cluster.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

NODES = 3


def main(folder: str) -> None:
    """Serve standard input until it ends."""
    cluster = Cluster(shutdown_at_exit=False)
    arguments: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
    try:
        nodes = [cluster.add_node(**arguments) for _ in range(NODES)]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
            print(json.dumps({"lost": int(line)}), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
