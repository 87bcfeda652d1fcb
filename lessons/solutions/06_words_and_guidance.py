"""Lesson 6, the hole filled. From the answer without the prompt, s times the way to the one with it."""


def guided_prediction(model, z_t, t, conditions):
    """The noise in z_t, guided by the text (without a mask)."""
    eps_u = model.unet(z_t, t, conditions.context_negative)
    eps_c = model.unet(z_t, t, conditions.context)
    return eps_u + conditions.guidance.scale * (eps_c - eps_u)
