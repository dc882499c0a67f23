"""Hardware profiles: devices, links, nodes and clusters as TOML files with a source and a tier on every value.

>>> from hpdlf.hwprofiles import load_cluster
>>> cluster = load_cluster("xeon-64")
>>> cluster.n_devices, cluster.device.kind
(128, 'cpu')
"""

from .cluster import PRICE_KINDS, Cluster, Region
from .listing import ProfileRow, ValueRow, describe, list_profiles
from .loader import (
    cluster_from_toml,
    find_device,
    load_cluster,
    load_device,
    load_link,
    load_profile,
    load_region,
    user_folder,
)
from .profile import FABRICS, PRECISIONS, TIERS, Device, Link, Node, Quantity
from .writing import write_cluster

__all__ = [
    "FABRICS",
    "PRECISIONS",
    "PRICE_KINDS",
    "TIERS",
    "Cluster",
    "Device",
    "Link",
    "Node",
    "ProfileRow",
    "Quantity",
    "Region",
    "ValueRow",
    "cluster_from_toml",
    "describe",
    "find_device",
    "list_profiles",
    "load_cluster",
    "load_device",
    "load_link",
    "load_profile",
    "load_region",
    "user_folder",
    "write_cluster",
]
