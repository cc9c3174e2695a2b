"""Few-step LoRAs of Stable Diffusion 1 in MindEye1's generators: what is fused, and how pictures are then sampled.

The oracle of sampling is diffusers' schedulers, set up as the publishers of the LoRAs say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline, TCDScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from rtdecode.__main__ import main
from rtdecode.decode.families.mindeye1.mindeye1_description import GeneratorLora, GeneratorTable, MindEye1Description
from rtdecode.decode.families.mindeye1.picture_generator import FRESH, POSTERIOR, START, PictureGenerator, condition_of
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.image_diffusion import LatentEncoder
from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.runtime.torch_runner import torch_runner
from rtdecode.decode.sampling.noise import key_of
from rtdecode.decode.sampling.students import sample_lcm, sample_student, sample_tcd, student_times
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.settings import DecodeSettings
from tests.published import CLIP_TOKENS, SMALL_UNET, State, image_variation_folder
from tests.small_families import DIM, mindeye1_network
from tests.unit.test_unclip_lora import ALPHA, RANK, kohya, pairs_of, peft

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCALE = 0.18215


def scheduler_of(sampler: str, steps: int, strength: float) -> tuple[Any, list[int]]:
    """Diffusers' scheduler with its timesteps, for a start from a picture where the strength is below 1."""
    if sampler == "ddim":
        scheduler = DDIMScheduler(
            timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False, steps_offset=1, **SCHEDULE
        )
        scheduler.set_timesteps(steps)
        pipeline = StableDiffusionImg2ImgPipeline.__new__(StableDiffusionImg2ImgPipeline)
        pipeline.__dict__["scheduler"] = scheduler
        times, _ = pipeline.get_timesteps(steps, strength, "cpu")
        return scheduler, times.tolist()
    scheduler = (LCMScheduler if sampler == "lcm" else TCDScheduler)(**SCHEDULE)
    scheduler.set_timesteps(steps, strength=strength)
    return scheduler, scheduler.timesteps.tolist()


def followed(
    scheduler: Any, times: list[int], predict: Callable[[Any, int], Any], x: torch.Tensor, **more: Any
) -> torch.Tensor:
    for t in times:
        x = scheduler.step(predict(x, t), torch.tensor(t), x, **more).prev_sample
    return x


def drawn(seed: int, steps: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("strength", [1.0, 0.85, 0.3])
@pytest.mark.parametrize("sampler", ["lcm", "tcd", "ddim"])
def test_times_are_those_of_the_library(sampler: Any, strength: float) -> None:
    for steps in (1, 2, 3, 4, 5, 6, 7, 8):
        if int(steps * strength) < 1 and sampler == "ddim":
            with pytest.raises(ValueError, match="a strength that leaves one"):
                student_times(sampler, steps, strength)
            continue
        assert student_times(sampler, steps, strength) == scheduler_of(sampler, steps, strength)[1]
    with pytest.raises(ValueError, match="expected 1 to"):
        student_times(sampler, 0, strength)


@torch.no_grad()
@pytest.mark.parametrize("strength", [1.0, 0.85])
def test_a_small_network_is_sampled_as_by_the_library(strength: float) -> None:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**SMALL_UNET, cross_attention_dim=12).eval()
    tokens, shape = torch.randn(2, 5, 12), (2, 4, 8, 8)

    def predict(x: Any, t: int) -> Any:
        return unet(x, torch.tensor(t), tokens).sample

    cases: list[tuple[Any, int, dict[str, Any]]] = [
        ("lcm", 4, {}), ("lcm", 1, {}), ("tcd", 1, {"eta": 1.0}), ("tcd", 4, {"eta": 1.0}), ("ddim", 2, {}),
        ("ddim", 4, {}), ("ddim", 8, {}),
    ]  # fmt: skip
    for sampler, steps, more in cases:
        scheduler, times = scheduler_of(sampler, steps, strength)
        x = torch.randn(shape)
        generator = {} if sampler == "ddim" else {"generator": torch.Generator().manual_seed(1)}
        expected = followed(scheduler, times, predict, x, **generator, **more)
        found = sample_student(sampler, predict, x, drawn(1, len(times) - 1, shape), times)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    scheduler, times = scheduler_of("tcd", 4, strength)
    some = followed(scheduler, times, predict, x, eta=0.3, generator=torch.Generator().manual_seed(1))
    found = sample_tcd(predict, x, drawn(1, 3, shape), times, gamma=0.3)
    np.testing.assert_allclose(found, some, rtol=0, atol=2e-5 * float(some.abs().max()))


def test_a_network_that_is_told_the_truth_gives_the_picture_back() -> None:
    """The noise that is really in a latent leads to the clean one, but for what the boundary scalings leave of it."""
    clean = np.random.default_rng(0).standard_normal((1, 4, 3, 3))
    scheduler, times = scheduler_of("lcm", 4, 1.0)
    left = scheduler.alphas_cumprod.double().numpy()

    def predict(x: Any, t: int) -> Any:
        return (x - clean * np.sqrt(left[t])) / np.sqrt(1 - left[t])

    noise = list(np.random.default_rng(1).standard_normal((3, *clean.shape)))
    start = clean * np.sqrt(left[times[0]]) + noise[0] * np.sqrt(1 - left[times[0]])
    np.testing.assert_allclose(sample_lcm(predict, start, noise, times), clean, rtol=0, atol=1e-5)


Words = Callable[[bool], list[str]]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The command of an import, of Versatile Diffusion or of SD Image Variations; the pack's folder comes last."""
    made: dict[bool, list[str]] = {}

    def of(versatile: bool) -> list[str]:
        if versatile not in made:
            folder = tmp_path_factory.mktemp("mindeye1")
            network = mindeye1_network(folder, 7, tokens=CLIP_TOKENS if versatile else 1)
            generator = image_variation_folder(folder / "diffusers", DIM, versatile=versatile)
            made[versatile] = [
                "engines", "import", "mindeye1", "--weights", network.weights, "--generator", str(generator),
                "--samples", "2", "--licence", "test", "--out", str(folder / "pack"),
            ]  # fmt: skip
        return made[versatile]

    return of


def unet_of(words: list[str]) -> State:
    folder = Path(words[words.index("--generator") + 1])
    (path,) = (*folder.glob("image_unet/*.safetensors"), *folder.glob("unet/*.safetensors"))
    return load_file(path)


def fused(words: list[str], content: State, name: str, *more: str) -> EnginePack:
    folder = Path(words[-1]).parent
    save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
    assert main([*words, "--generator-lora", str(folder / name), *more]) == 0
    return open_pack(words[-1])


def told(pack: EnginePack) -> tuple[GeneratorTable, GeneratorLora]:
    said = pack.described(MindEye1Description)
    assert said.generator is not None
    assert said.generator_lora is not None
    return said.generator, said.generator_lora


@pytest.mark.parametrize("versatile", [True, False])
def test_every_layer_gets_what_the_lora_adds(words: Words, versatile: bool) -> None:
    unet = unet_of(words(versatile))
    pairs = pairs_of(unet, text=None)
    assert any(name.endswith("attn2.to_k") for name in pairs)
    assert {value.ndim for value, _ in pairs.values()} == {2, 4}
    pack = fused(words(versatile), kohya(unet, pairs, sgm=False), "lcm-lora-sdv1-5.safetensors")
    got = load_file(pack.folder / "generator.safetensors")
    for key, value in unet.items():
        expected = value.numpy().astype(np.float64)
        if (name := key.removesuffix(".weight")) in pairs and key.endswith(".weight"):
            down, up = (part.numpy().astype(np.float64) for part in pairs[name])
            expected = expected + ALPHA / RANK * np.einsum("or,ri...->oi...", up.reshape(len(up), RANK), down)
        np.testing.assert_allclose(got[f"unet.{key}"], expected, rtol=1e-5, atol=1e-6, err_msg=key)
    table, lora = told(pack)
    assert lora.fused == len(pairs)
    assert (table.steps, table.guidance, table.samples) == (4, 1.0, 2)
    assert (lora.kind, lora.sampler, lora.steps) == ("lcm", "lcm", 4)
    assert table.kind == ("versatile-diffusion" if versatile else "image-variations")
    (text,) = (entry for entry in pack.described(MindEye1Description).dropped if entry.file.startswith("lcm"))
    assert "of a text encoder, which the generator has not" in text.reason


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("Hyper-SD15-4steps-lora", (), ("hyper-sd", "ddim", 4, 1.0)),
        ("Hyper-SD15-1step-lora", (), ("hyper-sd", "tcd", 1, 1.0)),
        ("Hyper-SD15-8steps-CFG-lora", (), ("hyper-sd", "ddim", 8, 3.5)),
        ("pytorch_lora_weights", ("--generator-lora-kind", "lcm"), ("lcm", "lcm", 4, 1.0)),
        ("mine", ("--generator-lora-kind", "lcm", "--generator-lora-steps", "6"), ("lcm", "lcm", 6, 1.0)),
    ],
)
def test_the_recipe_of_a_file_goes_into_the_pack(
    words: Words, name: str, more: tuple[str, ...], expected: tuple[Any, ...]
) -> None:
    unet = unet_of(words(True))
    one = {key: pair for key, pair in pairs_of(unet, text=None).items() if key == "conv_in"}
    table, lora = told(fused(words(True), peft(unet, one), f"{name}.safetensors", *more))
    assert (lora.kind, lora.sampler, lora.steps, table.guidance) == expected
    assert table.steps == lora.steps


def runner_of(pack: EnginePack) -> Runner:
    return torch_runner(pack, device="cpu", precision="float32")


@torch.no_grad()
@pytest.mark.parametrize("blurry", [True, False])
@pytest.mark.parametrize(("name", "eta"), [("lcm_4steps", None), ("hyper_1step", 1.0), ("hyper_4steps", None)])
def test_pictures_are_those_of_the_library_with_the_networks_of_the_pack(
    words: Words, name: str, eta: float | None, blurry: bool
) -> None:
    unet = unet_of(words(True))
    pack = fused(words(True), peft(unet, pairs_of(unet, text=None)), f"{name}.safetensors")
    table, lora = told(pack)
    runner, seed, rng = runner_of(pack), 11, np.random.default_rng(2)
    generator = PictureGenerator(pack, runner, table, lora)
    tokens = rng.standard_normal((2, CLIP_TOKENS, DIM)).astype(np.float32)
    coder = load(pack, "generator_coder", device="cpu", dtype=torch.float32)
    px = int(pack.description.stage("generator_coder").outputs["picture"][2])
    seen = rng.random((3, px, px)).astype(np.float32) if blurry else None
    found = generator.draw(tokens, tokens[0], seen, seed=seed)

    network = load(pack, "generator", device="cpu", dtype=torch.float32).unet
    condition = torch.from_numpy(condition_of(tokens, table))
    scheduler, times = scheduler_of(lora.sampler, table.steps, table.strength if blurry else 1.0)
    side = SMALL_UNET["sample_size"]
    x = torch.cat([runner.normal(key_of(seed, START, i), (1, 4, side, side)) for i in range(2)])
    if seen is not None:
        mean, deviation = LatentEncoder(coder)(torch.from_numpy(seen[None]))
        latent = SCALE * (mean + deviation * runner.normal(key_of(seed, POSTERIOR), mean.shape))
        x = scheduler.add_noise(latent.expand_as(x), x, torch.tensor([times[0]]))
    fresh = iter(
        [
            torch.cat([runner.normal(key_of(seed, FRESH, step, i), (1, 4, side, side)) for i in range(2)])
            for step in range(len(times))
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in ("lcm", "tcd"):
            where = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
            patch.setattr(where, lambda *_, **__: next(fresh))
        more = {} if eta is None else {"eta": eta}
        expected = followed(scheduler, times, lambda x, t: network(x, torch.tensor(t), condition).sample, x, **more)
    np.testing.assert_allclose(found.latents, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    np.testing.assert_allclose(found.pictures, coder(found.latents), rtol=0, atol=1e-4)


def test_a_session_takes_the_recipe_of_the_pack_and_the_settings_may_say_otherwise(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = unet_of(words(True))
    one = {key: pair for key, pair in pairs_of(unet, text=None).items() if key == "conv_in"}
    asked: list[tuple[int, int]] = []
    guided = PictureGenerator._guided

    def recorded(self: PictureGenerator, condition: Any) -> Any:
        predict = guided(self, condition)
        step = self._step
        self._step = lambda values: asked.append((int(values["t"][0]), len(values["x"]))) or step(values)  # type: ignore[func-returns-value]
        return predict

    monkeypatch.setattr(PictureGenerator, "_guided", recorded)

    def decoded(pack: EnginePack, **settings: Any) -> list[tuple[int, int]]:
        asked.clear()
        pipeline = family_pipeline(pack, DecodeSettings(prior_steps=2, **settings))
        assert pipeline.absent == ("caption",)
        return list(dict.fromkeys(asked))

    lcm = fused(words(True), peft(unet, one), "lcm.safetensors")
    assert decoded(lcm) == [(t, 2) for t in (999, 759, 499, 259)]
    assert decoded(lcm, unclip_steps=2) == [(999, 2), (499, 2)]
    assert decoded(lcm, unclip_guidance=1.5, unclip_steps=1) == [(999, 4)]
    hyper = fused(words(True), peft(unet, one), "hyper_4steps.safetensors")
    assert decoded(hyper) == [(t, 2) for t in (999, 749, 499, 249)]
    with pytest.raises(EngineError, match="expected 4 steps, which the LoRA in the generator was made for, got 2"):
        decoded(hyper, unclip_steps=2)
    with pytest.raises(EngineError, match="expected 1 to 50, got 60: change decode"):
        decoded(fused(words(True), peft(unet, one), "lcm.safetensors"), unclip_steps=60)
    with pytest.raises(EngineError, match="for packs of MindEye2 and MindEye1"):
        load_decoder(open_pack("tiny"), DecodeSettings(unclip_guidance=2.0))


def family_pipeline(pack: EnginePack, settings: DecodeSettings) -> Any:
    from rtdecode.decode.families.family import family_of
    from rtdecode.decode.runtime.backends import choose

    return family_of(pack).pipeline(pack, settings, choose("torch", pack), seed=0)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ({"conv_in.lora_A.weight": (4, 4, 3, 3)}, "lcm", "got no up: download it again"),
        ({"conv_in.lora_A.weight": (4, 5, 3, 3), "conv_in.lora_B.weight": (16, 4, 1, 1)}, "lcm", "got 16 x 5 x 3 x 3"),
        ({"add_embedding.linear_1.lora_A.weight": (4, 9), "add_embedding.linear_1.lora_B.weight": (9, 4)}, "lcm",
         "of no layer of this UNet.*is it a LoRA of Stable Diffusion 1"),
        (None, "sdxl_lightning_4step", "expected a name with hyper, lcm in it.*--generator-lora-kind"),
        (None, "hyper", "tell it with --generator-lora-steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_fused_is_refused_with_the_remedy(
    words: Words, content: dict[str, tuple[int, ...]] | None, name: str, reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    order = words(True)
    folder, unet = Path(order[-1]).parent, unet_of(order)
    one = {key: pair for key, pair in pairs_of(unet, text=None).items() if key == "conv_in"}
    tensors = peft(unet, one) if content is None else {key: torch.zeros(shape) for key, shape in content.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    assert main([*order, "--generator-lora", str(folder / f"{name}.safetensors")]) == 1
    assert re.search(reason, "".join(capsys.readouterr()), re.DOTALL)
    alone = [word for at, word in enumerate(order) if "--generator" not in order[max(0, at - 1) : at + 1]]
    assert main([*alone, "--generator-lora", str(folder / f"{name}.safetensors")]) == 1
    assert "expected --generator, the network that it is fused into" in "".join(capsys.readouterr())
