"""Probabilities that say how often they are right: mended by records that no training and no choice of weights saw."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.classes import Classes
from esmtune.kinds import Task

Method = Literal["temperature", "isotonic"]
LEAST = 1e-6  # of a probability after isotonic scaling, so that no class is impossible
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How the probabilities of one target are mended.

    By `temperature` all logits are divided by one number (Guo et al. 2017, https://doi.org/10.48550/arXiv.1706.04599);
    by `isotonic` each class goes through a rising step-wise line of its own, and the sum is made 1 again (Zadrozny and
    Elkan 2002, https://doi.org/10.1145/775047.775151).
    """

    target: str
    method: Method
    temperature: float = 1.0
    lines: tuple[tuple[tuple[float, float], ...], ...] = ()  # of each class, from probability to probability

    def __call__(self, part: Any, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points outputs"]:
        """Outputs that mean the mended probabilities."""
        logarithms = part.log_probabilities(outputs.double())
        if self.method == "temperature":
            mended = (logarithms / self.temperature).log_softmax(-1)
        else:
            found = logarithms.exp().numpy(force=True)
            columns = [np.interp(found[..., c], *np.array(line).T) for c, line in enumerate(self.lines)]
            shares = torch.from_numpy(np.stack(columns, axis=-1)).clamp(min=LEAST)
            mended = (shares / shares.sum(-1, keepdim=True)).log()
        return part.outputs_of(mended).to(outputs.dtype)

    def spec(self) -> dict[str, Any]:
        """As `predictor.json` has it."""
        return asdict(self)

    @classmethod
    def loaded(cls, spec: Mapping[str, Any]) -> "Scaling":
        """Make it again of what `spec` gave."""
        if spec["method"] not in ("temperature", "isotonic"):
            raise KeyError(f"scaling {spec['method']!r}")
        lines = tuple(tuple((float(x), float(y)) for x, y in line) for line in spec["lines"])
        return cls(**{**spec, "lines": lines})


def fit_scaling(
    target: str, part: Classes, members: Float[Tensor, "members points outputs"], truth: Int[np.ndarray, "points"],
    method: Method,
) -> Scaling:  # fmt: skip
    """Find what makes the probabilities of true classes most likely, or right in the mean.

    Args:
        target: Its name.
        part: Its task, of two or several classes.
        members: What each member says of the points; one temperature is for all, whose probabilities are averaged.
        truth: Which class each point has.
        method: Temperature or isotonic.

    >>> from esmtune.classes import Binary
    >>> fitted, truth = Binary.fit(["no", "yes"]), np.array([1, 1, 1, 0])
    >>> found = fit_scaling("y", fitted, torch.full((1, 4, 1), 9.0), truth, "temperature")
    >>> round(torch.sigmoid(found(fitted, torch.tensor([[9.0]]))).item(), 2)
    0.75
    """
    from scipy.optimize import minimize_scalar
    from sklearn.isotonic import IsotonicRegression

    logarithms = part.log_probabilities(members.double())
    if method == "isotonic":
        found, classes = logarithms.exp().flatten(0, 1).numpy(force=True), np.tile(truth, len(members))
        lines = []
        for number in range(found.shape[1]):
            line = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(found[:, number], classes == number)
            lines.append(tuple(zip(line.X_thresholds_.tolist(), line.y_thresholds_.tolist(), strict=True)))
        return Scaling(target=target, method=method, lines=tuple(lines))
    place = torch.from_numpy(truth)[None, :, None].expand(len(members), -1, 1)

    def surprise(power: float) -> float:
        scaled = (logarithms / np.exp(power)).log_softmax(-1).gather(2, place)[..., 0]
        return -scaled.logsumexp(0).mean().item()

    best: Any = minimize_scalar(surprise, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-8})
    return Scaling(target=target, method=method, temperature=float(np.exp(best.x)))


def scaled(
    task: Task, names: Sequence[str], answers: Float[Tensor, "*members points outputs"], scalings: Sequence[Scaling]
) -> Float[Tensor, "*members points outputs"]:
    """What members say, with the probabilities of each target mended that has a scaling."""
    if not scalings:
        return answers
    answers = answers.clone()
    for name, (_, part, place) in zip(names, task.parts(), strict=True):
        for scaling in scalings:
            if scaling.target == name:
                answers[..., place] = scaling(part, answers[..., place])
    return answers
