"""`engines embed` and `engines latents`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress

from engines.participant_option import add_participants
from rtdecode.decode.families.latent_map import latents_of
from rtdecode.decode.families.stimulus_folder import EMBEDDINGS
from rtdecode.packs import open_pack


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``handler``."""
    embed = commands.add_parser("embed", help="embed pictures, for retrieval from a pool and to calibrate")
    embed.add_argument("images", type=Path, metavar="IMAGES", help="folder of pictures named <stimulus>.png or .jpg")
    embed.add_argument("--pack", default="tiny", help="name of an installed pack, or a folder")
    embed.add_argument("--out", type=Path, help=f"safetensors file to write; default: IMAGES/{EMBEDDINGS}")
    embed.add_argument("--threads", type=int, default=1, help="CPU threads")
    embed.add_argument(
        "--unclip-latents",
        action="store_true",
        help="also the pictures as the unCLIP, or stage C, makes them, to distil it with",
    )
    embed.set_defaults(handler=_embed)

    latents = commands.add_parser("latents", help="learn image tokens to hidden values, to calibrate within a visit")
    latents.add_argument("pack", help="an imported, trained or exported MindEye2 pack: its name or folder")
    latents.add_argument("--pictures", type=Path, required=True, help="safetensors file with tokens of pictures")
    add_participants(latents)
    latents.add_argument("--out", type=Path, required=True, help="folder of the new pack")
    latents.add_argument("--components", type=int, default=512, help="of the tokens, at most")
    latents.set_defaults(handler=_latents)


def _embed(args: argparse.Namespace) -> int:
    from engines.embed.folder_embedding import embed_folder

    pack, out = open_pack(args.pack), args.out or args.images / EMBEDDINGS
    with Progress() as bar:
        task = bar.add_task("embedding", total=None)
        shape = embed_folder(
            pack,
            args.images,
            out,
            threads=args.threads,
            unclip_latents=args.unclip_latents,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    latents = ", and their latents" if latents_of(pack) is not None else ""
    print(f"{out}: {shape[0]} pictures, {shape[1]} tokens of {shape[2]} channels each{latents}")
    return 0


def _latents(args: argparse.Namespace) -> int:
    from engines.embed.latent_fit import LatentOrder, learn_latents

    order = LatentOrder(pictures=args.pictures, participants=args.participant, components=args.components)
    with Progress() as bar:
        task = bar.add_task("reading tokens", total=1.0)
        learned = learn_latents(open_pack(args.pack), order, args.out, progress=lambda share: bar.advance(task, share))
    rank = f", the rank of the tokens; {args.components} asked" if learned.components < args.components else ""
    print(
        f"{args.out}: sealed as {learned.identity}; {learned.pictures} pictures, {learned.trials} trials, "
        f"{learned.components} components{rank}, held-out R2 {learned.held_out_r2:.3f} (0: no better than the same "
        "hidden values for every picture)"
    )
    return 0
