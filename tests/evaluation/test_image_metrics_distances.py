"""Distances of distributions equal their formulas, without each prompt, too; and CMMD's expectation is its limit."""

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import networks
from PIL import Image
from scipy.linalg import sqrtm

from t2i.config import ConfigError
from t2i.evaluation.image_metrics import frechet
from t2i.evaluation.image_metrics.cmmd import CMMD, squared_mmd
from t2i.evaluation.image_metrics.fd_dinov2 import FDDinoV2
from t2i.evaluation.image_metrics.features import features
from t2i.evaluation.image_metrics.fid import FID
from t2i.evaluation.image_metrics.jackknife import Clusters, interval, pseudo_values
from t2i.evaluation.image_metrics.metric import Judged

CPU = torch.device("cpu")
OWN = [0, 1, 1, 2, 3, 4, 8]  # two prompts share a reference, and four references are of no prompt


def judged(prompts, seeds, references, reference_of=None):
    return Judged(
        prompts=["a"] * prompts,
        images=[None] * prompts * seeds,
        references=[None] * references,
        reference_of=reference_of,
    )


def frechet_by_torch_fidelity(x, y):
    """metric_fid.py of torch-fidelity 0.4, fid_features_to_statistics and fid_statistics_to_metric."""
    (mu1, sigma1), (mu2, sigma2) = ((np.mean(features, axis=0), np.cov(features, rowvar=False)) for features in (x, y))
    diff = mu1 - mu2
    tr_covmean = np.sum(np.sqrt(np.linalg.eigvals(sigma1.dot(sigma2)).astype("complex128")).real)
    return float(diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * tr_covmean)


def frechet_by_root(x, y):
    sigma1, sigma2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * sqrtm(sigma1 @ sigma2).real)


def cmmd_of_the_paper(x, y, sigma=10.0, scale=1000.0):
    """arXiv 2401.09603, eq. 4, term by term."""

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * sigma**2))

    (m, n), (xx, yy, xy) = (len(x), len(y)), (kernel(x, x), kernel(y, y), kernel(x, y))
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return scale * (within - 2 * xy.sum() / (m * n))


def units(rng, count, width, shift=0.0):
    features = rng.normal(size=(count, width)) + shift
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize(("prompts", "seeds", "references"), [(30, 1, 40), (7, 5, 12), (150, 2, 130)])
def test_the_frechet_distance_is_the_reference_s(prompts, seeds, references):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(prompts * seeds, 12)), rng.normal(size=(references, 12)) * np.linspace(0.5, 2, 12) + 0.3
    value, left_out = frechet.distances(x, y, Clusters.of(judged(prompts, seeds, references)))
    assert value == pytest.approx(frechet_by_torch_fidelity(x, y), rel=1e-6)
    assert value == pytest.approx(frechet_by_root(x, y), rel=1e-6)
    kept = np.arange(prompts * seeds) // seeds % min(prompts, 100) != 3
    assert left_out[3] == pytest.approx(frechet_by_root(x[kept], y), rel=1e-6)


def test_the_frechet_distance_of_fewer_images_than_features():
    """torch-fidelity's eigenvalues are inexact there by the roots of rounding errors; both agree to 1e-4."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 64)), rng.normal(size=(30, 64)) + 0.2
    value, left_out = frechet.distances(x, y, Clusters.of(judged(10, 2, 30)))
    assert value == pytest.approx(frechet_by_torch_fidelity(x, y), rel=1e-4)
    assert left_out[0] == pytest.approx(frechet_by_torch_fidelity(x[2:], y), rel=1e-4)


def test_the_frechet_distance_of_a_set_to_itself_is_zero():
    x = np.random.default_rng(0).normal(size=(40, 8))
    assert frechet.distances(x, x, Clusters.of(judged(40, 1, 40)))[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("prompts", "references"), [(30, 40), (130, 1100)])
def test_cmmd_is_the_paper_s(prompts, references):
    rng = np.random.default_rng(0)
    x, y = units(rng, prompts, 16), units(rng, references, 16, 0.2)
    value, left_out = squared_mmd(x, y, Clusters.of(judged(prompts, 1, references)), 10.0, 1000.0)
    assert value == pytest.approx(cmmd_of_the_paper(x, y), rel=1e-6)
    kept = np.arange(prompts) % min(prompts, 100) != 7
    assert left_out[7] == pytest.approx(cmmd_of_the_paper(x[kept], y), rel=1e-6)


def test_cmmd_compares_nothing_with_what_is_of_the_same_prompt():
    rng = np.random.default_rng(0)
    x, y = units(rng, 14, 5), units(rng, 9, 5, 0.2)
    clusters = Clusters.of(judged(7, 2, 9, OWN))
    of_x = np.repeat(OWN, 2)

    def mean(a, b, of_a, of_b):
        kernel = np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200)
        return kernel[of_a[:, None] != of_b].mean()

    def expected(in_x, in_y):
        (a, of_a), (b, of_b) = (x[in_x], of_x[in_x]), (y[in_y], np.arange(9)[in_y])
        return 1000 * (mean(a, a, of_a, of_a) + mean(b, b, of_b, of_b) - 2 * mean(a, b, of_a, of_b))

    value, left_out = squared_mmd(x, y, clusters, 10.0, 1000.0)
    assert value == pytest.approx(expected(of_x >= 0, np.arange(9) >= 0), rel=1e-6)
    assert len(left_out) == 6
    for group, reference in enumerate((0, 1, 2, 3, 4, 8)):  # leaves with its prompts
        assert left_out[group] == pytest.approx(expected(of_x != reference, np.arange(9) != reference), rel=1e-6)


def gaussian_kernel(difference, variance, sigma):
    """E exp(-|z|² / 2σ²) of a normal z with this mean and, in each of its dimensions, this variance."""
    spread = sigma**2 + variance
    return (sigma**2 / spread) ** (len(difference) / 2) * np.exp(-(difference**2).sum() / (2 * spread))


@pytest.mark.slow
def test_the_expectation_of_cmmd_does_not_depend_on_the_number_of_images():
    """Nor do images of one prompt that are alike, or like their reference, bias it; with the diagonal it is biased."""
    width, sigma, between, within, shift = 3, 2.0, 1.0, 0.5, np.full(3, 0.4)
    variance = 2 * (between + within)
    truth = 2 * (gaussian_kernel(0 * shift, variance, sigma) - gaussian_kernel(shift, variance, sigma))
    rng = np.random.default_rng(0)
    for prompts, seeds in ((4, 3), (12, 2)):
        clusters, values, paper = Clusters.of(judged(prompts, seeds, prompts, range(prompts))), [], []
        for _ in range(1500):
            means = rng.normal(size=(prompts, 1, width)) * between**0.5
            x, y = (means + rng.normal(size=(prompts, count, width)) * within**0.5 for count in (seeds, 1))
            x, y = (x + shift).reshape(-1, width), y.reshape(-1, width)
            values.append(squared_mmd(x, y, clusters, sigma, 1.0)[0])
            paper.append(cmmd_of_the_paper(x, y, sigma, 1.0))
        error = np.std(values) / len(values) ** 0.5
        assert np.mean(values) == pytest.approx(truth, abs=3.5 * error)
        assert error < 0.1 * truth
        if prompts == 4:  # images that are not independent would have a bias that shrinks with their number
            assert abs(np.mean(paper) - truth) > 4 * error


def test_pseudo_values_of_a_mean_are_the_values_themselves():
    values = np.random.default_rng(0).normal(size=12)
    left_out = np.array([np.delete(values, index).mean() for index in range(12)])
    assert np.allclose(pseudo_values(values.mean(), left_out, np.ones(12)), values)
    groups = np.array([0, 1, 2, 3, 4] * 2 + [0, 1])  # of unequal size: the means of the groups
    left_out = np.array([values[groups != group].mean() for group in range(5)])
    found = pseudo_values(values.mean(), left_out, np.bincount(groups))
    assert np.allclose(found, [values[groups == group].mean() for group in range(5)])


def test_the_jackknife_takes_the_bias_of_a_variance_away():
    values = np.random.default_rng(0).normal(size=20)
    left_out = np.array([np.delete(values, index).var() for index in range(20)])
    assert pseudo_values(values.var(), left_out, np.ones(20)).mean() == pytest.approx(values.var(ddof=1))


def test_groups_hold_a_prompt_with_all_that_is_its_own():
    clusters = Clusters.of(judged(7, 2, 9, OWN))
    assert clusters.image_groups.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert clusters.reference_groups.tolist() == [0, 1, 2, 3, 4, 6, 6, 6, 5]
    many = Clusters.of(judged(250, 1, 5))
    assert sorted(set(many.sizes)) == [2, 3]
    assert len(many.sizes) == 100
    assert many.sizes.sum() == 250
    assert set(many.reference_groups) == {100}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)) for _ in range(20)]


@pytest.mark.parametrize("reference_of", [None, [0, 1, 2, 3]])
def test_cmmd_of_a_network(pictures, reference_of, tmp_path):
    folder = networks.save("clip", tmp_path / "clip")
    given = Judged(prompts="abcd", images=pictures[:8], references=pictures[8:], reference_of=reference_of)
    metric = CMMD(str(folder), 10.0, 1000.0, None, 4)
    metric.check()
    scores = metric(given, CPU, str(tmp_path))
    x, y = (features(metric.network, images, CPU, None).units for images in (pictures[:8], pictures[8:]))
    assert scores.value == pytest.approx(squared_mmd(x, y, Clusters.of(given), 10.0, 1000.0)[0], abs=1e-4)
    assert scores.values.shape == (4, 1)
    if reference_of is None:  # a U-statistic of the prompts, which has no bias
        assert scores.details["corrected"] == pytest.approx(scores.value)
    low, high = scores.details["interval"]
    assert low < scores.value < high


def test_fd_dinov2_of_a_network_tells_of_its_bias(pictures, tmp_path):
    folder = networks.save("dinov2", tmp_path / "dinov2")
    given = Judged(prompts="abcd", images=pictures[:8], references=pictures[8:])
    metric = FDDinoV2(str(folder), None, 4)
    metric.check()
    scores = metric(given, CPU, None)
    x, y = (features(metric.network, images, CPU, None).values for images in (pictures[:8], pictures[8:]))
    assert scores.value == pytest.approx(frechet_by_root(x.astype(float), y.astype(float)), rel=1e-4)
    assert scores.details["corrected"] == pytest.approx(scores.values.mean())
    assert scores.details["bias"] == pytest.approx(scores.value - scores.values.mean())
    (note,) = scores.notes
    assert "published values are of 50,000 images" in note
    assert f"the jackknife corrects {scores.value:.4g} to" in note


@pytest.mark.slow
def test_other_references_are_another_metric(pictures, tmp_path):
    metric = CMMD(str(networks.save("clip", tmp_path / "clip")), 10.0, 1000.0, None, 4)

    def identity(**changes):
        given = {"prompts": "abcd", "images": pictures[:8], "references": pictures[8:], "reference_of": None}
        return metric(Judged(**given | changes), CPU, None).identity

    assert identity() == identity(images=pictures[4:12])
    assert len({identity(), identity(references=pictures[9:]), identity(reference_of=[0, 1, 2, 3])}) == 3


def test_too_few_prompts_are_refused(pictures, tmp_path):
    metric = CMMD(str(networks.save("clip", tmp_path / "clip")), 10.0, 1000.0, None, 4)
    with pytest.raises(ConfigError, match="metric=cmmd needs at least 3 prompts, of which there are 2"):
        metric(Judged(prompts="ab", images=pictures[:2], references=pictures), CPU, None)
    with pytest.raises(ConfigError, match="3 prompts with references of their own, of which there are 1"):
        metric(Judged(prompts="abc", images=pictures[:3], references=pictures, reference_of=[1, 1, 1]), CPU, None)
    with pytest.raises(ConfigError, match="3 references, of which there are 2"):
        metric(Judged(prompts="abc", images=pictures[:3], references=pictures[:2]), CPU, None)


def test_the_interval_is_student_s():
    low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_fid_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"metric=fid needs the package torch_fidelity; .* 't2i\[fid\]'"):
        FID(None, 4).check()


def test_fid_is_torch_fidelity_s(pictures, tmp_path):
    """On the features of its Inception with fresh weights. Runs only where torch-fidelity and torchvision are."""
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    file = tmp_path / "inception.pth"
    torch.manual_seed(0)
    theirs = _fresh(FeatureExtractorInceptionV3, file)
    metric = FID(str(file), 4)
    metric.check()
    given = Judged(prompts="abcd", images=pictures[:8], references=pictures[8:])
    sets = [
        torch.cat([theirs(_pixels(image))[0] for image in images]).double() for images in (pictures[:8], pictures[8:])
    ]
    expected = fid_statistics_to_metric(*map(fid_features_to_statistics, sets), verbose=False)
    assert metric(given, CPU, None).value == pytest.approx(expected["frechet_inception_distance"], rel=1e-4, abs=0)


def test_weights_of_inception_that_could_run_code_are_refused(tmp_path):
    """torch-fidelity would unpickle the file with all that it calls."""
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ConfigError, match="holds something other than tensors"):
        FID(str(tmp_path / "weights.pth"), 4).network.load(CPU)


def _pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _fresh(kind, file):
    """An extractor with fresh weights, which `file` holds."""
    loaded = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: loaded)
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        extractor = kind("inception-v3-compat", ["2048"], "none")
    torch.save(extractor.state_dict(), file)
    return extractor
