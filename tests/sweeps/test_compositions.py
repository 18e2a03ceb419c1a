"""Jobs that are made of one another have the configurations that Hydra composes."""

import time
from types import SimpleNamespace

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from t2i.config.compose import CONF
from t2i.sweeps.compositions import Compositions

FIXED = ["loss=minsnr", "tracker=none", "sweep=s"]
MASTER = [*FIXED, "loss.snr_gamma=1,5", "hydra.launcher.n_jobs=2"]


@pytest.fixture(scope="module")
def loaders():
    GlobalHydra.instance().clear()
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    master = loader.load_configuration("config", MASTER, RunMode.MULTIRUN)
    quick = Compositions(SimpleNamespace(config_loader=loader))
    return lambda job: loader.load_sweep_config(master, job), lambda job: quick.load_sweep_config(master, job)


def content(config):
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["loss.snr_gamma=1", "seed=0"], ["loss.snr_gamma=5.5", "seed=1"]),
        (["optimizer.lr=1e-4"], ["optimizer.lr=3e-4"]),
        (["max_hours=2"], ["max_hours=null"]),
        (["validation={items: 4}"], ["validation={items: 8}"]),
        (["steps=10", "optimizer=lion"], ["steps=20", "optimizer=adamw"]),
        (["cache_dir=here"], ["cache_dir='${run}'"]),
        (["+new=1"], ["+new=2"]),
        (["ema=none"], ["ema=standard"]),
        (["hub=null"], ["hub=7"]),
        (["steps=1", "steps=2"], ["steps=3", "steps=4"]),
    ],
)
def test_jobs_are_composed_as_hydra_composes_them(loaders, first, second):
    plainly, quickly = loaders
    for job in (first, second, first):
        own = quickly([*FIXED, *job])
        assert content(own) == content(plainly([*FIXED, *job]))
        OmegaConf.set_struct(own, False)
        own.seed = 99  # what is done with one has no effect on the next


def test_the_thousandth_job_costs_little(loaders):
    _, quickly = loaders
    quickly([*FIXED, "seed=0", "steps=1"])
    begun = time.process_time()
    for seed in range(5):
        assert quickly([*FIXED, f"seed={seed}", "steps=1"]).seed == seed
    assert (time.process_time() - begun) / 5 < 0.05  # seconds; Hydra needs 0.2


def test_a_misspelt_key_is_refused_as_by_hydra(loaders):
    from hydra.errors import ConfigCompositionException

    for load in loaders:
        with pytest.raises(ConfigCompositionException, match="seedd"):
            load([*FIXED, "seedd=1"])
