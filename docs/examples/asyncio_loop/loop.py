"""Three trials of feedback in asyncio: the screen goes on while the daemon is asked and its answer is waited for."""

import asyncio
import sys

from client import AsyncClient, Feedback

RUN, TRIALS = 1, 3


async def main(stream, requests, show=print, key=None):
    """Announce trials; show each one's step of the thermometer; tell with the next trial what was seen."""
    async with AsyncClient(stream, requests, topics=["feedback"], key=key) as client:
        await client.event(kind="run_start", run=RUN)
        seen = 0
        for number in range(TRIALS):
            trial = f"r{RUN:02d}t{number:02d}"
            await client.event(
                kind="trial", run=RUN, trial=trial, onset_s=20.0 * number, duration_s=2.0, condition=f"seen-{seen}"
            )
            async for message in client.messages():
                if isinstance(message, Feedback) and message.trial == trial and message.state == "shown":
                    seen = message.step
                    show(f"{trial}: step {seen} of {message.steps}")
                    break
        await client.event(kind="run_end", run=RUN)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
