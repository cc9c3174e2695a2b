"""Stage C of Stable Cascade distilled into a student of few steps, cut down, on the CPU, through the command."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image
from safetensors.torch import load_file, save_file

from engines.distill.stage_c import FROM_NOISE, FROM_PICTURES, LEVELS, CleanLatents
from engines.sealed_copies import seal_copy
from rtdecode.__main__ import main
from rtdecode.decode.families.mirage_imagery import load_mirage_imagery
from rtdecode.decode.families.mirage_imagery.cascade_generator import CascadeGenerator
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import CascadeTable, MirageImageryDescription
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.cascade import StageC
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.runtime.torch_runner import torch_runner
from rtdecode.decode.sampling.gdf import GdfSchedule, gdf_schedule, sample_gdf, sample_gdf_student
from rtdecode.packs import EnginePack, open_pack
from tests.small_families import DIM, mirage_imagery_pack

KINDS, OF_EACH = 4, 64
ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": [24],
    "num_attention_heads": [2],
    "down_num_layers_per_block": [1],
    "up_num_layers_per_block": [1],
    "down_blocks_repeat_mappers": [1],
    "up_blocks_repeat_mappers": [1],
    "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]],
    "conditioning_dim": 16,
    "clip_seq": 1,
    "dropout": [0.0],
    "switch_level": [],
}
"""Sizes of a stage C that a CPU trains in seconds."""
CPU = torch.device("cpu")


def test_a_perfect_student_gives_the_data_s_deviation_in_any_number_of_steps() -> None:
    """Of Gaussian data the whole flow is known: it scales a latent; a teacher in as many steps falls short of it."""
    rng, deviation = np.random.default_rng(0), 0.5
    for steps, share in ((1, 0.55), (2, 0.75), (4, 0.9)):
        schedule = gdf_schedule(steps, start=0.9, shift=2.0)
        spread = np.sqrt((schedule.signal * deviation) ** 2 + schedule.noise**2)
        ends = deviation / spread
        means = schedule.signal * deviation**2 / spread**2
        noise = list(rng.standard_normal((steps, 20_000)).astype(np.float32))
        start = rng.standard_normal(20_000) * spread[0]
        made = sample_gdf_student(partial(told_clean, schedule, ends), start, noise, schedule)
        assert made.std() == pytest.approx(deviation, rel=0.02)
        assert sample_gdf(partial(told_clean, schedule, means), start, noise, schedule).std() < share * deviation


def told_clean(schedule: GdfSchedule, gains: Any, x: Any, r: np.float32) -> Any:
    """Noise in a latent whose clean one is so many times it."""
    i = int(np.flatnonzero(schedule.r == r)[0])
    return (x - x * float(gains[i]) * float(schedule.signal[i])) / float(schedule.noise[i])


def rows(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents that vary along one direction about a mean that the image tells, and image embeddings of few images."""
    image = torch.randn(KINDS, DIM, generator=draw).repeat_interleave(OF_EACH, 0)
    along = 0.8 * torch.randn(len(image), 1, 1, 1, generator=draw) * torch.randn(1, 16, 1, 1, generator=draw)
    own = 0.2 * torch.randn(len(image), 16, 2, 2, generator=draw)
    return image[:, :16, None, None] * 0.5 + along + own, image[:, None]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[EnginePack, Path]:
    """A small pack that starts from noise, its stage C of one level trained on such latents, and their file."""
    folder = tmp_path_factory.mktemp("stage_c")
    pack = mirage_imagery_pack(folder, heads=False)
    said = pack.described(MirageImageryDescription)
    stage = structs.replace(said.stage("stage_c"), sizes={**said.stage("stage_c").sizes, **ONE_LEVEL})
    stages = {name: one for name, one in said.stages.items() if name not in ("vdvae", "effnet")}
    said = structs.replace(said, stages=stages | {"stage_c": stage})
    torch.manual_seed(0)
    network = StageC(dict(stage.sizes)).train()
    made, (latent, image) = CleanLatents(replace(pack, description=said), CPU), rows(torch.Generator().manual_seed(2))
    optimiser, draw, steps = torch.optim.Adam(network.parameters(), 5e-3), torch.Generator().manual_seed(1), 300
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 5e-3 * min(1.0, 2 * (1 - step / steps))
        at, t = (torch.randint(n, (32,), generator=draw) for n in (len(latent), LEVELS))
        noise = torch.randn(32, 16, 2, 2, generator=draw)
        signal, level = (part[t][:, None, None, None] for part in (made._signal, made._noise))
        found = made._eps(network, signal * latent[at] + level * noise, t, image[at])
        optimiser.zero_grad()
        (found - noise).square().mean().backward()
        optimiser.step()

    def change(where: Path) -> MirageImageryDescription:
        save_file({key: value.detach() for key, value in network.state_dict().items()}, where / "stage_c.safetensors")
        return said

    seal_copy(pack, folder / "taught", change)
    tokens = torch.zeros(len(latent), 1, said.tokens.channels)
    first, last = said.tokens.groups["image"]
    tokens[:, :, first:last] = image
    save_file({"tokens": tokens, "latent": latent}, folder / "pictures.safetensors")
    return open_pack(str(folder / "taught")), folder / "pictures.safetensors"


@pytest.fixture(scope="module")
def student(taught: tuple[EnginePack, Path]) -> EnginePack:
    pack, pictures = taught
    out = pack.folder.parent / "student"
    order = ["engines", "distill", "stage-c", str(pack.folder), "--pictures", str(pictures), "--out", str(out)]
    assert main([*order, "--guidance", "1", "--steps", "150", "--batch", "32", "--rate", "1e-3", "--lose", "100"]) == 0
    return open_pack(str(out))


def drawn(pack: EnginePack, image: Any, seed: int, **how: Any) -> torch.Tensor:
    """Many latents of one image, without guidance."""
    table = CascadeTable(**{"guidance_c": 1.0, "shift_c": 2.0, **how})
    generator = CascadeGenerator(pack, torch_runner(pack, device="cpu", precision="float32"), table)
    made: torch.Tensor = generator.coarse(CleanLatents(pack, CPU).guides(image), None, 256, seed=seed)
    return made.flatten(1)


def energy(a: torch.Tensor, b: torch.Tensor) -> float:
    """Energy distance of two sets of samples (Székely & Rizzo 2013): 0 for one distribution."""
    share = len(a) / (len(a) - 1)
    within = torch.cdist(a, a).mean() * share + torch.cdist(b, b).mean() * share
    return float(2 * torch.cdist(a, b).mean() - within)


def test_the_student_is_nearer_to_the_teacher_s_many_steps_than_the_teacher_in_as_many(
    taught: tuple[EnginePack, Path], student: EnginePack
) -> None:
    pack, pictures = taught
    first, last = pack.description.tokens.groups["image"]
    image = load_file(pictures)["tokens"][0, :, first:last].numpy()
    many = drawn(pack, image, 1, steps_c=40)
    floor = energy(drawn(pack, image, 2, steps_c=40), many)
    for steps in (2, 4):
        by_teacher = energy(drawn(pack, image, 3, steps_c=steps), many)
        by_student = energy(drawn(student, image, 3, steps_c=steps, sampler_c="consistency"), many)
        assert abs(floor) < 0.1 * by_teacher
        assert by_student < 0.6 * by_teacher


def asked_of(pack: EnginePack, low_level: Any, patch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Noise levels that stage C is called at for a picture, and rows of what guides it."""
    asked: list[tuple[float, int]] = []
    guided = CascadeGenerator._guided

    def recorded(self: CascadeGenerator, network: Any, x: Any, r: Any, told: Any, guidance: float) -> Any:
        if network is self._c:
            asked.append((float(r), len(told["image"])))
        return guided(self, network, x, r, told, guidance)

    said, rng = pack.described(MirageImageryDescription), np.random.default_rng(0)
    heads = {name: rng.standard_normal(said.shapes[name]).astype(np.float32) for name in ("image", "retrieval")}
    with patch.context() as one:
        one.setattr(CascadeGenerator, "_guided", recorded)
        assert load_mirage_imagery(pack, backend=choose("torch", pack)).picture(heads, low_level, seed=0) is not None
    return asked


def test_the_pack_of_a_student_is_drawn_with_as_it_was_distilled(
    taught: tuple[EnginePack, Path], student: EnginePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, before = (one.described(MirageImageryDescription) for one in (student, taught[0]))
    assert said.distilled is not None
    assert said.distilled.teacher == taught[0].identity
    assert said.distilled.judged is not None
    assert said.distilled.judged.pictures == KINDS * OF_EACH // 5
    changed = {"sampler_c": "consistency", "steps_c": FROM_NOISE, "guidance_c": 1.0}
    assert said.generator == structs.replace(before.generator, **changed)
    assert student.digest("stage_b.safetensors") == taught[0].digest("stage_b.safetensors")
    path = gdf_schedule(FROM_NOISE, shift=said.generator.shift_c).r[:-1].tolist()
    asked = asked_of(student, None, monkeypatch)
    assert asked == [(r, n) for n in (2, 1) for r in path]  # batches of two and of one sample, wanted sides only


def test_where_sessions_start_from_low_level_pictures_the_rest_of_the_path_is_distilled(
    taught: tuple[EnginePack, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = mirage_imagery_pack(tmp_path, heads=False)
    table = pack.described(MirageImageryDescription).generator
    start = gdf_schedule(1, start=table.strength, shift=table.shift_c)
    made = CleanLatents(pack, CPU)
    assert made.alphas_cumprod[-1] == pytest.approx(float(start.signal[0]) ** 2, rel=1e-6)
    assert CleanLatents(taught[0], CPU).alphas_cumprod[-1] < 0.01 < made.alphas_cumprod[-1]
    rng, shown = np.random.default_rng(0), tmp_path / "shown"
    shown.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(shown / f"{i}.png")
    assert main(["engines", "embed", str(shown), "--pack", str(pack.folder), "--unclip-latents"]) == 0
    pictures = shown / "embeddings.safetensors"
    seen = torch.from_numpy(np.stack([np.asarray(Image.open(shown / f"{i}.png")) for i in range(5)]))
    effnet = load(pack, "effnet", device="cpu", dtype=torch.float32)
    with torch.no_grad():
        latents = effnet(seen.permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(load_file(pictures)["latent"].float(), latents, rtol=1e-3, atol=1e-3)
    order = ["engines", "distill", "stage-c", str(pack.folder), "--pictures", str(pictures), "--lose", "100"]
    assert main([*order, "--out", str(tmp_path / "student"), "--steps", "2", "--batch", "4"]) == 0
    low_level = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    asked = asked_of(open_pack(str(tmp_path / "student")), low_level, monkeypatch)
    path = gdf_schedule(FROM_PICTURES, start=table.strength, shift=table.shift_c).r[:-1].tolist()
    assert asked == [(r, n) for n in (2, 1) for r in path]


@torch.no_grad()
def test_guidance_that_is_baked_in_is_that_of_a_session_with_one_sample(taught: tuple[EnginePack, Path]) -> None:
    pack, _ = taught
    made, network = CleanLatents(pack, CPU), load(pack, "stage_c", device="cpu", dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(4)
    noisy, image = torch.randn(3, 16, 2, 2, generator=draw), torch.randn(3, 1, DIM, generator=draw)
    t = torch.tensor([90, 50, 10])
    found = made.guided(network, noisy, t, image, 4.0)
    path = gdf_schedule(LEVELS, shift=2.0)
    table = CascadeTable()
    generator = CascadeGenerator(pack, torch_runner(pack, device="cpu", precision="float32"), table)
    for i in range(3):
        place = LEVELS - 1 - int(t[i])
        guides = made.guides(image[i].numpy())
        told = {
            "text": generator._sides_of(guides.text, guides.empty_text, 1, True),
            "pooled": generator._sides_of(guides.pooled, guides.pooled, 1, True),
            "image": generator._sides_of(guides.image, guides.image * 0, 1, True),
        }
        noise = generator._guided(generator._c, noisy[i : i + 1], path.r[place], told, table.guidance_c)
        clean = (noisy[i] - noise[0] * float(path.noise[place])) / float(path.signal[place])
        np.testing.assert_allclose(found[i], clean, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, made.plain(network, noisy, t, image), atol=0.1)


def test_packs_and_pictures_that_do_not_fit_are_refused(
    taught: tuple[EnginePack, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, pictures = taught
    out = ["--out", str(tmp_path / "student"), "--steps", "1"]
    wrong = load_file(pictures) | {"latent": torch.zeros(KINDS * OF_EACH, 4, 2, 2)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    order = ["engines", "distill", "stage-c", str(pack.folder), "--pictures"]
    assert main([*order, str(tmp_path / "wrong.safetensors"), *out]) == 1
    assert "latent: expected rows of shape (16, 2, 2)" in "".join(capsys.readouterr())
    heads = mirage_imagery_pack(tmp_path / "heads")
    assert main(["engines", "distill", "stage-c", str(heads.folder), "--pictures", str(pictures), *out]) == 1
    assert "expected a pack for sessions" in "".join(capsys.readouterr())
    assert main([*order, str(pictures), *out, "--participant", "0=nowhere.safetensors"]) == 1
    assert "expected no participants" in "".join(capsys.readouterr())
