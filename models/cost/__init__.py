"""What anything costs: time, energy, money and memory, with an interval and where each number comes from."""

from .communication import (
    OPTIMIZER_TRAFFIC,
    collective_workload,
    host_workload,
    one_sided_workload,
    transfer_workload,
    update_workload,
)
from .cpu_energy import CpuEnergyModel
from .database import ObservationDatabase, default_database
from .drift import Drift
from .estimate import Bound, Estimate, Provenance
from .factors import Factor, Factors, load_prior
from .fit import Fit, FitReport, fit
from .fusing import fusion
from .model import CostModel, Share
from .money import Bill, NodePrice, bill, full_power_w, node_hour_usd, node_price
from .observations import Observation
from .online import OnlineScales, Timed
from .power import Energy, busy_energy, idle_energy, power_at, slowdown_at
from .power_node import node_power
from .power_serving import ServingLoad, serving_power
from .power_training import TrainingEstimate, training_power
from .residuals import residual_bytes, residual_tensors
from .roofline import operator_roofline
from .segment import compute_workload, fingerprint
from .workload import Workload
from .workspace import workspace_bytes

__all__ = [
    "OPTIMIZER_TRAFFIC",
    "Bill",
    "Bound",
    "CostModel",
    "CpuEnergyModel",
    "Drift",
    "Energy",
    "Estimate",
    "Factor",
    "Factors",
    "Fit",
    "FitReport",
    "NodePrice",
    "Observation",
    "ObservationDatabase",
    "OnlineScales",
    "Provenance",
    "ServingLoad",
    "Share",
    "Timed",
    "TrainingEstimate",
    "Workload",
    "bill",
    "busy_energy",
    "collective_workload",
    "compute_workload",
    "default_database",
    "fingerprint",
    "fit",
    "full_power_w",
    "fusion",
    "host_workload",
    "idle_energy",
    "load_prior",
    "node_hour_usd",
    "node_power",
    "node_price",
    "one_sided_workload",
    "operator_roofline",
    "power_at",
    "residual_bytes",
    "residual_tensors",
    "serving_power",
    "slowdown_at",
    "training_power",
    "transfer_workload",
    "update_workload",
    "workspace_bytes",
]
