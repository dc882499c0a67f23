"""Hardware profiles: devices, links, nodes and clusters as TOML files with a source and a tier on every value.

>>> from hpdlf.hwprofiles import load_cluster
>>> cluster = load_cluster("xeon-64")
>>> cluster.n_devices, cluster.device.kind
(128, 'cpu')
"""

from .listing import ProfileRow, ValueRow, describe, list_profiles
from .loader import cluster_from_toml, load_cluster, load_device, load_link, user_folder
from .cluster import Cluster
from .profile import FABRICS, PRECISIONS, TIERS, Device, Link, Node, Quantity
from .writing import write_cluster

__all__ = [
    "FABRICS",
    "PRECISIONS",
    "TIERS",
    "Cluster",
    "Device",
    "Link",
    "Node",
    "ProfileRow",
    "Quantity",
    "ValueRow",
    "cluster_from_toml",
    "describe",
    "list_profiles",
    "load_cluster",
    "load_device",
    "load_link",
    "user_folder",
    "write_cluster",
]
