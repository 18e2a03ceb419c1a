"""The noise scheduler that a pipeline was saved with, and that of a flow for every Stable Diffusion pipeline."""

from typing import Any

from t2i.config import ConfigError
from t2i.models.loading import loading, locate


def pretrained_scheduler(
    path: str,
    revision: str | None,
    prediction_type: str | None,
    rescale_betas_zero_snr: bool | None,
    timestep_spacing: str | None,
    shift: float | None = None,
    **of_flows: Any,
) -> Any:
    """The scheduler saved in `scheduler/` of a pipeline, with the given changes; None changes nothing.

    It only reads a JSON file, so that a contradiction is found before any weights are loaded.

    of_flows: use_dynamic_shifting, time_shift_type and shift_terminal. A given `shift` replaces one by resolution.
    """
    import diffusers

    if rescale_betas_zero_snr not in (None, True, False):
        raise ConfigError(f"scheduler.rescale_betas_zero_snr={rescale_betas_zero_snr} must be true, false or null")
    of_betas = {"prediction_type": prediction_type, "rescale_betas_zero_snr": rescale_betas_zero_snr}
    changes, of_betas, of_flows = map(_given, ({"timestep_spacing": timestep_spacing}, of_betas, of_flows))
    if shift is not None:
        of_flows = {"use_dynamic_shifting": False, **of_flows, "shift": shift}
    ddim: Any = diffusers.DDIMScheduler
    with loading(path):
        config = ddim.load_config(locate(path), subfolder="scheduler", revision=revision)
    if config.get("use_flow_sigmas") or ("flow_shift" not in config and "shift" in config):
        _refuse(of_betas, f"{path} is a flow", "scheduler=ddpm or ddim gives it another process")
        if "shift" in of_flows and "flow_shift" in config:
            of_flows["flow_shift"] = of_flows.pop("shift")
        return getattr(diffusers, config["_class_name"]).from_config({**config, **changes, **of_flows})
    _refuse(of_flows, f"{path} is not a flow", "use scheduler=flow_matching")
    # Schedulers made for sampling (PNDM, Euler) keep the training schedule under the same keys, and DDIM reads them
    # all; only its own class understands a flow. Some configs lack clip_sample, which DDIM would set, as for pixels.
    if config.get("timestep_spacing") == "linspace":  # for which DDIM steps to other timesteps than it samples next
        config = {**config, "timestep_spacing": "trailing"}
    return ddim.from_config({"clip_sample": False, **config, **changes, **of_betas})


def flow_matching(num_train_timesteps: int, shift: float) -> Any:
    """DPM-Solver on the noise levels of a flow: every Stable Diffusion pipeline can sample with it."""
    import diffusers

    return diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=num_train_timesteps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        steps_offset=1,  # no effect here, but Stable Diffusion's pipeline expects it
    )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _refuse(settings: dict[str, Any], reason: str, remedy: str) -> None:
    """Refuse settings that the scheduler would ignore."""
    if settings:
        named = ", ".join(f"scheduler.{key}={value}" for key, value in settings.items())
        raise ConfigError(f"{named} has no effect, as the noise schedule saved with {reason}; {remedy}")
