"""Every map of LAYER_MAPS, between any two depths, keeps to what a map is; or it is refused."""

from __future__ import annotations

import pytest

from kdcache.errors import ConfigError
from kdcache.losses.layer_maps import LAYER_MAPS, layer_pairs

DEPTHS = range(1, 13)
every_map = pytest.mark.parametrize("name", LAYER_MAPS)


def pairs_of(name: str, student: int, teacher: int) -> list[tuple[int, int]] | None:
    """The pairs between two depths; None where they are refused, in a line that names the map."""
    refused = ""
    try:
        return list(layer_pairs(name, student, teacher))
    except ConfigError as error:
        refused = str(error)
    assert len(refused.splitlines()) == 1
    assert f"layer map {name!r}" in refused
    return None


@every_map
def test_pairs_lie_within_both_depths_and_rise(name: str) -> None:
    for student in DEPTHS:
        for teacher in DEPTHS:
            pairs = pairs_of(name, student, teacher)
            if pairs is None:
                continue
            ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
            assert 0 <= ours[0] < student + 1 > ours[-1]
            assert 0 <= theirs[0] < teacher + 1 > theirs[-1]
            assert ours == sorted(set(ours))
            assert theirs == sorted(theirs)


ONE = ("middle", "top")  # at one layer


@pytest.mark.parametrize("name", [n for n in LAYER_MAPS if n not in ONE])
def test_every_layer_of_the_student_but_its_ends_learns(name: str) -> None:
    for student in DEPTHS:
        for teacher in range(student, 13):
            pairs = pairs_of(name, student, teacher)
            if pairs is not None:
                assert set(range(1, student)) <= {ours for ours, _ in pairs}


@every_map
def test_a_student_as_deep_as_its_teacher_learns_from_the_same_layers(name: str) -> None:
    for depth in range(2, 13):
        pairs = pairs_of(name, depth, depth)
        assert pairs
        assert all(ours == theirs for ours, theirs in pairs)


@every_map
def test_half_a_teacher_is_never_refused(name: str) -> None:
    for student in range(2, 7):
        assert pairs_of(name, student, 2 * student)
