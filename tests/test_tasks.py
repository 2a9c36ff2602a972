"""Tasks, losses and scores against scikit-learn, torch's closed forms, and loops written by hand in float64."""

import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn

from esmtune import losses
from esmtune.alphabet import INDEX, SYMBOLS
from esmtune.classes import natural
from esmtune.losses import class_loss, loss, ranking
from esmtune.metrics import classification_scores, multilabel_scores, ordinal_scores, regression_scores, sign_of
from esmtune.records import Censored, Marks
from esmtune.regression import CLOSE
from esmtune.tasks import (
    MLM,
    Binary,
    Multiclass,
    Multilabel,
    Multitask,
    Ordinal,
    Regression,
    Task,
    Total,
    task,
    weighed,
)

ARCHIVES = Path(__file__).parent / "archives"


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def marks(yes, unknown=""):
    return Marks(frozenset(yes), frozenset(unknown))


# Numbers and bounds

BOUNDED = [1.0, Censored(12.0, ">"), 10.0, 12.0, None, Censored(1.0, "<"), Censored(3.0, "<"), Censored(9.0, ">"), 10.0]


def test_center_and_spread_are_of_known_labels_and_bounds_count_as_their_number():
    fitted = Regression.fit(BOUNDED)
    known = [1, 12, 10, 12, 1, 3, 9, 10]
    assert fitted.center == pytest.approx(np.mean(known), rel=1e-12)
    assert fitted.spread == pytest.approx(np.std(known), rel=1e-12)
    assert Regression.fit([7.0, 7.0]).spread == 1  # and not 0
    with pytest.raises(ValueError, match="all are unknown"):
        Regression.fit([None, None])
    with pytest.raises(ValueError, match="have no finite spread"):
        Regression.fit([1e308, -1e308])


@pytest.mark.parametrize("name", ["squared", "absolute", "huber"])
def test_a_bound_is_an_error_on_its_wrong_side_alone(name):
    fitted = Regression.fit(BOUNDED, loss=name)
    outputs, weights = draw(9, 1, seed=3), torch.rand(9)
    expected = 0.0
    for label, output, weight in zip(BOUNDED, outputs[:, 0].tolist(), weights.tolist(), strict=True):
        if label is None:
            continue
        value = (getattr(label, "value", label) - fitted.center) / fitted.spread
        difference = output - value
        side = getattr(label, "side", None)
        if (side == ">" and difference > 0) or (side == "<" and difference < 0):
            continue
        far = abs(difference)
        huber = far**2 / 2 if far <= 1 else far - 0.5
        expected += weight * {"squared": far**2, "absolute": far, "huber": huber}[name]
    total = fitted.loss(outputs, fitted.targets(BOUNDED), weights)
    assert total.count == 8
    assert total.sum.item() == pytest.approx(expected, abs=1e-6)
    low, high = (torch.full((1, 1), x, requires_grad=True) for x in (-9.0, 9.0))
    for output, wrong in (low, ">"), (high, "<"), (low, "<"), (high, ">"):
        output.grad = None
        fitted.loss(output, fitted.targets([Censored(5.0, wrong)])).sum.backward()
        assert bool(output.grad.any()) == ((output is low) == (wrong == ">"))


def test_scores_are_over_labels_that_are_no_bounds():
    fitted = Regression.fit(BOUNDED)
    outputs = draw(9, 1)
    exact = [i for i, x in enumerate(BOUNDED) if isinstance(x, float)]
    predictions = [fitted.predict(outputs)[i] for i in exact]
    scores = fitted.scores(outputs, BOUNDED)
    assert scores == regression_scores(np.array([BOUNDED[i] for i in exact]), np.array(predictions))
    assert scores["mae"] == pytest.approx(
        sum(abs(p - BOUNDED[i]) for p, i in zip(predictions, exact, strict=True)) / len(exact)
    )


def test_a_wrong_loss_is_named():
    with pytest.raises(
        ValueError, match=r"no loss 'pairwize'\. Did you mean 'pairwise'\? There are: absolute, .*squar"
    ):
        Regression.fit([1.0, 2.0], loss="pairwize")
    for fit in (Binary.fit, Multiclass.fit):
        with pytest.raises(ValueError, match=r"loss 'squared' is of numbers, which .* Take cross-entropy, focal"):
            fit(["a", "b"], loss="squared")


# Ranking


def surely_above(a, b):
    """Whether the label a is greater than b for certain, case by case."""
    x, y = getattr(a, "value", a), getattr(b, "value", b)
    one, other = getattr(a, "side", "="), getattr(b, "side", "=")
    if one == "<" or other == ">":
        return False
    return x > y if one == other == "=" else x >= y


def hand_pairwise(labels, outputs, weights):
    error = total = 0.0
    for (a, x, v), (b, y, w) in itertools.product(zip(labels, outputs, weights, strict=True), repeat=2):
        if a is not None and b is not None and surely_above(a, b):
            error += v * w * math.log1p(math.exp(y - x))
            total += v * w
    return error / total if total else 0.0


def hand_spacing(labels, outputs, weights):
    error = total = 0.0
    for (a, x, v), (b, y, w) in itertools.product(zip(labels, outputs, weights, strict=True), repeat=2):
        if a is not None and b is not None and surely_above(a, b):
            least = getattr(a, "value", a) - getattr(b, "value", b)
            error += v * w * math.log1p(math.exp(-min(x - y, least)))
            total += v * w
    return error / total if total else 0.0


def hand_listwise(labels, outputs, weights):
    known = [(a, x, v) for a, x, v in zip(labels, outputs, weights, strict=True) if a is not None]
    error = 0.0
    for a, x, v in known:
        below = sum(w * math.exp(y) for b, y, w in known if surely_above(a, b))
        error += v * math.log((math.exp(x) + below) / math.exp(x))
    return error / sum(v for _, _, v in known)


HAND = {"pairwise": hand_pairwise, "listwise": hand_listwise}


def test_every_ranking_loss_has_an_oracle():
    assert set(HAND) == set(ranking)


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_ranking_loss_is_that_of_all_pairs_whose_order_is_certain(name, dtype):
    for seed in range(5):
        generator = np.random.default_rng(seed)
        labels = [*BOUNDED, *map(float, generator.integers(0, 6, 12))]
        weights = torch.from_numpy(generator.random(len(labels)) * (generator.random(len(labels)) > 0.2))
        outputs = draw(len(labels), 1, seed=seed)
        fitted = Regression.fit(labels, loss=name)
        total = fitted.loss(outputs.to(dtype), fitted.targets(labels), weights)
        size = sum(w for x, w in zip(labels, weights.tolist(), strict=True) if x is not None)
        expected = HAND[name](labels, outputs[:, 0].tolist(), weights.tolist()) * size
        assert total.sum.dtype == dtype
        assert total.sum.item() == pytest.approx(expected, rel=1e-6 if dtype == torch.float64 else 1e-5)
        assert total.count == len(labels) - 1


def test_without_ties_listwise_is_the_likelihood_of_plackett_and_luce():
    """The probabilities of all orders add up to 1, and the loss is that of the true one."""
    fitted, outputs = Regression.fit([1.0, 2.0], loss="listwise"), draw(4, 1)
    chances = {}
    for order in itertools.permutations([1.0, 2.0, 3.0, 4.0]):
        total = fitted.loss(outputs, fitted.targets(order))
        chances[order] = math.exp(-total.sum.item())
    assert sum(chances.values()) == pytest.approx(1)
    assert max(chances, key=chances.get) == tuple((outputs[:, 0].argsort().argsort() + 1).double().tolist())


def test_certain_orders_of_bounds():
    over, under = Censored(12.0, ">"), Censored(12.0, "<")
    for name in ranking:
        for pair, is_certain in {
            (10.0, over): True, (12.0, over): True, (13.0, over): False, (11.0, under): False, (12.0, under): True,
            (under, over): True, (over, over): False, (Censored(3.0, ">"), over): False, (12.0, 12.0): False,
        }.items():  # fmt: skip
            fitted = Regression.fit([1.0, 20.0], loss=name)
            for labels in (pair, pair[::-1]):
                assert bool(fitted.loss(torch.zeros(2, 1), fitted.targets(labels)).sum) == is_certain, (name, pair)


@pytest.mark.parametrize("name", HAND)
def test_without_a_pair_a_ranking_loss_is_zero_and_part_of_the_graph(name):
    fitted = Regression.fit([1.0, 2.0], loss=name)
    outputs = draw(3, 1).requires_grad_()
    for labels in ([2.0] * 3, [Censored(2.0, ">")] * 3, [1.0, None, None], [None] * 3):
        outputs.grad = None
        total = fitted.loss(outputs, fitted.targets(labels))
        assert total.sum == 0
        total.sum.backward()
        assert not outputs.grad.any()


@pytest.mark.parametrize("name", HAND)
def test_ranking_losses_have_exact_gradients_and_stay_finite(name):
    fitted = Regression.fit(BOUNDED, loss=name)
    targets, weights = fitted.targets(BOUNDED), torch.rand(9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: fitted.loss(x, targets, weights).sum, draw(9, 1).requires_grad_())
    far = (draw(9, 1) * 1e4).float().requires_grad_()
    total = fitted.loss(far, targets)
    total.sum.backward()
    assert total.sum.isfinite()
    assert far.grad.isfinite().all()
    assert far.grad.any()


def test_a_shift_of_all_outputs_is_no_matter_to_a_ranking_loss():
    for name in ranking:
        fitted, outputs = Regression.fit(BOUNDED, loss=name), draw(9, 1)
        one, other = (fitted.loss(x, fitted.targets(BOUNDED)).sum for x in (outputs, outputs + 100))
        torch.testing.assert_close(one, other)


def test_many_points_are_compared_in_groups(monkeypatch):
    monkeypatch.setattr(losses, "GROUP", 4)
    labels, outputs = [float(x) for x in range(10)], draw(10, 1)
    fitted = Regression.fit(labels, loss="pairwise")
    found = fitted.loss(outputs, fitted.targets(labels)).mean.item()
    error = pairs = 0.0
    for group in ([0, 3, 6, 9], [1, 4, 7], [2, 5, 8]):
        number = math.comb(len(group), 2)
        error += number * hand_pairwise(group, outputs[group, 0].tolist(), [1] * len(group))
        pairs += number
    assert found == pytest.approx(error / pairs)


@pytest.mark.parametrize("name", ["squared", "absolute", "gaussian"])
def test_the_order_of_points_is_added_to_a_loss_by_its_weight(name):
    labels = [*BOUNDED, 4.0, 5.0, 6.5]
    outputs, weights = draw(12, 2 if name == "gaussian" else 1), torch.rand(12, dtype=torch.float64)
    plain, both = (Regression.fit(labels, loss=name, ranking_weight=weight) for weight in (0.0, 2.5))
    alone, joined = (task.loss(outputs, task.targets(labels), weights) for task in (plain, both))
    learned = [None if x is None else (x - plain.center) / plain.spread / CLOSE if isinstance(x, float) else
               Censored((x.value - plain.center) / plain.spread / CLOSE, x.side) for x in labels]  # fmt: skip
    size = sum(w for x, w in zip(labels, weights.tolist(), strict=True) if x is not None)
    expected = (
        alone.sum.item()
        + 2.5 * CLOSE * hand_spacing(learned, [x / CLOSE for x in outputs[:, 0].tolist()], weights.tolist()) * size
    )
    assert joined.sum.item() == pytest.approx(expected, rel=1e-6)
    assert joined.count == alone.count
    assert both.compares
    assert not plain.compares
    assert not both.only_orders
    assert both.pointwise() == plain
    assert both.refitted([1.0, 4.0]).ranking_weight == 2.5
    assert both.finished(outputs, labels) is both  # which has a unit already
    assert both.plain() == plain
    assert Multitask.of([("y", both)]).pointwise() == Multitask.of([("y", plain)])


def test_a_weight_of_the_order_that_cannot_be_is_refused():
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"ranking_weight is .*, expected 0 or more"):
            Regression.fit([1.0, 2.0], ranking_weight=weight)
    for name in ranking:
        with pytest.raises(ValueError, match=f"the loss {name} is of nothing but the order: leave out ranking_weight"):
            Regression.fit([1.0, 2.0], loss=name, ranking_weight=1.0)


@pytest.mark.parametrize("name", HAND)
def test_after_a_ranking_loss_a_line_gives_outputs_the_unit_of_the_label(name):
    labels = [*BOUNDED, 4.0, 5.0, 6.5]
    exact = [i for i, x in enumerate(labels) if isinstance(x, float)]
    y = np.array([labels[i] for i in exact])
    outputs = draw(12, 1)
    outputs[exact, 0] += torch.from_numpy(y)  # they rise with the labels, in a unit of their own
    fitted = Regression.fit(labels, loss=name)
    before = fitted.scores(outputs, labels)
    assert before["r2"] is before["rmse"] is before["mae"] is None
    assert before["spearman"] is not None
    finished = fitted.finished(outputs, labels)
    slope, intercept = np.polyfit(outputs[exact, 0].numpy(), y, 1)
    expected = slope * outputs[:, 0].numpy() + intercept
    assert finished.predict(outputs) == pytest.approx(expected.tolist())
    after = finished.scores(outputs, labels)
    assert after["r2"] == pytest.approx(sklearn.r2_score(y, expected[exact]))
    assert after["spearman"] == before["spearman"]
    torch.testing.assert_close(  # the loss goes on as before
        finished.loss(outputs, finished.targets(labels)).sum, fitted.loss(outputs, fitted.targets(labels)).sum
    )
    for other in (-outputs, torch.zeros(12, 1), torch.full((12, 1), torch.nan)):
        assert fitted.finished(other, labels) == fitted
    squared = Regression.fit(labels)
    assert squared.finished(outputs, labels) is squared
    assert squared.scores(outputs, labels)["r2"] is not None


def test_members_in_units_of_their_own_are_translated():
    one = Regression(center=3.0, spread=2.0, loss_name="pairwise")
    other = Regression(center=-1.0, spread=5.0, loss_name="pairwise")
    outputs = draw(6, 1)
    assert one.predict(one.translated(outputs, other)) == pytest.approx(other.predict(outputs))
    both = [Multitask.of([("y", x), ("c", Binary.fit(["a", "b"]))]) for x in (one, other)]
    outputs = draw(6, 2)
    translated = both[0].translated(outputs, both[1])
    assert [p[0] for p in both[0].predict(translated)] == pytest.approx([p[0] for p in both[1].predict(outputs)])
    assert torch.equal(translated[:, 1], outputs[:, 1])
    assert one.disagreement(torch.tensor([[[1.0]], [[3.0]]])) == [2.0]  # one standard deviation of 2


# Classes


def test_classes_have_a_natural_order():
    names = ["10", "9.5", "-1", "b", "a10", "a2", "a02", "nan", "inf", "", "B", "2x", "x"]
    ordered = sorted(names, key=natural)
    assert ordered[:3] == ["-1", "9.5", "10"]
    for earlier, later in itertools.pairwise(["a2", "a10", "b", "inf", "nan", "x"]):
        assert ordered.index(earlier) < ordered.index(later)
    assert all(sorted(p, key=natural) == ordered for p in (reversed(names), sorted(names)))
    assert Multiclass.fit(["c", "a", None, "b", "a"]).shares == (0.5, 0.25, 0.25)


def test_a_class_that_is_not_known_is_named():
    for fitted in (Binary.fit(["a", "b"]), Ordinal.fit(["a", "b"], order="a,b"), Multilabel.fit([marks("ab")])):
        with pytest.raises(ValueError, match=r"no class 'z'\. There are: a, b"):
            fitted.targets([marks("z") if isinstance(fitted, Multilabel) else "z"])
    for names in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"of two classes; there are {len(names)}: a"):
            Binary.fit(names)
    with pytest.raises(ValueError, match="all are unknown"):
        Multiclass.fit([None])
    with pytest.raises(ValueError, match="no label has any"):
        Multilabel.fit([marks(""), None, marks("", "a")])
    for options, what in ({"gamma": -1.0}, "gamma is -1"), ({"label_smoothing": 1.0}, "label_smoothing is 1"):
        for kind in (Binary, Multiclass):
            with pytest.raises(ValueError, match=what):
                kind.fit(["a", "b"], **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_torchs(smoothing):
    names = [*"abcdabca", None]
    fitted, outputs = Multiclass.fit(names, label_smoothing=smoothing), draw(9, 4)
    truth = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0])
    expected = F.cross_entropy(outputs[:8], truth, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(fitted.loss(outputs, fitted.targets(names)).sum, expected)
    names = [*"abaab", None]
    fitted, outputs = Binary.fit(names, label_smoothing=smoothing), draw(6, 1)
    truth = torch.tensor([0, 1, 0, 0, 1], dtype=torch.float64)
    wanted = truth * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(outputs[:5, 0], wanted, reduction="sum")
    torch.testing.assert_close(fitted.loss(outputs, fitted.targets(names)).sum, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_by_hand(gamma):
    names = [*"abcab", None]
    fitted, outputs = Multiclass.fit(names, loss="focal", gamma=gamma), draw(6, 3)
    expected = 0.0
    for row, truth in zip(outputs.tolist(), [0, 1, 2, 0, 1], strict=False):
        p = math.exp(row[truth]) / sum(map(math.exp, row))
        expected -= (1 - p) ** gamma * math.log(p)
    assert fitted.loss(outputs, fitted.targets(names)).sum.item() == pytest.approx(expected, abs=1e-6)
    plain = Multiclass.fit(names)
    assert (gamma == 0) == torch.allclose(
        plain.loss(outputs, plain.targets(names)).sum, fitted.loss(outputs, fitted.targets(names)).sum
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_finite_where_probabilities_are_zero_or_one(gamma):
    for dtype in (torch.float32, torch.float64):
        fitted = Binary.fit(["a", "b"], loss="focal", gamma=gamma)
        outputs = torch.tensor([[1e3], [-1e3], [60.0], [-60.0]], dtype=dtype, requires_grad=True)
        total = fitted.loss(outputs, fitted.targets(["b", "b", "b", "b"]))
        total.sum.backward()
        assert total.sum.item() == pytest.approx(1060)
        assert outputs.grad[:, 0].tolist() == pytest.approx([0, -1, 0, -1], abs=1e-6)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    names = [*"aaaaaabbbc", None]
    truth = [0] * 6 + [1] * 3 + [2]
    weights = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=truth))
    fitted, outputs = Multiclass.fit(names, class_weights="balanced"), draw(11, 3)
    errors = F.cross_entropy(outputs[:10], torch.tensor(truth), reduction="none")
    total = fitted.loss(outputs, fitted.targets(names))
    torch.testing.assert_close(total.sum, (errors * weights[truth]).sum(), rtol=1e-6, atol=0)
    assert total.count == 10
    assert weights[truth].sum().item() == pytest.approx(10)  # so the count stays a count
    balanced = fitted.loss(torch.zeros(11, 3), fitted.targets(names)).mean
    assert balanced.item() == pytest.approx(math.log(3), rel=1e-6)


# Several classes at once

MANY = [marks("a"), marks("ab"), marks("", "b"), None, marks("abc"), marks("c", "a"), marks("b"), marks("a")]
CELLS = np.array(
    [[1, 0, 0], [1, 1, 0], [0, np.nan, 0], [np.nan] * 3, [1, 1, 1], [np.nan, 0, 1], [0, 1, 0], [1, 0, 0]]
)  # fmt: skip


def test_marks_are_one_cell_a_class():
    fitted = Multilabel.fit(MANY)
    assert fitted.classes == ("a", "b", "c")
    np.testing.assert_array_equal(fitted.targets(MANY).numpy(), CELLS)
    assert fitted.shares == pytest.approx((4 / 6, 3 / 6, 2 / 7))
    assert fitted.count(fitted.targets(MANY)) == 19
    assert Multilabel.fit([marks("a", "z")]).classes == ("a",)  # nobody knows of z


def test_a_multilabel_loss_is_that_of_the_known_cells():
    fitted, outputs = Multilabel.fit(MANY), draw(8, 3).requires_grad_()
    weights = torch.rand(8, dtype=torch.float64)
    targets = fitted.targets(MANY)
    expected, balanced = 0.0, 0.0
    for (row, column), truth in np.ndenumerate(CELLS):
        if truth == truth:
            error = F.binary_cross_entropy_with_logits(outputs[row, column], torch.tensor(truth)) * weights[row]
            same = np.nansum(CELLS[:, column] == truth)
            expected += error
            balanced += error * np.isfinite(CELLS[:, column]).sum() / (2 * same)
    total = fitted.loss(outputs, targets, weights)
    torch.testing.assert_close(total.sum, expected)
    assert total.count == 19
    total.sum.backward()
    assert ((outputs.grad == 0).numpy() == np.isnan(CELLS)).all()
    evened = Multilabel.fit(MANY, class_weights="balanced").loss(outputs, targets, weights)
    torch.testing.assert_close(evened.sum, balanced, rtol=1e-6, atol=0)
    focal = Multilabel.fit(MANY, loss="focal", gamma=0.0).loss(outputs, targets, weights)
    torch.testing.assert_close(focal.sum, expected)


def test_every_class_above_one_half_is_predicted():
    fitted = Multilabel.fit([marks([f"c{i}" for i in range(11)])])
    outputs = draw(300, 11)
    outputs[0], outputs[1], outputs[2] = -1.0, 1.0, 0.0
    predictions = fitted.predict(outputs)
    columns = fitted.probabilities(outputs)
    for row, label in enumerate(predictions):
        assert label == marks([name for name in fitted.classes if columns[name][row] > 0.5])
    assert [len(label.yes) for label in predictions[:3]] == [0, 11, 0]
    assert str(fitted.predict(torch.tensor([[1.0, -1, 1] + [-1] * 8]))[0]) == "c0;c2"


def test_a_class_that_always_holds_is_no_trouble():
    fitted = Multilabel.fit([marks("a"), marks("ab")], class_weights="balanced")
    assert fitted.shares == (1.0, 0.5)
    assert fitted.baseline(1).isfinite().all()
    assert fitted.probabilities(fitted.baseline(1))["a"] == [pytest.approx(1, abs=1e-6)]
    assert fitted.loss(torch.zeros(2, 2), fitted.targets([marks("a"), marks("")])).sum.isfinite()


def test_multilabel_scores_are_scikit_learns():
    generator = np.random.default_rng(0)
    labels, chances = (generator.random((40, 5)) > 0.6).astype(float), generator.random((40, 5)).round(2)
    said, truth = chances > 0.5, labels > 0
    scores = multilabel_scores(labels, chances)
    assert scores == pytest.approx(
        {
            "f1_micro": sklearn.f1_score(truth, said, average="micro"),
            "f1_macro": sklearn.f1_score(truth, said, average="macro"),
            "auprc": sklearn.average_precision_score(truth, chances, average="macro"),
            "auroc": sklearn.roc_auc_score(truth, chances, average="macro"),
            "subset_accuracy": sklearn.accuracy_score(truth, said),
            "hamming_loss": sklearn.hamming_loss(truth, said),
        }
    )


def test_multilabel_scores_are_of_known_cells_and_classes_that_define_them():
    generator = np.random.default_rng(1)
    labels, chances = (generator.random((30, 4)) > 0.5).astype(float), generator.random((30, 4))
    labels[generator.random((30, 4)) > 0.7] = np.nan
    labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, 0.0)  # no point has it: areas are not defined
    known = [np.isfinite(column) for column in labels.T]
    scores = multilabel_scores(labels, chances)
    columns = [(labels[k, c], chances[k, c]) for c, k in enumerate(known) if c != 2]
    f1 = [sklearn.f1_score(labels[k, c], chances[k, c] > 0.5, zero_division=0) for c, k in enumerate(known)]
    assert scores["auroc"] == pytest.approx(np.mean([sklearn.roc_auc_score(*column) for column in columns]))
    assert scores["auprc"] == pytest.approx(np.mean([sklearn.average_precision_score(*column) for column in columns]))
    assert scores["f1_macro"] == pytest.approx(np.mean(f1))
    cells = np.isfinite(labels)
    assert scores["f1_micro"] == pytest.approx(sklearn.f1_score(labels[cells], chances[cells] > 0.5))
    assert scores["hamming_loss"] == pytest.approx(np.mean((labels == 1)[cells] != (chances > 0.5)[cells]))
    said = np.where(np.isnan(labels), np.nan, chances > 0.5)
    rows = [np.array_equal(a, b, equal_nan=True) for a, b in zip(labels, said, strict=True)]
    has_any = np.isfinite(labels).any(1)
    assert scores["subset_accuracy"] == pytest.approx(np.mean(np.array(rows)[has_any]))
    assert set(multilabel_scores(labels[:0], chances[:0]).values()) == {None}
    never = multilabel_scores(np.zeros((3, 2)), np.zeros((3, 2)))
    assert never["f1_micro"] is never["f1_macro"] is never["auroc"] is never["auprc"] is None
    assert (never["subset_accuracy"], never["hamming_loss"]) == (1, 0)


# Grades


def test_the_order_of_grades():
    labels = ["high", "low", "medium", None, "low"]
    with pytest.raises(ValueError, match=r"the grades are words \(high, low, medium\), .*--task.order high,low,medium"):
        Ordinal.fit(labels)
    assert Ordinal.fit(["10", "9", "-1"]).classes == ("-1", "9", "10")
    ordered = Ordinal.fit(labels, order="none, low,medium ,high")
    assert ordered.classes == ("none", "low", "medium", "high")
    assert ordered.shares == (0, 0.5, 0.25, 0.25)
    assert ordered.baseline(1).isfinite().all()
    assert ordered.predict(ordered.baseline(1)) == ["low"]
    with pytest.raises(ValueError, match=r"order is 'low,high', which leaves out medium"):
        Ordinal.fit(labels, order="low,high")
    with pytest.raises(ValueError, match="names a grade twice"):
        Ordinal.fit(labels, order="low,medium,high,low")
    with pytest.raises(ValueError, match="need two at least"):
        Ordinal.fit(["1", "1", None])


def test_the_chain_of_grades_by_hand():
    labels = [*"01234", None]
    fitted, outputs = Ordinal.fit(labels), draw(6, 4) * 2
    columns = fitted.probabilities(outputs)
    predictions, expected = fitted.predict(outputs), 0.0
    for row, logits in enumerate(outputs.tolist()):
        chances, left = [], 1.0
        for logit in logits:
            above = 1 / (1 + math.exp(-logit))
            chances.append(left * (1 - above))
            left *= above
        chances.append(left)
        assert [columns[name][row] for name in fitted.classes] == pytest.approx(chances)
        median = next(k for k in range(5) if sum(chances[: k + 1]) >= 0.5)
        assert predictions[row] == str(median)
        if labels[row] is not None:
            expected -= math.log(chances[int(labels[row])])
    total = fitted.loss(outputs, fitted.targets(labels))
    assert total.sum.item() == pytest.approx(expected, abs=1e-6)
    assert total.count == 5
    torch.testing.assert_close(fitted.outputs_of(fitted.log_probabilities(outputs)), outputs)
    far = torch.tensor([[1e3, -1e3, 1e3, 1e3]], requires_grad=True)
    fitted.loss(far, fitted.targets(["3"])).sum.backward()
    assert far.grad.isfinite().all()
    assert fitted.average(torch.cat((far, -far))[:, None].detach()).isfinite().all()


def test_scores_of_grades_are_scikit_learns_also_where_a_grade_is_missing():
    from scipy.stats import spearmanr

    labels = ["0", "4", "2", "0", "4", "0", None, "2"]  # no 1 and no 3, which stand between all the same
    fitted = Ordinal.fit([*"01234"])
    outputs = draw(8, 4)
    known = [i for i in range(8) if labels[i] is not None]
    truth = [int(labels[i]) for i in known]
    said = [int(fitted.predict(outputs)[i]) for i in known]
    columns = fitted.probabilities(outputs)
    means = [sum(k * columns[str(k)][i] for k in range(5)) for i in known]
    squares = np.subtract.outer(range(5), range(5)) ** 2
    table = np.zeros((5, 5))
    for a, b in zip(truth, said, strict=True):
        table[a, b] += 1
    kappa = 1 - (squares * table).sum() / ((squares * np.outer(table.sum(1), table.sum(0))).sum() / len(known))
    scores = fitted.scores(outputs, labels)
    assert scores == pytest.approx(
        {
            "qwk": kappa,
            "accuracy": sklearn.accuracy_score(truth, said),
            "mae": sklearn.mean_absolute_error(truth, said),
            "spearman": spearmanr(truth, means)[0],
        }
    )
    everyone = sklearn.cohen_kappa_score([0, 1, 2, 2], [0, 2, 2, 1], weights="quadratic")
    found = ordinal_scores(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1]), np.zeros(4), grades=3)
    assert found["qwk"] == pytest.approx(everyone)
    assert found["spearman"] is None


# Language


def test_language_modeling_has_the_symbols_of_esm2_in_its_order():
    letters = "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGGX"
    fitted = MLM.fit(letters, masked=0.3)
    assert fitted.num_outputs == 33
    assert fitted.targets([*letters, None])[:-1, 0].tolist() == [INDEX[x] for x in letters]
    assert fitted.masked == 0.3
    outputs = draw(len(letters), 33)
    some: list = [x if i % 3 == 0 else None for i, x in enumerate(letters)]
    chosen = [i for i, x in enumerate(some) if x]
    truth = torch.tensor([INDEX[letters[i]] for i in chosen])
    expected = F.cross_entropy(outputs[chosen], truth)
    total = fitted.loss(outputs, fitted.targets(some))
    assert total.count == len(chosen)
    torch.testing.assert_close(total.mean, expected)
    scores = fitted.scores(outputs, some)
    assert scores["perplexity"] == pytest.approx(expected.exp().item())
    assert scores["accuracy"] == pytest.approx((outputs[chosen].argmax(1) == truth).double().mean().item())
    assert fitted.predict(outputs) == [SYMBOLS[i] for i in outputs.argmax(1)]
    shares = np.array([letters.count(x) / len(letters) for x in SYMBOLS])
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    ignorant = fitted.scores(fitted.baseline(len(letters)), list(letters))
    assert ignorant["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
    assert fitted.scores(torch.eye(33)[[0]] * 1e4, ["M"]) == {"perplexity": None, "accuracy": 0}  # beyond all numbers
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"masked is {share}"):
            MLM.fit(letters, masked=share)


# Several targets

TWO = [(1.0, "b"), (None, "a"), None, (3.0, None), (Censored(2.0, ">"), "b"), (7.0, "a")]


def two_tasks(**options):
    numbers, names = ([None if x is None else x[i] for x in TWO] for i in (0, 1))
    return Multitask.of([("tm", Regression.fit(numbers, **options)), ("loc", Binary.fit(names))]), numbers, names


def test_a_multitask_is_its_tasks_side_by_side():
    both, numbers, names = two_tasks()
    number, name = both.tasks
    outputs, weights = draw(6, 2), torch.rand(6, dtype=torch.float64)
    targets = both.targets(TWO)
    assert targets.shape == (6, 3)
    total = both.loss(outputs, targets, weights)
    one = number.loss(outputs[:, :1], number.targets(numbers), weights)
    other = name.loss(outputs[:, 1:], name.targets(names), weights)
    torch.testing.assert_close(total.sum, one.sum + other.sum)
    assert total.count == both.count(targets) == one.count + other.count == 8
    scores = both.scores(outputs, TWO)
    expected = number.scores(outputs[:, :1], numbers), name.scores(outputs[:, 1:], names)
    assert scores == {
        **{f"tm.{metric}": value for metric, value in expected[0].items()},
        **{f"loc.{metric}": value for metric, value in expected[1].items()},
        "mean": pytest.approx((expected[0]["spearman"] + expected[1]["mcc"]) / 2),
    }
    assert both.predict(outputs) == list(zip(number.predict(outputs[:, :1]), name.predict(outputs[:, 1:]), strict=True))
    assert both.probabilities(outputs).keys() == {"loc.a", "loc.b"}
    assert both.parts() == [("tm", number, slice(0, 1)), ("loc", name, slice(1, 2))]


def test_a_target_without_two_values_is_no_part_of_the_mean():
    both, *_ = two_tasks()
    outputs = draw(6, 2)
    labels = [None if x is None else (x[0], "b") for x in TWO]
    scores = both.scores(outputs, labels)
    assert scores["loc.mcc"] is None
    assert scores["mean"] == scores["tm.spearman"]
    assert both.scores(torch.zeros(6, 2), TWO)["mean"] is None  # nothing was learned of tm
    assert both.scores(outputs[:0], [])["mean"] is None


def test_what_is_better_when_lower_counts_with_a_minus():
    @dataclass(frozen=True, kw_only=True)
    class ByError(Regression):
        metric: ClassVar[str] = "rmse"

    part = ByError(center=0.0, spread=1.0)
    both = Multitask.of([("x", part), ("y", Regression(center=0.0, spread=1.0))])
    outputs, labels = draw(4, 2), [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0)]
    scores = both.scores(outputs, labels)
    assert scores["mean"] == pytest.approx((scores["y.spearman"] - scores["x.rmse"]) / 2)
    assert {sign_of(name) for name in ("rmse", "mae", "perplexity", "loss", "hamming_loss", "tm.rmse")} == {-1}
    assert sign_of("spearman") == sign_of("tm.spearman") == sign_of("loss.mcc") == 1


def test_a_multitask_compares_if_one_of_its_tasks_does():
    plain, *_ = two_tasks()
    ranked, *_ = two_tasks(loss="pairwise")
    assert ranked.compares
    assert not plain.compares
    outputs = draw(6, 2)
    outputs[:, 0] = torch.tensor([1.0, 0, 0, 2, 0, 5])
    finished = ranked.finished(outputs, TWO)
    assert [round(finished.predict(outputs)[i][0], 2) for i in (0, 3, 5)] == [1.23, 2.69, 7.08]  # of 1, 3 and 7
    assert finished.scores(outputs, TWO)["tm.r2"] > 0.9
    assert ranked.scores(outputs, TWO)["tm.r2"] is None


def test_how_a_multitask_is_made():
    part = Regression(center=0.0, spread=1.0)
    for parts in ([], [("a", part), ("a", part)]):
        with pytest.raises(ValueError, match="targets of different names"):
            Multitask.of(parts)
    with pytest.raises(ValueError, match=r"made of fitted tasks"):
        Multitask.fit([(1.0, "a")])
    wide = Multitask.of([("tm", part), ("sites", Multilabel.fit(MANY)), ("grade", Ordinal.fit([*"123"]))])
    assert wide.num_outputs == 6
    again = task.load(json.loads(json.dumps(wide.spec())))
    assert again == wide
    assert again.targets([(1.0, None, "2"), None]).shape == (2, 6)
    assert wide.predict(torch.zeros(1, 6)) == [(0.0, marks(""), "1")]


# What was saved, and what is a user's own


@pytest.mark.parametrize("name", ["regression", "binary", "multiclass"])
def test_tasks_saved_by_the_first_release_are_read(name):
    (file,) = ARCHIVES.glob(f"0.1.0-{name}/predictor.json")
    spec = json.loads(file.read_text())["task"]
    fitted = task.load(spec)
    assert fitted.name == name
    assert spec.items() <= json.loads(json.dumps(fitted.spec())).items()
    assert fitted.finished(torch.zeros(2, fitted.num_outputs), [None, None]) is fitted


def test_what_does_not_fit_a_saved_task_is_said():
    with pytest.raises(ValueError, match="a saved task 'binary' does not fit"):
        task.load({"name": "binary", "classes": ["a", "b"]})
    with pytest.raises(ValueError, match="no task 'binarry'"):
        task.load({"name": "binarry"})


@pytest.fixture
def doors(monkeypatch):
    """Registries that forget what a test adds."""
    for registry in (task, loss, class_loss, ranking):
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))


@pytest.mark.usefixtures("doors")
def test_a_loss_of_ones_own():
    @loss("log-cosh")
    def log_cosh(outputs, targets):
        return torch.log(torch.cosh(outputs - targets))

    @class_loss("brier")
    def brier(log_probabilities, wanted):
        return (log_probabilities.exp() - wanted).square().sum(-1)

    @ranking("hinge")
    def hinge(outputs, lowest, highest, weights):
        pair = (lowest[:, None] > highest) * weights[:, None] * weights
        return (pair * F.relu(1 - outputs[:, None] + outputs)).sum() / pair.sum().clamp(min=1)

    fitted = Regression.fit([1.0, 3.0], loss="log-cosh")
    assert fitted.loss(torch.zeros(2, 1), fitted.targets([3.0, None])).sum.item() == pytest.approx(
        0.433780830, abs=1e-6
    )
    fitted = Multiclass.fit(["a", "b", "c"], loss="brier")
    assert fitted.loss(torch.zeros(1, 3), fitted.targets(["b"])).sum.item() == pytest.approx(6 / 9)
    fitted = Regression.fit([1.0, 3.0], loss="hinge")
    assert fitted.compares
    assert fitted.loss(torch.zeros(3, 1), fitted.targets([1.0, 2.0, 3.0])).sum == 3
    with pytest.raises(
        ValueError, match="There are: absolute, gaussian, hinge, huber, listwise, log-cosh, pairwise, quantile"
    ):
        Regression.fit([1.0], loss="x")


@pytest.mark.usefixtures("doors")
def test_a_task_of_ones_own():
    @task("counts")
    @dataclass(frozen=True, kw_only=True)
    class Counts(Task):
        """Numbers of events: the logarithm of their mean is learned, by the likelihood of Poisson."""

        log_mean: float

        name: ClassVar[str] = "counts"
        metric: ClassVar[str] = "spearman"
        reads: ClassVar = "number"
        num_outputs: ClassVar[int] = 1

        @classmethod
        def fit(cls, labels, *, pseudocount: float = 0.5):
            known = [x for x in labels if x is not None]
            return cls(log_mean=math.log((sum(known) + pseudocount) / len(known)))

        def targets(self, labels):
            return torch.tensor([[math.nan if x is None else x] for x in labels], dtype=torch.float64).reshape(-1, 1)

        def loss(self, outputs, targets, weights=None):
            known = targets.isfinite()[..., 0]
            rate, truth = outputs[known][:, 0] + self.log_mean, targets[known][:, 0].to(outputs.dtype)
            return Total(weighed(rate.exp() - truth * rate, None if weights is None else weights[known]), len(truth))

        def predict(self, outputs):
            return (outputs[:, 0].double() + self.log_mean).exp().tolist()

        def scores(self, outputs, labels):
            known = [i for i, x in enumerate(labels) if x is not None]
            said = np.array(self.predict(outputs[known]))
            return regression_scores(np.array([labels[i] for i in known], dtype=float), said)

        def baseline(self, count):
            return torch.zeros(count, 1)

    assert list(task.options("counts")) == ["pseudocount"]
    fitted = Counts.fit([1.0, 7.0, None], pseudocount=0.0)
    assert task.load(json.loads(json.dumps(fitted.spec()))) == fitted
    outputs = draw(4, 1).requires_grad_()
    total = fitted.loss(outputs, fitted.targets([2.0, None, 5.0, 0.0]))
    expected = F.poisson_nll_loss(
        outputs[[0, 2, 3], 0] + math.log(4), torch.tensor([2.0, 5, 0]).double(), reduction="sum"
    )
    torch.testing.assert_close(total.sum, expected)
    assert fitted.predict(fitted.baseline(2)) == pytest.approx([4, 4])
    members = torch.tensor([[[0.0]], [[math.log(2)]]])
    assert fitted.disagreement(members) == pytest.approx([2.0], rel=1e-6)  # of 4 and 8
    both = Multitask.of([("n", fitted), ("c", Binary.fit(["a", "b"]))])
    assert both.count(both.targets([(2.0, "a"), (None, "b"), None])) == 3
    assert both.loss(torch.zeros(3, 2), both.targets([(2.0, "a"), (None, "b"), None])).sum.isfinite()
    assert not fitted.compares
    assert fitted.finished(outputs, [1.0]) is fitted


# Scores


def test_class_scores_are_scikit_learns():
    generator = np.random.default_rng(0)
    labels, chances = generator.integers(0, 3, 60), generator.dirichlet(np.ones(3), 60)
    said = chances.argmax(1)
    assert classification_scores(labels, chances) == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(labels, said),
            "balanced_accuracy": sklearn.balanced_accuracy_score(labels, said),
            "mcc": sklearn.matthews_corrcoef(labels, said),
            "f1": sklearn.f1_score(labels, said, average="macro"),
            "auroc": sklearn.roc_auc_score(labels, chances, multi_class="ovr", average="macro"),
            "auprc": sklearn.average_precision_score(np.eye(3)[labels], chances, average="macro"),
        }
    )
    fitted = Multiclass(classes=("a", "b", "c"), shares=(0.2, 0.3, 0.5))
    names: list = ["abc"[i] for i in labels]
    outputs = torch.from_numpy(chances).log()
    assert fitted.scores(outputs, names) == pytest.approx(classification_scores(labels, chances))
    assert fitted.scores(torch.cat((outputs, draw(1, 3))), [*names, None]) == pytest.approx(
        classification_scores(labels, chances)
    )


def test_weights_do_not_matter_to_scores_of_a_task_that_smooths_or_balances():
    names: list = [*"aaabc"]
    outputs = draw(5, 3)
    plain = Multiclass.fit(names)
    other = replace(plain, class_weights="balanced", label_smoothing=0.3, loss_name="focal")
    assert other.scores(outputs, names) == plain.scores(outputs, names)
