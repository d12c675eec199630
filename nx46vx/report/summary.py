"""The short report that a person reads first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nx46vx.report.profile import profile_lines


def report_markdown(report: Mapping[str, Any]) -> str:
    """``report.md`` from ``report.json``'s value."""
    hold, val, masks, coverage = report["holdout"], report["validation"], report["masks"], report["coverage"]
    best = report["best_candidate"]
    ratio = hold["ensemble_f_half"] / hold["intensity_f_half"] if hold["intensity_f_half"] else float("inf")
    lines = [
        "# NX46-VX run" + (" (REDUCED)" if report["reduced"] else "") + ("" if report["complete"] else " (PARTIAL)"),
        "",
        *(
            []
            if report["complete"]
            else [
                f"Stopped by {report['stopped_by']} after {report['candidates_complete']} of "
                f"{report['candidates_planned']} candidates and {report['iterations_done']} of "
                f"{report['iterations_planned']} iterations; the submission holds the best ensemble so far. The same "
                "command continues.",
                "",
            ]
        ),
        f"{report['candidates']} candidates over {report['meta_neurons']} meta-neurons, "
        f"{report['iterations_per_candidate']} iterations each; largest optimality gap "
        f"{report['worst_optimality_gap']:.2e}.",
        "",
        "| | validation | hold-out |",
        "|---|---|---|",
        f"| voxel F0.5, ensemble | {val['ensemble_f_half']:.4f} | {hold['ensemble_f_half']:.4f} |",
        f"| voxel F0.5, best intensity threshold | | {hold['intensity_f_half']:.4f} |",
        f"| average precision, ensemble | {val['ensemble_average_precision']:.4f} | "
        f"{hold['ensemble_average_precision']:.4f} |",
        f"| average precision, best single member | {val['best_member_average_precision']:.4f} | "
        f"{hold['best_member_average_precision']:.4f} |",
        "",
        f"On the hold-out cases the ensemble's F0.5 is {ratio:.2f} times that of the intensity threshold "
        f"{hold['intensity_threshold']} tuned on the training cases.",
        "",
        f"Best candidate: `{best['candidate_id']}`, objective {best['objective']:.5f}.",
        "",
        "## Ensemble",
        "",
        "| member | weight |",
        "|---|---|",
        *(
            f"| `{m['candidate_id']}` | {m['weight']:.4f}{'' if m['helps'] else ' (does not help)'} |"
            for m in report["members"]
        ),
        "",
        *_joint(report.get("joint")),
        *_student(report.get("student")),
        "## Data",
        "",
        f"{coverage['pair_count_discovered']} pairs found, {coverage['train_pair_coverage_pct_effective']:.1f} % used"
        + (f": {coverage['coverage_gap_reason']}" if coverage["coverage_gap_reason"] else "")
        + ".",
        *(f"Skipped {case_id}: {reason}" for case_id, reason in report["skipped"]),
        "",
        "## Submission",
        "",
        f"`{report['submission']['file']}`, sha512 `{report['submission']['sha512'][:16]}...`; "
        f"voxel F1 of the validation masks {masks['validation_f1']:.4f}, F0.5 {masks['validation_f_half']:.4f}.",
        "",
        "| volume | surface | strong threshold | weak threshold |",
        "|---|---|---|---|",
        *(
            f"| {case_id} | {100 * share:.2f} % | {masks['thresholds'][case_id]['strong_th']:.3f} | "
            f"{masks['thresholds'][case_id]['weak_th']:.3f} |"
            for case_id, share in masks["foreground"].items()
        ),
        "",
        *_search_lines(masks.get("search")),
        "## Time",
        "",
        "| stage | seconds |",
        "|---|---|",
        *(f"| {stage} | {seconds:.1f} |" for stage, seconds in report["seconds"].items()),
        "",
        *profile_lines(report.get("profile"), report.get("gpu")),
    ]
    return "\n".join(lines)


def _joint(joint: Mapping[str, Any] | None) -> list[str]:
    if joint is None:
        return ["Fitting all features together did not help: the members alone decide.", ""]
    return [
        f"All {len(joint['spec']['view'])} features that the members see, fitted together (ridge {joint['ridge']:g}), "
        f"have a share of {joint['share']:.4f}, the members' sum one of {joint['members_share']:.4f}.",
        "",
    ]


def _student(student: Mapping[str, Any] | None) -> list[str]:
    """What the student added, where there was one."""
    if student is None:
        return []
    hold, reason = student.get("holdout") or {}, student["fusion"]["reason"]
    lines = ["## Student", "", f"{'Fused' if student['fused'] else 'Not fused'} with the ensemble: {reason}."]
    if hold:
        lines += ["", "| hold-out voxel F0.5 | |", "|---|---|"]
        lines += [f"| {name} | {hold[f'{name}_f_half']:.4f} |" for name in ("neurons", "student", "fused")]
    return [*lines, ""]


def _search_lines(search: Mapping[str, Any] | None) -> list[str]:
    """The search over the mask's parameters: the best trials and the plot of what mattered."""
    if search is None:
        return []
    if not search["trials"]:
        return ["## Mask search", "", f"Skipped: {search['reason']}.", ""]
    return [
        "## Mask search", "",
        f"{search['trials']} trials ({search['reason']}) on validation volumes; the score of the rule that it started "
        f"from is {search['start']['score']:.4f}. All trials: `mask_search/leaderboard.csv`.", "",
        "| trial | score | topo | SurfaceDice | VOI |",
        "|---|---|---|---|---|",
        *(
            f"| {row['number']} | {row['score']:.4f} | {row['topo']:.4f} | {row['surface_dice']:.4f} | "
            f"{row['voi']:.4f} |"
            for row in search["leaderboard"]
        ),
        "", "![What decides the score](mask_search/importance.svg)", "",
    ]  # fmt: skip
