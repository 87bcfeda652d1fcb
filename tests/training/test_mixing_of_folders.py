"""--data-weights: how often each folder is drawn from, and that it is a function of (seed, step) alone."""

import shutil

import pytest
import torch

from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.training.batches import step_indices
from ldm_us.training.dataset import load_training_set, mix_folders, split_data
from ldm_us.training.stages import Stage


@pytest.fixture
def folders(busi, tmp_path):
    """The 11 images, and 4 others."""
    small = tmp_path / "small"
    for path in busi.glob("benign/*"):
        (small / "benign").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, small / "benign" / path.name.replace("900", "910"))
    return [busi, small]


def mixed(folders, weights):
    records, _ = split_data(folders, 0.0)
    data = load_training_set(records, 16)
    mix_folders(data, folders, weights)
    return data


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.0, 2.0)])
def test_each_folder_comes_as_often_as_its_weight_says_whatever_its_size(folders, weights):
    data = mixed(folders, weights)
    index = step_indices(data, seed=0, step=0, size=4000)
    of_small = torch.tensor([folders[1] in record.image.parents for record in data.records])
    share = weights[1] / sum(weights)
    assert abs(float(of_small[index].float().mean()) - share) <= 5 * (share * (1 - share) / 4000) ** 0.5
    assert set(index[of_small[index]].tolist()) == set(of_small.nonzero().flatten().tolist())


def test_the_images_of_a_step_depend_on_seed_and_step_alone(folders):
    data = mixed(folders, (1.0, 1.0))
    first = [step_indices(data, 0, step, 8) for step in (0, 1, 2)]
    torch.manual_seed(3)
    assert all(torch.equal(step_indices(data, 0, step, 8), first[step]) for step in (2, 0, 1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], step_indices(data, 1, 0, 8))


def test_a_run_on_two_folders_draws_by_weight_and_says_so(run, chain, folders, tmp_path, monkeypatch):
    flags = ("--data", *folders, "--data-weights", 0, 1, "--steps", 4)
    seen, batches = set(), Stage.batches

    def look(self, step):
        drawn = step_indices(self.data, self.options.seed, step, self.options.images_per_step)
        seen.update(self.data.records[i].image for i in drawn.tolist())
        return batches(self, step)

    monkeypatch.setattr(Stage, "batches", look)
    result = run("unet", tmp_path / "run", *flags, weights=chain["vae"].path)
    assert len(seen) > 1
    assert all(folders[1] in image.parents for image in seen)
    (*_, entry) = read_lineage(read_metadata(result.path)).entries
    assert entry["data_weights"] == [0, 1]


@pytest.mark.parametrize(
    ("weights", "named"),
    [((1,), "Give one weight a dataset"), ((0, 0), "all are 0"), ((1, -1), "from 0 up"), ((1, "nan"), "from 0 up")],
)
def test_weights_that_say_nothing_are_refused(refused, folders, tmp_path, weights, named):
    assert named in refused("unet", tmp_path / "run", "--data", *folders, "--data-weights", *weights)
    assert not (tmp_path / "run").exists()
