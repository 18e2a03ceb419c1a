"""Successive halving (Jamieson & Talwalkar 2016), restricted to what the battery proves: chance alone stops no run."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from t2i.comparison.significance import Difference


def clearly_worse(errors: "dict[str, np.ndarray]", keep: float) -> "dict[str, tuple[str, Difference]]":
    """The runs that need not continue: name -> (the best run, how much worse the run is).

    errors: each run's errors on the same battery at the same step, [N, K]. A run is clearly worse if it is not among
    the best fraction `keep`, and its paired difference from the best is above 0 after Holm's correction for all runs.
    """
    if len(errors) < 2:
        return {}
    import numpy as np

    from t2i.comparison.significance import LEVEL, difference, holm

    ranked = sorted(errors, key=lambda name: np.log(errors[name].mean(0)).mean())
    best, *others = ranked
    differences = {name: difference(errors[name][None], errors[best][None]) for name in others}
    adjusted = dict(zip(others, holm([result.p for result in differences.values()]), strict=True))
    worst = ranked[math.ceil(len(ranked) * keep) :]
    return {name: (best, differences[name]) for name in worst if differences[name].low > 0 and adjusted[name] < LEVEL}
