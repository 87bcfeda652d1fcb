"""Which of our modules is which module of an original file: one table per kind of block, and what may be left out.

The tables have no direction: read one way they import, read the other way they export. expansion.py repeats them for
every block of a config.
"""

from dataclasses import dataclass

Row = tuple[str, ...]  # the names of one module: ours, then one per naming; the last name stands for those left out

COLUMNS = {  # the columns after ours
    "vae": ("compvis", "diffusers", "diffusers_old"),
    "text": ("transformers", "open_clip"),
    "unet": ("compvis", "diffusers"),
    "controlnet": ("compvis", "diffusers"),
}


@dataclass(frozen=True)
class Layout:
    """How a file names the tensors of one part."""

    part: str  # one of checkpoint.PARTS
    naming: str  # one of COLUMNS[part], or "ours"
    prefix: str  # what stands before every name
    ema: bool = False  # a UNet as CompVis keeps its moving average: every dot of the name removed


@dataclass(frozen=True)
class Rule:
    """One tensor of an original file and what it is here; several targets are its equal parts along axis 0."""

    source: str
    targets: tuple[str, ...]


# What an import leaves out: a pattern for fnmatch -> why nothing is lost. Nothing else of a file may be left out.
SCHEDULE = "noise schedule: computed from the config"
MARK = "mark of an objective or a schedule: it is in the config"
IMAGE_TOWER = "image tower of CLIP: Stable Diffusion uses the text tower"
PROJECTION = "projection of CLIP's feature: Stable Diffusion takes the states before it"
TEMPERATURE = "temperature of CLIP's training loss"
POSITIONS = "the numbers 0 to 76"
SURPLUS_LAYERS = "layers of the text encoder beyond those that the folder's config counts"
SPOILT_POSITIONS = "position_ids that are not 0, 1, 2 and so on, spoilt by a merge: the network counts by itself"
SCALE_FACTOR, SCALE = "scale_factor", "scale of the latents: it is in the config"
IGNORED = {
    SCALE_FACTOR: SCALE,  # a buffer of LDM where the scale was measured; another one than the config's is not left out
    "embedding_manager.*": "vectors for the placeholder word of a textual inversion: no other prompt has them",
    "betas": SCHEDULE,
    "alphas_cumprod*": SCHEDULE,
    "sqrt_*": SCHEDULE,
    "log_one_minus_*": SCHEDULE,
    "posterior_*": SCHEDULE,
    "logvar": SCHEDULE,
    "lvlb_weights": SCHEDULE,
    "difference": "marks a ControlNet saved as its difference from a UNet: import adds that of SRC",
    "v_pred": MARK,
    "ztsnr": MARK,
    "*.position_ids": POSITIONS,
    "first_stage_model.loss.*": "training loss of the autoencoder",
    "cond_stage_model.transformer.vision_model.*": IMAGE_TOWER,
    "cond_stage_model.*text_projection*": PROJECTION,
    "cond_stage_model.logit_scale": TEMPERATURE,
}
IGNORED_WITHOUT_EMA = {"model_ema.*": "moving average of the UNet: --ema takes it"}
IGNORED_EMA = {
    "model_ema.decay": "setting of the moving average",
    "model_ema.num_updates": "counter of the moving average",
}
# Of a file of one part alone: part and naming -> the same, for names behind the folder of a component.
IGNORED_ALONE = {
    ("text", "open_clip"): {
        "text_projection": PROJECTION,
        "logit_scale": TEMPERATURE,
        "visual.*": IMAGE_TOWER,
        "attn_mask": "the causal mask: computed",
    },
    ("text", "transformers"): {  # also of CLIPTextModelWithProjection, and of a whole CLIPModel
        "text_projection.weight": PROJECTION,
        "visual_projection.weight": PROJECTION,
        "logit_scale": TEMPERATURE,
        "vision_model.*": IMAGE_TOWER,
    },
    ("vae", "compvis"): {
        "loss.*": "training loss of the autoencoder",
        "model_ema.*": "moving average of the autoencoder",
    },
}

# ours, compvis, diffusers
TIME = (
    ("linear_1", "time_embed.0", "time_embedding.linear_1"),
    ("linear_2", "time_embed.2", "time_embedding.linear_2"),
)
RES_BLOCK = (
    ("norm_1", "in_layers.0", "norm1"),
    ("conv_1", "in_layers.2", "conv1"),
    ("time", "emb_layers.1", "time_emb_proj"),
    ("norm_2", "out_layers.0", "norm2"),
    ("conv_2", "out_layers.3", "conv2"),
    ("skip", "skip_connection", "conv_shortcut"),
)
ATTENTION = (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
TRANSFORMER = (
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("block.norm_1", "transformer_blocks.0.norm1"),
    *((f"block.self_attention.{ours}", f"transformer_blocks.0.attn1.{theirs}") for ours, theirs in ATTENTION),
    ("block.norm_2", "transformer_blocks.0.norm2"),
    *((f"block.cross_attention.{ours}", f"transformer_blocks.0.attn2.{theirs}") for ours, theirs in ATTENTION),
    ("block.norm_3", "transformer_blocks.0.norm3"),
    ("block.feed_forward.proj_in", "transformer_blocks.0.ff.net.0.proj"),
    ("block.feed_forward.proj_out", "transformer_blocks.0.ff.net.2"),
    ("proj_out", "proj_out"),
)

# ours, compvis, diffusers, diffusers_old
VAE_RES_BLOCK = (
    ("norm_1", "norm1"),
    ("conv_1", "conv1"),
    ("norm_2", "norm2"),
    ("conv_2", "conv2"),
    ("skip", "nin_shortcut", "conv_shortcut"),
)
VAE_ATTENTION = (
    ("norm", "norm", "group_norm"),
    ("attention.to_q", "q", "to_q", "query"),
    ("attention.to_k", "k", "to_k", "key"),
    ("attention.to_v", "v", "to_v", "value"),
    ("attention.to_out", "proj_out", "to_out.0", "proj_attn"),
)

# ours, transformers, open_clip. A name with {} takes "weight" or "bias" there; without, it takes ".weight" at its end.
TEXT_BLOCK = (
    ("norm_1", "layer_norm1", "ln_1"),
    ("attention.to_q", "self_attn.q_proj", "attn.in_proj_{}"),
    ("attention.to_k", "self_attn.k_proj", "attn.in_proj_{}"),
    ("attention.to_v", "self_attn.v_proj", "attn.in_proj_{}"),
    ("attention.to_out", "self_attn.out_proj", "attn.out_proj"),
    ("norm_2", "layer_norm2", "ln_2"),
    ("mlp_in", "mlp.fc1", "mlp.c_fc"),
    ("mlp_out", "mlp.fc2", "mlp.c_proj"),
)
GAINS = "decoder.noise_gains"  # in the vae, the one module that no other program's model has
CONVOLUTIONAL = {("vae", "compvis")}  # no linear layers in these: every matrix is a 1x1 convolution, [c, c, 1, 1]
BARE_TENSORS = ("positional_embedding",)  # tensors that belong to no module: nothing is added to their name
