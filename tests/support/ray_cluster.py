"""A real Ray cluster of two worker nodes, on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Address of a cluster whose head has no core and whose two other nodes have one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        cluster.wait_for_nodes(timeout=60)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()
