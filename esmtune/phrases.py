"""Sentences that stand in reports and model cards, each in one place, and how numbers are written there."""

import math
from collections.abc import Sequence

METRICS = {
    "spearman": "Spearman", "pearson": "Pearson", "r2": "R²", "rmse": "RMSE", "mae": "MAE", "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy", "mcc": "MCC", "f1": "macro F1", "auroc": "AUROC", "auprc": "AUPRC",
    "f1_micro": "micro F1", "f1_macro": "macro F1", "subset_accuracy": "subset accuracy",
    "hamming_loss": "Hamming loss", "qwk": "weighted kappa", "perplexity": "perplexity",
    "mean": "mean of the targets' metrics",
}  # fmt: skip
MEANINGS = {
    "spearman": "how well the order is predicted: 1 is the right order, 0 none",
    "pearson": "how well predictions lie on a line with the labels: 1 exactly, 0 not at all",
    "r2": "the share of the labels' variance that is explained: 0 is as good as their mean, below is worse",
    "rmse": "the root mean squared error, in the label's unit: large errors count more",
    "mae": "the mean absolute error, in the label's unit (or in grades)",
    "accuracy": "the share of right predictions; with classes of unlike size the largest alone may reach much of it",
    "balanced_accuracy": "the accuracy of each class, averaged over the classes",
    "mcc": "Matthews correlation: 1 is right everywhere, 0 is chance, whatever the sizes of the classes",
    "f1": "the mean over classes of F1, which needs a class to be found and its finds to be right",
    "auroc": "how often a member of a class scores above one of another: .5 is chance",
    "auprc": "the area under precision and recall; chance is the share of the class",
    "f1_micro": "F1 over all cells",
    "f1_macro": "F1 averaged over the classes",
    "subset_accuracy": "the share of records with every class right",
    "hamming_loss": "the share of wrong cells",
    "qwk": "agreement in grades beyond chance, weighted by squared distance",
    "perplexity": "among how many residues the model hesitates; 20 is chance",
}
KINDS = {
    "regression": "a number", "binary": "one of two classes", "multiclass": "one of several classes",
    "multilabel": "any of several classes", "ordinal": "a grade", "mlm": "hidden residues (language modeling)",
}  # fmt: skip
METHODS = {
    "random": "at random", "stratified": "at random, with each class's share in every part",
    "identity": "by sequence identity, so that related sequences stay on one side",
    "position": "by position: what is tested is mutated where training has no mutation",
    "mutations": "by the number of mutations", "segment": "by segments of the sequence", "time": "by time",
    "given": "as the data say",
}  # fmt: skip
HIDDEN = {
    "random": "A random split says how good predictions are of more records like these. If the data hold related "
    "sequences, it hides how much worse they may be of sequences unlike them.",
    "stratified": "A stratified split says how good predictions are of more records like these. If the data hold "
    "related sequences, it hides how much worse they may be of sequences unlike them.",
    "identity": "Related sequences stand on one side, so the scores are of sequences unlike those of training, as far "
    "as the threshold goes. What is nearer will be predicted better.",
    "position": "Test variants are mutated at positions where training has none. Of mutations at known positions "
    "predictions will be better.",
    "mutations": "Test variants have more mutations than those of training. Of variants with as few predictions will "
    "be better.",
    "segment": "Test variants are mutated in a segment where training has no mutation.",
    "time": "Test records are later than those of training, as those will be that the predictor is used on.",
    "given": "The data say which record is in which part; what that split hides is for its makers to say.",
}
UNKNOWN_NEARNESS = "Nobody looked how near the test sequences are to those of training."
NO_TEST = (
    "No rows were kept for a test. The validation rows chose the weights, which flatters; how good the predictor is on "
    "others is not known."
)
NOTHING_HELD_OUT = "Nothing was held out, so nothing is known of how good the predictor is."
NO_BASELINES = "There are no baselines to set the scores beside."
NO_INTERVALS = "There are no intervals: how far the scores would be from these with other records is not known."
NO_CALIBRATION = (
    "The predictor is not calibrated: how far off a prediction may be is not known. Train with 40 validation sequences "
    "or more, or with rows whose split is calibration."
)
OWN_DATA = "The run was trained on data in memory, so it cannot be repeated from its files."
CHANCE = (
    "Intervals are of 95 %, by the bootstrap over sequences. A difference whose interval leaves zero out is more than "
    "chance would give."
)

ESM2 = (
    "Lin Z, Akin H, Rao R, Hie B, Zhu Z, Lu W, et al. Evolutionary-scale prediction of atomic-level protein structure "
    "with a language model. Science 379, 1123-1130 (2023). https://doi.org/10.1126/science.ade2574"
)
ESM2_BIBTEX = """@article{lin2023esm2,
  title   = {Evolutionary-scale prediction of atomic-level protein structure with a language model},
  author  = {Lin, Zeming and Akin, Halil and Rao, Roshan and Hie, Brian and Zhu, Zhongkai and Lu, Wenting and
             Smetanin, Nikita and Verkuil, Robert and Kabeli, Ori and Shmueli, Yaniv and others},
  journal = {Science},
  volume  = {379},
  number  = {6637},
  pages   = {1123--1130},
  year    = {2023},
  doi     = {10.1126/science.ade2574}
}"""
LORA = "Hu EJ, Shen Y, Wallis P, et al. LoRA: low-rank adaptation of large language models. ICLR (2022). https://doi.org/10.48550/arXiv.2106.09685"
MMSEQS2 = "Steinegger M, Söding J. MMseqs2 enables sensitive protein sequence searching for the analysis of massive data sets. Nature Biotechnology 35, 1026-1028 (2017). https://doi.org/10.1038/nbt.3988"  # noqa: E501
CONFORMAL = "Angelopoulos AN, Bates S. Conformal prediction: a gentle introduction. Foundations and Trends in Machine Learning 16, 494-591 (2023). https://doi.org/10.1561/2200000101"  # noqa: E501


def esmtune_citation(version: str | None) -> str:
    """What to say of this package."""
    return f"esmtune{f' {version}' if version else ''}: fine-tuning ESM-2 on labeled sequences (software)."


def esmtune_bibtex(version: str | None) -> str:
    """The same for a bibliography."""
    note = f"\n  note    = {{Version {version}}}" if version else ""
    return "@software{esmtune,\n  title   = {esmtune: fine-tuning ESM-2 on labeled sequences}," + note + "\n}"


def metric_name(metric: str) -> str:
    """A metric as people call it, after its target if there are several.

    >>> metric_name("mcc"), metric_name("tm.rmse")
    ('MCC', 'tm: RMSE')
    """
    target, dot, own = metric.rpartition(".")
    return f"{target}{': ' if dot else ''}{METRICS.get(own, own.replace('_', ' '))}"


def meaning(metric: str) -> str:
    """What a metric says; empty if that is not known here."""
    return MEANINGS.get(metric.rpartition(".")[2], "")


def number(value: float | int | None, digits: int = 3) -> str:
    """A number of so many digits, or a dash where it is unknown.

    >>> number(0.12345), number(1234.5), number(None), number(12345678.0)
    ('0.123', '1,234', '-', '12,345,678')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value and (abs(value) < 10**-digits or abs(value) >= 1e9):
        return f"{value:.{digits}g}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - whole)}f}"


def interval(ends: Sequence[float | int | None] | None) -> str:
    """An interval, or nothing where there is none.

    >>> interval([0.1, 0.25]), interval(None)
    ('[0.100, 0.250]', '')
    """
    if not ends or ends[0] is None or ends[1] is None:
        return ""
    return f"[{number(ends[0])}, {number(ends[1])}]"


def share(value: float | int) -> str:
    """A share in percent.

    >>> share(0.5), share(0.0123)
    ('50 %', '1.2 %')
    """
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == round(percent) else f"{percent:.1f} %"
