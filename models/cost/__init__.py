"""What anything costs: time, energy, money and memory, with an interval and where each number comes from."""

from .communication import (
    OPTIMIZER_TRAFFIC,
    collective_workload,
    host_workload,
    one_sided_workload,
    transfer_workload,
    update_workload,
)
from .database import ObservationDatabase, default_database
from .estimate import Bound, Estimate, Provenance
from .factors import Factor, Factors, load_prior
from .fit import Fit, FitReport, fit
from .model import CostModel, Share
from .observations import Observation
from .power import busy_energy, idle_energy
from .residuals import residual_bytes, residual_tensors
from .roofline import operator_roofline
from .segment import compute_workload, fingerprint, fusion
from .workload import Workload
from .workspace import workspace_bytes

__all__ = [
    "OPTIMIZER_TRAFFIC",
    "Bound",
    "CostModel",
    "Estimate",
    "Factor",
    "Factors",
    "Fit",
    "FitReport",
    "Observation",
    "ObservationDatabase",
    "Provenance",
    "Share",
    "Workload",
    "busy_energy",
    "collective_workload",
    "compute_workload",
    "default_database",
    "fingerprint",
    "fit",
    "fusion",
    "host_workload",
    "idle_energy",
    "load_prior",
    "one_sided_workload",
    "operator_roofline",
    "residual_bytes",
    "residual_tensors",
    "transfer_workload",
    "update_workload",
    "workspace_bytes",
]
