"""Tokens of different tokenizers are paired at the characters where a token of each ends, in windows of the same text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.data.alignment import align

LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=60)


@st.composite
def readings(draw):
    """Ends of the tokens of two or three models on one text; a character may be several tokens."""
    ends = [np.cumsum(draw(LENGTHS)) for _ in range(draw(st.integers(2, 3)))]
    length = max(own[-1] for own in ends)
    ends = [np.r_[own, np.arange(own[-1] + 1, length + 1)] for own in ends]
    repeated = draw(st.integers(0, len(ends[0]) - 1))
    return [np.insert(ends[0], repeated, ends[0][repeated]), *ends[1:]]


def windows(positions):
    """The number of the window that every token stands in."""
    return np.cumsum(positions == 1)


@given(readings(), st.integers(8, 20))
@settings(max_examples=200, deadline=None)
def test_paired_tokens_end_at_one_character_after_the_same_text(ends, window):
    aligned = align(ends, window)
    paired = aligned.places[0] >= 0
    assert np.array_equal(np.unique(ends[0][paired]), ends[0][paired]), "the last of several tokens at a character"
    for own, places, positions in zip(ends, aligned.places, aligned.positions, strict=True):
        assert np.array_equal(places >= 0, paired)
        assert np.array_equal(own[places[paired]], ends[0][paired])
        assert positions.min() == 1
        assert positions.max() <= window
    # Tokens are at most 4 characters long, so that no stretch between shared ends needs a break of its own here.
    stretch = np.diff(np.r_[0, ends[0][paired]]).max(initial=0)
    if stretch < window:
        begins = [np.r_[0, own][:-1][positions == 1] for own, positions in zip(ends, aligned.positions, strict=True)]
        assert all(np.array_equal(begins[0], other) for other in begins[1:])


def test_every_character_that_a_token_of_each_ends_at_is_paired():
    ends = [np.array([1, 3, 6, 7, 9]), np.array([2, 3, 5, 9])]
    assert align(ends, 8).places[1].tolist() == [-1, 1, -1, -1, 3]


def test_windows_begin_where_tokens_of_all_models_end():
    aligned = align([np.arange(1, 13), np.arange(3, 13, 3)], 7)
    assert aligned.positions[0].tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert aligned.positions[1].tolist() == [1, 2, 1, 2]


def test_a_stretch_longer_than_a_window_continues_in_further_windows():
    aligned = align([np.array([2, 22, 24]), np.r_[2:25]], 8)
    assert aligned.positions[0].tolist() == [1, 1, 1]
    assert aligned.positions[1].tolist() == [1, *[1 + i % 8 for i in range(20)], 1, 2]


@pytest.mark.parametrize("ends", [[[], []], [[0, 0], [0]], [[3], []], [[], [2]]])
def test_a_document_without_shared_ends_pairs_nothing(ends):
    aligned = align([np.array(own, np.int64) for own in ends], 8)
    assert all((places == -1).all() for places in aligned.places)
    assert [len(positions) for positions in aligned.positions] == [len(own) for own in ends]
