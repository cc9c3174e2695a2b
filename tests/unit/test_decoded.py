"""One declaration a decoded kind: message, table, page and once-key follow from it."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode import decoded
from rtdecode.derivatives import DECODED_COLUMNS
from rtdecode.publish import messages
from rtdecode.publish.display.board import Board
from tests.decode_small import category_update
from tests.unit.test_wire import ListTransport, publisher

SCORE = decoded.Score(
    predicted="cat",
    probabilities={"cat": 0.6, "dog": 0.4},
    top=("cat7", "dog1"),
    rank=2.5,
    pool=2,
    posterior={"cat7": 0.75, "dog1": 0.25},
    evidence=0.6,
    chance=0.5,
    supported=True,
    refused="",
    p_content=0.02,
    p_category=0.04,
    p_groups={"semantic": 0.01, "spatial": 0.3},
    unknown=("spatial",),
    p_motion=0.5,
    p_signal=None,
    p_agreement=0.1,
    plausible=("cat", "dog"),
    null="repeats",
    shift=0.12345,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hesitation(decoded.DecodedPart):
    """A kind that the client has no class for."""

    stage: typing.ClassVar[str] = "hesitate"
    tells_trial: typing.ClassVar[bool] = True

    seconds: typing.Annotated[float, decoded.Told("How long", column="hesitation", digits=1, page="hesitated")]
    trace: typing.Annotated[np.ndarray, decoded.Told("Its course")]
    hidden: typing.Annotated[int, decoded.Told("Nobody's business", streamed=False)]


@pytest.fixture
def hesitation(monkeypatch: pytest.MonkeyPatch) -> Hesitation:
    monkeypatch.setattr(decoded, "TRIAL_KINDS", (*decoded.TRIAL_KINDS, Hesitation))
    return Hesitation(seconds=2.25, trace=np.arange(6, dtype=np.float32).reshape(2, 3), hidden=1)


@pytest.mark.parametrize("kind", decoded.kinds().values())
def test_the_clients_class_has_what_is_declared(kind: type[decoded.DecodedPart]) -> None:
    message = wire.TOPICS[decoded.topic_of(kind)]
    known = {field.name for field in dataclasses.fields(message)}
    header = {field.name for field in dataclasses.fields(wire.Message)}
    streamed = {name for name, note in decoded.told(kind).items() if note.streamed}
    assert not streamed & header
    assert streamed <= known or kind is decoded.Reconstruction
    assert set(decoded.figures(decoded.topic_of(kind))) <= known


def test_every_field_is_declared_or_a_part_itself() -> None:
    for kind in decoded.kinds().values():
        hints = typing.get_type_hints(kind)
        undeclared = {field.name for field in dataclasses.fields(kind)} - decoded.told(kind).keys()
        assert all(issubclass(hints[name], decoded.DecodedPart) for name in undeclared)


def test_the_message_of_a_score_says_what_is_declared_and_the_trial() -> None:
    beta = category_update(3)
    message = messages.decoded(beta, SCORE)
    assert isinstance(message, wire.Score)
    event = beta.event
    assert (message.trial, message.revision, message.final) == (event.trial, beta.revision, beta.final)
    assert (message.onset_s, message.condition, message.stimulus) == (event.onset_s, event.condition, event.stimulus)
    for name, note in decoded.told(decoded.Score).items():
        assert not note.streamed or getattr(message, name) == getattr(SCORE, name)


def test_the_columns_of_the_table_are_those_that_are_told() -> None:
    assert DECODED_COLUMNS == (
        "onset", "duration", "trial_type", "trial", "stim_id", "predicted", "rank", "pool", "evidence", "chance",
        "supported", "refused", "p_content", "p_category", "unknown", "p_motion", "p_signal", "p_agreement",
        "plausible", "null", "claim", "shown", "average_predicted", "average_rank",
        "shift", "spread", "caption", "revisions", "recon", "latency_ms",
    )  # fmt: skip
    assert decoded.row([decoded.Caption(text="a cat"), SCORE]) == [
        "cat", 2.5, 2, 0.6, 0.5, 1, "", "0.0200", "0.0400", "spatial", "0.5000", None, "0.1000", "cat,dog", "repeats",
        None, 1, None, None, "0.123", None, "a cat",
    ]  # fmt: skip


def test_a_trial_that_says_nothing_has_its_columns_too() -> None:
    silent = dataclasses.replace(SCORE, supported=False, p_agreement=None, plausible=(), claim=2.0**-40)
    cells = dict(zip(decoded.columns(), decoded.row([silent]), strict=True))
    assert (cells["supported"], cells["p_agreement"], cells["plausible"]) == (0, None, None)
    assert float(str(cells["claim"])) == 2.0**-40  # of which a resumed session goes on


def test_pieces_are_told_one_by_one() -> None:
    empty = np.zeros((2, 3), np.float32)
    embedding = decoded.Embedding(tokens=empty, components=empty[0], score=SCORE, nearest={})
    assert list(decoded.pieces(embedding)) == [embedding, SCORE]


def test_a_new_kind_is_published_once_a_revision_and_decoded_by_a_client_that_does_not_know_it(
    hesitation: Hesitation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdecode.publish.publisher.TOPICS", (*messages.TOPICS, "hesitation"))
    beta = category_update(3)
    transport = ListTransport()
    out = publisher(transport)
    out.publish(messages.decoded(beta, hesitation))
    (message,) = transport.sent
    assert isinstance(message, wire.Other)
    assert (message.topic, message.session, message.seq, message.trial) == ("hesitation", "s-01", 0, "r5t1")
    assert message.fields.keys() == {"seconds", "trace", "onset_s", "stimulus", "condition"}
    assert message.fields["seconds"] == 2.25
    np.testing.assert_array_equal(message.fields["trace"], hesitation.trace)
    after, again = ListTransport(), publisher(ListTransport())
    again = publisher(after)
    again.restore([(0, *wire.pack(messages.decoded(beta, SCORE)))])
    again.publish(messages.decoded(beta, hesitation))
    again.restore([(0, *wire.pack(dataclasses.replace(after.sent[0], seq=0, fields={})))])
    again.publish(messages.decoded(beta, hesitation))
    again.publish(messages.decoded(category_update(3, revision=1), hesitation))
    assert [(m.seq, m.revision) for m in after.sent] == [(0, 0), (2, 1)]


def test_a_new_kind_has_its_columns_and_its_figure_on_the_page(hesitation: Hesitation) -> None:
    assert [*decoded.columns()][-2:] == ["caption", "hesitation"]
    assert decoded.row([hesitation])[-1] == "2.2"
    board = Board()
    for part in (SCORE, hesitation):
        board.apply(dataclasses.replace(messages.decoded(category_update(3), part), session="s"))
    (trial,) = board.state()["trials"]
    assert trial["figures"] == {"hesitated": 2.25}


def test_a_figure_that_is_no_number_is_refused(hesitation: Hesitation) -> None:
    board = Board()
    wrong = dataclasses.replace(hesitation, seconds=float("nan"))
    with pytest.raises(ValueError, match="finite"):
        board.apply(dataclasses.replace(messages.decoded(category_update(3), wrong), session="s"))
