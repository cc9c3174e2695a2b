"""A pool that is somebody else's service: the HTTP interface of clip-retrieval, for billions of pictures."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import EngineError

_NAMED_BY = ("url", "image_path")
"""Fields of a picture that name it, the first that it has; else its number."""


class RemotePool:
    """A pool that is searched by a ``clip-retrieval back``: POST of JSON to its ``/knn-service``.

    Embeddings must be those that the service's index was made of: CLIP's projected embedding, one token, for the public
    ones. What was decoded leaves this machine with every search.

    Parameters
    ----------
    url : str
        Of the service, its path included: ``http://host:1234/knn-service``.
    index : str or None
        Name of one of its indexes; None takes its first.
    timeout_s : float
        For a whole answer: a search that takes longer is given up, and none is begun while it still goes on.
    """

    def __init__(self, url: str, *, index: str | None = None, timeout_s: float = 10.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise EngineError(f"{url}: expected the address of a service, http://host:1234/knn-service")
        self._url, self._index, self._timeout_s = url, index, timeout_s
        self._asking: threading.Thread | None = None
        self.how = f"a service at {url}, which gets what is decoded and has {timeout_s:g} s to answer"

    def nearest(self, query: NDArray[np.floating[Any]], k: int) -> list[tuple[str, float]]:
        """Return the `k` most similar pictures found and their cosines, best first; see `ImagePool.nearest`.

        Raises
        ------
        EngineError
            The service cannot be reached, refuses, takes too long, or answers something else than pictures.
        """
        flat = np.asarray(query, np.float32).reshape(-1)
        asked = {
            "embedding_input": (flat / np.linalg.norm(flat)).tolist(),  # the service takes it as it is
            "modality": "image",
            "num_images": k,
            "indice_name": self._index,
        }
        answer = self._answer(json.dumps(asked).encode())
        try:
            found = [(_name(one), float(one["similarity"])) for one in answer]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise EngineError(
                f"{self._url}: expected a list of pictures with id and similarity, got {str(answer)[:120]}: is it the "
                "knn-service of clip-retrieval?"
            ) from None
        return sorted(found, key=lambda pair: -pair[1])[:k]

    def _answer(self, body: bytes) -> Any:
        """Ask from a thread: the time limit of a socket is for each piece of an answer, not for all of it."""
        if self._asking is not None and self._asking.is_alive():
            raise EngineError(f"{self._url}: not asked, as it still owes an answer to the search before")
        given: list[Any] = []

        def ask() -> None:
            try:
                given.append(self._fetched(body))
            except EngineError as error:
                given.append(error)

        self._asking = threading.Thread(target=ask, name="pool service", daemon=True)
        self._asking.start()
        self._asking.join(self._timeout_s)
        if not given:
            raise EngineError(f"{self._url}: expected an answer within {self._timeout_s:g} s, got none: is it busy?")
        if isinstance(given[0], EngineError):
            raise given[0]
        return given[0]

    def _fetched(self, body: bytes) -> Any:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            raise EngineError(
                f"{self._url}: refused with {error.code} {error.reason}: does its index {self._index or ''} hold "
                "embeddings of this width?"
            ) from None
        except (OSError, ValueError, HTTPException) as error:
            raise EngineError(f"{self._url}: expected an answer of a knn-service: {error}") from None


def _name(picture: dict[str, Any]) -> str:
    return str(next((picture[field] for field in _NAMED_BY if picture.get(field)), picture["id"]))
