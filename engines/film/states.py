"""Which of a language model's hidden states are the features of a moment of a film, as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AUDIO_S = 60.0
VIDEO_S = 4.0
WORDS = 1024
"""How far back a moment's context goes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """What the model is given of a moment.

    Attributes
    ----------
    pictures : array of shape (n, h, w, 3), uint8
        Of the last four seconds, two a second.
    sound : array of shape (s,), float32, or None
        Of the last minute, 16 kHz.
    words : list of str
        That are over by then, the last 1024.
    """

    pictures: NDArray[np.uint8]
    sound: NDArray[np.float32] | None
    words: list[str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class States:
    """What the model makes of a context.

    Attributes
    ----------
    hidden : Tensor of shape (layers, tokens, values)
    video, audio : Tensor of shape (n,), int64
        Places of the tokens of pictures and of sound, in their order.
    patches : int
        Video tokens of one temporal step of two pictures.
    last_word : int
        Tokens at the end that the last word is made of; 0 without words.
    """

    hidden: Tensor
    video: Tensor
    audio: Tensor
    patches: int
    last_word: int


class Backbone(Protocol):
    """A language model with eyes and ears.

    Attributes
    ----------
    layers, values : int
        Hidden states that it gives, and numbers in each.
    dtype : torch.dtype
        Of these.
    identity : str
        Tells one from another.
    """

    layers: int
    values: int
    dtype: torch.dtype
    identity: str

    def states(self, context: Context) -> States:
        """Run the model once, without any memory of other contexts."""
        ...


def vision_of(states: States) -> Tensor:
    """Mean over the patches of the last temporal step, (layers, values)."""
    return states.hidden[:, states.video[-states.patches :]].float().mean(1)


def audio_of(states: States, cutoff_s: float) -> Tensor:
    """Hidden state of one token of sound, (layers, values); zero without sound.

    The published code resamples the window's tokens to as many steps as half seconds have passed since the *film's*
    begin, by nearest, and takes the last: about half a second before the end in the first minute, nearer to it later.
    """
    native = len(states.audio)
    if not native:
        return torch.zeros(states.hidden.shape[0], states.hidden.shape[2])
    steps = max(round(2 * cutoff_s), 1)
    return states.hidden[:, states.audio[(steps - 1) * native // steps]].float()


def word_of(states: States) -> Tensor:
    """Mean over the tokens of the last word, (layers, values)."""
    return states.hidden[:, -states.last_word :].float().mean(1)


class QwenBackbone:
    """Qwen3-Omni's thinker through transformers.

    Parameters
    ----------
    model, processor
        ``Qwen3OmniMoeThinkerForConditionalGeneration`` and ``Qwen3OmniMoeProcessor``.
    identity : str
    """

    def __init__(self, model: Any, processor: Any, identity: str) -> None:
        text = model.config.get_text_config()
        self._model, self._processor = model, processor
        self.layers, self.values = text.num_hidden_layers + 1, text.hidden_size
        self.dtype = model.dtype
        self.identity = identity
        token = processor.tokenizer
        self._prompt = f"{token.vision_bos_token}{token.video_token}{token.vision_eos_token}\n"
        self._merge = processor.video_processor.merge_size

    def states(self, context: Context) -> States:
        """See `Backbone.states`; pictures and sound are in one span, from its begin on, as published."""
        words = " ".join(context.words)
        sound: dict[str, Any] = {}
        if context.sound is not None and len(context.sound):
            sound = {"audio": [context.sound], "audio_from_video_indices": [0], "load_audio_from_video": True}
        video = {"fps": 2.0, "do_sample_frames": False}
        given = self._processor(
            text=self._prompt + words, videos=[context.pictures], return_tensors="pt", videos_kwargs=video, **sound
        )
        given.pop("num_audio_tokens", None)
        given = given.to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            found = self._model(
                **given, use_audio_in_video=bool(sound), output_hidden_states=True, use_cache=False
            ).hidden_states
        ids = given["input_ids"][0]
        steps = int(given["video_grid_thw"][0, 0])
        at_video = torch.nonzero(ids == self._model.config.video_token_id)[:, 0]
        return States(
            hidden=torch.stack([layer[0] for layer in found]),
            video=at_video,
            audio=torch.nonzero(ids == self._model.config.audio_token_id)[:, 0],
            patches=len(at_video) // steps,
            last_word=self._last_word(context.words),
        )

    def _last_word(self, words: list[str]) -> int:
        if not words:
            return 0
        tokenize = self._processor.tokenizer
        whole, before = (len(tokenize(" ".join(some))["input_ids"]) for some in (words, words[:-1]))
        return max(whole - before, 1)


def load_qwen(name: str, device: str) -> QwenBackbone:
    """Load the published model, in bfloat16: 61 GB and more.

    Raises
    ------
    ImportError
        transformers is not installed, or has no such class.
    """
    from transformers import Qwen3OmniMoeProcessor, Qwen3OmniMoeThinkerForConditionalGeneration

    model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(name, dtype=torch.bfloat16, device_map=device)
    return QwenBackbone(model.eval(), Qwen3OmniMoeProcessor.from_pretrained(name), name)
