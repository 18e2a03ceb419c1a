"""The noise scheduler that a pipeline was saved with, and that of a flow for every Stable Diffusion pipeline."""

import inspect
from typing import Any

from t2i.config import ConfigError
from t2i.models.loading import loading, locate
from t2i.models.single_file_base import with_config

# Schedulers of Diffusers that keep the betas that a model was trained with; they differ in how they sample.
WITH_BETAS = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler", "DDPMParallelScheduler"),
    *("PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
    *("DPMSolverSDEScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
)
OF_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
OTHERS = {  # the beginning of a class's name -> what its noise schedule is
    "EDM": "EDM's noise levels, with inputs and outputs scaled by them (Karras et al. 2022)",
    **dict.fromkeys(("LCM", "TCD", "SCM", "FlowMatchLCM", "CMStochastic"), "that of a model distilled to a few steps"),
}
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def pretrained_scheduler(
    path: str,
    revision: str | None,
    prediction_type: str | None,
    rescale_betas_zero_snr: bool | None,
    timestep_spacing: str | None,
    shift: float | None = None,
    config: str | None = None,
    **of_flows: Any,
) -> Any:
    """The scheduler saved in `scheduler/` of a pipeline, with the given changes; None changes nothing.

    config: the settings of a single file, see `with_config`.

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
    path = with_config(path, config) if config else path
    with loading(path):
        saved = ddim.load_config(locate(path), subfolder="scheduler", revision=revision)
    _refuse_other_processes(path, saved)
    if saved.get("use_flow_sigmas") or ("flow_shift" not in saved and "shift" in saved):
        _refuse(of_betas, f"{path} is a flow", "scheduler=ddpm or ddim gives it another process")
        if "shift" in of_flows and "flow_shift" in saved:
            of_flows["flow_shift"] = of_flows.pop("shift")
        return _class_of(saved["_class_name"]).from_config({**saved, **changes, **of_flows})
    _refuse(of_flows, f"{path} is not a flow", "use scheduler=flow_matching")
    # Schedulers made for sampling (PNDM, Euler) keep the training schedule under the same keys, and DDIM reads them
    # all; only its own class understands a flow. Some saveds lack clip_sample, which DDIM would set, as for pixels.
    if saved.get("timestep_spacing") == "linspace":  # for which DDIM steps to other timesteps than it samples next
        saved = {**saved, "timestep_spacing": "trailing"}
    return ddim.from_config({"clip_sample": False, **_own_betas(saved), **saved, **changes, **of_betas})


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


def _refuse_other_processes(path: str, config: dict[str, Any]) -> None:
    """Refuse schedulers whose process is neither one of betas nor a flow: read as such, it would be another."""
    name = str(config.get("_class_name"))
    continuous = config.get("timestep_type") == "continuous"
    flow = config.get("use_flow_sigmas") or name in OF_FLOWS
    if (name in WITH_BETAS and not continuous) or flow:
        return
    known = next((what for start, what in OTHERS.items() if name.startswith(start)), "not known to t2i")
    what = OTHERS["EDM"] if continuous else known
    raise ConfigError(
        f"scheduler: the {name} of model.path={path} has a noise schedule that t2i can't train with: it is {what}. "
        "Choose scheduler=ddim (Stable Diffusion's), ddpm or flow_matching, which the model has to learn anew, or the "
        "pipeline that the model was made from"
    )


def _own_betas(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the noise schedule that a file leaves out, which DDIM has other defaults for."""
    left_out = [key for key in BETAS if key not in config]
    if not left_out:
        return {}
    parameters = inspect.signature(_class_of(config["_class_name"]).__init__).parameters
    return {key: parameters[key].default for key in left_out if key in parameters}


def _class_of(name: str) -> Any:
    """A class of schedulers, by the name that a scheduler's file gives it."""
    import diffusers

    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ConfigError(f"scheduler: Diffusers has no scheduler {name}; choose an option such as scheduler=ddim")
    return found


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _refuse(settings: dict[str, Any], reason: str, remedy: str) -> None:
    """Refuse settings that the scheduler would ignore."""
    if settings:
        named = ", ".join(f"scheduler.{key}={value}" for key, value in settings.items())
        raise ConfigError(f"{named} has no effect, as the noise schedule saved with {reason}; {remedy}")
