"""The noise scheduler that a pipeline was saved with."""

from typing import Any

from t2i.config import ConfigError
from t2i.models.loading import loading, locate


def pretrained_scheduler(
    path: str,
    revision: str | None,
    prediction_type: str | None,
    rescale_betas_zero_snr: bool | None,
    timestep_spacing: str | None,
) -> Any:
    """The scheduler saved in `scheduler/` of a pipeline, with the given changes; None changes nothing.

    It only reads a JSON file, so that a contradiction is found before any weights are loaded.
    """
    import diffusers

    if rescale_betas_zero_snr not in (None, True, False):
        raise ConfigError(f"scheduler.rescale_betas_zero_snr={rescale_betas_zero_snr} must be true, false or null")
    changes = {
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": rescale_betas_zero_snr,
        "timestep_spacing": timestep_spacing,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    ddim: Any = diffusers.DDIMScheduler
    with loading(path):
        config = ddim.load_config(locate(path), subfolder="scheduler", revision=revision)
    if config.get("use_flow_sigmas") or ("flow_shift" not in config and "shift" in config):
        return getattr(diffusers, config["_class_name"]).from_config({**config, **changes})
    # Schedulers made for sampling (PNDM, Euler) keep the training schedule under the same keys, and DDIM reads them
    # all; only its own class understands a flow. Some configs lack clip_sample, which DDIM would set, as for pixels.
    if config.get("timestep_spacing") == "linspace":  # for which DDIM steps to other timesteps than it samples next
        config = {**config, "timestep_spacing": "trailing"}
    return ddim.from_config({"clip_sample": False, **config, **changes})
