"""Successive halving (Jamieson & Talwalkar 2016) that asks the battery: what is worse by chance alone goes on."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from t2i.comparison.significance import Difference


def hopeless(errors: "dict[str, np.ndarray]", keep: float) -> "dict[str, tuple[str, Difference]]":
    """Which runs need not go on: name -> (the best run, how much worse than it).

    errors: of each run on the same battery at the same step, [N, K]. A run is hopeless if it is not among the best
    `keep` of them and its paired 95 % interval, and Holm's correction for all of them, say that it is worse.
    """
    if len(errors) < 2:
        return {}
    import numpy as np

    from t2i.comparison.significance import difference, holm

    ranked = sorted(errors, key=lambda name: np.log(errors[name].mean(0)).mean())
    best = ranked[0]
    found = {name: difference(errors[name][None], errors[best][None]) for name in ranked[1:]}
    adjusted = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    tail = ranked[math.ceil(len(ranked) * keep) :]
    return {name: (best, found[name]) for name in tail if found[name].low > 0 and adjusted[name] < 0.05}
