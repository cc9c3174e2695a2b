"""Three blocks of feedback in asyncio: the screen goes on while the daemon is asked and its answer is waited for."""

import asyncio
import sys

from client import AsyncClient, Feedback

RUN, T_R_S = 1, 1.5
BLOCKS, FIRST, VOLUMES, EVERY = 3, 8, 8, 14  # volumes before the first block, in each, and from one to the next


async def main(stream, requests, show=print, key=None):
    """Announce blocks; show a step of the thermometer after every volume; tell with the next block what was seen."""
    async with AsyncClient(stream, requests, topics=["feedback"], key=key) as client:
        await client.event(kind="run_start", run=RUN)
        seen = 0
        for block in range(BLOCKS):
            begins = FIRST + EVERY * block
            await client.event(
                kind="trial",
                run=RUN,
                trial=f"r{RUN:02d}b{block:02d}",
                onset_s=T_R_S * begins,
                duration_s=T_R_S * VOLUMES,
                condition=f"seen-{seen}",
            )
            async for message in client.messages():
                if not isinstance(message, Feedback) or message.run != RUN:
                    continue
                if message.state == "shown":  # where it is held, the last step stays
                    seen = message.step
                step = "+" if message.state == "baseline" else f"step {seen} of {message.steps}"
                show(f"volume {message.volume}: {step}")
                if message.volume == begins + EVERY - 1:
                    break
        await client.event(kind="run_end", run=RUN)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
