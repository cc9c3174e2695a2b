"""Few-step LoRAs of SDXL in the unCLIP: every layout, what does not fit, and how a picture is then sampled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from engines.importing.lora_files import times_of  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.decode.families import mindeye2  # noqa: E402
from rtdecode.decode.families.mindeye2 import load_mindeye2  # noqa: E402
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description  # noqa: E402
from rtdecode.decode.families.mindeye2.recipe import recipe_of  # noqa: E402
from rtdecode.decode.families.mindeye2.unclip_step import Unclip  # noqa: E402
from rtdecode.decode.networks.build import load  # noqa: E402
from rtdecode.decode.runtime.backends import choose  # noqa: E402
from rtdecode.errors import EngineError  # noqa: E402
from rtdecode.packs import EnginePack, open_pack  # noqa: E402
from rtdecode.settings import DecodeSettings  # noqa: E402
from tests.published import State, mindeye2_state, save_last, sgm_unet, sizes_of, stripped, unclip_state  # noqa: E402

RANK, ALPHA = 4, 2.0
TEXT = 2048
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def unet() -> State:
    return stripped(unclip_state()[1]["unclip"], "unet.")


def pairs_of(unet: State, text: int | None = TEXT) -> Pairs:
    """Down and up weights for every product and convolution of the UNet, for tokens of another width if told."""
    draw = torch.Generator().manual_seed(5)
    pairs: Pairs = {}
    for key, value in unet.items():
        if not key.endswith(".weight") or value.ndim < 2 or "class_embedding" in key:
            continue
        name = key.removesuffix(".weight")
        inside = [RANK, *value.shape[1:]]
        if text is not None and name.endswith(("attn2.to_k", "attn2.to_v")):
            inside[1] = text
        ones = [1] * (value.ndim - 2)
        down = torch.randn(inside, generator=draw) / 10
        pairs[name] = down, torch.randn([value.shape[0], RANK, *ones], generator=draw) / 10
    return pairs


def sgm_name(unet: State, name: str) -> str:
    (key,) = sgm_unet({f"{name}.weight": unet[f"{name}.weight"]})
    return key.removeprefix("model.diffusion_model.").removesuffix(".weight")


def kohya(unet: State, pairs: Pairs, *, sgm: bool) -> State:
    content: State = {"lora_te1_text_model_layers_0.lora_down.weight": torch.zeros(RANK, 3)}
    for name, (down, up) in pairs.items():
        flat = "lora_unet_" + (sgm_name(unet, name) if sgm else name).replace(".", "_")
        content |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(ALPHA),
        }
    return content


def peft(unet: State, pairs: Pairs) -> State:
    """Without an alpha: the scale is 1, which the weights are made up for."""
    return {
        f"unet.{name}.lora_{side}.weight": part
        for name, (down, up) in pairs.items()
        for side, part in (("A", down), ("B", up * (ALPHA / RANK)))
    }


def processors(unet: State, pairs: Pairs) -> State:
    content: State = {}
    for name, (down, up) in pairs.items():
        place = re.fullmatch(r"(.*attn\d)\.(to_q|to_k|to_v|to_out)(\.0)?", name)
        stem = f"unet.{place[1]}.processor.{place[2]}_lora" if place else f"unet.{name}.lora"
        content |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up * (ALPHA / RANK)}
    return content


LAYOUTS: dict[str, Callable[[State, Pairs], State]] = {
    "kohya, sgm's names": lambda unet, pairs: kohya(unet, pairs, sgm=True),
    "kohya, diffusers' names": lambda unet, pairs: kohya(unet, pairs, sgm=False),
    "peft": peft,
    "processors": processors,
}


def files(folder: Path) -> list[str]:
    torch.save({"state_dict": unclip_state()[0]}, folder / "unclip.ckpt")
    weights = save_last(folder / "last.pth", mindeye2_state(voxels=[7]))
    return [
        "engines", "import", "mindeye2", "--weights", str(weights), "--unclip", str(folder / "unclip.ckpt"),
        "--licence", "test", "--out", str(folder / "pack"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return files(tmp_path_factory.mktemp("lora"))


def fused(words: list[str], content: State, name: str, *more: str) -> EnginePack:
    folder = Path(words[-1]).parent
    save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
    assert main([*words, "--unclip-lora", str(folder / name), *more]) == 0
    return open_pack(words[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_adds_the_same_to_the_weights(words: list[str], unet: State, layout: str) -> None:
    pairs = pairs_of(unet)
    pack = fused(words, LAYOUTS[layout](unet, pairs), "sdxl_lightning_4step_lora.safetensors")
    got = load_file(pack.folder / "unclip.safetensors")
    assert any(value.ndim == 4 for value, _ in pairs.values())
    changed = 0
    for key, value in unet.items():
        name = key.removesuffix(".weight")
        found, expected = got[f"unet.{key}"].numpy(), value.numpy().astype(np.float64)
        if name in pairs and key.endswith(".weight") and not name.endswith(("attn2.to_k", "attn2.to_v")):
            down, up = (part.numpy().astype(np.float64) for part in pairs[name])
            expected = expected + ALPHA / RANK * np.einsum("or,ri...->oi...", up.reshape(len(up), RANK), down)
            changed += 1
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=key)
    said = pack.described(MindEye2Description)
    assert said.unclip_lora is not None
    assert said.unclip_lora.fused == changed > 20
    listed = {(entry.reason, key) for entry in said.dropped for key in entry.keys if entry.file.startswith("sdxl_")}
    text = [key for reason, key in listed if "for tokens of text" in reason]
    attending = sum(name.endswith(("attn2.to_k", "attn2.to_v")) for name in pairs)
    assert len(text) == attending * (3 if layout.startswith("kohya") else 2)
    assert any(f"x {TEXT}, the unCLIP's are" in reason for reason, _ in listed)
    if layout.startswith("kohya"):
        assert (
            "of a text encoder, which the unCLIP has not",
            "lora_te1_text_model_layers_0.lora_down.weight",
        ) in listed


def test_the_network_of_the_pack_is_the_dense_one(words: list[str], unet: State) -> None:
    """Base and addition computed apart, layer by layer, give what the fused network gives."""
    pairs = pairs_of(unet)
    pack = fused(words, peft(unet, pairs), "dmd2_sdxl_4step_lora.safetensors")
    network = load(pack, "unclip", device="cpu", dtype=torch.float32).eval()
    plain = load(pack, "unclip", device="cpu", dtype=torch.float32).eval()
    plain.unet.load_state_dict(unet)
    for name, module in plain.unet.named_modules():
        if name in pairs and not name.endswith(("attn2.to_k", "attn2.to_v")):
            down, up = pairs[name]

            def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor,
                    down: torch.Tensor = down, up: torch.Tensor = up) -> torch.Tensor:  # fmt: skip
                x, scale = given[0], ALPHA / RANK
                if isinstance(module, torch.nn.Conv2d):
                    low = torch.nn.functional.conv2d(x, down, stride=module.stride, padding=module.padding)
                    return out + scale * torch.nn.functional.conv2d(low, up)
                return out + scale * (x @ down.T @ up.T)

            module.register_forward_hook(add)
    sizes, draw = sizes_of("unclip"), torch.Generator().manual_seed(0)
    side = sizes["sample_size"]
    given = (
        torch.randn(1, 4, side, side, generator=draw), torch.tensor([499]),
        torch.randn(1, 5, sizes["cross_attention_dim"], generator=draw),
        torch.randn(1, sizes["projection_class_embeddings_input_dim"], generator=draw),
    )  # fmt: skip
    with torch.no_grad():
        np.testing.assert_allclose(network(*given).numpy(), plain(*given).numpy(), rtol=1e-3, atol=1e-4)


def test_times_are_those_of_diffusers_schedulers() -> None:
    options = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    for steps in range(1, 9):
        trailing = diffusers.DDIMScheduler(timestep_spacing="trailing", **options)
        trailing.set_timesteps(steps)
        for kind in ("lightning", "dmd2", "hyper-sd"):
            assert times_of(kind, steps) == trailing.timesteps.tolist()
        lcm = diffusers.LCMScheduler(original_inference_steps=50, **options)
        lcm.set_timesteps(steps)
        assert times_of("lcm", steps) == lcm.timesteps.tolist()
    assert times_of("lightning", 4) == [999, 749, 499, 249]


def test_the_pack_is_sampled_as_its_lora_was_made_to_be(
    words: list[str], unet: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {name: pair for name, pair in pairs_of(unet).items() if name == "conv_in"}
    pack = fused(words, peft(unet, one), "my.safetensors", "--unclip-lora-kind", "lcm", "--unclip-lora-steps", "2")
    recipe = recipe_of(pack.described(MindEye2Description))
    assert (recipe.unclip_steps, recipe.unclip_sampler, recipe.unclip_guidance) == (2, "consistency", 1.0)
    assert recipe.unclip_times == (999, 499)
    mind = load_mindeye2(pack)
    asked: list[int] = []
    noise = Unclip.noise
    monkeypatch.setattr(Unclip, "noise", lambda self, x, t, context: asked.append(t) or noise(self, x, t, context))
    hidden = mind.embed(np.zeros(7, np.float32))
    mind.picture(hidden, mind.clean(hidden, seed=0), seed=0)
    assert asked == [999, 499]
    recipes: list[Any] = []
    monkeypatch.setattr(mindeye2, "load_mindeye2", lambda *_, recipe, **__: recipes.append(recipe) or mind)
    monkeypatch.setattr(mindeye2, "MindEye2Pipeline", lambda *_, **__: None)
    for guidance in (None, 1.5):
        settings = DecodeSettings(unclip_guidance=guidance)
        mindeye2.FAMILY.pipeline(pack, settings, choose("torch", pack), seed=0)
    assert [one.unclip_guidance for one in recipes] == [1.0, 1.5]
    with pytest.raises(EngineError, match="expected 2, which the LoRA in it was made for, got 4"):
        type(recipe)(unclip_steps=4, unclip_times=(999, 499))


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ({"conv_in.lora_A.weight": 4}, "lightning_4step", "got no up: download it again"),
        (
            {"lora_unet_nowhere.lora_down.weight": 4, "lora_unet_nowhere.lora_up.weight": 4},
            "lcm",
            "of no layer of this",
        ),
        ({"conv_in.hada_w1_a": 4}, "lcm", "not of a LoRA in kohya's, diffusers' or peft's layout"),
        ({"lora_te1_x.lora_down.weight": 4}, "lcm", "fits none of its layers"),
        (None, "mine", "tell it with --unclip-lora-kind"),
        (None, "lightning", "tell it with --unclip-lora-steps"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_the_remedy(
    words: list[str], unet: State, content: dict[str, int] | None, name: str, reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = Path(words[-1]).parent
    one = {key: pair for key, pair in pairs_of(unet).items() if key == "conv_in"}
    tensors = peft(unet, one) if content is None else {key: torch.zeros(size, size) for key, size in content.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    assert main([*words, "--unclip-lora", str(folder / f"{name}.safetensors")]) == 1
    assert re.search(reason, "".join(capsys.readouterr()))
    alone = [word for at, word in enumerate(words) if "--unclip" not in words[max(0, at - 1) : at + 1]]
    assert main([*alone, "--unclip-lora", str(folder / f"{name}.safetensors")]) == 1
    assert "expected --unclip, the network that it is fused into" in "".join(capsys.readouterr())
