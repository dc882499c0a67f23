"""Plans: how one model is cut over a cluster and trained, and who approved it."""

from .approval import Approval, approval_path, check_approval, write_approval
from .partition import Partition, crossing_tensors, partition
from .plan import HashedFile, Plan, file_sha256, load_plan, write_plan
from .recipe import Recipe, load_recipe, state_copies
from .sharding import Local, localise
from .strategy import Strategy

__all__ = [
    "Approval",
    "HashedFile",
    "Local",
    "Partition",
    "Plan",
    "Recipe",
    "Strategy",
    "approval_path",
    "check_approval",
    "crossing_tensors",
    "file_sha256",
    "load_plan",
    "load_recipe",
    "localise",
    "partition",
    "state_copies",
    "write_approval",
    "write_plan",
]
