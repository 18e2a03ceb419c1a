"""Bad settings, each with the message that names the setting and the remedy; before anything heavy is loaded."""

import pytest
from helpers.runs import compose
from hydra.errors import HydraException
from PIL import Image

from t2i.config import ConfigError
from t2i.config.checks import check, check_types
from t2i.config.compose import compose_defaults
from t2i.config.instantiate import build
from t2i.experiment.plan import check_the_rest, make_plan

TABLE = """
steps=-1                                        | steps=-1 must be at least 0
steps=many                                      | steps=many must be a whole number
steps=1.5                                       | steps=1.5 must be a whole number
seed=-1                                         | seed=-1 must be at least 0
batch_size=0                                    | batch_size=0 must be at least 1
batch_size=10 micro_batch_size=4                | batch_size=10 is not a multiple of micro_batch_size=4
micro_batch_size=0                              | micro_batch_size=0 must be at least 1
max_grad_norm=-1                                | max_grad_norm=-1 must be at least 0
max_bad_steps=0                                 | max_bad_steps=0 must be at least 1
caption_dropout=1.5                             | caption_dropout=1.5 is a fraction of the captions: at most 1
caption_dropout=-0.1                            | caption_dropout=-0.1 must be at least 0
noise_offset=-1                                 | noise_offset=-1 must be at least 0
input_perturbation=-1                           | input_perturbation=-1 must be at least 0
log_every=-1                                    | log_every=-1 must be at least 0
validate_every=-5                               | validate_every=-5 must be at least 0
sample_every=-5                                 | sample_every=-5 must be at least 0
save_every=-5                                   | save_every=-5 must be at least 0
keep_checkpoints=0                              | keep_checkpoints=0 must be at least 1
num_workers=-1                                  | num_workers=-1 must be a whole number, at least 0, or auto
threads=0                                       | threads=0 must be at least 1, or null for all cores
threads=many                                    | threads=many must be at least 1, or null for all cores
stop_at=0                                       | stop_at=0 must be at least 1, or null to go to the end
max_hours=0                                     | max_hours=0 must be above 0, or null for no limit
attention=flahs                                 | attention=flahs is not known; choose from auto, sdpa, math, xformers
attention=xformers                              | attention=xformers needs a GPU; use attention=auto
validation.items=0                              | validation.items=0 must be at least 1
validation.timesteps=0                          | validation.timesteps=0 must be at least 1
validation.log_snr=[5,-5]                       | validation.log_snr=[5, -5] must be two numbers, the lower first
validation.log_snr=[0]                          | validation.log_snr=[0] must be two numbers
validation.log_snr=4                            | validation.log_snr=4 must be a list
validation.log_snr=[-9,5]                       | can't be measured at -5.94, -6.81, -7.69, -8.56
continuous_time=3                               | continuous_time=3 must be true or false
scheduler.shift=3                               | scheduler.shift=3 has no effect
scheduler=flow_matching scheduler.shift=0       | scheduler.shift=0 must be positive
samples.steps=0                                 | samples.steps=0 must be at least 1
samples.prompts=[]                              | samples.prompts is empty; to generate no samples, use sample_every=0
samples.prompts=cat                             | samples.prompts=cat must be a list, such as [cat]
gradient_checkpointing=3                        | gradient_checkpointing=3 must be true or false
loss.snr_gamma=0                                | loss.snr_gamma=0 must be positive; the paper uses 5
loss.snr_gamma=high                             | loss.snr_gamma=high must be a number, like the 5.0 in conf/
loss.normalize=5                                | loss.normalize=5 must be true or false
loss=p2 loss.k=-1                               | loss.k=-1 must be positive; the paper uses 1
loss=edm loss.sigma_data=0                      | loss.sigma_data=0 must be positive
loss._target_=t2i.diffusion.losses.Missing                | can't call Missing here; loss takes CosMap, Debiased
loss._target_=os.system                         | loss._target_=os.system calls code outside of t2i
+loss.gama=5                                    | MinSNR takes no such setting
error=huber error.c=0                           | error.c=0 must be positive
error=huber error.schedule=cubic                | error.schedule=cubic is not known; choose from constant
optimizer.lr=-1                                 | Invalid learning rate: -1
optimizer.lr=fast                               | optimizer.lr=fast must be a number
optimizer.betas=[2,3]                           | Invalid beta parameter at index 0: 2
optimizer.eps=-1                                | Invalid epsilon value: -1
optimizer._target_=torch.optim.AdamX            | optimizer._target_=torch.optim.AdamX can't be imported
lr_scheduler.decay_share=2                      | lr_scheduler.decay_share=2 must be a fraction of the steps
precision.dtype=fp8                             | precision.dtype=fp8 is not known; choose from auto, fp32, fp16, bf16
ema.decay=1.5                                   | ema.decay=1.5 must be in [0, 1)
ema.decay=-0.1                                  | ema.decay=-0.1 must be in [0, 1)
tracker.mode=on                                 | tracker.mode=on is not known; choose from auto, online
scheduler.prediction_type=noise                 | scheduler.prediction_type=noise is not known; choose from epsilon
scheduler=zero_terminal_snr scheduler.prediction_type=epsilon | zero terminal SNR
scheduler=ddpm scheduler.num_train_timesteps=0  | scheduler: this scheduler can't sample
timesteps=biased timesteps.portion=2            | timesteps.portion=2 must be a fraction of the timesteps
timesteps=biased timesteps.multiplier=-1        | timesteps.multiplier=-1 must be positive; 1 means no bias
timesteps=biased timesteps.strategy=often       | timesteps.strategy=often is not known; choose from earlier
timesteps=logit_normal timesteps.std=0          | timesteps.std=0 must be positive
adapter=lora adapter.rank=0                     | adapter.rank=0 must be positive
adapter=lora adapter.init=zeros                 | adapter.init=zeros is not known; choose from kaiming, gaussian
adapter=lora adapter.dropout=1                  | adapter.dropout=1 must be a fraction, at least 0 and below 1
adapter=lora model.pretrained=false             | model.pretrained=false leaves no base to adapt
model.path=./nowhere                            | model.path=./nowhere holds no pipeline (no model_index.json)
model.pathh=tiny                                | Could not override 'model.pathh'
model=sd16                                      | Could not find 'model/sd16'
dataset=hub                                     | dataset.path must be given
dataset.groups.dragons=1                        | Could not override 'dataset.groups.dragons'
+dataset.groups.dragons=1                       | OpenMoji has no group dragons
dataset=folder dataset.path=/nowhere            | dataset.path=/nowhere
dataset=folder dataset.path=HERE/empty          | dataset.path=
dataset=folder dataset.path=HERE/images dataset.on_error=ignore      | dataset.on_error=ignore
dataset=folder dataset.path=HERE/images dataset.crop=left            | dataset.crop=left
dataset=folder dataset.path=HERE/images dataset.interpolation=cubist | dataset.interpolation=cubist
dataset=folder dataset.path=HERE/images dataset.validation_share=2   | dataset.validation_share=2
dataset=folder dataset.path=HERE/broken         | broken.png
dataset=webdataset dataset.path=HERE/images   | contains no shards (.tar or .parquet)
dataset=webdataset dataset.path=HERE dataset.buckets=true | dataset.buckets=true is not available
dataset=stream dataset.path=HERE/images       | is not a repository of the Hub (OWNER/NAME)
dataset=stream dataset.path=lab/images        | can't be reached (HF_HUB_OFFLINE is set)
dataset=stream dataset.path=lab/images dataset.keep_shards=1 | dataset.keep_shards=1 must be larger than
dataset=folder dataset.path=HERE/uncaptioned    | caption
"""
CASES = [tuple(part.strip() for part in line.split(" | ")) for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Folders of images, good and bad."""
    here = tmp_path_factory.mktemp("data")
    for name in ("empty", "images", "broken", "uncaptioned"):
        (here / name).mkdir()
    for name in ("images", "broken", "uncaptioned"):
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(here / name / f"{i}.png")
            if name != "uncaptioned":
                (here / name / f"{i}.txt").write_text(f"red {i}")
    (here / "broken" / "broken.png").write_bytes((here / "broken" / "0.png").read_bytes()[:60])
    (here / "broken" / "broken.txt").write_text("half an image")
    return here


def prepare(overrides):
    """What `t2i train` does before it loads a model."""
    cfg = compose(*overrides)
    check_types(cfg, compose_defaults(overrides))
    check(cfg, num_processes=1)
    make_plan(cfg)
    check_the_rest(cfg)
    build(cfg, "dataset")


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "answer"), CASES, ids=[overrides for overrides, _ in CASES])
def test_it_is_answered_with_the_setting_and_the_remedy(overrides, answer, here):
    with pytest.raises((ConfigError, HydraException)) as refused:
        prepare(overrides.replace("HERE", str(here)).split())
    assert answer in str(refused.value)


def test_the_table_is_long():
    assert len(CASES) >= 60
