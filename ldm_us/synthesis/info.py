"""What `sample.py --info` says: what a model file holds, the stages behind it, and the words that it was taught."""

from pathlib import Path

from ldm_us.data.words import WORDS, words_of
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import PARTS, load_model, read_metadata
from ldm_us.files.lineage import DIGESTS, imported_files, read_lineage

SHOWN_FIRST = ("steps", "images_per_step", "learning_rate", "seed", "data", "images", "data_sha256", "parent_sha256")


def describe_model(path: Path) -> str:
    """Size, parts, what the denoiser predicts, and a paragraph for each stage of training, oldest first.

    Raise ValueError, in one sentence, for a file that load_model refuses.
    """
    model, metadata, words = load_model(path, parts=()), read_metadata(path), words_of(path)
    config = model.config
    lines = [
        f"{path}  sha256 {sha256_file(path)}",
        f"{config.name}, {config.image_size} pixels, predicts {config.schedule.prediction}, made by ldm_us "
        f"{metadata.get('ldm_us', 'of unknown version')}",
    ]
    for part in PARTS:
        network = getattr(model, part)
        if network is not None:
            lines.append(f"  {part:10} {sum(value.numel() for value in network.state_dict().values()):13,} parameters")
    lines += [f"  imported from {source['file']}  sha256 {source['sha256']}" for source in imported_files(metadata)]
    entries = read_lineage(metadata).entries
    if not entries:
        lines.append("not trained here: no lineage")
    for number, entry in enumerate(entries, start=1):
        lines.append(f"stage {number}: {entry.get('stage')}")
        others = [name for name in entry if name not in (*SHOWN_FIRST, "stage", DIGESTS, WORDS)]
        shown = [name for name in SHOWN_FIRST if name in entry]
        for name in shown + [name for name in others if entry[name] not in (None, False, 0)]:
            value = entry[name]
            lines.append(f"  {name:16} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return "\n".join(lines + words.lines())
