"""`engines import` and `engines fake`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.importing.drafts import Draft

_PRECISIONS = ("float32", "float16", "bfloat16")
_DIMS = ("small", "cut", "full")
_PICTURE = ("ridge", "backbone", "prior", "converter", "captioner", "unclip", "autoencoder", "blurry_autoencoder")
_STAGES = (*_PICTURE, "small_autoencoder", "embedder", "refiner", "refiner_autoencoder", "prompt")
_HUB = "datasets/pscotti/mindeyev2"
_WHERE = "a path, [datasets/]owner/repository:file on the Hugging Face hub"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the two commands; each sets ``handler``."""
    importing = commands.add_parser("import", help="turn published checkpoints into a sealed engine pack")
    models = importing.add_subparsers(required=True, metavar="MODEL")

    second = models.add_parser("mindeye2", help="MindEye2 with its SDXL unCLIP", description=f"FILE is {_WHERE}.")
    second.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help=f"last.pth of a model, for example {_HUB}:train_logs/final_subj01_pretrained_40sess_24bs/last.pth",
    )
    second.add_argument("--unclip", metavar="FILE", help=f"{_HUB}:unclip6_epoch0_step110000.ckpt")
    second.add_argument(
        "--unclip-lora",
        metavar="FILE",
        help="a few-step LoRA of SDXL to fuse into the unCLIP, as ByteDance/SDXL-Lightning:"
        "sdxl_lightning_4step_lora.safetensors",
    )
    _add_lora_details(second, "--unclip-lora", ("lightning", "hyper-sd", "dmd2", "lcm"))
    second.add_argument("--converter", metavar="FILE", help=f"{_HUB}:bigG_to_L_epoch8.pth")
    second.add_argument("--captioner", metavar="FOLDER", help="a folder, or microsoft/git-large-coco")
    second.add_argument("--refiner", metavar="FILE", help="an SDXL checkpoint; the published one is zavychromaxl_v30")
    second.add_argument(
        "--small-autoencoder",
        metavar="FILE",
        help="madebyollin/taesdxl:diffusion_pytorch_model.safetensors; pictures are then decoded by it",
    )
    second.add_argument(
        "--participant",
        metavar="N",
        type=int,
        action="append",
        help="ridge layer to keep, by its number in the checkpoint; may be repeated; all by default",
    )
    second.set_defaults(handler=_import_mindeye2)

    first = models.add_parser("mindeye1", help="MindEye1", description=f"FILE is {_WHERE}.")
    first.add_argument("--weights", metavar="FILE", required=True, help="last.pth of the high-level model")
    first.add_argument("--low-level", metavar="FILE", help="checkpoint of the low-level model")
    first.add_argument(
        "--generator",
        metavar="FOLDER",
        help="shi-labs/versatile-diffusion, or lambdalabs/sd-image-variations-diffusers for the variant of one token",
    )
    first.add_argument(
        "--generator-lora",
        metavar="FILE",
        help="a few-step LoRA of Stable Diffusion 1 to fuse into the generator, as ByteDance/Hyper-SD:"
        "Hyper-SD15-4steps-lora.safetensors",
    )
    _add_lora_details(first, "--generator-lora", ("hyper-sd", "lcm"))
    first.add_argument("--samples", type=int, help="pictures a trial, of which the best is kept; 16 as published")
    first.add_argument("--scaling", metavar="FILE", help="mean and scale of the betas that the network was trained on")
    first.set_defaults(handler=_import_mindeye1)

    imagery = models.add_parser(
        "mirage-imagery", help="MIRAGE's decoder of what a person imagines", description=f"FILE is {_WHERE}."
    )
    imagery.add_argument("--ridges", metavar="FOLDER", help="the five ridge_*_weights.pkl of a participant")
    imagery.add_argument("--statistics", metavar="FILE", help="means and deviations of their targets and predictions")
    imagery.add_argument("--embedder", metavar="FOLDER", help="openai/clip-vit-large-patch14")
    imagery.add_argument("--captioner", metavar="FOLDER", help="a folder, or microsoft/git-large-coco")
    imagery.add_argument("--vdvae", metavar="FILE", help="imagenet64-iter-1600000-model-ema.th of openai/vdvae")
    imagery.add_argument("--effnet", metavar="FILE", help="stabilityai/stable-cascade:effnet_encoder.safetensors")
    for letter, file in (("c", "stage_c_bf16"), ("b", "stage_b_bf16"), ("a", "stage_a")):
        imagery.add_argument(f"--stage-{letter}", metavar="FILE", help=f"stabilityai/stable-cascade:{file}.safetensors")
    imagery.add_argument("--empty-caption", metavar="FILE", help="text and pooled of the empty caption by bigG")
    imagery.add_argument("--samples", type=int, help="pictures a trial, of which the best is kept; 16 as published")
    imagery.set_defaults(handler=_import_mirage_imagery)

    film = models.add_parser(
        "mirage-encoding", help="MIRAGE (encoding): films to the brain", description=f"FILE is {_WHERE}."
    )
    film.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        action="append",
        help="model.safetensors, as epfl-neuroai/mirage:model.safetensors, or best.ckpt; may be repeated: an ensemble",
    )
    film.add_argument(
        "--x-transformers",
        metavar="VERSION",
        help="of the package that the weights were trained with, where they do not tell by themselves",
    )
    film.add_argument(
        "--layers", type=int, default=49, help="hidden states of the features that it will be given (default 49)"
    )
    film.set_defaults(handler=_import_mirage_encoding)

    gnet = models.add_parser("gnet", help="GNet: pictures to the brain", description=f"FILE is {_WHERE}.")
    gnet.add_argument("--weights", metavar="FILE", required=True, help=f"{_HUB}:gnet_multisubject.pt")
    gnet.add_argument(
        "--participant", metavar="N", type=int, action="append", help="readout to keep; may be repeated; all by default"
    )
    gnet.set_defaults(handler=_import_gnet)

    for parser in (second, first):
        parser.add_argument("--blurry-autoencoder", metavar="FILE", help=f"{_HUB}:sd_image_var_autoenc.pth")
    for parser in (second, first, imagery, film, gnet):
        parser.add_argument("--out", type=Path, required=True, help="folder of the pack")
        parser.add_argument("--name", help="name of the pack; its folder's by default")
        parser.add_argument("--licence", required=True, help="licence of the weights, for whoever gets the pack")
        parser.add_argument("--precision", choices=_PRECISIONS, default="float32")
        parser.add_argument(
            "--ignore",
            metavar="REGEX",
            action="append",
            default=[],
            help="leave out unexpected keys that match in full",
        )

    faking = commands.add_parser("fake", help="write a pack of random weights, to measure time and memory with")
    kinds = faking.add_subparsers(required=True, metavar="MODEL")
    fake = kinds.add_parser("mindeye2", help="MindEye2's shapes")
    fake.add_argument("--out", type=Path, required=True, help="folder of the pack")
    fake.add_argument("--dims", choices=_DIMS, default="full", help="cut: the token layout, but few layers")
    fake.add_argument("--precision", choices=_PRECISIONS, default="float16")
    fake.add_argument("--seed", type=int, default=0)
    fake.add_argument("--stages", nargs="+", choices=_STAGES, default=_PICTURE, help="by default what a picture needs")
    fake.set_defaults(handler=_fake_mindeye2)


def _add_lora_details(parser: argparse.ArgumentParser, option: str, kinds: tuple[str, ...]) -> None:
    parser.add_argument(f"{option}-kind", choices=kinds, help="where its name does not tell: how it is sampled")
    parser.add_argument(f"{option}-steps", type=int, metavar="N", help="where its name does not tell: its steps")


def _missing(error: ImportError) -> int:
    print(f"published networks need torch, diffusers, transformers and open_clip ({error}): pip install '.[gpu]'")
    return 2


def _import_mindeye2(args: argparse.Namespace) -> int:
    try:
        from engines.importing.lora_files import LoraOrder
        from engines.importing.mindeye2_files import MindEye2Files, draft_mindeye2
    except ImportError as error:
        return _missing(error)
    sources = MindEye2Files(
        weights=args.weights,
        converter=args.converter,
        captioner=args.captioner,
        unclip=args.unclip,
        blurry_autoencoder=args.blurry_autoencoder,
        refiner=args.refiner,
        small_autoencoder=args.small_autoencoder,
        unclip_lora=None
        if args.unclip_lora is None
        else LoraOrder(name=args.unclip_lora, kind=args.unclip_lora_kind, steps=args.unclip_lora_steps),
    )
    draft = draft_mindeye2(sources, participants=args.participant, ignored=args.ignore)
    if (lora := draft.tables.get("unclip_lora")) is not None:
        print(f"{lora.file}: {lora.fused} layers fused; {lora.sampler} sampler at {', '.join(map(str, lora.times))}")
    return _seal(draft, args)


def _import_mindeye1(args: argparse.Namespace) -> int:
    try:
        from engines.importing.lora_files import LoraOrder
        from engines.importing.mindeye1_files import MindEye1Files, draft_mindeye1
    except ImportError as error:
        return _missing(error)
    sources = MindEye1Files(
        weights=args.weights,
        low_level=args.low_level,
        blurry_autoencoder=args.blurry_autoencoder,
        generator=args.generator,
        generator_lora=None
        if args.generator_lora is None
        else LoraOrder(name=args.generator_lora, kind=args.generator_lora_kind, steps=args.generator_lora_steps),
        scaling=args.scaling,
    )
    draft = draft_mindeye1(sources, generator=_samples(args), ignored=args.ignore)
    if (lora := draft.tables.get("generator_lora")) is not None:
        print(f"{lora.file}: {lora.fused} layers fused; {lora.sampler} sampler in {lora.steps} steps")
    return _seal(draft, args)


def _import_mirage_imagery(args: argparse.Namespace) -> int:
    try:
        from engines.importing.mirage_imagery_files import (
            MirageImageryFiles,
            MirageImageryLayout,
            draft_mirage_imagery,
        )
    except ImportError as error:
        return _missing(error)
    sources = MirageImageryFiles(
        **{field: getattr(args, field) for field in MirageImageryFiles.__dataclass_fields__},
    )
    layout = MirageImageryLayout(generator=_samples(args))
    return _seal(draft_mirage_imagery(sources, layout=layout, ignored=args.ignore), args)


def _samples(args: argparse.Namespace) -> dict[str, int]:
    return {} if args.samples is None else {"samples": args.samples}


def _import_mirage_encoding(args: argparse.Namespace) -> int:
    try:
        from engines.importing.mirage_encoding_files import MirageEncodingFiles, draft_mirage_encoding
    except ImportError as error:
        return _missing(error)
    sources = MirageEncodingFiles(weights=args.weights, x_transformers=args.x_transformers, layers=args.layers)
    draft = draft_mirage_encoding(sources, ignored=args.ignore)
    print(f"computed with as by {draft.tables['numerics']}")
    return _seal(draft, args)


def _import_gnet(args: argparse.Namespace) -> int:
    try:
        from engines.importing.gnet_files import draft_gnet
    except ImportError as error:
        return _missing(error)
    return _seal(draft_gnet(args.weights, participants=args.participant, ignored=args.ignore), args)


def _seal(draft: Draft, args: argparse.Namespace) -> int:
    for line in draft.left_out():
        print(line)
    name = args.name or args.out.name
    identity = draft.seal(args.out, name=name, licence=args.licence, precision=args.precision)
    print(f"{args.out}: stages {', '.join(draft.stages)}; sealed as {identity}")
    return 0


def _fake_mindeye2(args: argparse.Namespace) -> int:
    try:
        from engines.importing.fake import write_fake_mindeye2
    except ImportError as error:
        return _missing(error)
    identity = write_fake_mindeye2(
        args.out, dims=args.dims, stages=args.stages, precision=args.precision, seed=args.seed, report=print
    )
    print(f"{args.out}: sealed as {identity}")
    return 0
