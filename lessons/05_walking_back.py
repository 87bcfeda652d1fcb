"""Lesson 5: how does one walk from noise back to an image?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    from functools import partial
    from itertools import pairwise

    import marimo as mo
    import show
    import torch

    import ldm_us
    from ldm_us.diffusion.ddim import ddim_timesteps
    from ldm_us.diffusion.ddpm import level
    from ldm_us.diffusion.sampling import decode


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 5. Walking back

    **How does one walk from noise to an image, if the network can only name the noise?**

    Its $\hat{\epsilon}$ means a guess $\hat{z}_0$, a blur at first (DDPM Eq. 15). Go a little towards it, ask again.
    """)


@app.cell
def _():
    model, prompt = ldm_us.load_model(ldm_us.BUNDLED), "Ultrasound image of a benign breast"
    alpha_bar, context = model.schedule.alpha_bar.float(), model.encode_prompts([prompt])  # (1000,), (1, 77, d)
    z_T = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(5))

    @torch.no_grad()
    def walk(step, timesteps, last, z=z_T):
        """Along pairs (t, t_prev); t_prev = -1 has the noise level `last`."""
        for t, t_prev in timesteps:
            ab, ab_prev = alpha_bar[t], alpha_bar[t_prev] if t_prev >= 0 else torch.tensor(last)
            eps_hat = model.unet(z, torch.tensor([t]), context)
            z = step(z, (z - (1 - ab).sqrt() * eps_hat) / ab.sqrt(), eps_hat, ab, ab_prev)  # with DDPM Eq. 15
        return z

    steps, eta = mo.ui.slider(2, 50, value=10, label="steps"), mo.ui.slider(0, 1, value=0.5, step=0.1, label="eta")
    mo.md(f"{steps} {eta}")
    return alpha_bar, eta, model, prompt, steps, walk, z_T


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **DDIM** keeps the guess and takes the noise down. If $z_t$ is $\hat{z}_0$ and $\hat{\epsilon}$ mixed at one level,
    mix the same two at a lower level (DDIM Eq. 12, $\sigma = 0$). No dice are thrown.

    **DDPM** draws from the posterior: for the Gaussians $q(z_t | z_{prev})$ and $q(z_{prev} | z_0)$ precisions add, so
    its variance is $\frac{1 - \bar{\alpha}_{prev}}{1 - \bar{\alpha}_t} \beta$, its mean a mix of both (DDPM Eq. 7).

    **DPM-Solver++(2M)** (arXiv 2211.01095) is DDIM with a memory: it extrapolates $\hat{z}_0$ from the last two
    guesses, over steps $h$ of $\lambda$, the logarithm of signal over noise. Without the memory, it *is* DDIM.
    """)


@app.cell
def _(alpha_bar, eta, model, prompt, steps, walk, z_T):
    def ddim(z, z_0_hat, eps_hat, ab, ab_prev):
        return ab_prev.sqrt() * z_0_hat + (1 - ab_prev).sqrt() * eps_hat

    def ddpm(z, z_0_hat, eps_hat, ab, ab_prev, generator):
        alpha, beta = ab / ab_prev, 1 - ab / ab_prev
        mean = ab_prev.sqrt() * beta / (1 - ab) * z_0_hat + alpha.sqrt() * (1 - ab_prev) / (1 - ab) * z
        return mean + ((1 - ab_prev) / (1 - ab) * beta).sqrt() * torch.randn(z.shape, generator=generator)

    def dpm_solver(z, z_0_hat, eps_hat, ab, ab_prev, memory):
        h = 0.5 * ((ab_prev / (1 - ab_prev)).log() - (ab / (1 - ab)).log())
        ahead = z_0_hat + h / (2 * memory[-1][1]) * (z_0_hat - memory[-1][0]) if memory else z_0_hat
        memory.append((z_0_hat, h))
        return ((1 - ab_prev) / (1 - ab)).sqrt() * z - ab_prev.sqrt() * torch.expm1(-h) * ahead

    grid, dice = ddim_timesteps(model.schedule, int(steps.value)), torch.Generator().manual_seed(7)
    by_hand = walk(ddim, grid, float(alpha_bar[0])), walk(partial(ddpm, generator=dice), grid, 1.0)
    pictures = [decode(model, z) for z in by_hand]
    for sampler, noise in (("ddim", 0.0), ("ddpm", 0.0), ("ddim", eta.value)):
        sampling = ldm_us.Sampling(sampler, int(steps.value), noise, guidance=1.0, grain=False)
        pictures.append(ldm_us.generate(model, [prompt], seeds=[7], z_T=z_T, sampling=sampling))
    torch.testing.assert_close(pictures[:2], pictures[2:4], rtol=0, atol=1e-6)
    show.images([torch.cat(pictures)], ["DDIM", "DDPM", "generate, ddim", "generate, ddpm", f"eta {eta.value:g}"])
    return ddim, dpm_solver


@app.cell
def _(alpha_bar, ddim, dpm_solver, walk):
    def even(n):
        log_snr = (alpha_bar / (1 - alpha_bar)).log()  # 2 lambda: n steps of equal length in it, from t = 999 to 0
        grid = torch.linspace(log_snr[-1], log_snr[0], n + 1)
        return list(pairwise(dict.fromkeys(int((log_snr - at).abs().argmin()) for at in grid)))

    counts, lines = [4, 8, 12, 16], {}
    truth = walk(partial(dpm_solver, memory=[]), even(50), 1.0)
    for name, start in {"DDIM": lambda: ddim, "DPM-Solver++(2M)": lambda: partial(dpm_solver, memory=[])}.items():
        lines[name] = counts, [float((walk(start(), even(n), 1.0) - truth).square().mean().sqrt()) for n in counts]
    show.curves(lines, "network calls", "distance from the end of 50 calls", log=True)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    By hand and library agree to a millionth of the grey scale. In the curves, compare the two at one number of calls.
    Honest limits: near the end of a long walk is not yet a good picture, and these walks start from plain noise.

    ## Exercise: DDIM with any eta

    $\sigma$ is given (DDIM Eq. 16). Write Eq. 12, with all of its terms; then ask `python -m lessons.check 5`.
    """)


@app.function
def ddim_step(schedule, z_t, t, t_prev, prediction, eta=0.0, noise=None):
    """One step z_t -> z_{t_prev}; prediction is eps_hat, noise None where eta is 0."""
    ab, ab_prev = level(schedule.alpha_bar, t, z_t), level(schedule.alpha_bar, t_prev.clamp(min=0), z_t)
    ab_prev = torch.where(t_prev.view(-1, 1, 1, 1) < 0, schedule.final_alpha_bar, ab_prev)  # -1: beyond the first
    sigma = eta * ((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)).clamp(min=0).sqrt()  # DDIM Eq. 16
    raise NotImplementedError("from ab, ab_prev and sigma, write z_0_hat (Eq. 9) and the terms of DDIM Eq. 12.")


if __name__ == "__main__":
    app.run()
