"""Features of a film: what each moment sees, which states are taken, and the same bytes after a kill."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.film.extraction import PART, Extraction, assemble, extract
from engines.film.features import FilmFeatures, open_features
from engines.film.media import SOUND_HZ, FilmFile
from engines.film.states import Context, QwenBackbone, States, audio_of, vision_of, word_of
from engines.film.transcript import Word, read_transcript
from rtdecode.errors import SettingsError
from rtdecode.packs.sealed import listed

LAYERS, VALUES = 3, 4
WORDS = [
    Word(onset_s=0.1, duration_s=0.3, text="one"),
    Word(onset_s=0.9, duration_s=1.2, text="two"),
    Word(onset_s=1.9, duration_s=0.4, text="three"),
    Word(onset_s=4.0, duration_s=0.0, text="four"),
    Word(onset_s=9.8, duration_s=0.4, text="beyond"),
]
ORDER = Extraction(film="f", words=WORDS, has_transcript=True)


class FakeMedia:
    """Pictures of one colour, which counts; sound that tells its time."""

    duration_s = 6.3

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent

    def sound(self) -> NDArray[np.float32] | None:
        return None if self._silent else np.arange(int(self.duration_s * SOUND_HZ), dtype=np.float32) / SOUND_HZ

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        for number in range(13):
            yield np.full((2, 2, 3), number, np.uint8)


class Killed(BaseException):
    pass


class FakeBackbone:
    """States that follow from the context alone, and remember it."""

    layers, values, dtype, identity = LAYERS, VALUES, torch.bfloat16, "fake"

    def __init__(self, dies_at: int = -1) -> None:
        self.seen: list[Context] = []
        self._dies_at = dies_at

    def states(self, context: Context) -> States:
        if len(self.seen) == self._dies_at:
            raise Killed
        self.seen.append(context)
        heard = 0 if context.sound is None else len(context.sound)
        seed = hash((int(context.pictures.sum()), heard, len(context.words))) % 2**31
        tokens = torch.randn(LAYERS, 12, VALUES, generator=torch.Generator().manual_seed(seed))
        heard_at = torch.arange(4, 9) if context.sound is not None else torch.arange(0)
        return States(hidden=tokens, video=torch.arange(4), audio=heard_at, patches=2, last_word=2)


def extracted(out: Path, backbone: FakeBackbone | None = None, media: FakeMedia | None = None) -> FilmFeatures:
    backbone, media = backbone or FakeBackbone(), media or FakeMedia()
    extract(ORDER, media, backbone, out)
    assemble(ORDER, media, backbone, out)
    return open_features(out)


def test_a_moment_knows_nothing_of_what_comes_after_it(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    extracted(tmp_path / "f", backbone)
    assert len(backbone.seen) == 13 + 4  # the last word begins after the film
    heard = {len(one.sound): one for one in backbone.seen if one.sound is not None and len(one.sound) % 8000 == 0}
    assert sorted(heard) == [8000 * (number + 1) for number in range(12)]
    for number, context in enumerate(heard[length] for length in sorted(heard)):
        cutoff_s = (number + 1) / 2
        assert context.sound is not None
        assert context.sound[-1] == pytest.approx(cutoff_s, abs=1e-3)
        assert context.pictures.max() == number
        assert len(context.pictures) == min(number + 1, 8)
        said = [word.text for word in sorted(WORDS, key=lambda word: word.end_s) if word.end_s <= cutoff_s]
        assert context.words == said


def test_words_are_summed_into_the_half_seconds_that_they_overlap(tmp_path: Path) -> None:
    found = extracted(tmp_path / "f")
    text = found.stretch("text", range(13))
    backbone, media = FakeBackbone(), FakeMedia()
    by_word = {}
    for place, word in enumerate(sorted(WORDS, key=lambda word: word.end_s)[:4]):
        shown = np.stack(list(media.pictures()))
        count = max(int(np.ceil(word.end_s * 2)), 1)
        sound = media.sound()
        assert sound is not None
        context = Context(
            pictures=shown[max(count - 8, 0) : count],
            sound=sound[: int(word.end_s * SOUND_HZ)],
            words=[one.text for one in sorted(WORDS, key=lambda word: word.end_s)[: place + 1]],
        )
        by_word[word.text] = word_of(backbone.states(context)).to(torch.bfloat16).float()
    expected = torch.zeros(13, LAYERS, VALUES)
    for text_of, frames in {"one": [0], "two": [2, 3], "three": [4], "four": [8]}.items():
        for frame in frames:
            expected[frame] += by_word[text_of]
    torch.testing.assert_close(text.transpose(0, 1), expected.to(torch.bfloat16).float())
    assert (text[:, 12] == 0).all()


def test_states_of_a_moment_are_those_that_the_published_code_takes() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(LAYERS, 40, VALUES, generator=rng)
    video, audio = torch.tensor([1, 2, 3, 4, 12, 13, 14, 15]), torch.tensor([*range(5, 12), *range(16, 30)])
    states = States(hidden=hidden, video=video, audio=audio, patches=4, last_word=3)
    naive = torch.stack([torch.stack([layer[place] for place in (12, 13, 14, 15)]).mean(0) for layer in hidden])
    torch.testing.assert_close(vision_of(states), naive)
    torch.testing.assert_close(word_of(states), hidden[:, 37:40].mean(1))
    for cutoff_s in (0.5, 1.0, 4.0, 60.0, 300.0):
        steps = round(2 * cutoff_s)
        resampled = torch.nn.functional.interpolate(
            torch.arange(len(audio), dtype=torch.float32)[None, None], size=steps, mode="nearest"
        )[0, 0]
        torch.testing.assert_close(audio_of(states, cutoff_s), hidden[:, audio[int(resampled[-1])]])


def test_a_film_without_sound_or_transcript_says_so(tmp_path: Path) -> None:
    media = FakeMedia(silent=True)
    order = Extraction(film="f")
    extract(order, media, FakeBackbone(), tmp_path / "f")
    assemble(order, media, FakeBackbone(), tmp_path / "f")
    found = open_features(tmp_path / "f")
    assert found.present == ("vision",)
    assert found.about.absent == {"audio": "the film has no sound", "text": "no transcript was given"}


@pytest.mark.parametrize("seed", range(10))
def test_after_a_kill_at_any_moment_the_bytes_are_the_same(tmp_path: Path, seed: int) -> None:
    whole = extracted(tmp_path / "whole" / "f")
    out, rng = tmp_path / "killed" / "f", random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        with pytest.raises(Killed):
            extract(ORDER, FakeMedia(), FakeBackbone(dies_at=rng.randint(0, 4)), out)
        torn = rng.choice(list(out.with_name(f"f{PART}").glob("*.bin")))
        with torn.open("ab") as stream:  # a write that the kill has broken off
            stream.write(rng.randbytes(rng.randint(1, LAYERS * VALUES * 2 - 1)))
    again = FakeBackbone()
    found = extracted(out, again)
    assert found.identity == whole.identity
    assert listed(found.folder) == listed(whole.folder)
    assert 0 < len(again.seen) <= 17
    assert not out.with_name(f"f{PART}").exists()


def test_after_a_real_kill_the_bytes_are_the_same(tmp_path: Path) -> None:
    script = (
        "import os, signal, pathlib; from tests.unit import test_film_extraction as t\n"
        "class Dies(t.FakeBackbone):\n"
        "    def states(self, context):\n"
        "        if len(self.seen) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().states(context)\n"
        f"t.extract(t.ORDER, t.FakeMedia(), Dies(), pathlib.Path({str(tmp_path / 'f')!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9
    again = FakeBackbone()
    found = extracted(tmp_path / "f", again)
    assert len(again.seen) == 17 - 7
    assert found.identity == extracted(tmp_path / "whole" / "f").identity


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_several_processes_make_the_same_features(tmp_path: Path, processes: int) -> None:
    out, media = tmp_path / "f", FakeMedia()
    for process in range(processes):
        with pytest.raises(SettingsError, match=r"expected \d+ moments in \w+-\d\.bin, got 0"):
            assemble(ORDER, media, FakeBackbone(), out, processes=processes)
        extract(ORDER, media, FakeBackbone(), out, process=process, processes=processes)
    assemble(ORDER, media, FakeBackbone(), out, processes=processes)
    assert open_features(out).identity == extracted(tmp_path / "one" / "f").identity


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        extract(ORDER, FakeMedia(), FakeBackbone(dies_at=3), tmp_path / "f")
    other = Extraction(film="f", words=WORDS, has_transcript=True, sources={"film": "another"})
    with pytest.raises(SettingsError, match="was begun with another sources"):
        extract(other, FakeMedia(), FakeBackbone(), tmp_path / "f")
    with pytest.raises(SettingsError, match="was begun with another processes"):
        extract(ORDER, FakeMedia(), FakeBackbone(), tmp_path / "f", processes=2)


# the model ------------------------------------------------------------------------------------------------------


def tiny_qwen() -> QwenBackbone:
    """The published class with a tokenizer of letters, three layers, and random weights."""
    transformers: Any = pytest.importorskip("transformers")
    if not hasattr(transformers, "Qwen3OmniMoeThinkerForConditionalGeneration"):
        pytest.skip("the installed transformers has no Qwen3-Omni")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

    special = {
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    words = ["[UNK]", *special.values(), "one", "two", "three", "four", "beyond", "-"]
    tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="[UNK]", pad_token="[UNK]", extra_special_tokens=special
    )
    sides: dict[str, Any] = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    bounds = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}
    processor = transformers.Qwen3OmniMoeProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**sides),
        video_processor=transformers.Qwen2VLVideoProcessor(**sides, size=bounds, cap_pixels_per_frame=False),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128),
        tokenizer=tokenizer,
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen3OmniMoeThinkerConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_parameters": rope, **experts,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 4, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        audio_config={
            "num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "d_model": 16, "output_dim": 32, "downsample_hidden_size": 8,
        },
        audio_token_id=tokenizer.audio_token_id,
        video_token_id=tokenizer.video_token_id,
        image_token_id=tokenizer.image_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config).eval()
    return QwenBackbone(model, processor, "tiny")


class Coloured(FakeMedia):
    duration_s = 3.0

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        rng = np.random.default_rng(0)
        for _ in range(6):
            yield rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_published_class_gives_the_tokens_that_are_taken(tmp_path: Path) -> None:
    backbone = tiny_qwen()
    assert backbone.layers == 4
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    context = Context(
        pictures=pictures, sound=rng.standard_normal(3 * SOUND_HZ).astype(np.float32), words=["one", "two-three"]
    )
    states = backbone.states(context)
    assert len(states.video) == 3 * states.patches  # three steps of two pictures
    assert np.sqrt(states.patches) % 1 == 0  # of square pictures
    assert len(states.audio) == 39  # 13 a second
    assert states.last_word == 3  # two, -, three
    assert len(states.hidden) == 4
    other = Context(pictures=pictures, sound=context.sound, words=["one", "four"])
    same = backbone.states(other)  # causal: what comes before the last word does not know it
    torch.testing.assert_close(vision_of(same), vision_of(states))
    assert not torch.allclose(word_of(same), word_of(states))
    changed = pictures.copy()
    changed[4:] = 0  # the last step
    moved = backbone.states(Context(pictures=changed, sound=context.sound, words=[]))
    assert not torch.allclose(vision_of(moved), vision_of(states))
    quiet = backbone.states(Context(pictures=pictures, sound=None, words=[]))
    assert len(quiet.audio) == 0
    assert (audio_of(quiet, 3.0) == 0).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_films_features_by_the_published_class_are_those_moment_by_moment(tmp_path: Path) -> None:
    backbone, media = tiny_qwen(), Coloured()
    order = Extraction(film="f", words=WORDS[:2], has_transcript=True)
    extract(order, media, backbone, tmp_path / "f")
    assemble(order, media, backbone, tmp_path / "f")
    found = open_features(tmp_path / "f")
    pictures, sound = np.stack(list(media.pictures())), media.sound()
    assert sound is not None
    states = backbone.states(Context(pictures=pictures[:5], sound=sound[: int(2.5 * SOUND_HZ)], words=["one", "two"]))
    torch.testing.assert_close(found.stretch("vision", range(4, 5))[:, 0], vision_of(states))
    native = len(states.audio)
    torch.testing.assert_close(
        found.stretch("audio", range(4, 5))[:, 0], states.hidden[:, states.audio[4 * native // 5]].float()
    )


# files ----------------------------------------------------------------------------------------------------------


def test_transcripts_are_read_from_tables_and_subtitles(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("onset\tduration\tword\n2.0\t.5\tlater\n0.5\t0.25\thello\n1\t1\t \n")
    assert read_transcript(tmp_path / "a.tsv") == [
        Word(onset_s=0.5, duration_s=0.25, text="hello"),
        Word(onset_s=2.0, duration_s=0.5, text="later"),
    ]
    (tmp_path / "a.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,500\n<i>good</i> old\ntimes\n\n2\n00:01:00.5 --> 00:01:01,0\nx\n"
    )
    found = read_transcript(tmp_path / "a.srt")
    assert [(word.onset_s, word.duration_s, word.text) for word in found] == [
        (1.0, 0.5, "good"), (1.5, 0.5, "old"), (2.0, 0.5, "times"), (60.5, 0.5, "x"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "begin\tword\n1\tx\n", "expected columns onset, duration and word"),
        ("a.tsv", "onset\tduration\tword\n1\tlong\tx\n", r"line 2: expected onset and duration in seconds"),
        ("a.srt", "1\nhello\n", "cue 1: expected a line 00:00:01,000 --> 00:00:02,000"),
        ("a.txt", "hello", r"expected a \.tsv or \.srt file, got a\.txt"),
    ],
)
def test_a_transcript_that_is_none_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_transcript(tmp_path / name)


def film_file(path: Path, *, sound: bool) -> Path:
    """Three seconds at 10 pictures a second, each as bright as its number; a tone of 440 Hz."""
    av: Any = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[film]'")
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=16000) if sound else None
        for number in range(30):
            picture = np.full((64, 64, 3), 8 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * SOUND_HZ) / SOUND_HZ)
            frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = SOUND_HZ
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


@pytest.mark.parametrize("sound", [True, False])
def test_pictures_and_sound_of_a_file(tmp_path: Path, sound: bool) -> None:
    media = FilmFile(film_file(tmp_path / "film.mp4", sound=sound))
    assert media.duration_s == pytest.approx(3.0, abs=0.11)
    brightness = [float(picture.mean()) for picture in media.pictures()]
    assert brightness[:6] == pytest.approx([8 * 5 * number for number in range(6)], abs=6)
    heard = media.sound()
    if not sound:
        assert heard is None
        return
    assert heard is not None
    assert len(heard) == pytest.approx(3 * SOUND_HZ, abs=3000)
    spectrum = np.abs(np.fft.rfft(heard[: 2 * SOUND_HZ]))
    assert np.argmax(spectrum) / 2 == pytest.approx(440, abs=2)


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install '.[film]'")
    (tmp_path / "film.mp4").write_text("not a film")
    with pytest.raises(SettingsError, match="expected a film that FFmpeg reads"):
        FilmFile(tmp_path / "film.mp4")
