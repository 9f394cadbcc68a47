"""Pure: can the router of a layer still choose top-k experts after an edit, whatever its scores are?

Group-limited routers keep `groups_kept` of G groups, by the sum of each group's two best choices, and choose top-k among
them (docs/runtimes.md, "Values that are safe"). Kernels that find fewer than top-k live experts return duplicates or read out of
bounds, so a plan that could lead there is refused. Legend: E routed experts, G groups.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from rewriter.errors import PlanError
from rewriter.families.family import RouterLayout


def check_feasible(
    layer: int,
    layout: RouterLayout,
    dead: Collection[int],
    stimulated: Collection[int],
    edited: Sequence[float],
) -> None:
    """Refuse an edit of one layer that could leave the router with too few experts to choose.

    dead: suppressed experts, those of the base included; edited: the layer's bias [E] as it will be.

    Raises: PlanError with the layer, the numbers, and what would make it feasible.
    """
    if len(stimulated) > layout.top_k:
        raise PlanError(
            f"layer {layer}: {len(stimulated)} experts are stimulated, but the router selects {layout.top_k}"
            f" (top-k); stimulate at most {layout.top_k} of {sorted(stimulated)}"
        )
    if layout.num_groups == 1:
        _check_ungrouped(layer, layout, dead)
    else:
        _check_grouped(layer, layout, dead, stimulated, edited)


def _check_ungrouped(layer: int, layout: RouterLayout, dead: Collection[int]) -> None:
    num_choices = layout.num_experts + layout.num_other_choices
    num_live = num_choices - len(dead)
    if num_live < layout.top_k:
        raise PlanError(
            f"layer {layer}: {len(dead)} of {num_choices} experts are suppressed, which leaves {num_live}, but the router"
            f" selects {layout.top_k} (top-k); suppress at most {num_choices - layout.top_k}"
        )


def _check_grouped(
    layer: int, layout: RouterLayout, dead: Collection[int], stimulated: Collection[int], edited: Sequence[float]
) -> None:
    group_size = layout.num_experts // layout.num_groups
    dead_per_group = Counter(expert // group_size for expert in dead)
    live = [group_size - dead_per_group[group] for group in range(layout.num_groups)]
    forced = sorted({expert // group_size for expert in stimulated})
    if len(forced) > layout.groups_kept:
        raise PlanError(
            f"layer {layer}: the stimulated experts lie in {len(forced)} groups {forced}, but the router keeps"
            f" {layout.groups_kept} groups; stimulate experts of at most {layout.groups_kept} groups"
        )
    for group in forced:
        if live[group] < 2:
            _check_lone(layer, layout, group, dead, stimulated, edited)
    others = sorted(live[group] for group in range(layout.num_groups) if group not in forced and live[group] >= 2)
    num_wanted = layout.groups_kept - len(forced)
    if len(others) < num_wanted:
        raise PlanError(
            f"layer {layer}: {len(forced) + len(others)} groups keep at least 2 live experts, but the router keeps"
            f" {layout.groups_kept} of {layout.num_groups} groups; live experts per group would be {live}, so suppress"
            " fewer experts of the groups that have less than 2"
        )
    fewest = sum(live[group] for group in forced) + sum(others[:num_wanted])
    if fewest < layout.top_k:
        raise PlanError(
            f"layer {layer}: the {layout.groups_kept} groups that the router keeps could have only {fewest} live experts"
            f" together, but it selects {layout.top_k} (top-k); live experts per group would be {live}, so suppress"
            f" {layout.top_k - fewest} fewer"
        )


def _check_lone(
    layer: int,
    layout: RouterLayout,
    group: int,
    dead: Collection[int],
    stimulated: Collection[int],
    edited: Sequence[float],
) -> None:
    """A group with one stimulated expert and no other live one is kept only if a suppressed expert's bias lets it be."""
    group_size = layout.num_experts // layout.num_groups
    best_two = sorted(edited[group * group_size : (group + 1) * group_size])[-2:]
    untouched = [value for expert, value in enumerate(edited) if expert not in dead and expert not in stimulated]
    rival = 2 * (max(untouched) + (layout.score_range or 0.0))  # two experts of another group at the highest score
    if len(best_two) < 2 or sum(best_two) <= rival:
        raise PlanError(
            f"layer {layer}: group {group} holds a stimulated expert and no other live one; the suppressed ones' bias of"
            f" {best_two[0]:g} keeps the group's score below what another group can reach ({rival:g}), so it may not be kept;"
            " leave one of them live, or use --suppress-bias margin"
        )
