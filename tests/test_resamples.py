"""The metrics of many resamples at once are those that each resample has by itself."""

import numpy as np
import pytest
import torch

from esmtune.kinds import Task as AnyTask
from esmtune.records import Censored, Marks
from esmtune.resamples import ranks
from esmtune.tasks import MLM, Binary, Multiclass, Multilabel, Multitask, Ordinal, Regression

RANDOM = np.random.default_rng(3)
SIZE, RESAMPLES = 30, 25


def marks(letters: str) -> Marks:
    return Marks(frozenset(letters.replace("?", "")), frozenset("a" if "?" in letters else ""))


NUMBERS = [round(float(x), 1) for x in RANDOM.normal(size=SIZE)]  # rounded, so that some are equal
SOME = [None if i % 7 == 0 else x for i, x in enumerate(NUMBERS)]
BOUNDS = [Censored(x, ">") if i % 5 == 0 else x for i, x in enumerate(NUMBERS)]
NAMES = [str(x) for x in RANDOM.choice(list("aab"), SIZE)]
MANY = [str(x) for x in RANDOM.choice(list("aaabbc"), SIZE)]
SETS = [marks(x) for x in RANDOM.choice(["", "a", "b", "ab", "?b"], SIZE)]
GRADES = [str(x) for x in RANDOM.choice(list("1123"), SIZE)]
PAIRS = [(x, y) for x, y in zip(SOME, NAMES, strict=True)]
CASES = {
    "regression": (Regression.fit(NUMBERS), NUMBERS),
    "blanks": (Regression.fit(SOME), SOME),
    "bounds": (Regression.fit(BOUNDS), BOUNDS),
    "ranking": (Regression.fit(NUMBERS, loss="pairwise"), NUMBERS),
    "binary": (Binary.fit(NAMES), NAMES),
    "multiclass": (Multiclass.fit(MANY), MANY),
    "multilabel": (Multilabel.fit(SETS), SETS),
    "ordinal": (Ordinal.fit(GRADES), GRADES),
    "mlm": (MLM.fit("MKTV" * 10), [*"MKTVMKTVMK", *[None] * 20]),
    "multitask": (Multitask.of([("tm", Regression.fit(SOME)), ("site", Binary.fit(NAMES))]), PAIRS),
}


def drawn(size: int, resamples: int) -> np.ndarray:
    rows = RANDOM.integers(size, size=(resamples, size))
    return np.stack([np.bincount(row, minlength=size) for row in rows], axis=1).astype(np.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_rough", [False, True])
def test_each_resample_has_the_scores_of_its_own_rows(case, is_rough):
    task, labels = CASES[case]
    outputs = torch.from_numpy(RANDOM.normal(size=(SIZE, task.num_outputs))).float()
    outputs = outputs.round() if is_rough else outputs  # then many are equal
    counts = drawn(SIZE, RESAMPLES)
    found = task.resampled(outputs, labels, counts)
    wanted = AnyTask.resampled(task, outputs, labels, counts)  # by `scores`, one resample after the other
    assert found.keys() == wanted.keys() == task.scores(outputs, labels).keys()
    for metric in wanted:
        np.testing.assert_allclose(found[metric], wanted[metric], atol=1e-7, err_msg=metric)


@pytest.mark.parametrize("case", CASES)
def test_all_points_once_have_the_scores_themselves(case):
    task, labels = CASES[case]
    outputs = torch.from_numpy(RANDOM.normal(size=(SIZE, task.num_outputs))).float()
    found = task.resampled(outputs, labels, np.ones((SIZE, 1)))
    for metric, value in task.scores(outputs, labels).items():
        assert found[metric][0] == pytest.approx(np.nan if value is None else value, abs=1e-7, nan_ok=True), metric


def test_what_a_resample_cannot_define_is_no_number():
    task = Binary.fit(["no", "yes"])
    counts = np.array([[2.0, 1.0], [0.0, 1.0]])  # the first has one class alone
    found = task.resampled(torch.tensor([[-1.0], [1.0]]), ["no", "yes"], counts)
    assert np.isnan(found["auroc"]).tolist() == np.isnan(found["mcc"]).tolist() == [True, False]
    assert found["accuracy"].tolist() == [1, 1]


def test_ranks_are_those_of_scipy():
    from scipy.stats import rankdata

    values, counts = RANDOM.integers(6, size=12).astype(float), drawn(12, 5)
    found = ranks(values, counts)
    for column in range(5):
        times = counts[:, column].astype(int)
        repeated = rankdata(np.repeat(values, times))
        np.testing.assert_allclose(np.repeat(found[:, column], times), repeated)
