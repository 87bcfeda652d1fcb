"""Verify every sample of a folder that its manifest lists, with its mask file and its line, by one loaded model."""

from pathlib import Path

from tqdm import tqdm

from ldm_us.data.records import load_mask, open_image
from ldm_us.synthesis.fields import DIGEST, Fields, as_text, mask_sha256
from ldm_us.synthesis.folder import MANIFEST, ends_as_png, files_of, read_list
from ldm_us.synthesis.recipe import settings_of
from ldm_us.synthesis.verify import Means, Verdict, fields_of, verify

NAMED = 5  # pictures that differ and are named
OF_FOLDER = ("number", "file_name", "mask_file", "strips", "pixels_sha256")  # in a line beside the fields


def verify_folder(folder: Path, means: Means) -> Verdict:
    """Compare every listed sample as `verify` does. The summary names the first that differ, one a line.

    Raise ValueError where there is no manifest, or a damaged one.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"--verify {folder}: no {MANIFEST} in it. Give a picture, or a folder that sample.py finished."
        )
    entries = list(read_list(folder / MANIFEST))
    differing = []
    for entry in tqdm(entries, unit="image", desc="verifying", disable=not entries):
        if problem := problem_of(folder, entry, means):
            differing.append(problem)
    known = {name for entry in entries for name in files_of(entry)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} - {"grid.png"}
    differing += [f"{folder / name}: {MANIFEST} does not list it." for name in sorted(found - known)]
    if not differing:
        return Verdict(bool(entries), f"{folder}: all {len(entries)} samples are what their fields say.")
    more = [f"and {len(differing) - NAMED} more."] if len(differing) > NAMED else []
    head = f"{folder}: {len(differing)} problem{'s' * (len(differing) > 1)} with {len(entries)} samples:"
    return Verdict(False, "\n".join([head, *differing[:NAMED], *more]))


def problem_of(folder: Path, entry: Fields, means: Means) -> str:
    """One sentence about a line and its files; empty where all is as it should be."""
    path = folder / entry["file_name"]
    if lacking := [name for name in files_of(entry) if not ends_as_png(folder / name)]:
        return f"{folder / lacking[0]}: missing or cut off."
    verdict = verify(path, means)
    if not verdict.equal:
        return verdict.sentence
    text = fields_of(open_image(path))
    line = as_text({key: value for key, value in entry.items() if key not in OF_FOLDER})
    if {key: value for key, value in text.items() if key not in (DIGEST, *OF_FOLDER)} | {DIGEST: line[DIGEST]} != line:
        return f"{path}: its line of {MANIFEST} says something else than the picture."
    if "mask_file" in entry:
        mask = load_mask([folder / entry["mask_file"]], int(settings_of(text)["sampling"]["size"]))
        if text.get("mask_sha256", mask_sha256(mask * 0)) != mask_sha256(mask):
            return f"{folder / entry['mask_file']}: not the mask of {path.name}."
    return ""
