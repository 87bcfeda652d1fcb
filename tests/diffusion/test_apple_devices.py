"""Apple's GPUs have no float64: what samples and trains makes none there. A device without numbers stands for one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ldm_us.config import SD15, US128_V
from ldm_us.diffusion.ddim import ddim_step
from ldm_us.diffusion.ddpm import ddpm_step, level, make_schedule, q_sample, target_of
from ldm_us.diffusion.dpm_solver import dpm_step
from ldm_us.training.losses import min_snr_weight


class NoFloat64(TorchDispatchMode):
    """Refuse every float64 tensor of the device meta, as torch refuses one on the device mps."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in tree_flatten(made)[0]:
            if isinstance(value, torch.Tensor) and value.is_meta and value.dtype == torch.float64:
                raise TypeError(f"{func} made float64 on the device")
        return made


@pytest.mark.parametrize("config", [SD15.schedule, US128_V.schedule])
def test_schedules_and_weights_of_noise_levels_make_no_float64_on_the_device(config):
    schedule = make_schedule(config)
    z, t = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    with NoFloat64():
        for step in (q_sample, target_of):
            assert step(schedule, z, t, z).dtype == torch.float32
        assert ddim_step(schedule, z, t, t, z, 0.3, z).dtype == torch.float32
        assert ddpm_step(schedule, z, t, t, z, z).dtype == torch.float32
        assert dpm_step(schedule, z, t, t, z, (t, z)).dtype == torch.float32
        assert min_snr_weight(schedule, t, 5.0).dtype == torch.float32
        with pytest.raises(TypeError, match="float64 on the device"):
            schedule.alpha_bar.to("meta")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_level_is_the_tables_float64_value_rounded_once(dtype):
    schedule, t = make_schedule(SD15.schedule), torch.arange(1000)
    found = level(schedule.alpha_bar, t, like=torch.empty(1, dtype=dtype)).flatten()
    assert found.equal(schedule.alpha_bar.to(dtype))
