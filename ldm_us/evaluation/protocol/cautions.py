"""What a reader must know before quoting a figure of a protocol; every number in it is computed from the results."""

from collections.abc import Sequence

from ldm_us.evaluation.protocol.arms import Arm
from ldm_us.evaluation.protocol.classifier import ClassifierConfig
from ldm_us.evaluation.protocol.tables import Results, Row, tests_of

FEW = 10  # families of a class, below which an interval is a rough one


def cautions(rows: Sequence[Row], own: str) -> list[str]:
    """What tables cannot say: how wide intervals are, and what they leave out. `own`: the small generator's images."""
    said = []
    for row in rows:
        if row.seed is None and row.arm.name == row.arm.reference:
            said.append(
                f"On the {len(row.test.labels)} images of {row.test.name!r} the 95 percent interval of the AUC of "
                f"{row.arm.name!r} is {row.auc.high - row.auc.low:.2f} wide."
            )
    for test in tests_of(rows):
        if test.families.fewest < FEW:
            fewest = test.families.fewest
            said.append(f"A class of {test.name!r} has {fewest} families alone: its intervals are rough ones.")
    compared = [row.difference for row in rows if row.seed is None and row.difference is not None]
    if compared:
        unclear = sum(one.low <= 0 <= one.high for one in compared)
        said.append(
            f"{unclear} of {len(compared)} differences have an interval that holds 0: of those, these images cannot "
            "tell whether the arms differ. No correction is made for comparing several arms."
        )
    several = len({row.seed for row in rows if row.seed is not None}) > 1
    chance = "the test images and in the seeds of the classifiers" if several else "the test images alone (one seed)"
    said.append(
        f"One split, one generator: the intervals hold the chance in {chance}, not in which images were held out, nor "
        "in the training and sampling of the generator."
    )
    said.append(
        "The images that choose a classifier's epoch are split off from what the generator was trained on, or are its "
        "own: arms with generated images may have seen near-copies of them. The test images are never among them."
    )
    if any(row.test.name == own for row in rows):
        said.append(
            f"The test set {own!r} is what the small generator was trained on, as in the paper's 94 percent: a "
            "generator that repeats its training images passes it. The images that it never saw stand beside it."
        )
    return said


def say_passes(arms: Sequence[Arm], seeds: Sequence[int], results: Results, config: ClassifierConfig) -> str:
    """How often each arm passes over the real images that it is trained on, the mean of the seeds."""
    passes = []
    for arm in arms:
        if arm.real:
            taken = [results[arm.name, seed] for seed in seeds]
            each = [one["steps"] * config.batch / sum(one["trained_on"].values()) for one in taken]
            passes.append(f"{arm.name!r} {sum(each) / len(each):.0f}")
    steps = (
        "Every arm takes as many steps as the real one (equal_steps), so that generated images take the place of "
        "passes over real ones"
        if config.equal_steps
        else "Every arm takes as many steps as its own images ask for (equal_steps is off), so that more images are "
        "more training too"
    )
    return f"{steps}. Passes over each real image: {', '.join(passes)}."
