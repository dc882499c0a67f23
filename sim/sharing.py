"""Which links the transfers of a program use, for a replay in which those that meet share them.

A price already counts the transfers that always go together: the messages of all ranks of a node, the groups that are siblings. What it
cannot know is who else happens to be on the way: a stage's messages while its gradients are reduced, the traffic of another stage on
the same node. That is told by these shares: of every link on the way, how much one transfer uses when it is alone
(:func:`hpdlf.sim.network.shares_of`). All ranks have to be simulated for it, since they meet one by one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from ..models.program import Kind
from .network import shares_of
from .pricing import Pricing

__all__ = ["link_shares"]

Shares = Mapping[Hashable, float]


def link_shares(pricing: Pricing) -> dict[int, dict[str, Shares]]:
    """By rank and instruction, the links that a message or a collective uses and how much of each; 0 < share <= 1."""
    program, cluster = pricing.program, pricing.cluster
    mesh = program.mesh
    known: dict[Hashable, Shares] = {}
    found: dict[int, dict[str, Shares]] = {}
    for rank in range(mesh.size):
        role = program.role_of(rank)
        mine: dict[str, Shares] = {}
        for instruction in role.instructions:
            nbytes = role.payload_bytes(instruction)
            if instruction.kind is Kind.SEND and instruction.peer is not None:
                peer = mesh.peer(rank, instruction.peer)
                together = pricing.siblings(rank, instruction.peer)
                key: Hashable = ("send", nbytes, rank, peer, together)
                if key not in known:
                    whole = shares_of("send", nbytes, (rank, peer), cluster, siblings=together)
                    known[key] = {
                        port: share if port.kind == "device" else share / together  # type: ignore[attr-defined]
                        for port, share in whole.items()
                    }
            elif instruction.kind.is_collective and instruction.group is not None:
                members, active = mesh.group(rank, instruction.group), pricing.active(rank, instruction.group)
                key = (instruction.kind, nbytes, members, active)
                if key not in known:
                    known[key] = shares_of(instruction.kind.value, nbytes, members, cluster, active=active)
            else:
                continue
            if known[key]:
                mine[instruction.id] = known[key]
        found[rank] = mine
    return found
