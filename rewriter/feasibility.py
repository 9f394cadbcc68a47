"""Pure: can the router of a layer still choose top-k experts after an edit, whatever its scores are?

Group-limited routers keep `groups_kept` of G groups, by the sum of each group's two best choices, and choose top-k among
them (runtimes.md, "Values that are safe"). Kernels that find fewer than top-k live experts return duplicates or read out of
bounds, so a plan that could lead there is refused. Legend: E routed experts, G groups.
"""

from collections import Counter
from collections.abc import Collection

from rewriter.errors import PlanError
from rewriter.families import RouterLayout


def check_feasible(
    layer: int,
    layout: RouterLayout,
    dead: Collection[int],
    stimulated: Collection[int],
    *,
    suppressed_is_finite: bool,
) -> None:
    """Refuse an edit of one layer that could leave the router with too few experts to choose.

    dead: suppressed experts, those of the base included; suppressed_is_finite: whether they keep a finite bias.

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
        _check_grouped(layer, layout, dead, stimulated, suppressed_is_finite)


def _check_ungrouped(layer: int, layout: RouterLayout, dead: Collection[int]) -> None:
    num_choices = layout.num_experts + layout.num_other_choices
    num_live = num_choices - len(dead)
    if num_live < layout.top_k:
        raise PlanError(
            f"layer {layer}: {len(dead)} of {num_choices} experts are suppressed, which leaves {num_live}, but the router"
            f" selects {layout.top_k} (top-k); suppress at most {num_choices - layout.top_k}"
        )


def _check_grouped(
    layer: int, layout: RouterLayout, dead: Collection[int], stimulated: Collection[int], suppressed_is_finite: bool
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
    lone = [group for group in forced if live[group] < 2]
    if lone and not suppressed_is_finite:
        raise PlanError(
            f"layer {layer}: group {lone[0]} holds a stimulated expert and no other live one; with a bias of -inf on the"
            " others the group's score is -inf and it is never kept; leave one of them live, or use"
            " --suppress-bias margin"
        )
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
