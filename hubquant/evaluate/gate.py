"""What a variant must keep to be published: limits per bit width, each checked and explained."""

import math

from hubquant.artifact import Evaluation, Verdict
from hubquant.recipe import Limit

CHECKS = ("perplexity ratio", "mean KL divergence", "top-1 agreement")


def judge(evaluation: Evaluation, bits: int, limits: dict[int, Limit]) -> list[Verdict]:
    """One Verdict per check. A number that is not finite fails; a bit width without limits uses those of the next wider one."""
    limit = limits[min((b for b in limits if b >= bits), default=max(limits))]
    measured = (evaluation.perplexity_ratio, evaluation.mean_kl, evaluation.top1_agreement)
    bounds = (limit.perplexity_ratio, limit.mean_kl, limit.top1_agreement)
    verdicts = []
    for check, value, bound in zip(CHECKS, measured, bounds, strict=True):
        at_least = check == "top-1 agreement"
        passed = math.isfinite(value) and (value >= bound if at_least else value <= bound)
        wanted = "at least" if at_least else "at most"
        reason = f"{check} {value:.4f}, {wanted} {bound:g} asked of {bits}-bit variants"
        verdicts.append(Verdict(variant=evaluation.variant, check=check, value=value, limit=bound, passed=passed, reason=reason))
    return verdicts
