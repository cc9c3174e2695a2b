"""Captions by GIT, word for word, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rtdecode.decode.runtime.runner import LONGEST, Runner
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack

CAPTION_CONTEXT = "captioner_context"


def git_captions(pack: EnginePack, runner: Runner) -> Callable[[Any], list[str]]:
    """Open the captioner: CLIP-L's tokens, or what a brain predicts of them, (b, n, d) to sentences.

    Raises
    ------
    EngineError
        The pack was exported by an older version, or what reads its words is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError(f"captions need tokenizers: pip install '.[gpu]' ({error})") from None
    if CAPTION_CONTEXT not in runner.parts:
        raise EngineError(
            f"pack {pack.name}: expected parts captioner and {CAPTION_CONTEXT}, got captioner alone, of an older "
            "version: export the pack anew"
        )
    prepare, step = (runner.open(name) for name in (CAPTION_CONTEXT, "captioner"))
    said = pack.description
    first, last = said.size("captioner", "bos_token_id"), said.size("captioner", "eos_token_id")
    tokenizer = Tokenizer.from_file(str(pack.folder / "captioner" / "tokenizer.json"))

    def run(features: Any) -> list[str]:
        fixed = dict(prepare({"features": features}))
        b, layers, heads, _, channels = fixed["keys"].shape
        nothing = runner.array(np.zeros((b, layers, heads, LONGEST, channels), np.float32))
        known = {"said_keys": nothing, "said_values": nothing}
        words = [runner.level(first, features)]
        for place in range(LONGEST - 1):
            found = step({"word": words[-1], "place": runner.level(place, features), **fixed, **known})
            words.append(runner.most(found["scores"]))
            known = {"said_keys": found["next_keys"], "said_values": found["next_values"]}
            if runner.at_host and all(last in row for row in numbers(words)):
                break  # elsewhere to look at a word would cost more than to say the rest
        return [tokenizer.decode(_said(row, last)).strip() for row in numbers(words)]

    def numbers(words: list[Any]) -> list[list[int]]:
        rows = runner.host(runner.join(words)).astype(np.int64).reshape(len(words), -1).T
        return [[int(word) for word in row] for row in rows]

    return run


def _said(words: list[int], last: int) -> list[int]:
    """Words between the first, which begins every caption, and the one that ends it."""
    return words[1 : words.index(last)] if last in words else words[1:]
