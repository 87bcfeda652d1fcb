"""RUN/tensorboard: the lines of log.jsonl once more, for TensorBoard, which the extra `logs` installs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm_us.training.curves import read_line


def summary_writer() -> Any:
    """TensorBoard's SummaryWriter. Raise ValueError, naming the extra, where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard: TensorBoard is not installed. Install the extra logs, `pip install -e '.[logs]'`, or leave "
            "the option out: curves.png shows the same."
        ) from error
    return SummaryWriter


@contextmanager
def mirrored_log(run: Path, wanted: bool) -> Iterator[Callable[[], None]]:
    """Give a function that sends TensorBoard what was logged since its last call; it does nothing unless `wanted`.

    A resumed run sends its whole log again and purges what was sent before: whatever a killed run had queued or sent
    too much, the curves are those of log.jsonl. Only the wall time of the old points is then that of the resume.
    """
    if not wanted:
        yield lambda: None
        return
    writer = summary_writer()(str(run / "tensorboard"), purge_step=0)
    read = 0  # bytes of the log

    def follow() -> None:
        nonlocal read
        for row in new_rows(run / "log.jsonl", read):
            read += len(row)
            line = read_line(row.decode())
            for name in sorted(line.keys() - {"step"}):
                writer.add_scalar(name, line[name], int(line["step"]))

    try:
        yield follow
        follow()
    finally:
        writer.close()


def new_rows(path: Path, start: int) -> list[bytes]:
    """The whole rows of a file from byte `start` on, line ends included."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(start)
        return [row for row in file if row.endswith(b"\n")]
