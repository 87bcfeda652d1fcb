"""Lesson 4: what has the network learned, if all it ever did was to name noise?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import marimo as mo
    import show
    import torch
    from torch import Tensor

    import ldm_us
    from ldm_us.diffusion import ddpm
    from ldm_us.diffusion.ddpm import Schedule, level
    from ldm_us.diffusion.sampling import decode


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 4. What the network learned

    **What has a network learned that has only ever named the noise in $z_t$?**

    Whoever names the noise names the image: with $z_t$ known, each is the other by a line of algebra (DDPM Eq. 15 is
    Eq. 4 solved for $z_0$):
    $$\hat{z}_0 = \dfrac{z_t - \sqrt{1 - \bar{\alpha}_t} \, \hat{\epsilon}}{\sqrt{\bar{\alpha}_t}}$$
    So let us noise an image the network has never seen, ask for the noise, and look at the image that it implies.
    """)


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)
    x, _masks = show.phantoms(92, 6)
    z_0 = model.vae.encode(x).mean.detach()  # (6, 4, 32, 32)
    eps = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
    context = model.encode_prompts(["Ultrasound image of a benign breast"] * 6)
    t = mo.ui.slider(20, 999, value=500, label="t")
    mo.md(f"{t}")
    return context, eps, model, t, z_0


@app.cell
def _(context, eps, model, z_0):
    @torch.no_grad()
    def guess(step: int, count: int = 6):
        """z_t, the noise as named, and z_0 as implied, of so many phantoms."""
        t_batch = torch.full((count,), step)
        z_t = ddpm.q_sample(model.schedule, z_0[:count], t_batch, eps[:count])
        eps_hat = model.unet(z_t, t_batch, context[:count])
        return z_t, eps_hat, ddpm.predict_z_0(model.schedule, z_t, t_batch, eps_hat)

    return (guess,)


@app.cell
def _(guess, model, t, z_0):
    times = sorted({50, 200, int(t.value), 700, 850, 990})
    seen, implied = (torch.cat([guess(each, 1)[i] for each in times]) for i in (0, 2))
    rows = [decode(model, z) for z in (seen, implied, z_0[:1].expand(len(times), -1, -1, -1))]
    show.images(rows, [f"t = {each}" for each in times], ["D(z_t)", "D(z_0_hat)", "D(z_0)"])


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Compare the middle row with the bottom row, left to right. At small $t$ the guess is the image. In the middle the
    lesion is there and its edge is not. At the end it is a smear of layers: dark below, bright above.

    **Why a smear?** The network is trained with a squared error, and the best answer to a squared error is a mean:
    $$\dfrac{d}{dc} E[(z_0 - c)^2 \,|\, z_t] = 2 c - 2 E[z_0 | z_t] = 0, \quad \mathrm{so} \quad c = E[z_0 | z_t]$$
    At high noise many images fit the same $z_t$, and their mean is blurred. The blur is no failure: it is the right
    answer to the question. It is also why one step gives no picture, and why one walks (lesson 5).

    Errors in the noise and errors in the image are one thing on two scales: $\hat{z}_0 - z_0 = \sqrt{(1 -
    \bar{\alpha}_t) / \bar{\alpha}_t} \, (\epsilon - \hat{\epsilon})$. Measured on six phantoms:
    """)


@app.cell
def _(eps, guess, z_0):
    grid = [20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999]
    answers = [guess(each) for each in grid]
    of_eps = [float((eps_hat - eps).square().mean()) for _, eps_hat, _ in answers]
    of_z_0 = [float((z_0_hat - z_0).square().mean()) for _, _, z_0_hat in answers]
    lines = {"error of the noise, the loss": (grid, of_eps), "error of the image it implies": (grid, of_z_0)}
    show.curves(lines, "t", "mean squared error", log=True)
    return of_eps, of_z_0


@app.cell
def _(of_eps, of_z_0, z_0):
    worth, factor = of_z_0[-1] / float(z_0.var(dim=0).mean()), of_z_0[-1] / of_eps[-1]
    mo.md(f"At t = 999: error of z_0_hat over the variance of phantoms **{worth:.2f}**, over the loss {factor:.0f}.")


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    The loss *falls* with $t$ while the image gets worse: naming noise is easy where there is little else. A low loss is
    no praise. The first number is above 1: at the very end the mean image would be a better guess than the network's,
    for a small error of the noise is multiplied by the second. (That is one reason to predict $v$; see `us128_v`.)

    **Honest limit.** A squared error knows latents, not lesions: a guess can have a small one and still lack the
    lesion.

    ## Exercise: from noise to image

    Write DDPM Eq. 15, without clipping: latents go beyond -1 and 1. Then: `python -m lessons.check 4`.
    """)


@app.function
def predict_z_0(schedule: Schedule, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """What eps_hat = prediction (b, c, h, w) says of the clean latents."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_t)  # (b, 1, 1, 1)
    raise NotImplementedError("solve DDPM Eq. 4 for z_0, with prediction in place of eps.")


if __name__ == "__main__":
    app.run()
