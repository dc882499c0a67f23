"""The simulator: programs in virtual time, and the search for a plan."""

from .cutting import build
from .pricing import Pricing
from .result import Figures, Interval, RoleMemory, Simulation
from .search import Candidate, Search, search, simulate, strategies
from .simulate import simulate_program

__all__ = [
    "Candidate",
    "Figures",
    "Interval",
    "Pricing",
    "RoleMemory",
    "Search",
    "Simulation",
    "build",
    "search",
    "simulate",
    "simulate_program",
    "strategies",
]
