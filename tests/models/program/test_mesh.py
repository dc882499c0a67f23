from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.models.program import Group, Mesh, Peer

meshes = st.dictionaries(st.sampled_from(["pipeline", "data", "tensor"]), st.integers(1, 5), min_size=1).map(
    lambda axes: Mesh(axes=axes)
)


@given(meshes)
def test_a_rank_and_its_coordinates_say_the_same(mesh: Mesh) -> None:
    seen = [tuple(mesh.coordinates(rank).values()) for rank in range(mesh.size)]
    assert seen == sorted(set(seen))  # neighbours differ in the last axis
    assert [mesh.rank(mesh.coordinates(rank)) for rank in range(mesh.size)] == list(range(mesh.size))


@given(meshes, st.data())
def test_groups_of_equal_size_partition_the_ranks(mesh: Mesh, data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.sampled_from(sorted(mesh.axes)), unique=True))
    group = Group(axes=tuple(axes))
    groups = {mesh.group(rank, group) for rank in range(mesh.size)}
    assert sorted(rank for members in groups for rank in members) == list(range(mesh.size))
    assert {len(members) for members in groups} == {mesh.group_size(group)}
    assert all(rank in mesh.group(rank, group) for rank in range(mesh.size))


@given(meshes, st.data())
def test_ranks_at_are_those_with_the_coordinates(mesh: Mesh, data: st.DataObject) -> None:
    fixed = {axis: data.draw(st.integers(0, size - 1)) for axis, size in mesh.axes.items() if data.draw(st.booleans())}
    wanted = [r for r in range(mesh.size) if all(mesh.coordinates(r)[a] == i for a, i in fixed.items())]
    assert list(mesh.ranks_at(fixed)) == wanted


@given(meshes, st.data())
def test_a_peer_is_a_peer_back(mesh: Mesh, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, mesh.size - 1))
    axis = data.draw(st.sampled_from(sorted(mesh.axes)))
    offset = data.draw(st.integers(-5, 5))
    if 0 <= mesh.coordinates(rank)[axis] + offset < mesh.axes[axis]:
        assert mesh.peer(mesh.peer(rank, Peer(axis, offset)), Peer(axis, -offset)) == rank
    else:
        with pytest.raises(IndexError, match="no peer"):
            mesh.peer(rank, Peer(axis, offset))


def test_a_rank_outside_has_no_coordinates() -> None:
    with pytest.raises(IndexError, match="outside a mesh of 6"):
        Mesh(axes={"pipeline": 2, "data": 3}).coordinates(6)
