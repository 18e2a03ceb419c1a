"""The noise scheduler that a pipeline was saved with."""

from t2i.config import ConfigError
from t2i.models.loading import loading, locate


def pretrained_scheduler(
    path: str,
    revision: str | None,
    prediction_type: str | None,
    rescale_betas_zero_snr: bool | None,
    timestep_spacing: str | None,
):
    """The scheduler saved in `scheduler/` of a pipeline, with what the config changes in it; None changes nothing.

    Only its JSON file is read, so that a contradiction is found before any weights are loaded.
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
    with loading(path):
        config = diffusers.DDIMScheduler.load_config(locate(path), subfolder="scheduler", revision=revision)
    if config.get("use_flow_sigmas") or ("flow_shift" not in config and "shift" in config):
        return getattr(diffusers, config["_class_name"]).from_config({**config, **changes})
    # Schedulers made for sampling (PNDM, Euler) keep the training schedule under the same keys, and DDIM reads them
    # all; a flow only its own class understands. Some do not say clip_sample, which DDIM would set, as for pixels.
    return diffusers.DDIMScheduler.from_config({"clip_sample": False, **config, **changes})
