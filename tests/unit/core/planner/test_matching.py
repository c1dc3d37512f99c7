"""Flows and assignments against trying everything."""

from __future__ import annotations

from itertools import combinations, permutations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.planner.matching import Flow, assign


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_an_assignment_is_worth_the_most(rows: int, columns: int, data: st.DataObject) -> None:
    value = data.draw(st.lists(st.lists(st.integers(0, 9), min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    chosen = assign(value)
    used = [c for c in chosen if c >= 0]
    assert len(used) == len(set(used)) == min(rows, columns)
    best = (
        max(sum(value[r][c] for r, c in zip(order, range(columns), strict=False)) for order in permutations(range(rows)))
        if rows >= columns
        else max(sum(value[r][c] for r, c in enumerate(order)) for order in permutations(range(columns), rows))
    )
    assert sum(value[r][c] for r, c in enumerate(chosen) if c >= 0) == best


def test_nobody_to_assign() -> None:
    assert assign([]) == []


@given(st.integers(3, 6), st.data())
def test_a_flow_is_as_large_as_the_narrowest_cut(nodes: int, data: st.DataObject) -> None:
    pairs = [(a, b) for a in range(nodes) for b in range(nodes) if a != b]
    capacities = data.draw(st.lists(st.tuples(st.sampled_from(pairs), st.integers(0, 5)), max_size=12))
    flow = Flow(nodes)
    numbers = []
    for n, ((tail, head), capacity) in enumerate(capacities):
        numbers.append(flow.edge(tail, head, capacity))
        if n % 4 == 3:
            flow.grow(0, 1)  # growing on the way takes nothing away
    flow.grow(0, 1)
    balance = [0] * nodes
    for e, ((tail, head), capacity) in zip(numbers, capacities, strict=True):
        assert 0 <= flow.flow(e) <= capacity
        assert flow.room(e) == capacity - flow.flow(e)
        balance[tail] -= flow.flow(e)
        balance[head] += flow.flow(e)
    assert balance[2:] == [0] * (nodes - 2)
    cuts = [{0, *inside} for size in range(nodes - 1) for inside in combinations(range(2, nodes), size)]
    assert balance[1] == min(sum(c for (a, b), c in capacities if a in side and b not in side) for side in cuts)


def test_a_long_way_is_no_deep_recursion() -> None:
    flow = Flow(5000)
    edges = [flow.edge(n, n + 1, 2) for n in range(4999)]
    flow.push(edges, 1)
    flow.grow(0, 4999)
    assert {flow.flow(e) for e in edges} == {2}
