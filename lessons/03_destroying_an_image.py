"""Lesson 3: how does an image become noise, and does it ever arrive?"""

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
    from ldm_us.diffusion.start_prior import start_latents


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 3. Destroying an image

    **How does an image become noise, and does it ever arrive there?**

    One step takes a little signal away and adds as much noise (DDPM Eq. 2): $z_t = \sqrt{1 - \beta_t} \, z_{t-1} +
    \sqrt{\beta_t} \, \epsilon$. Two such steps are one: the signal factors multiply, and independent noises add their
    variances. With $\alpha = 1 - \beta$, if $z_{t-1}$ has the variance of noise $1 - \bar{\alpha}_{t-1}$, then $z_t$
    has
    $$\alpha_t (1 - \bar{\alpha}_{t-1}) + 1 - \alpha_t = 1 - \alpha_t \bar{\alpha}_{t-1} = 1 - \bar{\alpha}_t$$
    so, with $\bar{\alpha}_t$ the product of all alphas, any $t$ is one jump away (DDPM Eq. 4):
    $$z_t = \sqrt{\bar{\alpha}_t} \, z_0 + \sqrt{1 - \bar{\alpha}_t} \, \epsilon$$
    """)


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)
    schedule = model.schedule
    x, _ = show.phantoms(91, 5)  # (5, 3, 128, 128) in [-1, 1]
    z_0 = model.vae.encode(x).mean.detach()
    eps = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
    t = mo.ui.slider(0, 999, value=400, label="t")
    mo.md(f"{t}")
    return eps, model, schedule, t, x, z_0


@app.cell
def _(eps, model, schedule, t, z_0):
    times = sorted({0, 100, 250, int(t.value), 700, 999})
    noised = torch.cat([ddpm.q_sample(schedule, z_0[:1], torch.tensor([each]), eps[:1]) for each in times])
    show.images(
        [decode(model, noised), show.contrast(noised[:, 2])], [f"t = {each}" for each in times], ["D(z_t)", "channel 2"]
    )


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Above: $z_t$ through the decoder, which was never made for noise. Below: one channel of $z_t$ itself. Follow the
    lesion to the right: fine things go first, the layers last. The signal-to-noise ratio says it in one number, $SNR =
    \bar{\alpha}_t / (1 - \bar{\alpha}_t)$:
    """)


@app.cell
def _(schedule):
    ab, zero = schedule.alpha_bar, ddpm.end_in_noise(schedule.alpha_bar)
    ends = {f"SD 1.5: the last alpha_bar is {ab[-1]:.5f}": ab, f"rescaled: it is {zero[-1]:.0f}": zero}
    show.curves({name: (range(999), (a / (1 - a))[:999]) for name, a in ends.items()}, "t < 999", "SNR", log=True)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **The last $\bar{\alpha}$ is not 0.** So in training even $z_{999}$ held its image, times the root of that number:
    0.068. That looks harmless, but noise averages out and an image does not. The network has always found the blurred
    image in there, and *believes* what it finds. $N(0, I)$ shows it the blurred image of nothing.

    *Noised phantoms* is what training saw. The **start prior** puts a blurred image back: $z_T = \sqrt{\bar{\alpha}_T}
    (\mu + L w) + \sqrt{1 - \bar{\alpha}_T} \, \epsilon$, with the mean $\mu$ and the main directions $L$ of blurred
    training latents. (The rescaled curve is the other remedy: a schedule that does end in noise. It needs a network
    trained with it, as in the preset `us128_v`.)
    """)


@app.cell
def _(eps, model, schedule, x, z_0):
    prompt, T = "Ultrasound image of a benign breast", torch.tensor([951])
    w = torch.randn(5, model.prior.rank, generator=torch.Generator().manual_seed(1))
    starts = {
        "N(0, I)": eps,
        "start prior": start_latents(schedule, model.prior.of(prompt), T, eps, w),
        "noised phantoms": ddpm.q_sample(schedule, z_0, T, eps),
    }
    sampling = ldm_us.Sampling(steps=20, guidance=1.0, grain=False)  # 20 steps start at t = 951
    drawn = {name: ldm_us.generate(model, [prompt] * 5, z_T=z_T, sampling=sampling) for name, z_T in starts.items()}
    drawn["the phantoms"] = (x + 1) / 2
    show.images(list(drawn.values()), names=list(drawn))
    return (drawn,)


@app.cell
def _(drawn):
    bands = {name: (images * 255).mean(dim=(0, 1, 3)).view(4, 32).mean(dim=1) for name, images in drawn.items()}
    mo.md(show.table(["top quarter", "second", "third", "bottom quarter"], bands, form=".0f"))


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Mean grey by depth: from plain noise it falls too little. Honest limit: five pictures are no proof.

    ## Exercise: one jump

    `level(values, t, like)` looks $\bar{\alpha}$ up and shapes it. Write DDPM Eq. 4: `python -m lessons.check 3`.
    """)


@app.function
def q_sample(schedule: Schedule, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Clean latents (b, c, h, w), t (b,), noise (b, c, h, w) -> z_t (b, c, h, w)."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_0)  # (b, 1, 1, 1)
    raise NotImplementedError("write DDPM Eq. 4 with z_0, eps and alpha_bar.")


if __name__ == "__main__":
    app.run()
