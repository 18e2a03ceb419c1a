import pytest
from helpers.runs import compose

from t2i.config import ConfigError
from t2i.config.checks import check

FOLDER = ("dataset=folder", "dataset.path=x", "model=tiny")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.images=all"], "validation.images=all is not known; choose from held_out, train"),
        (["validation.fold=1"], "validation.fold=1 needs validation.folds"),
        (["validation.folds=1"], "validation.folds=1 must be a whole number, at least 2, or null"),
        (["validation.folds=3"], "validation.fold=null must be one of the 3 parts, .* -m validation.fold=0,1,2"),
        (["validation.folds=3", "validation.fold=3"], "validation.fold=3 must be one of the 3 parts, from 0 to 2"),
        (["validation.folds=3", "validation.fold=0", "validation.images=train"], "validation.folds holds images out"),
    ],
)
def test_folds_that_do_not_fit_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(compose(*FOLDER, *overrides), num_processes=1)


def test_a_data_set_without_folds_refuses_them():
    with pytest.raises(ConfigError, match=r"can't be divided into folds \(dataset=folder and hub can\)"):
        check(compose("validation.folds=3", "validation.fold=0"), num_processes=1)


def test_the_data_set_has_the_folds_of_the_validation():
    dataset = compose(*FOLDER, "validation.folds=3", "validation.fold=1").dataset
    assert (dataset.folds, dataset.fold) == (3, 1)
