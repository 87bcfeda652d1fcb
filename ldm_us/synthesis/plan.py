"""Which samples a call wants, in order: every subject n times, or the classes in shares. Walked, never listed."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ldm_us.config import MASK
from ldm_us.data.organ import BREAST
from ldm_us.data.words import Words
from ldm_us.synthesis.subjects import Subject, choose_subjects, masked_subjects

STRIPS = "strips"  # in the layout of BUSI, the folder of pictures of how samples came about


@dataclass(frozen=True)
class Sample:
    """One picture that is wanted."""

    number: int  # from 0, in the order of the plan
    row: int  # of its subject
    subject: Subject
    seed: int
    file_name: str  # below the folder of all
    mask_name: str | None  # of the mask beside it, in the layout of BUSI

    def strip_name(self, kind: str) -> str:
        """The file of a picture of how the sample came about: beside it, but not among the images of a class."""
        path = PurePosixPath(self.file_name)
        return f"{'' if path.name == self.file_name else f'{STRIPS}/'}{path.stem}_{kind}.png"


@dataclass(frozen=True)
class Plan:
    """What is to be sampled, as few numbers as it takes."""

    subjects: tuple[Subject, ...]
    masked: bool  # every sample follows a mask; that of a class without a structure is empty
    seed: int  # of the first sample
    n: int = 4  # of each subject, where there are no counts
    counts: tuple[int, ...] | None = None  # of each of the classes
    classes: tuple[str, ...] = ()  # where there are counts
    layout: str = "flat"
    hint: tuple[str, ...] = MASK  # what the masks show

    @property
    def total(self) -> int:
        """How many samples there are."""
        return self.n * len(self.subjects) if self.counts is None else sum(self.counts)

    @property
    def last_seed(self) -> int:
        """The largest seed of the plan."""
        return self.seed + (self.total if self.own_seeds else self.n) - 1

    @property
    def own_seeds(self) -> bool:
        """Whether every sample has a seed of its own; else the n seeds are the same for every subject, to compare."""
        return self.counts is not None or self.layout == "busi"

    def __iter__(self) -> Iterator[Sample]:
        """Every sample, in the order of its number; the classes of a balanced plan take turns."""
        of_class: Counter[str] = Counter()
        for number, (row, nth) in enumerate(self._rows()):
            subject = self.subjects[row]
            of_class[subject.label] += 1
            seed = self.seed + (number if self.own_seeds else nth)
            if self.layout == "busi":
                stem = f"{subject.label}/{subject.label} ({of_class[subject.label]})"
                has_mask = self.masked or subject.shows is False
                yield Sample(number, row, subject, seed, f"{stem}.png", f"{stem}_mask.png" if has_mask else None)
            else:
                name = f"{row:04d}_{subject.name.replace(' ', '_')}_seed{seed}.png"
                yield Sample(number, row, subject, seed, name, None)

    def _rows(self) -> Iterator[tuple[int, int]]:
        """(row of the subject, how many of that subject or class were before)."""
        if self.counts is None:
            yield from ((row, nth) for row in range(len(self.subjects)) for nth in range(self.n))
            return
        rows = [[row for row, one in enumerate(self.subjects) if one.label == label] for label in self.classes]
        for _, i, nth in heapq.merge(*(_turns(i, count) for i, count in enumerate(self.counts))):
            yield rows[i][nth % len(rows[i])], nth


def _turns(i: int, count: int) -> Iterator[tuple[float, int, int]]:
    """The places of `count` samples of class i, evenly in 0..1."""
    return (((nth + 0.5) / count, i, nth) for nth in range(count))


def make_plan(
    labels: list[str],
    prompt: str | None,
    mask: Path | None,
    n: int | None,
    seed: int,
    balance: Sequence[float] | None,
    layout: str,
    words: Words,
) -> Plan:
    """A plan from the options of sample.py. Raise ValueError for options that do not fit together."""
    if balance is None:
        subjects = choose_subjects(labels, prompt, mask, words)
        plan = Plan(tuple(subjects), mask is not None, seed, 4 if n is None else n, layout=layout)
    else:
        if labels or prompt is not None:
            raise ValueError("--balance sets the classes: leave --class and --prompt away.")
        words.check_classes("--balance")
        classes = words.classes
        every = BREAST.classes
        of_breast = len(balance) == len(every) and set(classes) < set(every)
        if of_breast and not any(share for label, share in zip(every, balance, strict=True) if label not in classes):
            classes = every  # with 0 for what the model was not taught
        counts = class_counts(balance, n, classes)
        subjects = balanced_subjects(dict(zip(classes, counts, strict=True)), mask, words)
        plan = Plan(tuple(subjects), mask is not None, seed, counts=counts, classes=classes, layout=layout)
    if layout == "busi":
        unnamed = [subject.name for subject in plan.subjects if not subject.label]
        if unnamed:
            raise ValueError(f"--layout busi: {unnamed[0]} has no class to be filed under. Give --class.")
    return replace(plan, hint=words.hint)


def class_counts(balance: Sequence[float], n: int | None, classes: Sequence[str]) -> tuple[int, ...]:
    """Shares of n samples, or the counts themselves where n is None; the largest remainders are rounded up."""
    listed = " ".join(f"{share:g}" for share in balance)
    if len(balance) != len(classes):
        raise ValueError(f"--balance {listed}: give {len(classes)} numbers, in this order: {', '.join(classes)}.")
    if not all(0 <= share < float("inf") for share in balance) or not sum(balance) > 0:
        raise ValueError(f"--balance {listed}: use numbers of 0 or more for {', '.join(classes)}, not all 0.")
    if n is None:
        if any(share != int(share) for share in balance):
            raise ValueError(f"--balance {listed}: without --n these are counts. Use whole numbers, or add --n.")
        return tuple(int(share) for share in balance)
    exact = [n * share / sum(balance) for share in balance]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def balanced_subjects(counts: Mapping[str, int], mask: Path | None, words: Words) -> list[Subject]:
    """A subject for each class that is wanted or, with masks, one for each mask of a lesion.

    Masks whose names tell no class serve a class that has no masks of its own. A class without a structure, such as
    normal, has an empty mask.
    """
    masks = [] if mask is None else masked_subjects(mask, words.classes, words.hint)
    subjects: list[Subject] = []
    for label in (label for label, count in counts.items() if count > 0):
        prompt, shows = words.prompt(label), words.shows(label)
        if mask is None or shows is False:
            subjects.append(Subject(label, prompt, label=label, shows=shows))
            continue
        fitting = [s for s in masks if s.label == label] or [s for s in masks if not s.label]
        if not fitting:
            raise ValueError(f"--mask {mask}: no mask of class {label}. Add some, or make its share of --balance 0.")
        subjects += [replace(subject, label=label, prompt=prompt, shows=shows) for subject in fitting]
    return subjects
