"""Plans: how one model is cut over a cluster and trained, and who approved it."""

from .partition import Partition, crossing_tensors, partition
from .recipe import Recipe, load_recipe, state_copies
from .strategy import Strategy

__all__ = ["Partition", "Recipe", "Strategy", "crossing_tensors", "load_recipe", "partition", "state_copies"]
