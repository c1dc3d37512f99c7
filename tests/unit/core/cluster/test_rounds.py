"""Who measures with whom: no machine twice in a round, all pairs of few machines, a bounded sample of many."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cluster.rounds import PAIRINGS_MAX, ROUNDS_MAX, TOGETHER_MAX, Meeting, rounds

NODES = st.lists(st.sampled_from([f"n{k}" for k in range(30)]), max_size=80)


@given(NODES)
def test_no_machine_takes_part_in_two_meetings_of_a_round(nodes: list[str]) -> None:
    made = rounds(nodes)
    assert len(made) <= ROUNDS_MAX
    for meetings in made:
        assert meetings
        busy = [node for m in meetings for node in {nodes[w] for w in m.workers}]
        assert len(busy) == len(set(busy))
        for m in meetings:
            assert 1 <= len(m.senders) == len(m.receivers) <= TOGETHER_MAX
            assert len(set(m.workers)) == len(m.workers)
            assert len({nodes[w] for w in m.senders}) == len({nodes[w] for w in m.receivers}) == 1


@given(NODES)
def test_every_machine_with_company_measures_its_network_its_inside_and_all_its_devices(nodes: list[str]) -> None:
    meetings = [m for r in rounds(nodes) for m in r]
    several = {n for n in nodes if nodes.count(n) > 1}
    inside = {nodes[m.senders[0]] for m in meetings if nodes[m.senders[0]] == nodes[m.receivers[0]]}
    network = {nodes[w] for m in meetings for w in m.workers if nodes[m.senders[0]] != nodes[m.receivers[0]]}
    together = {nodes[w] for m in meetings if len(m.senders) > 1 for w in m.workers}
    assert inside == several
    assert network == (set(nodes) if len(set(nodes)) > 1 else set())
    assert together == (several if len(several) > 1 else set())


@pytest.mark.parametrize("count", range(2, PAIRINGS_MAX + 2))
def test_few_machines_meet_each_other_once(count: int) -> None:
    met = [tuple(sorted(m.workers)) for r in rounds([f"n{k}" for k in range(count)]) for m in r]
    if count <= PAIRINGS_MAX:
        assert sorted(met) == list(combinations(range(count), 2))
    else:
        assert len(set(met)) == len(met) == PAIRINGS_MAX * (count // 2)


def test_many_machines_meet_a_sample() -> None:
    made = rounds([f"n{k}" for k in range(1250)])
    assert len(made) == PAIRINGS_MAX
    assert all(len(r) == 625 for r in made)


def test_each_device_of_a_machine_has_its_turn() -> None:
    made = rounds(["a", "a", "b", "b", "c", "c", "d", "d"])
    assert made[0] == tuple(Meeting((k,), (k + 1,)) for k in (0, 2, 4, 6))
    assert [sorted(w for m in r for w in m.workers) for r in made[1:4]] == [[0, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4, 6]]
    assert made[4] == (Meeting((0, 1), (2, 3)), Meeting((4, 5), (6, 7)))
    assert len(made) == 5


def test_alone_there_is_nothing_to_measure() -> None:
    assert rounds([]) == rounds(["a"]) == ()
