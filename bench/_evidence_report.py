"""What `bench/evidence.py` found: its tables, and the goals that were missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _report import print_table

NOMINAL = 0.05
EMPTY = ("response without content", "no response", "other participant", "moved, without content")
"""Nothing of them should be supported; in "wrong picture" a picture is, but not the one announced."""


def report(figures: Mapping[str, Any]) -> None:
    """Print what `summarise` of the bench returned."""

    def share(found: Mapping[str, Any]) -> str:
        low, high = found["interval"]
        return f"{found['rate']:.1%} [{low:.1%}-{high:.1%}]"

    for kind, strata in figures["strata"].items():
        print_table(
            f"Evidence from {kind}; 95 % Wilson intervals, chance of a category 12.5 %",
            [
                "stratum",
                "trials",
                "supported",
                "at any beta",
                "by participant",
                "the highest by chance",
                "accuracy",
                "mean evidence",
                "of right ones",
                "covered",
                "size",
                "announced fits at .05",
            ],
            [
                [
                    name,
                    found["supported"]["n"],
                    share(found["supported"]),
                    share(found["ever_supported"]),
                    f"{min(found['by_participant']):.0%}-{max(found['by_participant']):.0%}",
                    f"{found['by_participant_p']:.3f}",
                    f"{found['accuracy']:.1%}",
                    f"{found['evidence']:.1%}",
                    share(found["right_supported"]),
                    share(found["covered"]),
                    f"{found['set_size']:.1f}",
                    share(found["disagreement_rejected"]),
                ]
                for name, found in strata.items()
            ],
        )
    attributes = list(figures["strata"]["null trials"]["normal"]["attributes"])
    print_table(
        "Attributes of supported trials, evidence from null trials; all trials of a stratum count",
        ["stratum", *attributes, "right where the category is supported", "where it is not, but the trial is"],
        [
            [
                name,
                *(share(found["attributes"][one]) for one in attributes),
                *("-" if found[one] is None else share(found[one]) for one in ("right_named", "right_guessed")),
            ]
            for name, found in figures["strata"]["null trials"].items()
        ],
    )
    sessions = figures["claims"][EMPTY[0]]["announced"]["n"]
    print_table(
        f"Sessions ever claimed to decode, {sessions} of each stratum, looking after every trial",
        ["stratum", "truth-free", "announced"],
        [[name, share(found["truth-free"]), share(found["announced"])] for name, found in figures["claims"].items()],
    )
    print_table(
        "Alarm of content",
        ["stratum", "rings in", "lowest mean rank of 20 trials, by participant"],
        [
            [name, f"{found['rung']} of {found['of']}", ", ".join(f"{rank:.2f}" for rank in found["lowest_mean_rank"])]
            for name, found in figures["alarm"].items()
        ],
    )
    covered = [share(one) for one in figures["covered_by_category"]]
    print(f"\nCovered, ordinary trials of each category, both calibrations: {', '.join(covered)}")
    uniform = figures["uniformity"]
    print(
        f"Uniformity without content: Kolmogorov-Smirnov {uniform['statistic']:.3f}, p = {uniform['p']:.3f} "
        f"({uniform['if_independent']:.3f} if trials of a participant did not share nulls; that test rejects "
        f"{uniform['independent_rejects_exact']:.0%} of exact ones)"
    )
    for name, found in figures["trials_to_claim"].items():
        print(
            f"Ordinary sessions claimed, {name}: {found['claimed']} of {found['of']}, median trial {found['median']:g}"
        )


def missed(figures: Mapping[str, Any]) -> list[str]:
    """Return what the goals are not met in."""
    found: list[str] = []
    by_null = figures["strata"]["null trials"]
    for name in EMPTY:
        if name in by_null and by_null[name]["supported"]["interval"][0] > NOMINAL:
            found.append(f"false support, {name}: {by_null[name]['supported']['rate']:.1%}")
        if name in by_null and by_null[name]["by_participant_p"] < NOMINAL:
            highest = max(by_null[name]["by_participant"])
            found.append(f"false support, {name}, of a participant: {highest:.1%}")
    for kind, goal in (("null trials", 0.65), ("repeats", 0.40)):
        power = figures["strata"][kind]["normal"]["right_supported"]["rate"]
        if power < goal:
            found.append(f"right trials supported, {kind}: {power:.1%}, goal {goal:.0%}")
    if figures["uniformity"]["p"] < NOMINAL:
        found.append(f"uniformity without content: p = {figures['uniformity']['p']:.3f}")
    for name, of_stratum in figures["claims"].items():
        for kind, rates in of_stratum.items():
            if kind == "truth-free" and name == "wrong picture":
                continue  # a picture is in these responses: the session does decode
            if rates["rate"] > NOMINAL:
                found.append(f"claims, {kind}, {name}: {rates['rate']:.1%}")
    normal = by_null["normal"]
    if abs(normal["evidence"] - normal["accuracy"]) > 0.05:
        found.append(f"mean evidence {normal['evidence']:.1%} at accuracy {normal['accuracy']:.1%}")
    covered = [one["rate"] for one in figures["covered_by_category"]]
    if any(abs(one - 0.9) > 0.03 for one in covered):
        found.append("coverage by category: " + ", ".join(f"{one:.0%}" for one in covered))
    return found
