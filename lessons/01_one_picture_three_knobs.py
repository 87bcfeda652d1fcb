"""Lesson 1: what do seed, guidance and steps do to one picture?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import marimo as mo
    import show
    import torch
    from torch import Generator, Tensor

    import ldm_us


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 1. One picture, three knobs

    **What do seed, guidance and steps do to a picture?**

    A diffusion model turns noise into an image. You choose the noise (the *seed*), how strongly the text counts (the
    *guidance*), and how many steps the way from noise to image takes (the *steps*). Nothing else is random.

    The model is small, 128x128 pixels. It has seen simulated breasts (*phantoms*) and no patient.
    """)


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)
    prompt = "Ultrasound image of a malignant breast"
    steps = mo.ui.slider(3, 50, value=20, label="steps")
    guidance = mo.ui.slider(1, 8, value=3, label="guidance")
    mo.md(f"{steps} {guidance}")
    return guidance, model, prompt, steps


@app.cell
def _(guidance, model, prompt, steps):
    def picture(**knobs) -> Tensor:
        """One image (1, 3, 128, 128) in [0, 1]; what is not given is as the sliders say."""
        chosen = {"seed": 1, "steps": int(steps.value), "guidance": float(guidance.value), **knobs}
        sampling = ldm_us.Sampling(steps=chosen["steps"], guidance=chosen["guidance"])
        return ldm_us.generate(model, [prompt], seeds=[chosen["seed"]], sampling=sampling)

    seeds = [1, 2, 3, 4]
    pictures = torch.cat([picture(seed=s) for s in seeds])
    show.images([pictures], [f"seed {s}" for s in seeds])
    return picture, pictures


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **The seed** is the patient, so to speak: layers, lesion and speckle all change with it. Look at the lesion, the
    dark region with a ragged edge: its place and shape were nowhere in the text.

    The same seed gives the same picture again, and that is no figure of speech:
    """)


@app.cell
def _(picture, pictures):
    mo.md(f"Seed 1 drawn again is equal in every bit: **{torch.equal(picture(seed=1), pictures[:1])}**")


@app.cell
def _(picture):
    weights = [1, 2, 4, 8]
    show.images([torch.cat([picture(guidance=s) for s in weights])], [f"guidance {s}" for s in weights])


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **The guidance** $s$ says how far to go beyond what the text asks for; at $s = 1$ the text counts once. Look at the
    dark mass from left to right: hardly there, then plain, then too large and too dark. Strong guidance buys agreement
    with the text and pays with variety and with natural greys. Lesson 6 has the formula.
    """)


@app.cell
def _(picture):
    counts = [2, 5, 10, 20, 40]
    walked = torch.cat([picture(steps=n) for n in counts])
    show.images([walked], [f"{n} steps" for n in counts])
    return counts, walked


@app.cell
def _(counts, walked):
    away = [float((image - walked[-1]).abs().mean()) * 255 for image in walked[:-1]]
    mo.md(show.table([f"{n} steps" for n in counts[:-1]], {f"grey levels from that of {counts[-1]}": away}, form=".1f"))


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **The steps** cost time, one call of the network each (two with guidance), and change the picture less and less:
    they follow one and the same curve, more finely. Two steps give layers and no lesion worth the name.

    **Honest limits.** One prompt and few seeds: what you see is an example, not a statistic. And a picture that differs
    from that of many steps is not worse for that: the difference says when more steps are no longer worth their time.

    ## Exercise: noise that is yours alone

    A sample must not depend on who else is in its batch. So sample $i$ draws its noise from its own generator $i$:
    `draw` gets a shape $(b, c, h, w)$ and $b$ generators. Write it, then ask `python -m lessons.check 1`: the project's
    own tests will run with your function in place of the library's.
    """)


@app.function
def draw(shape: tuple[int, ...], generators: list[Generator]) -> Tensor:
    """Standard normal noise (b, ...) on the CPU, sample i from generator i."""
    raise NotImplementedError("stack one torch.randn(..., generator=...) for each generator.")


if __name__ == "__main__":
    app.run()
