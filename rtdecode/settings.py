"""One TOML file becomes one frozen `Settings`; nothing else reads configuration."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from rtdecode.errors import SettingsError
from rtdecode.pool_settings import pool_problems
from rtdecode.protocol_file import follow
from rtdecode.publish_settings import PublishSettings, publish_problems
from rtdecode.score_settings import (
    BlindingSettings,
    FeedbackSettings,
    FilmSettings,
    blinding_problems,
    feedback_problems,
    film_problems,
)
from rtdecode.sections import Count, Name, NonNegative, Positive, name_or_folder, read_toml, section_of

RepetitionTime = Annotated[float, Meta(gt=0, le=30)]
Row = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Who and where.

    Attributes
    ----------
    participant, session : str
        BIDS labels (letters and digits).
    output : Path
        Folder in which the session folder is made.
    seed : int
        Seeds everything that draws random numbers.
    protocol : Path or None
        Protocol of the experiment: how many runs calibrate and ``[feedback]`` are then as it says, and its hash is in
        every message.
    """

    participant: Name
    session: Name = "01"
    output: Path = Path("sessions")
    seed: Annotated[int, Meta(ge=0)] = 0
    protocol: Path | None = None


class SeriesRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Takes series in or leaves them out; all that is given must fit.

    Attributes
    ----------
    number : int or None
        SeriesNumber.
    description : str or None
        Shell pattern of the description of the series or the name of its protocol, case ignored; of NIfTI, of the
        file's name without the number of the volume.
    image_type : str or None
        One of the words of ImageType.
    use : bool
        Whether series that fit become runs.
    """

    number: int | None = None
    description: str | None = None
    image_type: str | None = None
    use: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerSettings:
    """The export folder and what arrives in it.

    Attributes
    ----------
    export_dir : Path
        Folder the scanner writes to.
    poll_s : float
        Longest time between two looks at the folder, seconds; native events only hasten a look.
    n_dummy : int
        Volumes at the start of each run that are acquired before the steady state.
    dummies_exported : bool
        Whether those volumes arrive as files (they are then recorded, not used).
    gap_timeout_s : float
        How long an absent volume is waited for, once a later one is there, before it counts as missing.
    t_r_s : float or None
        Repetition time in seconds where the files do not tell; otherwise it must agree with them.
    affine : tuple of three rows of four float, or None
        Voxel indices to RAS+ mm where the files do not tell (real-time dumps of Philips).
    watch : {"auto", "native", "polling"}
        Native: file events hasten the next look. Polling: a look every `poll_s`, for network mounts, which have no
        events. Auto: polling where the folder is seen to be on a network mount.
    series : tuple of SeriesRule
        Which series become runs: the first rule that fits decides. Where none fits, a series is left out if there
        is a rule with ``use = true``; else if its files tell that it is something else than BOLD.
    echo : int
        The echo that is used where echoes are numbered.
    first_instance : int or None
        Number of the first volume of a series, where the files count from another one than their format does.
    n_volumes : int or None
        Volumes of each run as exported, where the files do not announce them: a last volume that is lost is then
        known at once.
    stopped_after_s : float
        A run without a volume for so long has stopped: each trial that is due by the clock gets its last word, from the
        volumes there are or ``invalid``, and keeps it if the run goes on.
    """

    export_dir: Path
    poll_s: Positive = 0.05
    n_dummy: Annotated[int, Meta(ge=0)] = 0
    dummies_exported: bool = True
    gap_timeout_s: Positive = 5.0
    t_r_s: RepetitionTime | None = None
    affine: tuple[Row, Row, Row] | None = None
    watch: Literal["auto", "native", "polling"] = "auto"
    series: tuple[SeriesRule, ...] = ()
    echo: Count = 1
    first_instance: Annotated[int, Meta(ge=0)] | None = None
    n_volumes: Count | None = None
    stopped_after_s: Positive = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateSettings:
    """Registration and single-trial GLM.

    Attributes
    ----------
    registration : {"rigid", "off"}
        Whether volumes are brought to the reference; off for data that are motion-corrected already.
    mask : Path or "auto"
        NIfTI in the space of the reference, or found from the reference volume.
    confounds : {"6", "24", "none"}
        Motion regressors in the GLM: the six parameters, these with their changes and the squares of both, or none.
    motion_file : Path or None
        Text files of six columns named ``run-<n>.txt`` in this folder replace the estimated motion.
    high_pass_hz : float
        Drift cosines up to this frequency.
    hrf : {"glover", "spm"}
        Canonical haemodynamic response.
    voxel_hrf : bool
        Whether earlier runs choose one of a library of 20 stretched responses for each voxel. Loses accuracy where
        slow noise is strong: see ``bench/simulated_betas.py``.
    slice_timing : {"middle", "slices"}
        One moment stands for all of a volume, or each voxel's regressors are taken when its slice is acquired.
    shrinkage : {"learned", "none"}
        Learned: betas are deviations from the mean response, shrunk by scales that earlier runs taught.
        None: whole responses, least squares.
    voxel_shrinkage : bool
        Whether earlier runs put each voxel into one of five bins of shrinkage (with ``shrinkage = "learned"``).
    single_trial : {"lsa", "lss"}
        All trials at once, or each against the sum of the others; the latter gives whole responses.
    autocorrelation : {"pooled", "voxel"}
        Pooled: none with ``shrinkage = "none"``, else .3. Voxel: earlier runs choose one of eight values for each.
    response_lag : {"learned", "none"}
        Whether a constant delay between announced onsets and responses is learned from earlier runs (with
        ``shrinkage = "learned"``).
    revise_at_s : tuple of float
        Seconds after onset (end of the last volume used) at which a trial's beta is published.
    final_at_s : float
        The same for its last beta.
    censor_fd_mm : float
        Volumes with more framewise displacement than this are left out of the GLM, unless the head is back from a
        jerk, no further than this from the last volume in use (0.9: Siegel et al., Human Brain Mapping 35, 2014).
    regions : table of str to Path
        NIfTI masks in the space of the reference: each volume's message tells the percent signal change of each,
        for neurofeedback.
    parcels : table of str to Path
        NIfTI label images in the space of the reference (0 where there is no parcel): the same for each parcel.
    """

    registration: Literal["rigid", "off"] = "rigid"
    mask: Path | Literal["auto"] = "auto"
    confounds: Literal["6", "24", "none"] = "6"
    motion_file: Path | None = None
    high_pass_hz: NonNegative = 0.008
    hrf: Literal["glover", "spm"] = "glover"
    voxel_hrf: bool = False
    slice_timing: Literal["middle", "slices"] = "middle"
    shrinkage: Literal["learned", "none"] = "learned"
    voxel_shrinkage: bool = False
    single_trial: Literal["lsa", "lss"] = "lsa"
    autocorrelation: Literal["pooled", "voxel"] = "pooled"
    response_lag: Literal["learned", "none"] = "learned"
    revise_at_s: tuple[Positive, ...] = (5.0, 6.5)
    final_at_s: Positive = 8.0
    censor_fd_mm: Positive = 0.9
    regions: Mapping[str, Path] = field(default_factory=dict)
    parcels: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Engines and what they are asked.

    Attributes
    ----------
    pack : str
        Name of an installed engine pack, or its folder.
    bundle : Path or None
        ParticipantBundle to decode with from the start; None waits for a calibration.
    stimuli : Path or None
        Folder of pictures named by stimulus: calibration targets and, those that calibration does not show, the
        retrieval pool; a MindEye2 pack wants ``embeddings.safetensors`` and ``categories.json`` beside them. None:
        stimulus identifiers are the pack's categories and its prototypes are the targets.
    pool : Path or None
        File of ``engines embed``, or folder of ``engines pool build``: each embedding names the most similar pictures.
    pool_service : str
        Address of a ``knn-service`` of clip-retrieval to search instead; what is decoded is sent to it.
    pool_timeout_s : float
        What it has to answer in; scores wait as long, and without an answer no picture is named.
    pool_tokens : Path or None
        File of ``rtdecode engines embed``: the 16 pictures that a pool finds are told in the order of their tokens.
    backend : {"auto", "onnx", "torch", "tensorrt"}
        What runs the networks; ``auto`` is told in the log and by ``rtdecode check``.
    threads : int
        CPU threads of the decode worker.
    prior_steps, unclip_steps : int or None
        Evaluations of the prior and steps of the unCLIP a picture (tiny, MindEye1 and MindEye2); None takes what the
        pack was made for.
    unclip_guidance : float or None
        How far pictures of MindEye2 and MindEye1 are led away from what stands for nothing, 1 not at all; None takes
        what the pack was made for.
    weights_gb : float or None
        Weights of a MIRAGE (imagery) pack that the device holds at once, where torch runs it, in 10^9 bytes: others
        wait in the host's memory until they are used. None: all stay on the device.
    best_of : int
        Pictures drawn of a trial; that one is shown which the pack's embedder finds most like what the brain said.
    finish : {"none", "blend", "refine"}
        What becomes of a picture: nothing; mixed with the blurry one of the low-level branch (256 px); or refined with
        its caption, then mixed where there is a blurry one. The picture as it was drawn is sent before, as `Preview`.
    undecoded_conditions : list of str
        Trials of these conditions are modelled, so that they are told apart from others, and not decoded: the cue of
        an imagery trial.
    average_repeats : bool
        Picture, caption and embedding of a trial are made of the mean of the betas of its stimulus so far, where it was
        shown before and decoded; ``shown`` of their messages says of how many. Its score and evidence stay those of
        the trial alone. Trials of calibration runs are no part of it.
    """

    pack: str = "tiny"
    bundle: Path | None = None
    stimuli: Path | None = None
    pool: Path | None = None
    pool_service: str = ""
    pool_timeout_s: Positive = 1.0
    pool_tokens: Path | None = None
    backend: Literal["auto", "onnx", "torch", "tensorrt"] = "auto"
    threads: Count = 1
    prior_steps: Count | None = None
    unclip_steps: Count | None = None
    unclip_guidance: Positive | None = None
    weights_gb: Positive | None = None
    best_of: Count = 1
    finish: Literal["none", "blend", "refine"] = "none"
    undecoded_conditions: tuple[str, ...] = ()
    average_repeats: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What the first runs of a visit are for.

    Attributes
    ----------
    runs : int
        Runs 1 to this one calibrate; later ones are decoded.
    leave_out : {"trial", "run"}
        What is held out together: repeats of a stimulus are never split.
    null_stimuli : list of str
        Stimuli or conditions without content (a blank frame, a phase-scrambled texture). The decoder does not learn
        from their trials; 40 to 60 of them, one after another, teach evidence when to say no.
    group_prior : Path or None
        File of ``rtdecode prior learn``: what earlier participants taught of where in the brain which pictures are
        answered to. Held-out trials tell how far it is trusted.
    earlier_session : Path or None
        Session folder of an earlier calibration of this participant, whose trials are learned from again: about ten
        new ones then do, where voxels have changed since. Needs the bundle of that session as `decode.bundle`.
    bundle_every : int
        Trials after which a decoder of those so far is handed to the session, again and again: calibration goes on,
        and each trial that comes is decoded by the last one. 0: one decoder, at the end.
    stop : {"runs", "advice"}
        When calibration ends: after the last of its runs, or after an earlier one by whose end more trials are not
        worth their time.
    """

    runs: Annotated[int, Meta(ge=0)] = 6
    leave_out: Literal["trial", "run"] = "trial"
    null_stimuli: tuple[str, ...] = ("null",)
    group_prior: Path | None = None
    earlier_session: Path | None = None
    bundle_every: Annotated[int, Meta(ge=0)] = 0
    stop: Literal["runs", "advice"] = "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a session; see the classes of its sections."""

    session: SessionSettings
    scanner: ScannerSettings
    estimate: EstimateSettings = field(default_factory=EstimateSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    film: FilmSettings = field(default_factory=FilmSettings)
    feedback: FeedbackSettings = field(default_factory=FeedbackSettings)
    blinding: BlindingSettings = field(default_factory=BlindingSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)


def load_settings(path: Path) -> Settings:
    """Read a settings file.

    Relative paths in it are relative to its folder.

    Parameters
    ----------
    path : Path
        TOML file.

    Raises
    ------
    SettingsError
        Lists every problem found, each with its path in the file.
    """
    return parse(read_toml(path), root=path.parent)


def load_estimate(path: Path) -> EstimateSettings:
    """Read the section ``[estimate]`` of a settings file, whatever else is or is not in it.

    Raises
    ------
    SettingsError
        Lists every problem found in that section.
    """
    problems: list[str] = []
    found: EstimateSettings | None = section_of(
        EstimateSettings, read_toml(path).get("estimate", {}), "$.estimate", path.parent, problems
    )
    if found is None:
        raise SettingsError(problems)
    return found


def load_scanner(path: Path) -> ScannerSettings:
    """Do as `load_estimate` with the section ``[scanner]``; the export folder may be left out."""
    problems: list[str] = []
    raw = read_toml(path).get("scanner", {})
    if isinstance(raw, Mapping):
        raw = {"export_dir": ".", **raw}
    found: ScannerSettings | None = section_of(ScannerSettings, raw, "$.scanner", path.parent, problems)
    if found is None:
        raise SettingsError(problems)
    return found


def parse(raw: Mapping[str, Any], *, root: Path) -> Settings:
    """Validate `raw` (parsed TOML); paths are taken relative to `root`.

    Raises
    ------
    SettingsError
        Lists every problem found.
    """
    problems: list[str] = []
    sections: dict[str, Any] = {}
    hints = typing.get_type_hints(Settings)
    for name in raw.keys() - hints.keys():
        problems.append(f"$.{name}: no such section; expected one of {', '.join(hints)}")
    for spec in fields(Settings):
        section = section_of(hints[spec.name], raw.get(spec.name, {}), f"$.{spec.name}", root, problems)
        if section is not None:
            sections[spec.name] = section
    session: SessionSettings | None = sections.get("session")
    if session is not None and session.protocol is not None:
        problems += follow(session.protocol, raw, sections)
    estimate: EstimateSettings | None = sections.get("estimate")
    if estimate is not None and any(s >= estimate.final_at_s for s in estimate.revise_at_s):
        problems.append(
            f"$.estimate.revise_at_s: expected times before final_at_s = {estimate.final_at_s}, "
            f"got {list(estimate.revise_at_s)}"
        )
    decode: DecodeSettings | None = sections.get("decode")
    if estimate is not None and decode is not None and decode.bundle is not None and estimate.mask != "auto":
        problems.append(f"$.estimate.mask: expected none beside decode.bundle, which has its own, got {estimate.mask}")
    calibration: CalibrationSettings | None = sections.get("calibration")
    if calibration is not None and calibration.earlier_session is not None and (decode is None or not decode.bundle):
        problems.append(
            "$.calibration.earlier_session: expected the bundle of that session as decode.bundle, so that betas are of "
            "the same voxels; got none"
        )
    if estimate is not None:
        problems += film_problems(sections.get("film", FilmSettings()), estimate.parcels)
        problems += feedback_problems(sections.get("feedback", FeedbackSettings()), estimate.regions)
    if decode is not None:
        sections["decode"] = replace(decode, pack=name_or_folder(decode.pack, root))
        problems += pool_problems(decode.pool_service, decode.pool, decode.pool_tokens)
    if decode is not None and decode.average_repeats and raw.get("feedback", {}).get("score") == "similarity":
        problems.append(
            "$.decode.average_repeats: expected false beside the score similarity, which is of single trials"
        )
    follows = session is not None and session.protocol is not None
    problems += blinding_problems(sections.get("blinding", BlindingSettings()), protocol=follows)
    scanner: ScannerSettings | None = sections.get("scanner")
    if scanner is not None and scanner.affine is not None:
        axes = np.array(scanner.affine)[:, :3]
        if not np.isfinite(scanner.affine).all() or abs(np.linalg.det(axes)) < 1e-6:
            problems.append(f"$.scanner.affine: expected three independent voxel axes, got {axes.tolist()}")
    publish: PublishSettings | None = sections.get("publish")
    if publish is not None:
        problems += publish_problems(publish)
    if problems:
        raise SettingsError(problems)
    return Settings(**sections)
