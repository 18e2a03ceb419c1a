"""What every flag of Diffusers' scripts becomes in t2i.

A flag stands in one of four tables: its value is that of a setting (SAME), settings follow from it and others
(COMPUTED, whose rules are in `rules.py`), t2i does something else (DIFFERENT), or it has no meaning here (UNUSED).
"""

SAME = {  # flag -> the setting that takes its value
    "pretrained_model_name_or_path": "model.path",
    "revision": "model.revision",
    "variant": "model.variant",
    "dataset_config_name": "dataset.name",
    "image_column": "dataset.image_column",
    "max_train_samples": "dataset.max_train_samples",
    "resolution": "dataset.resolution",
    "random_flip": "dataset.flip",
    "image_interpolation_mode": "dataset.interpolation",
    "seed": "seed",
    "noise_offset": "noise_offset",
    "input_perturbation": "input_perturbation",
    "proportion_empty_prompts": "caption_dropout",
    "max_grad_norm": "max_grad_norm",
    "gradient_checkpointing": "gradient_checkpointing",
    "dataloader_num_workers": "num_workers",
    "adam_weight_decay": "optimizer.weight_decay",
    "adam_epsilon": "optimizer.eps",
    "prodigy_beta3": "optimizer.beta3",
    "prodigy_decouple": "optimizer.decouple",
    "prodigy_use_bias_correction": "optimizer.use_bias_correction",
    "prodigy_safeguard_warmup": "optimizer.safeguard_warmup",
    "checkpointing_steps": "save_every",
    "validation_steps": "sample_every",
    "rank": "adapter.rank",
    "lora_dropout": "adapter.dropout",
    "train_text_encoder": "adapter.text_encoder",
    "timestep_bias_multiplier": "timesteps.multiplier",
    "timestep_bias_portion": "timesteps.portion",
    "timestep_bias_begin": "timesteps.begin",
    "timestep_bias_end": "timesteps.end",
    "logit_std": "timesteps.std",
    "mode_scale": "timesteps.scale",
    "guidance_scale": "model.guidance",
    "max_sequence_length": "model.max_sequence_length",
    "tracker_project_name": "tracker.project",
}

COMPUTED = {  # flag -> what follows from it
    "output_dir": "`run=NAME`: the folder is `multirun/NAME`, the model lies in `model/` in it",
    "dataset_name": "`dataset=hub dataset.path=NAME`",
    "train_data_dir": "`dataset=folder dataset.path=FOLDER`",
    "instance_data_dir": "`dataset=folder dataset.path=FOLDER`",
    "instance_prompt": "`dataset.caption`, unless `--caption_column` names the captions",
    "caption_column": "`dataset.caption_column`",
    "center_crop": "`dataset.crop=center`; without it `crop=random`",
    "train_batch_size": "`micro_batch_size`, and with accumulation and processes `batch_size`",
    "gradient_accumulation_steps": "`batch_size` = batch × accumulation × processes",
    "max_train_steps": "`steps`",
    "num_train_epochs": "`steps`, from the number of images, if `--max_train_steps` is not given",
    "repeats": "`steps`: it lengthens an epoch, of which t2i's steps don't know",
    "learning_rate": "`optimizer.lr`",
    "scale_lr": "`optimizer.lr` = learning rate × batch × accumulation × processes",
    "lr_scheduler": "`lr_scheduler=constant`, `linear`, `cosine`; the others by the function of Diffusers",
    "lr_warmup_steps": "`lr_scheduler.num_warmup_steps`; `constant` has no warm-up, in the scripts neither",
    "lr_num_cycles": "`lr_scheduler.num_cycles` of `cosine_with_restarts`",
    "lr_power": "`lr_scheduler.power` of `polynomial`",
    "snr_gamma": "`loss=minsnr loss.snr_gamma=...`; without it `loss=mse`",
    "prediction_type": "`scheduler=epsilon` or `v_prediction`; without it the model's own",
    "timestep_bias_strategy": "`timesteps=biased timesteps.strategy=...`; `none`: `timesteps=uniform`",
    "weighting_scheme": "`timesteps=logit_normal` or `mode`, `loss=sigma_sqrt` or `cosmap`",
    "logit_mean": "`timesteps.mean`, with the other sign: t2i's grows towards noise",
    "precondition_outputs": "the error of the predicted image: `loss=p2 loss.k=1e-6 loss.p=1`",
    "offset_noise": "`noise_offset=0.1`",
    "use_8bit_adam": "`optimizer=adamw8bit`",
    "optimizer": "`optimizer=adamw` or `prodigy`",
    "adam_beta1": "the first of `optimizer.betas`",
    "adam_beta2": "the second of `optimizer.betas`",
    "use_ema": "`ema=standard ema.decay=0.9999`; without it `ema=none`",
    "use_dora": "`adapter=dora`",
    "lora_layers": "`adapter.target_modules`",
    "mixed_precision": "`precision=fp16` or `bf16`; without it, and with `no`, `precision=fp32`",
    "enable_xformers_memory_efficient_attention": "`attention=xformers`",
    "validation_prompt": "`samples.prompts`, as often as `--num_validation_images` says",
    "validation_prompts": "`samples.prompts`",
    "num_validation_images": "how often the prompt stands in `samples.prompts`, each time with other noise",
    "validation_epochs": "`sample_every`, in steps",
    "checkpoints_total_limit": "`keep_checkpoints`; without it the newest 2 are kept, where the script keeps all",
    "report_to": "`tracker`: `tensorboard`, `wandb` or `trackio`",
    "push_to_hub": "`hub.push=true hub.private=false`",
    "hub_model_id": "`hub.repo`",
}

DIFFERENT = {  # flag -> what t2i does instead
    "pretrained_vae_model_name_or_path": "the autoencoder is that of the pipeline; it encodes in fp32 or bf16 here, so "
    "that the one of SDXL needs no repair; to use another, save a pipeline with it, and name that in model.path",
    "resume_from_checkpoint": "the same command goes on from its newest checkpoint by itself; checkpoints of the "
    "script can't be read, and from=RUN@STEP begins at an earlier checkpoint of t2i's",
    "class_data_dir": "there is no prior preservation",
    "class_prompt": "there is no prior preservation",
    "with_prior_preservation": "there is no prior preservation; validation.reference=FOLDER of such images measures "
    "what is forgotten",
    "prior_loss_weight": "there is no prior preservation",
    "num_class_images": "there is no prior preservation",
    "text_encoder_lr": "the text encoders have the learning rate of the denoiser",
    "adam_weight_decay_text_encoder": "the text encoders have the weight decay of the denoiser",
    "lora_blocks": "all blocks get adapters",
    "dream_training": "DREAM (arXiv 2312.00210) is not there; the loss is the plain one",
    "do_edm_style_training": "training in EDM's parametrisation is not there; loss=edm has its weights only",
    "text_encoder_use_attention_mask": "the text encoders of these models read all tokens, without a mask",
    "tokenizer_max_length": "captions are cut where the model's own pipeline cuts them",
    "class_labels_conditioning": "no model here is conditioned on class labels, as DeepFloyd IF is",
    "non_ema_revision": "the denoiser is read from model.revision",
}

UNUSED = {  # flag -> why it has no meaning here
    "cache_dir": "downloads go to the folder of HF_HOME; t2i's cache_dir holds encoded images",
    "hub_token": "log in once, with `hf auth login`; a token on a command line ends up in logs",
    "logging_dir": "curves and event files are in the run's folder",
    "local_rank": "the launcher tells each process",
    "allow_tf32": "PyTorch's own choice is left as it is: cuDNN uses TF32, matrix products in fp32 don't",
    "set_grads_to_none": "gradients are always set to None",
    "offload_ema": "the average is where the weights are",
    "foreach_ema": "the average is always updated many tensors at a time",
    "dream_detail_preservation": "it belongs to --dream_training",
    "debug_loss": "validation/ in the run's folder has the errors of every image",
    "enable_npu_flash_attention": "NPUs are not supported",
    "sample_batch_size": "it is for making class images",
    "prior_generation_precision": "it is for making class images",
    "tokenizer_name": "the tokenizer is that of the pipeline",
    "pre_compute_text_embeddings": "captions are always encoded ahead, unless text encoders are trained",
    "skip_save_text_encoder": "the exported pipeline is complete",
    "validation_images": "it is for pipelines that begin with an image",
    "validation_scheduler": "samples are drawn with the model's own scheduler",
    "output_kohya_format": "the file for kohya's scripts, ComfyUI and Automatic1111 is always written (export.lora)",
    "upcast_before_saving": "trained weights are always saved in fp32",
    "cache_latents": "latents are always encoded ahead and cached, for all runs",
}


def documentation() -> str:
    """All flags as a table in Markdown."""
    rows = {flag: f"`{setting}`" for flag, setting in SAME.items()} | COMPUTED
    rows |= {flag: f"differs: {what}" for flag, what in DIFFERENT.items()}
    rows |= {flag: f"no meaning: {why}" for flag, why in UNUSED.items()}
    lines = [f"| `--{flag}` | {rows[flag]} |" for flag in sorted(rows)]
    return "\n".join(["| flag | in t2i |", "|---|---|", *lines])
