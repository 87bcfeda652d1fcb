"""Lesson 10: is it any good, and what could go wrong?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import marimo as mo
    import numpy as np
    import show
    import torch

    import ldm_us
    from ldm_us.evaluation.memorisation import nearest_training
    from ldm_us.evaluation.realism import speckle


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 10. Is it any good?

    **How does one know, and what could go wrong?** Three ways to fool oneself, each run here.

    ## A leak: the same patient on both sides

    Two dozen breasts. A "classifier" looks up the nearest known image and gives its class. Test it on a second scan of
    the same breasts (same anatomy, new speckle), then on breasts it has never seen.
    """)


@app.cell
def _():
    def both(seed, scan):
        """Images (24, 1, 128, 128) in [0, 1]: twelve benign, then twelve malignant."""
        images = [show.phantoms(seed, 12, label, scan)[0] for label in ("benign", "malignant")]
        return torch.cat(images)[:, :1] / 2 + 0.5

    def accuracy(test):
        near = nearest_training.l2(nearest_training.pixels_of(test), nearest_training.pixels_of(known)).argmin(dim=1)
        return float(((near >= 12) == (torch.arange(24) >= 12)).float().mean())

    known, again, unseen = both(96, 0), both(96, 1), both(97, 0)
    model, steps = ldm_us.load_model(ldm_us.BUNDLED), mo.ui.slider(3, 50, value=15, label="steps")
    scores = {"named rightly": [accuracy(again), accuracy(unseen)]}
    mo.md(show.table(["the same breasts, scanned again", "other breasts"], scores) + f"\n\n{steps}")
    return known, model, steps, unseen


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    It has learned nothing, and the leak makes it perfect. Near-duplicates are common in BUSI: this project splits by
    *families* of images. Generators leak as well: what a model was trained on is in its samples.

    ## Copies: is it drawing, or remembering?

    For each image, find the training image most like it in detail, mirrored or shifted. A search that finds nothing
    proves nothing, until it has found what was **planted**: known images mirrored, shifted and brightened.
    """)


@app.cell
def _(known, unseen):
    details = nearest_training.details_of(known, nearest_training.SIDE, nearest_training.SIDE)

    def likeness(images):
        """The correlation of each image's detail with that of the training image most like it, sorted."""
        ways = [nearest_training.detail_correlations(view, details) for view in (images, images.flip(-1))]
        return torch.stack(ways).amax(dim=(0, 2)).sort().values

    planted = (known[::3].flip(-1).roll((3, -4), dims=(-2, -1)) * 0.8 + 0.15).clamp(0, 1)
    kinds = {"planted copies": (range(8), likeness(planted)), "other breasts": (range(8), likeness(unseen[::3]))}
    show.curves(kinds, "image, sorted", "likeness")


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    A threshold between the lines tells copies from others. For a model and its own training images: `python -m
    ldm_us.evaluation memorisation`.

    ## Two errors that cancel

    Plain noise is a wrong start (lesson 3), and the decoder loses speckle (lesson 2). Nakagami's $m$ measures speckle,
    the grey of the deepest quarter tells of the start. Mend one fault at a time:
    """)


@app.cell
def _(known, model, steps):
    def figures(images):
        grey = (images.mean(dim=1) * 255).round().numpy()
        m = [speckle.speckle_figures(each, speckle.homogeneous_blocks(each))[0] for each in grey.astype(float)]
        return f"m = {np.nanmedian(m):.2f}\ndeep grey {grey[:, 96:].mean():.0f}"

    prompts, rows = ["Ultrasound image of a benign breast"] * 6, {f"phantoms\n{figures(known[:12])}": known[:6]}
    for name, prior, grain in (("neither", False, False), ("start mended", True, False), ("both mended", True, True)):
        sampling = ldm_us.Sampling(steps=int(steps.value), guidance=1.0, prior=prior, grain=grain)
        drawn = ldm_us.generate(model, prompts, sampling=sampling)
        rows[f"{name}\n{figures(drawn)}"] = drawn
    show.images(list(rows.values()), names=list(rows))


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Look at $m$ alone: mending the start makes it *worse*. The wrong start had drawn strands that stood in for speckle.
    Whoever trusts one number undoes the right repair.

    **Honest limit.** Nothing here says that a picture helps anybody: that needs patients and a test set kept apart.

    ## Exercise: does it obey its mask?

    Dice, $2 |A \cap B| / (|A| + |B|)$, compares the mask that was asked for with the lesion that a judge finds in the
    sample. Report it beside the same for *another's* mask, which a model that ignores its mask would get. Write it for
    pairs of masks $(n, 1, H, W)$ of zeros and ones; two empty masks agree. Then: `python -m lessons.check 10`.
    """)


@app.function
def dice(found, asked):
    """(n, 1, H, W) each -> (n,)."""
    raise NotImplementedError("2 |A and B| / (|A| + |B|) of each pair, and 1 where both are empty.")


if __name__ == "__main__":
    app.run()
