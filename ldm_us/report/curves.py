"""The curves of a run: what its log holds, drawn, each with one sentence on how to read it."""

from dataclasses import dataclass

from ldm_us.report.charts import line_chart
from ldm_us.training.panels import BANDS, LOSS, MASKS, ZERO_CONVS, Lines, Panel, panels

TRAINING_LOSS = {
    "vae": "Mean distance |x - x_hat| in [-1, 1] plus a small KL term, on training images with flips: it should fall "
    "fast, then slowly, as finer speckle is kept.",
    "unet": "Mean squared error of the predicted noise, or v, on training images; 1 is the loss of predicting zero. "
    "From trained weights it hardly falls although the model learns: it averages over all noise levels, drawn anew at "
    "every step. Read the bands instead.",
    "controlnet": "Mean squared error of the predicted noise, or v, on training images. It hardly falls although the "
    "model learns: the frozen UNet already predicts most of the noise, and the mask helps at few noise levels. Read "
    "the gap between true and shuffled masks instead.",
}


MEANING = {
    BANDS: "Held-out images with the same noise every time, so every change is the model's. Small t: little noise, "
    "only the finest speckle is predicted. Large t: nearly pure noise, where the composition of a sample is decided; "
    "small gains there matter. A rise is overfitting.",
    MASKS: "The same held-out lesions, the same noise, with their own mask, with that of another lesion, and with "
    "none. A ControlNet that follows masks does best with the true one and worst with a wrong one.",
    "Control gap": "Loss with a shuffled mask minus loss with the true one: 0 while the mask is ignored, above 0 once "
    "the ControlNet uses it. Small numbers count, because only a part of the noise depends on the mask.",
    "PSNR of held-out images": "How close held-out images come back from the autoencoder: 3 dB more is half the "
    "squared error.",
    "L1 of held-out images": "The same as a mean distance: lower is better, and a rise while the training loss falls "
    "is overfitting.",
    "Gradient norm": "How hard each step pulls: peaks are clipped; a steady rise means that training is becoming "
    "unstable.",
    "Learning rate": "A line up during the warm-up, then constant.",
    "Speed": "Training images per second, without validation and sampling: dips are other work on the machine.",
}


@dataclass(frozen=True)
class Curve:
    """A chart and its meaning."""

    title: str
    svg: str
    meaning: str


def curves(stage: str, lines: Lines) -> list[Curve]:
    """Every curve whose values are in the log."""
    return [Curve(panel.title, draw(panel), meaning(stage, panel)) for panel in panels(lines)]


def draw(panel: Panel) -> str:
    """The chart as SVG."""
    return line_chart(panel.series, panel.title, panel.unit, panel.log_scale)


def meaning(stage: str, panel: Panel) -> str:
    """How to read it."""
    if panel.title == LOSS:
        return TRAINING_LOSS[stage]
    if panel.title == ZERO_CONVS:
        return (
            f"The weights that tie the ControlNet to the UNet, {len(panel.series)} convolutions that all start at 0: a "
            "line that leaves 0 is a level at which the mask is let in."
        )
    return MEANING[panel.title]
