"""What `model.config`, `model.vae` and `model.adapters` change in the base that `model.path` names, in every family."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from t2i.models.base_adapters import parse_adapters, use_adapters
from t2i.models.base_vae import use_vae
from t2i.models.model import Model
from t2i.models.shapes import current_mode
from t2i.models.single_file_base import with_config


def on_a_base(load: Callable[..., Any]) -> Callable[..., Model]:
    """A family's `load(path, ...)` that takes these settings, too, and gets a path that it can open.

    config: see `with_config`. vae: another autoencoder, see `use_vae`. adapters: files of adapters to merge, see
    `parse_adapters`. Where networks have shapes only, the last two change nothing.
    """

    @wraps(load)
    def load_on(
        path: str,
        *args: Any,
        config: str | None = None,
        vae: str | None = None,
        adapters: Sequence[str] | str = (),
        **settings: Any,
    ) -> Model:
        merged = parse_adapters(adapters)
        model = load(with_config(path, config), *args, **settings)
        if vae is not None and not current_mode():
            use_vae(model.parts, vae)
        if merged and not current_mode():
            use_adapters(model.parts, merged)
        return model

    own, added = inspect.signature(load), inspect.signature(load_on, follow_wrapped=False).parameters
    more = [added[name] for name in ("config", "vae", "adapters")]
    described: Any = load_on
    described.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])
    return described
