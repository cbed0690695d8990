"""A story of readings through the engine, cut into batches, with restarts and discarded batches in between."""

import itertools
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import DiagnosticRow, Readings


def played_in_cuts(
    rules: RuleSet, story: Readings, cuts: list[int], restarts: set[int], discards: set[int]
) -> dict[tuple[str, str, int], DiagnosticRow]:
    """The last row of each occurrence, by well, diagnosis and time of raising (µs). ``cuts``: readings at which another
    batch begins; before a batch whose number is in ``restarts`` the engine is exported and restored, and one whose
    number is in ``discards`` is evaluated twice, the first time in vain."""
    engine, found = Engine(rules), {}
    edges = [0, *sorted({cut % len(story) for cut in cuts}), len(story)]
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        if number in restarts:
            state = engine.export()
            engine = Engine(rules)
            assert engine.restore(state) == []
        batch = story.select(np.arange(begin, end))
        if number in discards:
            engine.discard(engine.evaluate(batch))
        evaluation = engine.evaluate(batch)
        engine.accept(evaluation)
        found.update({(row.well_id, row.diagnosis, row.raised_us): row for row in evaluation.rows})
    return found


def any_cuts(story: Readings, examples: int = 8) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a test that takes ``cuts``, ``restarts`` and ``discards`` for played_in_cuts: it is run with any of them."""

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        number = st.integers(0, 25)
        drawn = given(
            cuts=st.lists(st.integers(0, len(story)), min_size=1, max_size=25),
            restarts=st.sets(number, max_size=4),
            discards=st.sets(number, max_size=4),
        )
        return settings(max_examples=examples, deadline=None)(drawn(test))

    return decorated
