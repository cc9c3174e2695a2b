"""The tiny pack's part that can be fine-tuned (torch, onnx). Import this module inside functions only.

It ships ONNX files only. The commitment network is read from them, and takes the place of a backbone: it reads the
tokens that the participant's adapter decodes and says what the picture's are. What clients are sent are the adapter's
tokens, moved some way toward what the network expects of the picture: by nothing at first. Pictures and captions are
still made by the pack's own commitment network: the fine-tuned one is trained to expect, and commits worse. The prior
stays as it is: it is shipped as a student, without the null tokens that its training needs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from msgspec import structs
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn

from engines.finetune.lora import add_low_rank, merged_state
from engines.finetune.tunable import Tunable
from engines.tiny import layout
from engines.tiny.export import export_stage
from engines.tiny.networks import TinyPrior
from engines.tiny.tiny_prior import prior_schedule
from engines.training.objective import Weights
from rtdecode.decode.families.tiny.tiny_description import TinyDescription
from rtdecode.decode.families.tiny.tiny_pipeline import RETRIEVAL
from rtdecode.decode.networks.backbone import BackboneOutput
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PACK_SCHEMA, StageTable, write_description
from rtdecode.packs.sealed import seal

COMMIT = "commit"
WEIGHTS = Weights(
    prior=0.0, contrastive=1.0, anchor=4.0, mix_temperature=0.1, soft_temperature=0.1, soft_temperature_end=0.1
)
"""Without a prior, and with temperatures for tokens that are mostly noise: the published ones would follow it."""
_EXAMPLES = 3
_OPENING = 10.0
"""How much faster than other weights the way toward the network's tokens is learned."""


class ExpectedTokens(nn.Module):  # type: ignore[misc]
    """Tokens (b, TOKENS, CHANNELS) of an adapter, moved toward those that the commitment network expects.

    Nothing is committed to: classes count by their probabilities.

    Parameters
    ----------
    network : TinyPrior
    """

    def __init__(self, network: TinyPrior) -> None:
        super().__init__()
        self.network = network
        self.opening = nn.Parameter(torch.zeros(layout.TOKENS, 1))

    def forward(self, tokens: Tensor, r2: Tensor) -> Tensor:
        """Tokens, given the R2 (b, 2) of both groups."""
        seen, spatial = self.network.see(tokens, r2)
        category, colour, background, geometry = (self.network.judge(seen)[:, part] for part in layout.code_slices())
        category = category.softmax(1)
        place = geometry[:, : layout.CONTINUOUS].clamp(-1.0, 1.0)
        binary = layout.BINARY_LEVEL * torch.tanh(geometry[:, layout.CONTINUOUS :] / layout.BINARY_LEVEL)
        geometry = torch.cat([place, binary], 1) * (1 - category[:, -1:])
        code = torch.cat([category, colour.softmax(1), background.softmax(1), geometry], 1)
        expected = self.network.compose(code, self.network.fill(seen, spatial, code))
        return tokens + _OPENING * self.opening * (expected - tokens)


class TinyTunable(Tunable):
    """See the module.

    Parameters
    ----------
    pack : EnginePack
    token_mean : ndarray of shape (m,)
        What tokens are compared about.
    scale : float
        Deviation of the tokens of the calibration's pictures, over all values together.
    rank : int or None
        Of the additions; None: all weights are trained.
    """

    def __init__(self, pack: EnginePack, token_mean: NDArray[np.floating], scale: float, rank: int | None) -> None:
        super().__init__(WEIGHTS, prior_schedule(), None)
        self._pack = pack
        network = _read(pack).requires_grad_(False)
        if rank is not None:
            self._low_rank = add_low_rank(network, rank)
        self.expected = ExpectedTokens(network)
        shape = layout.TOKENS, layout.CHANNELS
        self.register_buffer("token_mean", torch.from_numpy(np.asarray(token_mean, np.float32)).reshape(shape))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("r2", torch.zeros(len(pack.description.tokens.groups)))
        if rank is None:
            self.train_all()

    def begin(self, adapter: Adapter, draw: torch.Generator) -> None:
        """See `Tunable.begin`."""
        super().begin(adapter, draw)
        with torch.no_grad():
            self.expected.opening.zero_()
            self.r2.copy_(torch.from_numpy(np.clip(adapter.group_r2, 0, 1)))

    def ridge(self, betas: Tensor, participant: int = 0) -> Tensor:  # noqa: ARG002 - one participant
        """Tokens of what the adapter decoded."""
        return betas.unflatten(1, (layout.TOKENS, layout.CHANNELS))

    def backbone(self, tokens: Tensor) -> BackboneOutput:
        """Tokens in the objective's units."""
        given = self.targets(self.expected(tokens, self.r2.expand(len(tokens), -1)))
        return BackboneOutput(given, given, None, None)

    def prior(
        self, noisy: Tensor, t: Tensor, condition: Tensor, *, keep_condition: Tensor, keep_image: Tensor
    ) -> Tensor:
        """See `Learner.prior`; there is none to train."""
        raise NotImplementedError

    def targets(self, tokens: Tensor) -> Tensor:
        """About their mean, with deviation 1."""
        return (tokens - self.token_mean) / self.scale

    def found(self, decoded: Tensor) -> Tensor:
        """See `Tunable.found`."""
        tokens = self.ridge(decoded)
        given: Tensor = self.expected(tokens, self.r2.expand(len(tokens), -1))
        return given.flatten(1)

    def errors(self, decoded: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of the tokens that pictures are searched with."""
        return (self.found(decoded) - tokens.flatten(1)).square().sum(1)

    def write_network(self, folder: Path, name: str) -> None:
        """Seal a pack with what gives the tokens that pictures are searched with."""
        network = TinyPrior()
        network.load_state_dict(merged_state(self.expected.network))
        found = ExpectedTokens(network.eval())
        with torch.no_grad():
            found.opening.copy_(self.expected.opening)
        tokens = self.token_mean.repeat(_EXAMPLES, 1, 1)
        r2 = torch.full((_EXAMPLES, len(self.r2)), 0.3)
        said = self._pack.described(TinyDescription)
        commit = said.stage(COMMIT)

        def write(draft: Path) -> None:
            given = {"tokens": tokens, "r2": r2}
            export_stage(found, given, ["retrieval"], draft / f"{RETRIEVAL}.onnx")
            save_file(self._pack.tensors(said.prototypes), draft / said.prototypes)
            table = StageTable(
                file=f"{RETRIEVAL}.onnx",
                inputs={key: commit.inputs[key] for key in given},
                outputs={"retrieval": commit.inputs["tokens"]},
            )
            own = structs.replace(said, name=name, stages={RETRIEVAL: table}, report={})
            write_description(draft, own)

        seal(folder, PACK_SCHEMA, write)


def _read(pack: EnginePack) -> TinyPrior:
    """Read the commitment network from the ONNX file of a pack.

    Raises
    ------
    EngineError
        The file has other weights than the network.
    """
    path = pack.folder / pack.described(TinyDescription).stage(COMMIT).file
    kept = {
        tensor.name.removesuffix("_half"): torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    network = TinyPrior().eval()
    wanted = network.state_dict()
    if wrong := [name for name, value in wanted.items() if name not in kept or kept[name].shape != value.shape]:
        raise EngineError(f"{path}: expected the weights of the tiny pack's commitment network, found no {wrong[0]}")
    network.load_state_dict({name: kept[name] for name in wanted})
    assert isinstance(network, TinyPrior)
    return network
