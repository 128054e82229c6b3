"""Is a canary worse than the servers beside it? Two one-sided tests on what both answered over the same time.

*Errors* are counts, often few: Fisher's exact test of the two proportions (``scipy.stats.fisher_exact``; R. A. Fisher,
*Statistical Methods for Research Workers*, 1934, §21.02), which holds its level at any number of errors, also none.

*Latency* is known in buckets only: ordered classes with many ties. The test for that is Wilcoxon's rank sum
(Mann-Whitney) with midranks and the correction of the variance for ties (``scipy.stats.mannwhitneyu``,
``method="asymptotic"``; E. L. Lehmann, *Nonparametrics*, 1975, §1.4; A. Agresti, *Analysis of Ordinal Categorical
Data*, 2010, §7.4). It uses the order of the buckets and nothing else: no values are invented within them, as a t-test
or a mean would need, and it is not as blind as Kolmogorov-Smirnov, whose p is only a bound where there are ties. What
it finds is a canary that is slower as a rule; a tail of few requests is for the check of the 95th percentile later.

With enough requests any difference is significant, also one that nobody minds, and a fresh process is a little slower
than a warm one. So every request of the others counts as ``tolerance`` buckets slower than it was: what is tested is
whether the canary is slower by more than that, and for equal servers p is larger than it would be, never smaller.

Both tests together, and all looks before the last, raise a false alarm with at most ``alpha`` (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.contract import Facts
from tasks.errors import BadInput
from tasks.metrics.protocol import Served
from tasks.quantities import show_duration


@dataclass(frozen=True)
class Compared:
    """``level``: a p-value below it means that the canary is worse."""

    canary: Served
    baseline: Served
    p_errors: float
    p_latency: float
    level: float

    @property
    def worse(self) -> tuple[str, ...]:
        """In what: ``errors``, ``latency``."""
        found = (("errors", self.p_errors), ("latency", self.p_latency))
        return tuple(name for name, p in found if p < self.level)

    def facts(self) -> Facts:
        return {
            "canary": tally(self.canary),
            "baseline": tally(self.baseline),
            "p_errors": self.p_errors,
            "p_latency": self.p_latency,
            "level": self.level,
            "worse": list(self.worse),
        }

    def __str__(self) -> str:
        return (
            f"{show(self.canary)}; the others {show(self.baseline)};"
            f" p of errors {self.p_errors:.2g}, of latency {self.p_latency:.2g}, worse is below {self.level:.2g}"
        )


def tally(served: Served) -> Facts:
    """What one side answered, as evidence. ``p95_below_s`` None: in the last bucket, which has no bound."""
    bound = served.within_s(0.95)
    return {
        "requests": served.requests,
        "errors": served.errors,
        "error_rate": round(100 * served.errors / served.requests, 3) if served.requests else None,
        "p95_below_s": None if bound == float("inf") else bound,
    }


def show(served: Served) -> str:
    """For people: ``n=312, errors 2.1%, p95 <= 25ms``."""
    if not served.requests:
        return "n=0"
    bound = served.within_s(0.95)
    last = f"> {show_duration(served.bounds[-2])}" if bound == float("inf") else f"<= {show_duration(bound)}"
    return f"n={served.requests}, errors {100 * served.errors / served.requests:.2g}%, p95 {last}"


def must_have_scipy() -> None:
    """Raises BadInput where it is not installed."""
    try:
        import scipy.stats  # noqa: F401, PLC0415 - heavy, and needed for this only
    except ImportError as e:
        raise BadInput("a canary is compared with scipy, which is not installed: pip install 'relight[updates]'") from e


def more_errors(canary: tuple[int, int], baseline: tuple[int, int]) -> float:
    """The p-value of "no more of the canary's requests fail than of the others"; each: requests, errors of them."""
    from scipy import stats  # noqa: PLC0415 - heavy, see above

    table = [[errors, requests - errors] for requests, errors in (canary, baseline)]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def compare(canary: Served, baseline: Served, level: float, tolerance: int) -> Compared:
    """Both must have answered something. ``tolerance``: by how many buckets slower is not worse yet."""
    import numpy as np  # noqa: PLC0415 - heavy, see above
    from scipy import stats  # noqa: PLC0415

    p_errors = more_errors((canary.requests, canary.errors), (baseline.requests, baseline.errors))
    last = len(canary.bounds) - 1
    ours: Any = np.repeat(np.arange(last + 1), canary.counts)
    theirs: Any = np.repeat(np.minimum(np.arange(last + 1) + tolerance, last), baseline.counts)
    if ours.min() == ours.max() == theirs.min() == theirs.max():
        return Compared(canary, baseline, p_errors, 1.0, level)  # all are tied: nothing says that they differ
    p_latency = float(stats.mannwhitneyu(ours, theirs, alternative="greater", method="asymptotic").pvalue)
    return Compared(canary, baseline, p_errors, p_latency, level)
