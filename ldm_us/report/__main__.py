"""Command line of the report: python -m ldm_us.report RUN [RUN ...] writes one HTML file about one or several runs."""

import argparse
import json
import sys
from pathlib import Path

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.report")
    about = "Write one HTML file about runs of train.py: what they started from, learnt, and make now."
    describe(parser, about, "runs/unet", "runs/unet runs/controlnet --judge judge.safetensors --out report.html")
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; several in the order of training")
    add("--out", type=Path, metavar="FILE", help="where to write it (report.html in the last run)")
    add("--overwrite", action="store_true", help="replace --out; without --out, the run's report is replaced anyway")
    add("--title", metavar="TEXT", help="heading of the page (the names of the runs)")
    add("--no-samples", action="store_true", help="make no samples with the results: done in a second")
    add("--seed", type=int, default=0, metavar="N", help="of the first sample; the next ones follow (%(default)s)")
    add("--steps", type=int, default=50, metavar="S", help="DDIM steps of the samples (%(default)s)")
    add("--data", type=Path, nargs="+", metavar="DIR", help="where the data are now, if not where the run found them")
    add("--judge", type=Path, metavar="FILE", help="what names classes and finds lesions, before and after the run")
    add("--device", default="cpu", help="for the samples: cpu, cuda, cuda:1 (%(default)s)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from ldm_us.data.readers.datasets import read_datasets
from ldm_us.diffusion.sampling import Sampling
from ldm_us.display.pages import render
from ldm_us.evaluation.judge.file import load_judge
from ldm_us.files.atomic import atomic_file
from ldm_us.report.curves import curves
from ldm_us.report.figures import Figure, result_figures
from ldm_us.report.judged import Judged, judged
from ldm_us.report.run_folder import Run, read_pictures, read_run
from ldm_us.runtime.checks import check_new_file, check_seed, check_words
from ldm_us.runtime.entry import NOTHING_WRITTEN, run_command

MOST_SEEDS = 5  # samples in a row


def main(argv: list[str] | None = None) -> int:
    """Parse, read, sample, write."""
    options = build_parser().parse_args(argv)
    check_options(options)
    runs = [read_run(path) for path in options.runs]
    out = options.runs[-1] / "report.html" if options.out is None else options.out
    sections = [section_of(run, options) for run in runs]
    title = options.title or "Training report: " + ", ".join(run.name for run in runs)
    page = render("ldm_us/report/page.html", title=title, sections=sections)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(page.encode("ascii"))
    print(f"wrote {out}")
    return 0


def section_of(run: Run, options: argparse.Namespace) -> dict[str, object]:
    """All that page.html shows of a run."""
    figures, notes, of_judge = list[Figure](), list[str](), list[Judged]()
    if run.result is not None and not options.no_samples:
        print(f"sampling with {run.path / 'model.safetensors'}")
        folders = options.data or [Path(folder) for folder in run.config["data"]]
        figures, notes = result_figures(run, folders, options.steps, options.seed, options.device)
        if options.judge is not None:
            sampling = Sampling(steps=options.steps, threads=None, exact=False)
            of_judge, more = judged(run, options.judge, folders, sampling, options.seed, options.device)
            notes += more
    pictures, damaged = read_pictures(run)
    configuration = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in run.config.items()]
    return {
        "run": run,
        "figures": figures,  # made with the result
        "judged": of_judge,
        "notes": [*run.notes, *notes],
        "configuration": configuration,
        "pictures": pictures,  # made during the training
        "damaged": damaged,  # sentences about pictures that cannot be read
        "curves": curves(run.name, run.lines),
    }


def check_options(options: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is sampled."""
    check_words(vars(options))
    check_seed(options.seed + MOST_SEEDS)
    check_new_file(options.out, options.overwrite)
    if options.judge is not None:
        load_judge(options.judge)
    if options.data is not None:
        read_datasets(options.data)


if __name__ == "__main__":
    sys.exit(run_command(main, NOTHING_WRITTEN))
