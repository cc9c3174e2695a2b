"""What settings of a pool of pictures do not go together."""

from __future__ import annotations

from pathlib import Path


def pool_problems(service: str, pool: Path | None, tokens: Path | None) -> list[str]:
    """Name the problems of ``decode.pool_service``, ``pool`` and ``pool_tokens``."""
    problems = []
    if service and not service.startswith(("http://", "https://")):
        problems.append(f"$.decode.pool_service: expected an address, http://host:1234/knn-service, got {service!r}")
    if service and pool is not None:
        problems.append("$.decode.pool_service: expected none beside decode.pool: one pool is searched")
    if tokens is not None and not service and pool is None:
        problems.append(
            "$.decode.pool_tokens: expected decode.pool or decode.pool_service, whose pictures these are of"
        )
    return problems
