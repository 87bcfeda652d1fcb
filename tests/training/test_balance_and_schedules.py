"""--class-weights, --lr-schedule, --text-lr and --keep-every: what they compute, and that runs resume exactly."""

import math

import pytest
import torch
from safetensors.torch import load_file

import train
from ldm_us.data.mixing import class_shares, group_shares
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.training.batches import step_indices
from ldm_us.training.command_line import parse_options
from ldm_us.training.dataset import load_training_set, mix_folders, split_data
from ldm_us.training.log import read_lines
from ldm_us.training.optimizers import groups_of, make_optimizer, set_rates

DRAWS = 6000


def shares(busi, classes, weights=None):
    """How often each class of the 4 + 4 + 3 images is drawn."""
    records, _ = split_data([busi], 0.0)
    data = load_training_set(records, 16)
    mix_folders(data, [busi], weights, classes)
    index = step_indices(data, seed=0, step=0, size=DRAWS)
    assert torch.equal(index, step_indices(data, 0, 0, DRAWS))
    labels = [data.records[i].label for i in index.tolist()]
    return {label: labels.count(label) / DRAWS for label in ("benign", "malignant", "normal")}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("equal",), (1 / 3, 1 / 3, 1 / 3)),
        (("benign=1", "malignant=2", "normal=1"), (0.25, 0.5, 0.25)),
        (("benign=0", "malignant=3", "normal=1"), (0, 0.75, 0.25)),
    ],
)
def test_each_class_comes_as_often_as_its_weight_says(busi, given, expected):
    for found, share in zip(shares(busi, given).values(), expected, strict=True):
        assert abs(found - share) <= 5 * (share * (1 - share) / DRAWS) ** 0.5


def test_without_class_weights_batches_are_those_of_before(busi):
    records, _ = split_data([busi], 0.0)
    plain, mixed = load_training_set(records, 16), load_training_set(records, 16)
    mix_folders(mixed, [busi], None, None)
    assert torch.equal(step_indices(plain, 0, 3, 8), step_indices(mixed, 0, 3, 8))
    mix_folders(plain, [busi], (1.0,))
    mix_folders(mixed, [busi], (1.0,), None)
    assert torch.equal(step_indices(plain, 0, 3, 8), step_indices(mixed, 0, 3, 8))


def test_the_classes_of_a_folder_share_what_the_folder_has():
    """P(folder, class) = w_folder / (sum of w) x c_class / (sum of c over the classes of that folder)."""
    folders, labels = [0, 0, 0, 1, 1], ["a", "a", "b", "b", "c"]
    weights, classes = (1.0, 3.0), {"a": 1.0, "b": 2.0, "c": 6.0}
    share, group = group_shares(folders, labels, weights, classes)
    found = {(folders[i], labels[i]): share[group[i]] / sum(share) for i in range(5)}
    expected = {(0, "a"): 1 / 4 / 3, (0, "b"): 2 / 4 / 3, (1, "b"): 3 / 4 * 2 / 8, (1, "c"): 3 / 4 * 6 / 8}
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="only classes of the weight 0"):
        group_shares(folders, labels, weights, {"a": 0.0, "b": 0.0, "c": 1.0})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("benign=1",), "no weight for malignant"),
        (("benign=1", "malignant=1", "cyst=1"), "no image is of cyst"),
        (("benign=x", "malignant=1"), "benign=x is not one CLASS=NUMBER"),
        (("benign=-1", "malignant=1"), "benign=-1 is not"),
        (("benign=1", "benign=1"), "benign=1 is not one"),
        (("malignant",), "malignant is not"),
    ],
)
def test_class_weights_that_say_nothing_are_refused_in_one_sentence(given, named):
    with pytest.raises(ValueError, match=named):
        class_shares(given, ["benign", "malignant"])


def options_of(*words):
    start = ["unet", "--preset", "micro", "--data", "x", "--out", "y", "--steps", "100", "--device", "cpu"]
    return parse_options([*start, *map(str, words)])


def rates(options, steps=100, groups=1):
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)]
    optimizer = make_optimizer("adamw", parameters, 1.0, 0.0)
    found = []
    for step in range(1, steps + 1):
        value = set_rates(optimizer, options, step, steps)
        assert value == optimizer.param_groups[-1]["lr"]
        found.append([group["lr"] for group in optimizer.param_groups])
    return torch.tensor(found, dtype=torch.float64)


def test_the_cosine_rises_linearly_to_the_peak_and_falls_by_half_a_cosine_towards_0():
    """arXiv 1608.03983, Eq. 5 without restarts: by torch's own schedule, from the end of the warm-up on."""
    found = rates(options_of("--lr", 1e-3, "--warmup", 10, "--lr-schedule", "cosine"))[:, 0]
    assert found[:10].tolist() == pytest.approx([1e-3 * step / 10 for step in range(1, 11)])
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=90)
    for value in found[10:].tolist():
        assert value == pytest.approx(schedule.get_last_lr()[0])
        other.step()
        schedule.step()
    assert 0 < found[-1] < 1e-3 * (1 - math.cos(math.pi / 90))


def test_the_constant_schedule_is_that_of_before():
    """lr = peak x min(1, step / warm-up), bit for bit, whether it is named or not."""
    for words in ((), ("--lr-schedule", "constant")):
        found = rates(options_of("--lr", 3e-4, "--warmup", 7, *words), steps=20)[:, 0]
        assert found.tolist() == [3e-4 * min(1.0, step / 7) for step in range(1, 21)]


def test_the_text_encoder_has_its_own_peak_and_the_groups_keep_the_order_of_the_weights():
    found = rates(options_of("--train-text", "--lr", 1e-3, "--text-lr", 1e-4, "--warmup", 4), steps=8, groups=2)
    assert torch.allclose(found[:, 0] * 10, found[:, 1])
    named = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("text.a", "text.b", "unet.a")}
    order = [p for group in groups_of(named, 1e-4) for p in group["params"]]
    assert [id(p) for p in order] == [id(p) for p in named.values()]  # as a state numbers them
    assert len(groups_of(named, None)) == 1


def test_a_run_with_all_of_them_resumes_bit_for_bit(run, arguments, chain, tmp_path):
    flags = ("--train-text", "--text-lr", 1e-2, "--lr-schedule", "cosine", "--class-weights", "equal", "--ema", 0.5)
    flags += ("--save-every", 2, "--keep-every", 2)
    weights = chain["vae"].path
    straight = run("unet", tmp_path / "straight", *flags, "--steps", 6, weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        check = train.check_finite

        def die(run, where, line):
            if where == "step 5":
                raise KeyboardInterrupt
            check(run, where, line)

        patch.setattr(train, "check_finite", die)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments("unet", tmp_path / "killed", *flags, "--steps", 6, weights=weights))
    killed = run("unet", tmp_path / "killed", *flags, "--steps", 6, weights=weights)
    assert all(torch.equal(value, killed.weights[name]) for name, value in straight.weights.items())
    flags = [flag for flag in flags if flag not in ("--text-lr", 1e-2)]
    plain = run("unet", tmp_path / "plain", *flags, "--steps", 6, weights=weights)
    assert not torch.equal(
        plain.weights["text.token_embedding.weight"], straight.weights["text.token_embedding.weight"]
    )
    (*_, entry) = read_lineage(read_metadata(straight.path)).entries
    assert (entry["class_weights"], entry["lr_schedule"], entry["text_lr"]) == (["equal"], "cosine", 1e-2)


def test_more_steps_of_a_cosine_are_another_run_and_more_of_a_constant_go_on(run, refused, chain, tmp_path):
    flags = {"weights": chain["vae"].path}
    run("unet", tmp_path / "cosine", "--lr-schedule", "cosine", "--steps", 2, **flags)
    said = refused("unet", tmp_path / "cosine", "--lr-schedule", "cosine", "--steps", 4, **flags)
    assert "steps_of_the_schedule was 2, is 4" in said
    said = refused("unet", tmp_path / "new", "--lr-schedule", "cosine", "--steps", 4, "--warmup", 4, **flags)
    assert "--warmup 4: nothing of 4 steps is left" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("adapter", [(), ("--lora", 2)])
def test_kept_models_are_whole_are_those_of_their_step_and_change_nothing(run, chain, tmp_path, adapter):
    flags = ("--ema", 0.5, *adapter, "--steps")
    weights = chain["unet"].path
    plain = run("unet", tmp_path / "plain", *flags, 4, weights=weights)
    kept = run("unet", tmp_path / "kept", *flags, 4, "--keep-every", 2, "--validate-every", 3, weights=weights)
    assert all(torch.equal(value, kept.weights[name]) for name, value in plain.weights.items())
    folder = tmp_path / "kept/kept"
    assert [path.name for path in sorted(folder.iterdir())] == [f"step_{step:08d}.safetensors" for step in (2, 4)]
    short = run("unet", tmp_path / "short", *flags, 2, weights=weights)
    for path, result in ((folder / "step_00000002.safetensors", short), (folder / "step_00000004.safetensors", kept)):
        found = load_file(path)
        assert found.keys() == result.weights.keys()
        assert all(torch.equal(value, result.weights[name]) for name, value in found.items())
        assert read_metadata(path) == read_metadata(result.path)
        assert load_model(path).controlnet is None
    steps = [line["step"] for line in read_lines(tmp_path / "kept/log.jsonl") if "val_loss" in line]
    assert steps == [0, 2, 3, 4]  # validated where a model is kept too


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("vae", ("--keep-every", 2), "--keep-every belongs to the unet and controlnet stages"),
        ("unet", ("--text-lr", 1e-4), "--text-lr 0.0001 needs --train-text"),
        ("unet", ("--text-lr", 0), "--text-lr 0.0: use a finite number above 0"),
    ],
)
def test_options_without_anything_to_work_on_are_refused(refused, tmp_path, stage, flags, named):
    assert named in refused(stage, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
