"""`python -m ldm_us.evaluation reader make|stand-in|score`: a blinded sheet for experts, and what answers to it say."""

import argparse
import secrets

from tqdm import tqdm

from ldm_us.evaluation.reader.deck import NOT_HIDDEN, chain_of_sides, make_key, read_key, write_key
from ldm_us.evaluation.reader.score import read_answers, score
from ldm_us.evaluation.reader.sheet import sheet
from ldm_us.evaluation.reader.stand_in import RULES, file_name, stand_in_answers, write_answers
from ldm_us.evaluation.realism.two_sample import STEPS
from ldm_us.evaluation.results import check_out, keep
from ldm_us.evaluation.sets.image_sets import LEAST_SIDE, check_sets, read_set
from ldm_us.files.atomic import write_text
from ldm_us.runtime.checks import check_extra

SHEET, KEY, SCORES = "sheet.html", "key.json", "scores.json"


def run_make(options: argparse.Namespace) -> int:
    """Choose, shuffle, write."""
    seed = secrets.randbelow(2**63) if options.seed is None else options.seed
    check_out(options.out, [SHEET, KEY], options.overwrite)
    real, generated = read_set(options.real), read_set(options.generated)
    check_sets(real, generated, LEAST_SIDE if options.size is None else options.size)
    sides = chain_of_sides(real, generated, options.size)
    key = make_key(real, generated, options.n, sides, seed, options.ask_class)
    page = sheet(key)
    options.out.mkdir(parents=True, exist_ok=True)
    write_key(key, options.out / KEY)
    write_text(options.out / SHEET, page)
    if key.families_shared:
        print(f"{key.families_shared} generated images left out: each is of a family with a real one.")
    print(
        f"study {key.study}: {len(key.cards)} images. {key.prepared} {NOT_HIDDEN}\n"
        f"Send {options.out / SHEET} to the readers, and keep {options.out / KEY}, which tells real from generated."
    )
    return 0


def run_stand_in(options: argparse.Namespace) -> int:
    """Let rules and a network answer."""
    check_out(options.out, [file_name(number) for number in range(len(RULES) + 1)], options.overwrite)
    key, real, generated = read_key(options.key), read_set(options.real), read_set(options.generated)
    with tqdm(total=STEPS, unit="step", desc="network", delay=0.5) as bar:
        answers = stand_in_answers(key, real, generated, options.seed, STEPS, bar.update)
    for path, reader in zip(write_answers(key, answers, options.out), answers, strict=True):
        print(f"{path}: {reader}")
    return 0


def run_score(options: argparse.Namespace) -> int:
    """Print the figures of all readers."""
    check_extra("eval", "sklearn", "scipy")
    check_out(options.out, [SCORES], options.overwrite)
    key = read_key(options.key)
    return keep(score(key, [read_answers(path, key) for path in options.answers]), options.out, SCORES)
