"""The settings that follow from several flags together, or from one that is not given. A function for each subject."""

from collections.abc import Callable
from typing import Any

from t2i.config import ConfigError
from t2i.translate.arguments import Arguments
from t2i.translate.epochs import images_in, steps_per_epoch
from t2i.translate.outputs import records, samples
from t2i.translate.prior import sources

Settings = dict[str, Any]
Note = Callable[[str], None]  # takes a line about something that differs

SCHEDULES = {  # lr_scheduler of the scripts -> option of ours, and the function of Diffusers if the option has another
    "constant": ("constant", None),
    "constant_with_warmup": ("constant", None),
    "linear": ("linear", None),
    "cosine": ("cosine", None),
    "cosine_with_restarts": ("cosine", "get_cosine_with_hard_restarts_schedule_with_warmup"),
    "polynomial": ("linear", "get_polynomial_decay_schedule_with_warmup"),
}
FLUX_LAYERS = [  # that train_dreambooth_lora_flux.py adapts unless --lora_layers says which
    *("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj"),
    *("attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
]


def model(args: Arguments, note: Note) -> Settings:
    """Which pipeline is trained, and all of it or adapters."""
    name = args["pretrained_model_name_or_path"]
    if not name:
        raise ConfigError("--pretrained_model_name_or_path is not given: which model is trained?")
    option = args.script.model
    if option == "sd15" and "stable-diffusion-2" in name.lower():
        option = "sd21"
    if not args.script.lora:
        if args["train_text_encoder"]:
            note(
                "--train_text_encoder: here only adapters are put into text encoders; with adapter=lora "
                "adapter.text_encoder=true both are trained, otherwise the denoiser alone"
            )
        return {"model": option, "adapter": "none"}
    settings: Settings = {
        "model": option,
        "adapter": "dora" if args["use_dora"] else "lora",
        "adapter.init": "gaussian",
    }
    layers = args["lora_layers"]
    if layers or option == "flux1":
        settings["adapter.target_modules"] = _layers(layers) if layers else FLUX_LAYERS
    return settings


def _layers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    return [name if name.startswith("attn.") or "." in name else f"attn.{name}" for name in names if name]


def data(args: Arguments, note: Note) -> Settings:
    """Which images, and their captions. Nothing is held out, as in the scripts."""
    folder = args["instance_data_dir"] or (None if args["dataset_name"] else args["train_data_dir"])
    name = folder or args["dataset_name"]
    if not name:
        wanted = "--instance_data_dir" if args.script.dreambooth else "--dataset_name or --train_data_dir"
        raise ConfigError(f"{wanted} is not given: which images is the model trained on?")
    settings: Settings = {"dataset": "folder" if folder else "hub", "dataset.path": name}
    column, prompt = args["caption_column"], args["instance_prompt"]
    if column:
        settings["dataset.caption_column"] = column
    elif prompt:
        settings["dataset.caption"] = prompt
    settings["dataset.crop"] = "center" if args["center_crop"] else "random"
    settings["dataset.validation_share"] = 0.0
    if folder:
        settings["dataset.split_folders"] = False
    note(
        "images: none is held out, as in the script, so that val/train_loss is measured on images that are trained "
        "on; without dataset.validation_share=0, t2i holds some out and tells learning from learning by heart"
    )
    if not args["center_crop"]:
        note(
            "crops: one of dataset.crop_variants=4 windows along the longer side is drawn each time, since images are "
            "encoded once"
        )
    if args["dataset_name"] and args["train_data_dir"]:
        note("--train_data_dir is left out, as the script takes the folder of that name within --dataset_name")
    if args.script.dreambooth and folder and (below := images_in(folder, "*/**/*")):
        note(f"folders in {folder}: their {below} images are trained on, too; the script reads none of them")
    if args["with_prior_preservation"]:
        columns = {"dataset.name": args["dataset_config_name"], "dataset.image_column": args["image_column"]}
        return sources(args, settings | columns, note)
    return settings


def length(args: Arguments, note: Note) -> Settings:
    """Steps and batch sizes."""
    batch, accumulation = args["train_batch_size"], args["gradient_accumulation_steps"]
    if args["with_prior_preservation"]:  # which draws a batch of class images beside it
        batch *= 2
    settings: Settings = {"batch_size": batch * accumulation * args.processes, "micro_batch_size": batch}
    if (steps := args["max_train_steps"]) is None:
        epochs, each = args["num_train_epochs"], steps_per_epoch(args)
        if each is None:
            raise ConfigError(
                f"the script trains {epochs} epochs, and t2i counts steps: how many images are there? Add --images N "
                "to t2i translate (or --max_train_steps to the command)"
            )
        steps = epochs * each
        note(f"epochs: {epochs} of {each} steps are {steps} steps")
    return {"steps": steps, **settings}


def optimization(args: Arguments, note: Note) -> Settings:
    """Optimizer, learning rate and its schedule, average of the weights."""
    option, rate = "adamw8bit" if args["use_8bit_adam"] else "adamw", args["learning_rate"]
    if str(args["optimizer"]).lower() == "prodigy":
        option = "prodigy"
    if args["scale_lr"]:
        rate *= args["gradient_accumulation_steps"] * args["train_batch_size"] * args.processes
    settings = {"optimizer": option, "optimizer.lr": rate, "optimizer.betas": [args["adam_beta1"], args["adam_beta2"]]}
    settings |= _schedule(args)
    if args["use_ema"]:
        return settings | {"ema": "standard", "ema.decay": 0.9999, "ema.warmup": True}
    return settings | {"ema": "none"}


def _schedule(args: Arguments) -> Settings:
    name = args["lr_scheduler"]
    if name not in SCHEDULES:
        raise ConfigError(f"--lr_scheduler={name} is not known; the scripts have {', '.join(SCHEDULES)}")
    option, function = SCHEDULES[name]
    warmup = 0 if name == "constant" else args["lr_warmup_steps"]
    settings = {"lr_scheduler": option, "lr_scheduler.num_warmup_steps": warmup}
    if function is None:
        return settings
    settings["lr_scheduler._target_"] = f"diffusers.optimization.{function}"
    if name == "polynomial":
        return settings | {"lr_scheduler.power": args["lr_power"] or 1.0}
    return settings | {"lr_scheduler.num_cycles": args["lr_num_cycles"] or 1}


def objective(args: Arguments, note: Note) -> Settings:
    """What is predicted, at which noise levels, and how the error is weighted."""
    settings: Settings = {"loss": "mse", "timesteps": "uniform", "caption_dropout": 0.0}
    if args.script.is_flow:
        return settings | _flow(args, note)
    if args["snr_gamma"] is not None:
        settings |= {"loss": "minsnr", "loss.snr_gamma": args["snr_gamma"]}
    if (kind := args["prediction_type"]) is not None:
        if kind not in ("epsilon", "v_prediction"):
            raise ConfigError(f"--prediction_type={kind} is not known; the scripts take epsilon and v_prediction")
        settings["scheduler"] = kind
    if (bias := args["timestep_bias_strategy"]) not in (None, "none"):
        settings |= {"timesteps": "biased", "timesteps.strategy": bias}
    if args["offset_noise"]:
        settings["noise_offset"] = 0.1
    return settings


def _flow(args: Arguments, note: Note) -> Settings:
    scheme, settings = args["weighting_scheme"], {"loss": "mse"}
    if scheme not in ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap"):
        raise ConfigError(
            f"--weighting_scheme={scheme} is not known; the scripts have none, logit_normal, mode, sigma_sqrt, cosmap"
        )
    if scheme == "logit_normal":
        settings |= {"timesteps": "logit_normal", "timesteps.mean": -args["logit_mean"] or 0.0}
    if scheme == "mode":
        settings["timesteps"] = "mode"
    if args[
        "precondition_outputs"
    ]:  # the error of x0; sigma_sqrt divides it by sigma², which makes it that of the flow
        if scheme == "cosmap":
            note(
                "--weighting_scheme=cosmap: together with --precondition_outputs its weight is sigma² times that of "
                "loss=cosmap; loss=cosmap is the paper's"
            )
        if scheme != "sigma_sqrt":
            settings |= {"loss": "cosmap"} if scheme == "cosmap" else {"loss": "p2", "loss.k": 1e-6, "loss.p": 1.0}
    elif scheme in ("sigma_sqrt", "cosmap"):
        settings["loss"] = scheme
    if args.script.model == "flux1":
        note("times: they are shifted by the image's size, as FLUX samples; the script shifts them in sampling only")
        return settings
    return settings | {"continuous_time": False}


def machine(args: Arguments, note: Note) -> Settings:
    """Number formats and attention."""
    chosen = args["mixed_precision"] or args.launched_with("mixed_precision")
    if chosen is None:
        note(
            "precision: fp32, as accelerate has it without --mixed_precision and without a configuration of its own; "
            "precision=auto takes bf16 where the processor has it"
        )
    if chosen == "fp8":
        raise ConfigError("--mixed_precision=fp8 is not available; choose fp16, bf16 or no")
    settings = {"precision": "fp32" if chosen in (None, "no") else chosen}
    if args["enable_xformers_memory_efficient_attention"]:
        settings["attention"] = "xformers"
    if args.launched_with("dynamo_backend") not in (None, "no"):
        settings["compile"] = True
    return settings


SUBJECTS = (model, data, length, objective, optimization, machine, samples, records)
