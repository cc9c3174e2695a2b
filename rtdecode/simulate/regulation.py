"""A participant who regulates: tries harder or less hard, sees what is shown of it, and keeps what raised it.

Nothing else teaches it. Feedback that does not depend on the brain leads it nowhere, however much of it there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdecode import client as wire
from rtdecode.simulate.seeds import generator

_FORGETS = 0.5
"""Weight of the newest try in what is expected of the next one."""


class Regulator:
    """Learns by trial and error, from try to try, what raises the display.

    Of each two tries one is stronger and one weaker than the present skill, in random order. Where more was shown than
    expected, the skill moves towards that try, where less, away from it.

    Parameters
    ----------
    seed : int
        Of the choices.
    target : array of shape (n_responsive,)
        What a try of strength 1 evokes, percent signal change at the plateau of a long one.
    skill : float
        Strength to begin with; 1 is the most there is.
    spread : float
        By how much a try is stronger or weaker.
    rate : float
        By how much the skill moves if the display goes from one end to the other.

    Attributes
    ----------
    target : array of shape (n_responsive,)
    skill : float
    tries : list of float
        Strength of each try.
    """

    def __init__(
        self,
        seed: int,
        target: NDArray[np.float64],
        *,
        skill: float = 0.3,
        spread: float = 0.3,
        rate: float = 0.6,
    ) -> None:
        self.target = target
        self.skill = skill
        self.tries: list[float] = []
        self._spread = spread
        self._rate = rate
        self._rng = generator(seed, "regulation")
        self._stronger = False
        self._seen: list[float] = []
        self._expected: float | None = None

    def attempt(self) -> float:
        """Learn from what was seen since the last try, and return the strength of the next one."""
        if self._seen and self.tries:
            seen = float(np.mean(self._seen))
            if self._expected is None:
                self._expected = seen
            surprise = seen - self._expected
            self.skill = min(self.skill + self._rate * (surprise if self._stronger else -surprise), 1.0)
            self._expected += _FORGETS * surprise
        self._seen.clear()
        first = len(self.tries) % 2 == 0
        self._stronger = bool(self._rng.random() < 0.5) if first else not self._stronger
        strength = self.skill + (self._spread if self._stronger else -self._spread)
        self.tries.append(strength)
        return strength

    def see(self, level: float) -> None:
        """Look at the display: 0, its lower end, to 1."""
        self._seen.append(level)

    def watch(self, message: wire.Message) -> None:
        """See what a message of the stream shows; for a `rtdecode.client.Listener`."""
        if isinstance(message, wire.Feedback) and message.state == "shown" and message.level is not None:
            self.see(message.level)
