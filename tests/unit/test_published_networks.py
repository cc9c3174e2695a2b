"""Networks that no golden covers, against the libraries whose weights they take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, GitConfig, GitForCausalLM

from engines.importing.fake import write_fake_mindeye2
from rtdecode.decode.families.mindeye2.assembly import load_engines
from rtdecode.decode.families.mindeye2.unclip_step import size_features
from rtdecode.decode.networks.build import empty, load
from rtdecode.decode.networks.captioner import build_captioner
from rtdecode.decode.networks.preprocess import bigg_input
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.networks.prompt import word_numbers
from rtdecode.decode.runtime.parts import parts
from rtdecode.decode.runtime.runner import tensor_runner
from rtdecode.decode.runtime.torch_engine import TorchEngine
from rtdecode.decode.runtime.torch_runner import open_stage
from rtdecode.errors import EngineError
from rtdecode.packs import open_pack
from tests.published import State, random_state, sizes_of


def made(kind: str, sizes: dict[str, Any]) -> tuple[Any, State]:
    """A network of a pack with random weights, and these."""
    network, state = empty(kind, sizes), random_state(kind, sizes)
    network.load_state_dict(state, strict=True, assign=True)
    return network, state


@torch.no_grad()
def test_unclip_conditioned_on_sizes_is_the_unet_of_time_ids() -> None:
    sizes = sizes_of("unclip")
    network, state = made("denoiser", sizes)
    config = {k: v for k, v in sizes.items() if k != "class_embed_type"}
    other = UNet2DConditionModel(**config, addition_embed_type="text_time", addition_time_embed_dim=256).eval()
    other.load_state_dict(
        {k.removeprefix("unet.").replace("class_embedding", "add_embedding"): v for k, v in state.items()}
    )
    x, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 104)
    t = torch.tensor([999, 26])
    added = {"text_embeds": torch.zeros(2, 0), "time_ids": torch.tensor([[768, 768, 0, 0]] * 2)}
    want = other(x, t, tokens, added_cond_kwargs=added).sample
    got = network(x, t, tokens, torch.from_numpy(size_features((768, 768, 0, 0))).expand(2, -1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_embedder_is_the_vision_tower_of_transformers_behind_its_last_norm() -> None:
    sizes = sizes_of("embedder")
    network, state = made("embedder", sizes)
    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        image_size=sizes["px"],
        patch_size=sizes["patch"],
        hidden_act="gelu",
        projection_dim=sizes["out"],
    )
    model = CLIPVisionModel(config).eval()
    tower = getattr(model, "vision_model", model)
    rows = {k.removeprefix("visual."): v for k, v in state.items()}
    wanted: State = {
        "embeddings.class_embedding": rows["class_embedding"],
        "embeddings.patch_embedding.weight": rows["conv1.weight"],
        "embeddings.position_embedding.weight": rows["positional_embedding"],
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        wanted |= {f"{theirs}.{part}": rows[f"{ours}.{part}"] for part in ("weight", "bias")}
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for layer in range(sizes["layers"]):
        ours, theirs = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for part in ("weight", "bias"):
            wanted |= {f"{theirs}{new}.{part}": rows[f"{ours}{old}.{part}"] for old, new in names.items()}
            joint = rows[f"{ours}attn.in_proj_{part}"].chunk(3)
            wanted |= {f"{theirs}self_attn.{n}_proj.{part}": v for n, v in zip("qkv", joint, strict=True)}
    missing, unexpected = tower.load_state_dict(wanted, strict=False)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    pictures = torch.rand(2, 3, 90, 90)
    hidden = model(pixel_values=bigg_input(pictures, sizes["px"])).last_hidden_state
    want = tower.post_layernorm(hidden)[:, 1:]
    torch.testing.assert_close(network(pictures), want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_captions_are_those_of_git_with_its_image_encoder(tmp_path: Path) -> None:
    config = json.loads(json.dumps(sizes_of("captioner")))
    config["vision_config"] |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    stock = GitForCausalLM(GitConfig(**config)).eval()
    # Initial weights are so small that every picture gets the same caption.
    for parameter in stock.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(8.0)
    pictures = torch.randn(3, 3, 56, 56)
    features = stock.git.image_encoder(pictures).last_hidden_state
    words = stock.generate(pixel_values=pictures, max_length=20, do_sample=False)
    model = build_captioner(config)
    state = {k: v for k, v in stock.state_dict().items() if not k.startswith("git.image_encoder.")}
    model.load_state_dict(state, strict=True)
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=["ridge", "backbone", "prior", "converter", "captioner"])
    pack = open_pack(str(tmp_path / "p"))
    made = parts("captioner", pack.description.stage("captioner"), model)
    opened: dict[str, Any] = {"converter": lambda values: {"features": values["tokens"]}}
    opened |= {part.name: TorchEngine(part, device="cpu").compute for part in made}
    names = {*pack.description.stages, "captioner_context"}
    runner = tensor_runner(names, lambda name: opened.get(name, dict), device="cpu")
    caption = load_engines(pack, runner).caption
    assert caption is not None
    special = (0, 100, 101, 102)
    want = [" ".join(f"w{i}" for i in row.tolist() if i not in special) for row in words]
    assert caption(features) == want
    assert len(set(want)) > 1

    looks: list[int] = []

    def looked(values: torch.Tensor) -> Any:
        looks.append(len(values))
        return values.numpy()

    elsewhere = replace(runner, at_host=False, host=looked)
    caption = load_engines(pack, elsewhere).caption
    assert caption is not None
    assert caption(features) == want
    assert looks == [3 * 20]  # all words at once, after the last
    with pytest.raises(EngineError, match=r"captioner alone, of an older version: export the pack anew"):
        load_engines(pack, replace(runner, parts=pack.description.stages))


@torch.no_grad()
def test_words_that_are_remembered_give_the_scores_of_words_that_are_read_again(tmp_path: Path) -> None:
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=["captioner"], precision="float32")
    pack = open_pack(str(tmp_path / "p"))
    model = load(pack, "captioner", device="cpu", dtype=torch.float32)
    spec = pack.description.stage("captioner")
    context, step = (TorchEngine(part, device="cpu") for part in parts("captioner", spec, model))
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, *spec.inputs["features"][1:], generator=draw)
    words = torch.randint(1, 160, (2, 20), generator=draw)
    fixed = context.compute({"features": features})
    said = torch.randn(*fixed["keys"].shape[:3], 20, fixed["keys"].shape[4], generator=draw)  # does not matter
    known = {"said_keys": said, "said_values": said}
    for place in range(20):
        found = step.compute({"word": words[:, place], "place": torch.full((2,), place), **fixed, **known})
        states = model.git(pixel_values=features[:, None], input_ids=words[:, : place + 1], use_cache=False)
        want = model.output(states.last_hidden_state[:, -1])
        torch.testing.assert_close(found["scores"], want, rtol=0, atol=2e-5)
        known = {"said_keys": found["next_keys"], "said_values": found["next_values"]}


@torch.no_grad()
def test_prompts_are_encoded_as_the_two_towers_do() -> None:
    sizes = sizes_of("prompt")
    network, state = made("prompt", sizes)
    words = word_numbers(["a red cat", "two dogs on a beach at night"])
    tokens, pooled = network(words)
    assert tokens.shape == (2, 77, 128)
    torch.testing.assert_close(pooled, network.bigg(words), rtol=0, atol=1e-5)
    stock = CLIPTextModel(CLIPTextConfig(**sizes["clip_l"])).eval()
    rows = {k.removeprefix("clip_l."): v for k, v in state.items() if k.startswith("clip_l.")}
    getattr(stock, "text_model", stock).load_state_dict(rows, strict=False)
    end = int(words.max())
    padded = torch.where((words == end).cumsum(1) > 0, end, words)
    assert padded[0].tolist().count(end) > 1
    want = stock(padded, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tokens[..., :64], want, rtol=0, atol=1e-5)
    caught: list[torch.Tensor] = []
    network.bigg.transformer.resblocks[-1].register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    network.bigg(words)
    torch.testing.assert_close(tokens[..., 64:], caught[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_prior_keeps_and_drops_sample_by_sample() -> None:
    torch.manual_seed(0)
    network = PriorNetwork(PriorShape(tokens=6, dim=32, depth=2, heads=2, dim_head=36)).eval()
    x, condition, t = torch.randn(4, 6, 32), torch.randn(4, 6, 32), torch.tensor([0, 10, 50, 99])
    keep_condition, keep_image = torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([1, 1, 0, 0]).bool()
    mixed = network(x, t, condition, keep_condition=keep_condition, keep_image=keep_image)
    for i in range(4):
        one = slice(i, i + 1)
        c = condition[one] if keep_condition[i] else network.null_brain_embeds[None]
        y = x[one] if keep_image[i] else network.null_image_embed[None]
        torch.testing.assert_close(mixed[one], network(y, t[one], c), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[3:], network.null(x, t, condition)[3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_prior_in_half_precision_stays_near(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = PriorNetwork(PriorShape(tokens=6, dim=64, depth=2, heads=2, dim_head=36)).eval()
    x, condition, t = torch.randn(2, 6, 64), torch.randn(2, 6, 64), torch.tensor([7, 94])
    full = network(x, t, condition)
    with torch.autocast("cpu", dtype=dtype):
        half = network(x, t, condition)
    assert functional.cosine_similarity(full.flatten(), half.float().flatten(), dim=0) > 0.999


@torch.no_grad()
def test_the_prior_of_a_session_in_half_precision_is_the_prior_under_autocast(tmp_path: Path) -> None:
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=["prior"], precision="float32")
    pack = open_pack(str(tmp_path / "p"))
    (engine,) = open_stage(pack, "prior", device="cpu", precision="bfloat16")
    sizes = sizes_of("prior")
    network, _ = made("prior", sizes)
    network.load_state_dict(load_file(tmp_path / "p" / "prior.safetensors"))
    rng = torch.Generator().manual_seed(0)
    x, condition = (torch.randn(2, sizes["tokens"], sizes["dim"], generator=rng) for _ in range(2))
    t, keep = torch.tensor([7, 94]), torch.tensor([1, 0])
    found = engine.compute({"x": x, "t": t, "condition": condition, "keep": keep})["tokens"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = torch.cat([network(x[:1], t[:1], condition[:1]), network.null(x[1:], t[1:], condition[1:])])
    assert torch.equal(found, want)


@torch.no_grad()
def test_the_small_autoencoder_is_the_decoder_of_diffusers() -> None:
    network, state = made("small_autoencoder", sizes_of("small_autoencoder"))
    whole = AutoencoderTiny(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4).eval()
    whole.load_state_dict(state, strict=False)
    latent = torch.randn(2, 4, 8, 8)
    assert torch.equal(network(latent), whole.decode(latent).sample)
