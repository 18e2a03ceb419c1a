"""`t2i translate`: a command of Diffusers' scripts is read as the shell and the script read it; each flag counts."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from diffusers.optimization import get_scheduler
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.config.compose import compose
from t2i.config.instantiate import build
from t2i.config.typed import as_typed
from t2i.translate import writing
from t2i.translate.command import main, split_arguments
from t2i.translate.scripts import ON, SCRIPTS
from t2i.translate.shell import read_text, read_words
from t2i.translate.tables import COMPUTED, DIFFERENT, SAME, UNUSED, documentation
from t2i.translate.translation import translate

T2I, LORA, XL, XL_LORA = (f"train_text_to_image{kind}.py" for kind in ("", "_lora", "_sdxl", "_lora_sdxl"))
DREAM, DREAM_LORA, DREAM_XL, SD3, FLUX = (
    f"train_dreambooth{kind}.py" for kind in ("", "_lora", "_lora_sdxl", "_lora_sd3", "_lora_flux")
)
DOCS = Path(__file__).resolve().parents[2] / "docs"


def translated(script: str, flags: str = "", images: int | None = None):
    """The translation of a script's flags, with those that it requires."""
    dreambooth = SCRIPTS[script].dreambooth
    needed = "--instance_data_dir pics --instance_prompt 'a dog'" if dreambooth else "--dataset_name owner/set"
    words = ["--pretrained_model_name_or_path=base", "--max_train_steps=1000", *shlex.split(needed)]
    return translate(read_words([script, *words, *shlex.split(flags)]), images)


def of(script: str, flags: str = "", images: int | None = None) -> dict:
    return translated(script, flags, images).settings


FLAGS = [  # script, flags, and what they set
    (T2I, "--pretrained_model_name_or_path me/mine", {"model": "sd15", "model.path": "me/mine", "adapter": "none"}),
    (T2I, "--pretrained_model_name_or_path stabilityai/stable-diffusion-2-1", {"model": "sd21"}),
    (XL, "--revision fp16", {"model": "sdxl", "model.revision": "fp16"}),
    (T2I, "--variant fp16", {"model.variant": "fp16"}),
    (T2I, "--output_dir out/mine", {"run": "out/mine"}),
    (T2I, "--output_dir /data/mine/", {"run": "/data/mine"}),
    (T2I, "--dataset_name=me/pics", {"dataset": "hub", "dataset.path": "me/pics", "dataset.validation_share": 0.0}),
    (T2I, "--dataset_config_name large", {"dataset.name": "large"}),
    (T2I, "--image_column=img --caption_column=t", {"dataset.image_column": "img", "dataset.caption_column": "t"}),
    (DREAM, "--instance_data_dir dog", {"dataset": "folder", "dataset.path": "dog", "dataset.split_folders": False}),
    (DREAM, "--instance_prompt 'sks, dog'", {"dataset.caption": "sks, dog"}),
    (DREAM_XL, "--caption_column=text", {"dataset.caption_column": "text"}),
    (
        DREAM,
        "--with_prior_preservation --class_data_dir none --class_prompt 'a, dog' --num_class_images=9 "
        "--prior_loss_weight=0.5 --train_batch_size=1",
        {
            "dataset": "sources",
            "dataset.sources": [
                {"path": "pics", "caption": "a dog", "weight": 1, "loss_weight": 2},
                {"class_prompt": "a, dog", "class_images": 9, "weight": 1, "loss_weight": 1},
            ],
            "dataset.path": None,
            "batch_size": 2,  # an own image and one of the class
            "micro_batch_size": 2,
        },
    ),
    (XL, "--pretrained_vae_model_name_or_path me/vae", {"model.vae": "me/vae"}),
    (T2I, "--max_train_samples 10", {"dataset.max_train_samples": 10}),
    (T2I, "--resolution 768", {"dataset.resolution": 768}),
    (T2I, "--center_crop --random_flip", {"dataset.crop": "center", "dataset.flip": True}),
    (T2I, "", {"dataset.crop": "random", "dataset.flip": False, "dataset.interpolation": "lanczos"}),
    (T2I, "--image_interpolation_mode bilinear", {"dataset.interpolation": "bilinear"}),
    (T2I, "--seed 3", {"seed": 3}),
    (T2I, "", {"batch_size": 16, "micro_batch_size": 16, "steps": 1000}),
    (T2I, "--train_batch_size 2 --gradient_accumulation_steps 4", {"batch_size": 8, "micro_batch_size": 2}),
    (T2I, "--learning_rate 1e-6", {"optimizer.lr": 1e-6}),
    (T2I, "--scale_lr --learning_rate 1e-6 --train_batch_size 2", {"optimizer.lr": 2e-6}),
    (T2I, "--lr_warmup_steps 9", {"lr_scheduler": "constant", "lr_scheduler.num_warmup_steps": 0}),
    (T2I, "--lr_scheduler cosine", {"lr_scheduler": "cosine", "lr_scheduler.num_warmup_steps": 500}),
    (T2I, "--snr_gamma 5.0", {"loss": "minsnr", "loss.snr_gamma": 5.0}),
    (T2I, "", {"loss": "mse", "timesteps": "uniform", "caption_dropout": 0.0, "ema": "none", "precision": "fp32"}),
    (T2I, "--prediction_type v_prediction", {"scheduler": "v_prediction"}),
    (T2I, "--noise_offset 0.05 --input_perturbation 0.1", {"noise_offset": 0.05, "input_perturbation": 0.1}),
    (DREAM, "--offset_noise", {"noise_offset": 0.1}),
    (XL, "--proportion_empty_prompts 0.2", {"caption_dropout": 0.2}),
    (
        XL,
        "--timestep_bias_strategy later --timestep_bias_multiplier 3 --timestep_bias_portion 0.5",
        {"timesteps": "biased", "timesteps.strategy": "later", "timesteps.multiplier": 3.0, "timesteps.portion": 0.5},
    ),
    (
        XL,
        "--timestep_bias_strategy range --timestep_bias_begin 100 --timestep_bias_end 400",
        {"timesteps.strategy": "range", "timesteps.begin": 100, "timesteps.end": 400},
    ),
    (T2I, "--use_8bit_adam", {"optimizer": "adamw8bit"}),
    (
        T2I,
        "--adam_beta1 0.8 --adam_beta2 0.99 --adam_weight_decay 0.1 --adam_epsilon 1e-7",
        {"optimizer": "adamw", "optimizer.betas": [0.8, 0.99], "optimizer.weight_decay": 0.1, "optimizer.eps": 1e-7},
    ),
    (T2I, "--max_grad_norm 2 --gradient_checkpointing", {"max_grad_norm": 2.0, "gradient_checkpointing": True}),
    (T2I, "--allow_tf32", {"tf32": True}),
    (T2I, "", {"tf32": False}),
    (T2I, "", {"gradient_checkpointing": False}),
    (T2I, "--dataloader_num_workers 8", {"num_workers": 8}),
    (T2I, "--mixed_precision bf16", {"precision": "bf16"}),
    (T2I, "--enable_xformers_memory_efficient_attention", {"attention": "xformers"}),
    (T2I, "--use_ema", {"ema": "standard", "ema.decay": 0.9999, "ema.warmup": True}),
    (T2I, "--checkpointing_steps 50 --checkpoints_total_limit 3", {"save_every": 50, "keep_checkpoints": 3}),
    (T2I, "--validation_prompts 'a cat' b", {"samples.prompts": ["a cat", "b"], "samples.steps": 20}),
    (LORA, "--validation_prompt a --num_validation_images 2", {"samples.prompts": ["a", "a"], "samples.steps": 30}),
    (DREAM, "--validation_prompt a --validation_steps 50", {"sample_every": 50, "samples.guidance_scale": 7.5}),
    (T2I, "", {"sample_every": 0}),
    (T2I, "--report_to wandb --tracker_project_name mine", {"tracker": "wandb", "tracker.project": "mine"}),
    (T2I, "", {"tracker": "tensorboard"}),
    (T2I, "--push_to_hub --output_dir a/b", {"hub.push": True, "hub.repo": "b", "hub.private": False}),
    (T2I, "--push_to_hub --hub_model_id me/b", {"hub.repo": "me/b"}),
    (LORA, "--rank 8", {"adapter": "lora", "adapter.rank": 8, "adapter.init": "gaussian"}),
    (XL_LORA, "--train_text_encoder", {"adapter.text_encoder": True}),
    (DREAM_LORA, "", {"adapter.text_encoder": False, "optimizer.lr": 5e-4, "batch_size": 4}),
    (DREAM_XL, "--use_dora --lora_dropout 0.1", {"adapter": "dora", "adapter.dropout": 0.1}),
    (DREAM_XL, "--optimizer prodigy --learning_rate 1", {"optimizer": "prodigy", "optimizer.lr": 1.0}),
    (
        DREAM_XL,
        "--optimizer prodigy --prodigy_beta3 0.9 --prodigy_decouple 1 --prodigy_use_bias_correction 1 "
        "--prodigy_safeguard_warmup 1",
        {"optimizer.beta3": 0.9, "optimizer.decouple": True, "optimizer.safeguard_warmup": True,
         "optimizer.use_bias_correction": True},
    ),
    (SD3, "", {"model": "sd35", "timesteps": "logit_normal", "loss": "p2", "loss.p": 1.0, "continuous_time": False}),
    (SD3, "--logit_mean 0.5 --logit_std 2", {"timesteps.mean": -0.5, "timesteps.std": 2.0}),
    (SD3, "--precondition_outputs 0 --weighting_scheme cosmap", {"timesteps": "uniform", "loss": "cosmap"}),
    (SD3, "--precondition_outputs 1 --weighting_scheme sigma_sqrt", {"timesteps": "uniform", "loss": "mse"}),
    (FLUX, "--weighting_scheme mode --mode_scale 1", {"timesteps": "mode", "timesteps.scale": 1.0, "loss": "mse"}),
    (FLUX, "--rank 16", {"adapter.rank": 16, "adapter.alpha": 4}),  # of that script, not the rank
    (FLUX, "--lora_alpha 8", {"adapter.alpha": 8}),
    (FLUX, "--guidance_scale 1 --max_sequence_length 77", {"model.guidance": 1.0, "model.max_sequence_length": 77}),
    (FLUX, "--lora_layers attn.to_k,ff.net.2", {"adapter.target_modules": ["attn.to_k", "ff.net.2"]}),
    (SD3, "--lora_layers to_k,to_q", {"adapter.target_modules": ["attn.to_k", "attn.to_q"]}),
]  # fmt: skip
EPOCHS = "--max_train_steps 7 --train_batch_size 2 --gradient_accumulation_steps 2"


@pytest.mark.parametrize(("script", "flags", "expected"), FLAGS, ids=str)
def test_a_flag_becomes_its_setting(script, flags, expected):
    found = of(script, flags)
    assert {key: found.get(key) for key in expected} == expected


def test_epochs_become_steps_as_the_script_counts_them():
    """Batches of an epoch are rounded up, and so are the steps of them."""
    words = ["--pretrained_model_name_or_path=b", "--dataset_name=d/e", "--num_train_epochs=3", "--train_batch_size=4"]
    command = read_words([T2I, *words, "--gradient_accumulation_steps=2"])
    assert translate(command, images=18).settings["steps"] == 3 * 3  # 5 batches, 3 steps
    with pytest.raises(ConfigError, match="--images N"):
        translate(command)
    assert of(T2I, "--validation_prompts a --validation_epochs 4 --train_batch_size 4", 18)["sample_every"] == 4 * 5
    assert of(DREAM_XL, "--repeats 3 --validation_prompt a --validation_epochs 2", 5)["sample_every"] == 2 * 4
    naruto = read_words([T2I, *words[:1], "--dataset_name=lambdalabs/naruto-blip-captions"])
    assert translate(naruto).settings["steps"] == 100 * 77  # the script's defaults: 100 epochs, batches of 16


def test_class_images_that_are_there_are_used(tmp_path):
    """An epoch is as long as the larger of the two; so is it in the script."""
    flags = f"--with_prior_preservation --class_data_dir {tmp_path} --class_prompt dog --num_class_images=30"
    found = of(DREAM, f"{flags} --validation_prompt a --train_batch_size=4", images=5)
    assert found["dataset.sources"][1]["path"] == str(tmp_path)
    lora = of(DREAM_LORA, f"{flags} --validation_prompt a --validation_epochs=2 --train_batch_size=4", images=5)
    assert lora["sample_every"] == 2 * 8
    with pytest.raises(ConfigError, match="needs --class_prompt"):
        of(DREAM, "--with_prior_preservation --class_data_dir x")


def test_images_of_a_folder_are_counted(tmp_path):
    for name in ("a.png", "b.JPG", "notes.txt"):
        (tmp_path / name).touch()
    words = ["--pretrained_model_name_or_path=b", f"--instance_data_dir={tmp_path}", "--instance_prompt=x"]
    command = read_words([DREAM, *words, "--num_train_epochs=6", "--train_batch_size=1"])
    assert translate(command).settings["steps"] == 12
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.webp").touch()  # which the script does not read
    assert translate(command).settings["steps"] == 12
    assert any("their 1 images are trained on, too" in line for line in translate(command).differs)


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts",
                                  "polynomial"])  # fmt: skip
def test_the_learning_rate_is_that_of_the_script_at_every_step(name):
    import torch

    flags = f"--lr_scheduler={name} --lr_warmup_steps=5 --max_train_steps=50 --lr_num_cycles=3 --lr_power=2"
    found = of(DREAM, flags).items()
    kept = [writing.override(key, value) for key, value in found if key.startswith("lr_scheduler") or key == "steps"]
    kept = [f"+{word}" if "num_cycles" in word or "power" in word else word for word in kept]
    ours = build(compose(kept), "lr_scheduler")(torch.optim.SGD([torch.zeros(1)], lr=1e-3))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=5, num_training_steps=50, num_cycles=3, power=2.0
    )  # as train_dreambooth.py calls it
    for _ in range(50):
        assert ours.get_last_lr() == theirs.get_last_lr()
        ours.optimizer.step(), ours.step(), optimizer.step(), theirs.step()


def test_every_flag_stands_in_one_table_and_is_tested_if_it_means_something():
    tables = (SAME, COMPUTED, DIFFERENT, UNUSED)
    for script in SCRIPTS.values():
        for flag in script.flags:
            assert sum(flag in table for table in tables) == 1, flag
    assert {flag for table in tables for flag in table} == {
        flag for script in SCRIPTS.values() for flag in script.flags
    }
    elsewhere = {"num_train_epochs", "repeats", "validation_epochs", "train_data_dir", "max_train_steps"} | {
        *("lr_num_cycles", "lr_power")
    }
    typed = {word.lstrip("-").partition("=")[0] for _, flags, _ in FLAGS for word in shlex.split(flags)}
    assert {*SAME, *COMPUTED} <= typed | elsewhere


def test_a_flag_that_t2i_does_not_follow_is_named():
    for flag in (*DIFFERENT, *UNUSED):
        script = next(script for script in SCRIPTS.values() if flag in script.flags)
        default = script.flags[flag]
        is_number = default in (int, float) or isinstance(default, int | float)
        value = "" if default is ON else "=1" if is_number else "=x"
        found = translated(script.name, f"--{flag}{value}")
        assert f"--{flag}: {DIFFERENT[flag]}" in found.differs if flag in DIFFERENT else flag in found.unused, flag


def test_a_flag_that_changes_nothing_is_named():
    idle = {
        T2I: "--lr_warmup_steps=9 --hub_model_id=a --num_train_epochs=3 --tracker_project_name=a --validation_epochs=7",
        DREAM: "--class_prompt=a --class_data_dir=b --num_class_images=7 --prior_loss_weight=2 --lr_power=3",
        DREAM_XL: "--prodigy_beta3=1 --lr_num_cycles=2 --repeats=4 --num_validation_images=2 --image_column=img",
        XL: "--timestep_bias_portion=0.5 --timestep_bias_end=9",
        SD3: "--weighting_scheme=mode --logit_mean=1 --logit_std=2",
    }
    for script, flags in idle.items():
        named = {word.lstrip("-").partition("=")[0] for word in shlex.split(flags)} - {"weighting_scheme"}
        assert set(translated(script, flags).unused) == named
    assert not translated(DREAM, "--train_text_encoder").unused  # t2i says what it does instead
    assert not translated(T2I, "--lr_scheduler=constant --max_grad_norm=1 --seed=0").unused  # the defaults


def test_unknown_flags_are_named_with_near_ones():
    found = translated(T2I, "--lerning_rate 1e-4 --rank=4 --kaption_column=x more")
    assert found.unknown == [
        "--lerning_rate: train_text_to_image.py has no such flag; did you mean --learning_rate?",
        "1e-4: no flag takes it",
        f"--rank: train_text_to_image.py has no such flag; {', '.join(s for s in SCRIPTS if 'lora' in s)} have it",
        "--kaption_column: train_text_to_image.py has no such flag; did you mean --caption_column or --image_column?",
        "more: no flag takes it",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([T2I], "--pretrained_model_name_or_path is not given"),
        ([T2I, "--pretrained_model_name_or_path=a"], "--dataset_name or --train_data_dir is not given"),
        ([DREAM, "--pretrained_model_name_or_path=a"], "--instance_data_dir is not given"),
        ([T2I, "--learning_rate=fast"], "invalid float value: 'fast'"),
        (["train_text_to_imag.py"], "the nearest is train_text_to_image.py"),
        (["python", "other.py"], "there is no command of a training script"),
        ([T2I, "--pretrained_model_name_or_path=a", "--dataset_name=b", "--lr_scheduler=cos"], "--lr_scheduler=cos"),
        ([XL, "--pretrained_model_name_or_path=a", "--dataset_name=b", "--mixed_precision=fp8"], "fp8"),
    ],
)
def test_what_can_not_be_translated_is_said(words, message):
    if "fp8" in message or "cos" in message:
        words = [*words, "--max_train_steps=1"]
    with pytest.raises(ConfigError, match=message):
        translate(read_words(words))


def test_the_shell_is_read_as_people_paste_it():
    """Exports, variables in and out of quotes, continued lines with a blank behind the backslash, notebooks' marks."""
    text = """Don't forget to log in.
    export MODEL="a/b" DIR='my pics'
    NAME=run1   # a comment
    !CUDA_VISIBLE_DEVICES=0 accelerate launch --num_processes=2 examples/train_text_to_image.py \\
      --pretrained_model_name_or_path=$MODEL --train_data_dir="${DIR}/x" \\ 
      --validation_prompts 'costs $5' "it's $NAME" --output_dir $NAME --max_train_steps \\
      10
    """
    command = read_text(text, {})
    found = translate(command)
    assert (found.settings["model.path"], found.settings["dataset.path"]) == ("a/b", "my pics/x")
    assert found.settings["samples.prompts"] == ["costs $5", "it's run1"]
    assert (found.settings["run"], found.settings["steps"], found.settings["batch_size"]) == ("run1", 10, 32)
    assert found.text().startswith("CUDA_VISIBLE_DEVICES=0 accelerate launch --num_processes=2 -m t2i.train")
    assert read_text("train_text_to_image.py --seed=$SEED", {"SEED": "7"}).arguments == ["--seed=7"]
    with pytest.raises(ConfigError, match="the variable SEED is not set"):
        read_text("train_text_to_image.py --seed=$SEED", {})
    with pytest.raises(ConfigError, match="there are 2 commands"):
        read_text("python train_dreambooth.py\npython train_dreambooth.py", {})


def test_precision_and_processes_come_from_the_launcher_too():
    words = ["accelerate", "launch", "--mixed_precision", "fp16", "--num_processes", "4", DREAM]
    needed = [
        "--pretrained_model_name_or_path=a",
        "--instance_data_dir=b",
        "--instance_prompt=c",
        "--max_train_steps=9",
    ]
    found = translate(read_words([*words, *needed, "--scale_lr", "--train_batch_size=2", "--learning_rate=1e-6"]))
    assert (found.settings["precision"], found.settings["batch_size"]) == ("fp16", 8)
    assert found.settings["optimizer.lr"] == pytest.approx(8e-6)
    assert found.program == ["accelerate", "launch", "--num_processes", "4", "-m", "t2i.train"]
    one = [
        "A=b c",
        "accelerate",
        "launch",
        "--dynamo_backend=inductor",
        "--num_processes",
        "1",
        "--gpu_ids",
        "0",
        DREAM,
    ]
    found = translate(read_words([*one, *needed]))
    assert found.settings["compile"]
    assert found.program == ["A=b c", "t2i", "train"]
    assert "launcher: --gpu_ids 0 is left out, as one process needs none" in found.differs
    assert found.text().startswith("A='b c' t2i train ")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20).filter(
    lambda text: "${" not in text
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CASES = st.one_of(
    st.tuples(st.sampled_from(["dataset.path", "dataset.caption", "run", "hub.repo", "model.revision"]), TEXTS),
    st.tuples(st.sampled_from(["samples.prompts", "adapter.target_modules"]), st.lists(TEXTS, min_size=1, max_size=3)),
    st.tuples(st.just("optimizer.lr"), NUMBERS),
    st.tuples(
        st.just("dataset.sources"), st.lists(st.fixed_dictionaries({"path": TEXTS, "weight": NUMBERS}), min_size=1)
    ),
)


@settings(max_examples=30, deadline=None)
@given(case=CASES)
@example(case=("dataset.caption", 'it\'s a "dog", [sks]: $5 \\ 100% ü'))
@example(case=("samples.prompts", ["it's", "a, b", "1984", "null", 'say "it\'s"']))
def test_what_is_printed_is_read_back_by_shell_and_hydra(case):
    key, value = case
    (word,) = shlex.split(writing.for_shell(writing.override(key, value)))
    (typed,) = as_typed([word])
    assert OverridesParser.create().parse_override(typed).value() == value


@pytest.mark.slow
def test_the_command_prints_what_can_be_pasted(tmp_path, capsys):
    file = tmp_path / "train me.sh"
    file.write_text("M=a/b\npython train_text_to_image.py --pretrained_model_name_or_path=$M --dataset_name=d/e "
                    "--max_train_steps=5 --local_rank=0 --wrong")  # fmt: skip
    main([str(file)])
    from_file = capsys.readouterr().out
    lines = from_file.splitlines()
    command = "".join(line.removesuffix("\\") for line in lines if not line.startswith("#"))
    assert shlex.split(command)[:2] == ["t2i", "train"]
    assert compose(shlex.split(command)[2:]).model.path == "a/b"
    assert "# - --local_rank: the launcher tells each process" in lines
    assert "# - --wrong: train_text_to_image.py has no such flag" in from_file
    words = shlex.split(file.read_text().replace("$M", "a/b"))[1:]
    for before in ([], ["--"], ["--images", "9", "--"]):
        assert split_arguments([*before, *words])[1] == words
    assert split_arguments([str(file), "--images", "9"]) == ([str(file), "--images", "9"], [])
    assert read_words(words) == read_text(file.read_text(), {})


def test_the_page_has_every_flag():
    assert documentation() in (DOCS / "coming-from-diffusers.md").read_text()


BASE = "accelerate launch train_text_to_image.py --pretrained_model_name_or_path=m --dataset_name=d --max_train_steps=1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stranger",
    [
        "--validation_prompts '$(touch harm)' '`touch harm`' --output_dir \"a'; touch harm; '\"",
        "--nonsense 'x' 'y\ntouch harm\n#'",
        "--report_to 'x\ntouch harm\n#'",
        "--nonsense 'x\rtouch harm' --variant 'a\n\ntouch harm'",
    ],
)
def test_what_is_pasted_runs_nothing_of_a_script(stranger, tmp_path):
    text = translate(read_text(f"{BASE} {stranger}", {})).text()
    pasted = f"t2i() {{ :; }}\naccelerate() {{ :; }}\n{text}"
    subprocess.run(["bash", "-e"], input=pasted.encode(), cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_control_character_or_password_of_the_environment_is_in_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_averysecretvalue")
    with pytest.raises(ConfigError, match=r"the command holds control characters.*\\x1b"):
        translate(read_text(f"{BASE} --output_dir '\x1b[2J'", {})).text()
    text = translate(read_text(f'{BASE} --validation_prompts "$HF_TOKEN"', os.environ)).text()
    assert "hf_averysecretvalue" not in text


def test_a_few_lines_do_not_stand_for_gigabytes():
    with pytest.raises(ConfigError, match="a line has more than 100000 characters when its variables are filled in"):
        read_text("A=xx\n" + "A=$A$A\n" * 40 + BASE, {})
