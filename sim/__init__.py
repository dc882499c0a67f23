"""The simulator: programs in virtual time, and the search for a plan."""

from .breakdown import Breakdown, breakdown
from .comparison import Comparison, compare
from .critical_path import CriticalPath, critical_path
from .cutting import build
from .energy import NodePower
from .power_trace import PowerTrace, power_trace
from .pricing import Pricing
from .result import Figures, Interval, RoleMemory, Simulation
from .run import CheckpointPlan, EvaluationPlan, InputPlan, Run, run_of, simulate_run
from .run_result import RunSimulation
from .search import Candidate, Search, search, simulate, strategies
from .simulate import simulate_program

__all__ = [
    "Breakdown",
    "Candidate",
    "CheckpointPlan",
    "Comparison",
    "CriticalPath",
    "EvaluationPlan",
    "Figures",
    "InputPlan",
    "Interval",
    "NodePower",
    "PowerTrace",
    "Pricing",
    "RoleMemory",
    "Run",
    "RunSimulation",
    "Search",
    "Simulation",
    "breakdown",
    "build",
    "compare",
    "critical_path",
    "power_trace",
    "run_of",
    "search",
    "simulate",
    "simulate_program",
    "simulate_run",
    "strategies",
]
