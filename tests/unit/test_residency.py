"""Networks that take turns on the device: the order of moves, the most bytes there at once, and the same pictures.

The stand-in for a device is the CPU with weights that are empty while they are not "there". Of the real thing it keeps
which weights are moved when, their sizes in bytes, and that nothing can be computed with weights that lie elsewhere. It
does not keep how long a move takes, nor what memory networks compute in, which is no part of the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.importing.mirage_imagery_files import _PUBLISHED
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode import loading
from rtdecode.decode.families import mirage_imagery
from rtdecode.decode.families.mirage_imagery import load_mirage_imagery
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import HEADS
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.networks.build import empty
from rtdecode.decode.networks.cascade import STAGE_A, STAGE_B, STAGE_C
from rtdecode.decode.networks.image_diffusion import CLIP_L
from rtdecode.decode.runtime.backends import Backend, choose
from rtdecode.decode.runtime.host_weights import HostWeights
from rtdecode.decode.runtime.residency import Residency
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.settings import DecodeSettings
from tests.small_families import mirage_imagery_pack

VOXELS = 40
NSD_VOXELS = 17_907
"""The largest mask of the published participants."""


class Recorded(Residency):
    """Notes what is used and moved, and the most bytes that were there at once."""

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self.sizes: dict[str, int] = {}
        self.used: list[str] = []
        self.moves: list[tuple[str, bool]] = []
        self.peak = 0

    def add(self, name: str, size: int, move: Callable[[bool], None]) -> None:
        def noted(there: bool) -> None:
            self.moves.append((name, there))
            move(there)
            self.peak = max(self.peak, self.resident + size if there else 0)

        self.sizes[name] = size
        super().add(name, size, noted)

    def use(self, name: str) -> None:
        if not self.used or self.used[-1] != name:
            self.used.append(name)
        super().use(name)


def move_on_the_stand_in(self: HostWeights, there: bool) -> None:
    for one, own in self._held:
        one.data = own.clone() if there else own.new_empty(0)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 30),
    st.lists(st.integers(0, 5), max_size=40),
)
def test_what_is_used_is_there_and_no_more_than_fits(sizes: list[int], budget: int, uses: list[int]) -> None:
    residency = Recorded(budget)
    there: set[str] = set()
    for i, size in enumerate(sizes):
        residency.add(str(i), size, lambda come, i=i: there.add(str(i)) if come else there.remove(str(i)))  # type: ignore[misc]
    for use in uses:
        residency.use(str(use % len(sizes)))
        assert str(use % len(sizes)) in there
        assert residency.resident == sum(sizes[int(name)] for name in there)
    assert residency.peak <= max(budget, max(sizes))


def test_in_a_cycle_that_goes_whose_turn_is_furthest_away() -> None:
    """Three of four fit: a pass brings two at most; had the one used longest ago gone, it would bring all four."""
    residency = Recorded(3)
    for name in "abcd":
        residency.add(name, 1, lambda there: None)
    for name in "abcd" * 4:
        residency.use(name)
    brought = [name for name, there in residency.moves if there]
    assert brought[:4] == list("abcd")
    assert len(brought) <= 4 + 3 * 2


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    return mirage_imagery_pack(tmp_path_factory.mktemp("mirage"), voxels=VOXELS)


def decoded(pack: EnginePack, **how: Any) -> Any:
    betas = np.random.default_rng(4).standard_normal((2, VOXELS)).astype(np.float32)
    mind = load_mirage_imagery(pack, backend=choose("torch", pack), **how)
    return [mind.decode(beta, seed=9) for beta in betas]


@pytest.fixture(scope="module")
def turns(pack: EnginePack) -> Recorded:
    """Two pictures with room for the largest network alone, and the same pictures without any moving."""
    found: list[Recorded] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostWeights, "move", move_on_the_stand_in)
        patch.setattr(mirage_imagery, "Residency", lambda budget: found.append(Recorded(1)) or found[-1])
        given = decoded(pack, weights_gb=1.0)
    for one, plain in zip(given, decoded(pack), strict=True):
        np.testing.assert_array_equal(one.picture, plain.picture)
        np.testing.assert_array_equal(one.low_level, plain.low_level)
        assert one.caption == plain.caption
    return found[0]


def test_stages_come_one_by_one_in_the_order_of_their_use(turns: Recorded, pack: EnginePack) -> None:
    drawing = ["stage_c", "stage_b", "stage_a", "embedder"]
    assert turns.used == [*(f"{name}_head" for name in HEADS), "vdvae", "effnet", *drawing, *drawing] * 2
    brought = [name for name, there in turns.moves if there]
    assert brought == turns.used
    assert [there for _, there in turns.moves] == [True, *[False, True] * (len(brought) - 1)]
    assert turns.peak == max(turns.sizes.values())
    for name, size in turns.sizes.items():
        stored = (pack.folder / pack.description.stage(name).file).stat().st_size  # with the header
        assert 0.8 * stored < size <= stored + 4096, name


def test_with_room_for_all_everything_comes_once(pack: EnginePack, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Recorded] = []
    monkeypatch.setattr(HostWeights, "move", move_on_the_stand_in)
    monkeypatch.setattr(mirage_imagery, "Residency", lambda budget: found.append(Recorded(budget)) or found[-1])
    decoded(pack, weights_gb=1.0)
    assert all(there for _, there in found[0].moves)
    assert len(found[0].moves) == len(found[0].sizes)


def test_the_published_networks_fit_a_card_of_24_gb_in_half_precision(turns: Recorded) -> None:
    """Bytes of networks of the published sizes, without their values, in the order of use that a small pack showed."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        **{
            f"{name}_head": ("linear_head", {"voxels": NSD_VOXELS, "outputs": int(np.prod(_PUBLISHED[name]))})
            for name in HEADS
        },
        "captioner": mindeye2_sizes("full")["captioner"],
        "vdvae": ("vdvae", {}),
        "effnet": ("effnet", {"channels": 16}),
        "stage_c": ("stage_c", STAGE_C),
        "stage_b": ("stage_b", STAGE_B),
        "stage_a": ("stage_a", STAGE_A),
        "embedder": ("clip_image", CLIP_L),
    }
    sizes = {}
    for name, (kind, of_kind) in kinds.items():
        network = empty(kind, dict(of_kind))
        assert all(one.is_meta for one in network.parameters())
        sizes[name] = 2 * sum(one.numel() for one in (*network.parameters(), *network.buffers()))
    assert sizes["stage_c"] == pytest.approx(2 * 3_589_103_632, rel=1e-6)
    assert sizes["stage_b"] == pytest.approx(2 * 1_562_941_136, rel=1e-6)
    assert sum(sizes.values()) > 24e9
    assert max(sizes.values()) < 10e9
    for budget_gb in (10, 12, 16):
        plan = Recorded(budget_gb * 10**9)
        for name, size in sizes.items():
            plan.add(name, size, lambda there: None)
        for name in turns.used:
            plan.use(name)
            if name == "vdvae":  # what the small pack has not
                plan.use("captioner")
        assert plan.peak <= budget_gb * 10**9 < 24e9
    without_heads = sum(size for name, size in sizes.items() if not name.endswith("_head"))
    assert without_heads < 13e9


def test_settings_are_refused_where_they_do_nothing(pack: EnginePack, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DecodeSettings(weights_gb=8.0)
    with pytest.raises(EngineError, match="for packs of MIRAGE"):
        load_decoder(open_pack("tiny"), settings)
    for steps in (DecodeSettings(unclip_steps=4), DecodeSettings(prior_steps=4)):
        with pytest.raises(EngineError, match="for packs of tiny, MindEye1 and MindEye2"):
            load_decoder(pack, steps)
    compiled = Backend(name="onnx", device="cpu", precision="float32", reason="asked for")
    monkeypatch.setattr(loading, "choose", lambda *_: compiled)
    with pytest.raises(EngineError, match="expected the backend torch, got onnx"):
        load_decoder(pack, settings)
