"""Which trainings a run has: their names and seeds, and which records each learns from, holds out and speaks for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from esmtune.assignments import learned_labels
from esmtune.config import TrainConfig
from esmtune.labels import Reads
from esmtune.partition import with_calibration
from esmtune.records import UNFITTED, Dataset
from esmtune.splits import folds_of
from esmtune.tasks import Task, task


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training of a run: its name, its seed, and which records it learns from and validates on."""

    name: str
    config: TrainConfig
    data: Dataset
    share: float = 1.0  # of the run's labels that it has
    gives_last: bool = False  # whether its weights after the last step are asked for too: those of a run's only one

    def own(self, fitted_task: Task) -> Task:
        """The run's task with the statistics of the labels that this member learns from, and of no others."""
        return fitted_task.refitted(learned_labels(self.data))


def members_of(config: TrainConfig, data: Dataset, folds: int) -> list[Member]:
    """A member for each seed, or for each fold of the training records."""
    if folds == 1:
        numbers, alone = range(config.seed, config.seed + config.seeds), config.seeds == 1
        return [Member(name=f"seed-{n}", config=replace(config, seed=n), data=data, gives_last=alone) for n in numbers]
    places = [place for place, r in enumerate(data.records) if r.is_labeled and r.split == "train"]
    stratify = data.level == "sequence" and len(data.targets) == 1 and task[data.kind].reads == "name"
    dealt = folds_of([data.records[p] for p in places], folds, stratify, config.seed) if not data.held else []
    held = {place: {number} for place, number in zip(places, dealt, strict=False)}
    held = held or {place: set(data.held[data.records[place].sequence]) for place in places}
    members: list[Member] = []
    reads: dict[str, Reads] = {target.kind: task[target.kind].reads for target in data.targets}
    for number in range(folds):
        split = {place: "valid" if number in found else "train" for place, found in held.items()}
        records = [replace(r, split=split[p]) if p in split else r for p, r in enumerate(data.records)]
        records = tuple(with_calibration(records, data.targets, reads, config, seed=config.seed + number)[0])
        members.append(Member(name=f"fold-{number}", config=config, data=replace(data, records=records)))
    return members


def speakers_of(members: Sequence[Member]) -> list[int | None]:
    """Which of several folds speaks for each labeled record: of those that did not learn from it the last.

    For records that no fold learns from, which are for the test, all speak: None.
    """
    speakers: list[int | None] = [None] * len(members[0].data.of(None))
    for number, member in enumerate(members):
        for place, record in enumerate(member.data.of(None)):
            if record.split in UNFITTED:
                speakers[place] = number
    return speakers
