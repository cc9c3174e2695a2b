from __future__ import annotations

import numpy as np

from rtdecode.decode.families.tiny.sentence import sentence


def test_a_sentence_ends_at_its_end() -> None:
    words = ["<pad>", "<end>", "a", "red", "cat"]
    assert sentence(np.array([2, 3, 4, 1, 0, 3]), words, 1) == "a red cat"
    assert sentence(np.array([2, 4]), words, 1) == "a cat"
