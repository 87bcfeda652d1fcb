"""Lesson 8, the hole filled. The target is the very noise that was mixed in."""

from ldm_us.diffusion.ddpm import q_sample


def ddpm_loss(model, batch, context, use_control, min_snr=None):
    """E |eps - eps_theta(z_t, t, context)|^2; call model.unet(z_t, t, context, None)."""
    z_t = q_sample(model.schedule, batch.z_0, batch.t, batch.eps)
    return (model.unet(z_t, batch.t, context, None) - batch.eps).square().mean(), {}
