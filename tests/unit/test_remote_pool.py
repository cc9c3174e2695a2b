"""A pool behind HTTP and the order of candidates by their tokens, against plain arithmetic."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.pool.disk_index import build_pool
from rtdecode.__main__ import main
from rtdecode.check import missing
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.score.remote_pool import RemotePool
from rtdecode.decode.score.reranking import reranked
from rtdecode.decode.service import LocalService
from rtdecode.decoded import Embedding
from rtdecode.errors import EngineError, SettingsError
from rtdecode.settings import DecodeSettings, parse
from tests.decode_small import category_update, tiny_pack, write_category_bundle

WIDTH = 24
ROWS = np.random.default_rng(0).standard_normal((400, WIDTH)).astype(np.float32)
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


class KnnService(BaseHTTPRequestHandler):
    """What clip-retrieval's service does with an embedding: the same fields in, the same fields out.

    Kept: POST of JSON whatever the content type; ``modality``, ``num_images`` and ``indice_name`` are needed (a missing
    one is an error 500); a null index is the first; inner products with the embedding as it came; a list of pictures
    with ``id``, ``similarity`` and the columns of their metadata, as far as these are known. Not kept: queries by text
    or picture, filters, duplicates that are left out.
    """

    rows = UNIT

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if self.path != "/knn-service":
                raise KeyError(self.path)
            _, count, index = asked["modality"], asked["num_images"], asked["indice_name"]
            likeness = {None: self.rows, "laion": self.rows}[index] @ np.array(asked["embedding_input"], np.float32)
        except (KeyError, ValueError):
            self.send_error(500, "INTERNAL SERVER ERROR")
            return
        found: list[dict[str, Any]] = [
            {"id": int(i), "similarity": float(likeness[i])} for i in np.argsort(-likeness)[:count]
        ]
        for one in found:
            if one["id"] % 2:
                one |= {"url": f"https://example.org/{one['id']}.jpg", "caption": "a picture"}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/knn-service"
        server.shutdown()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(KnnService) as found:
        yield found


def name_of(row: int) -> str:
    return f"https://example.org/{row}.jpg" if row % 2 else str(row)


def test_a_service_is_searched_as_a_pool_is(address: str) -> None:
    query = 7 * ROWS[17] + ROWS[20]  # of any length: the service would multiply with it as it is
    cosines = UNIT @ (query / np.linalg.norm(query))
    best = np.argsort(-cosines)[:5]
    found = RemotePool(address, index="laion").nearest(query.reshape(1, WIDTH), 5)
    assert [name for name, _ in found] == [name_of(int(i)) for i in best]
    np.testing.assert_allclose([cosine for _, cosine in found], cosines[best], atol=1e-6)


def test_what_a_service_refuses_or_cannot_be_is_told(address: str) -> None:
    with pytest.raises(EngineError, match=r"refused with 500 .*embeddings of this width"):
        RemotePool(address).nearest(np.ones(3), 5)
    with pytest.raises(EngineError, match="refused with 500"):
        RemotePool(address, index="other").nearest(ROWS[0], 5)
    with pytest.raises(EngineError, match="expected an answer of a knn-service"):
        RemotePool("http://127.0.0.1:9/knn-service").nearest(ROWS[0], 5)
    with pytest.raises(EngineError, match="expected the address of a service"):
        RemotePool("ftp://host")


def test_an_answer_that_breaks_off_is_told() -> None:
    class Broken(KnnService):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"[")

    with serving(Broken) as broken, pytest.raises(EngineError, match="expected an answer of a knn-service"):
        RemotePool(broken).nearest(ROWS[0], 5)


def test_another_service_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = RemotePool("http://host/other")
    for answer in ({"message": "hello"}, [{"name": "x"}], [3], 4):
        monkeypatch.setattr(pool, "_answer", lambda _, answer=answer: answer)
        with pytest.raises(EngineError, match="expected a list of pictures with id and similarity"):
            pool.nearest(ROWS[0], 5)


def test_a_service_that_trickles_is_given_up_and_not_asked_again_before_it_is_done() -> None:
    """Each piece comes in time for a socket; the whole answer does not."""
    go_on = threading.Event()

    class Slow(KnnService):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not go_on.wait(0.05):
                self.wfile.write(b" ")
            self.wfile.write(b"[]")

    with serving(Slow) as slow:
        pool = RemotePool(slow, timeout_s=2.0)
        with pytest.raises(EngineError, match="expected an answer within 2 s, got none"):
            pool.nearest(ROWS[0], 5)
        asked = pool._asking
        assert asked is not None
        with pytest.raises(EngineError, match="still owes an answer"):
            pool.nearest(ROWS[0], 5)
        assert pool._asking is asked
        go_on.set()
        asked.join()
        assert RemotePool(slow).nearest(ROWS[0], 5) == []


def test_a_session_names_what_its_service_finds_and_goes_on_where_that_fails(tmp_path: Path) -> None:
    """What is named is that of plain cosines; a service of other embeddings costs the pictures, not the score."""
    write_category_bundle(tmp_path / "bundle")
    tokens = np.random.default_rng(3).standard_normal((30, 640)).astype(np.float32)

    class OfTiny(KnnService):
        rows = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)

    update = category_update(3)

    def embedding(url: str) -> Embedding:
        service = LocalService(load_decoder(tiny_pack(), DecodeSettings(pool_service=url)))
        service.load(tmp_path / "bundle")
        found, _ = next(service.decode(update))
        assert isinstance(found, Embedding)
        return found

    with serving(OfTiny) as right:
        found = embedding(right)
    query = found.tokens.ravel() / np.linalg.norm(found.tokens)
    order = np.argsort(-(OfTiny.rows @ query))[:5]
    assert list(found.nearest) == [name_of(int(i)) for i in order]
    assert found.unsearched == ""
    with serving(KnnService) as of_others:
        other = embedding(of_others)
    assert other.nearest == {}
    assert "refused with 500" in other.unsearched
    assert other.score.probabilities == found.score.probabilities


def test_settings_of_pools_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    given = {"session": {"participant": "01"}, "scanner": {"export_dir": "export"}}
    for decode, where in (
        ({"pool_service": "host:1234"}, "expected an address"),
        ({"pool_service": "http://host", "pool": "pool"}, "one pool is searched"),
        ({"pool_tokens": "tokens.safetensors"}, "expected decode.pool or decode.pool_service"),
    ):
        with pytest.raises(SettingsError, match=where):
            parse({**given, "decode": decode}, root=tmp_path)
    service = {"pool_service": "http://host:1/knn-service", "pool_tokens": "tokens.safetensors"}
    settings = parse({**given, "decode": service}, root=tmp_path)
    assert settings.decode.pool_service == "http://host:1/knn-service"
    assert "decode.pool_tokens" in missing(settings)


def test_a_folder_is_a_pool_before_the_session(tmp_path: Path) -> None:
    given = {"session": {"participant": "01"}, "scanner": {"export_dir": "."}, "decode": {"pool": "pool"}}
    settings = parse(given, root=tmp_path)
    assert missing(settings) == {"decode.pool": f"expected a file, found none at {tmp_path / 'pool'}"}
    (tmp_path / "pool").mkdir()
    assert missing(settings) == {}


def test_candidates_are_ordered_by_their_tokens() -> None:
    rng = np.random.default_rng(1)
    tokens = {f"p{i}": rng.standard_normal((5, 8)).astype(np.float16) for i in range(16)}
    query = tokens["p11"].astype(np.float32) + 0.3 * rng.standard_normal((5, 8)).astype(np.float32)
    found = [("unknown", 0.9), *((f"p{i}", 0.8 - i / 100) for i in range(16))]
    right = {n: np.vdot(query, t) / np.linalg.norm(query) / np.linalg.norm(t.astype("f4")) for n, t in tokens.items()}
    ordered = reranked(found, query, tokens)
    assert [name for name, _ in ordered] == [*sorted(right, key=lambda name: -right[name]), "unknown"]
    assert ordered[0] == ("p11", pytest.approx(right["p11"], abs=1e-5))
    assert ordered[-1] == ("unknown", 0.9)
    assert reranked(found[:1], query, tokens) == found[:1]


def test_the_command_searches_a_service_and_ranks_by_tokens(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens turn round what the embedding says: of two pictures with nearly one embedding, the right one is named."""
    rng = np.random.default_rng(2)
    twins = np.repeat(ROWS[:100], 2, 0) + 0.01 * rng.standard_normal((200, WIDTH)).astype(np.float32)
    tokens = rng.standard_normal((200, 3, 8)).astype(np.float32)
    names = [f"p{i}" for i in range(200)]

    def save(name: str, rows: np.ndarray[Any, Any], of: list[str]) -> str:
        save_file({"tokens": rows}, tmp_path / name, metadata={"names": json.dumps(of)})
        return str(tmp_path / name)

    build_pool([Path(save("pool.safetensors", twins[:, None], names))], tmp_path / "pool")
    queries = save("queries.safetensors", ROWS[:100, None], names[::2])
    both = save("own.safetensors", tokens, names), save("told.safetensors", tokens[::2] + 0.1, names[::2])

    def right(*arguments: str) -> float:
        assert main(["engines", "pool", "search", *arguments, queries, "-k", "1"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return float(np.mean([line[0] == f"{line[1]}:" for line in lines]))

    assert right(str(tmp_path / "pool")) < 0.8
    assert right(str(tmp_path / "pool"), "--rerank", *both) > 0.95
    assert main(["engines", "pool", "search", address, queries, "-k", "1", "--index", "laion"]) == 0
    own = [line.split()[1] == name_of(i) for i, line in enumerate(capsys.readouterr().out.splitlines())]
    assert len(own) == 100
    assert np.mean(own) == 1
