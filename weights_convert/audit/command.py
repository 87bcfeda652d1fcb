"""`python -m weights_convert audit`: what a file of weights holds, and what changed in it since another."""

import argparse
import os
import sys

from ldm_us.config import PRESETS
from ldm_us.files.atomic import write_text
from weights_convert.audit.findings import audit
from weights_convert.audit.lora import audit_lora, is_lora
from weights_convert.audit.page import audit_page
from weights_convert.audit.text import audit_text, csv_table
from weights_convert.lora_peft import is_lora_folder, open_lora
from weights_convert.result_place import check_result_file
from weights_convert.source_config import choose_config
from weights_convert.sources import open_source


def run_audit(args: argparse.Namespace) -> int:
    """Check the options, read everything once, write, then say what was found."""
    inputs = [path for path in (args.src, args.against) if path is not None]
    for out, ending in ((args.html, ".html"), (args.csv, ".csv")):
        if out is not None:
            check_result_file(out, ending, args.overwrite, inputs, f"--{ending[1:]}")
    source = open_source(args.src) if args.src.is_dir() and not is_lora_folder(args.src) else open_lora(args.src)
    if is_lora(source):
        unused = [name for name in ("against", "html", "csv", "ema", "prediction") if getattr(args, name)]
        if unused:
            raise ValueError(f"--{unused[0]} does nothing with a LoRA: leave it out.")
        text, is_clean = audit_lora(source, PRESETS[args.preset or "sd15"])
        say(text)
        return 0 if is_clean else 1
    other = None if args.against is None else open_source(args.against)
    theirs = (
        None if other is None or "config" in source.metadata else choose_config(other, args.preset, args.prediction)
    )
    config = choose_config(source, None if theirs else args.preset, args.prediction, otherwise=theirs)
    result = audit(source, config, args.ema, other)
    if args.csv is not None:
        write_text(args.csv, csv_table(result))
    if args.html is not None:
        write_text(args.html, audit_page(result))
    say(audit_text(result) + "".join(f"\nwrote {out}" for out in (args.csv, args.html) if out is not None))
    return 0 if result.is_clean else 1


def say(text: str) -> None:
    """Print; a reader who has seen enough, such as the program head, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
