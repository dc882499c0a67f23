"""Power of a whole node at the wall: its devices, and a host that follows the load.

The host (processors, memory, adapters, fans, losses of the power supplies) draws between its idle and active power, both
in the node's profile, in proportion to the load (Barroso and Hölzle, "The case for energy-proportional computing", 2007).
The building's share, PUE, stands in the cluster's profile and is applied by whoever asks for a bill.

Where a profile has no host power, that of a server with accelerators is estimated from its devices' limits. The nodes of
MLPerf Training v4.0 with 8 H100 drew 6.6 to 7.2 kW at the wall, immersed and so without fans
(``mlperf_training/power_runs.csv``); 8.4 kW is the most seen on an air-cooled one (Latif et al., IEEE Access 2025). Less
what the devices draw (:func:`.power.power_at`), a fifth to a half of the sum of their limits is left for the rest.

>>> from hpdlf.hwprofiles import load_cluster
>>> node = load_cluster("dgx-h100").node
>>> busy = node_power(node, device_w=650.0, load=1.0)
>>> busy.low < busy.value < busy.high, 6500 < busy.value < 8500
(True, True)
"""

from __future__ import annotations

from ...errors import PlanError
from ...hwprofiles import Node
from .power import Energy

__all__ = ["node_power"]

# Shares of the sum of the devices' limits that the rest of a node draws: idle, active, and the interval of active.
_HOST_IDLE, _HOST_ACTIVE, _LOW, _HIGH = 0.15, 0.33, 0.2, 0.55


def node_power(node: Node, *, device_w: float, load: float = 1.0) -> Energy | None:
    """Watts at the wall of a node whose devices draw `device_w` each on average, its host loaded by `load` (0 to 1).

    The cooling of the building (PUE) is not in it. None where neither the host's power nor the device's limit is known.

    Raises:
        PlanError: a load outside 0..1, or a negative power.
    """
    if not 0.0 <= load <= 1.0 or device_w < 0:
        raise PlanError(f"a node has a load of 0 to 1 and devices of positive power; given are {load:g} and {device_w:g} W.")
    devices = node.devices_per_node * device_w
    active, idle = node.host_active_w, node.host_idle_w
    if active is not None:
        low, high = active.low or active.value, active.high or active.value
        least = idle.value if idle is not None else active.value * _HOST_IDLE / _HOST_ACTIVE
        host = Energy(*(least + (v - least) * load if v > least else v for v in (active.value, low, high)))
    elif node.device.limit_w is not None:
        total = node.device.limit_w.value * node.devices_per_node
        host = Energy(*(total * (_HOST_IDLE + (v - _HOST_IDLE) * load) for v in (_HOST_ACTIVE, _LOW, _HIGH)))
    else:
        return None
    return Energy(*(devices + part for part in host))
