"""The figures made of Scenes: cells compared with what they should show."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from lightning_genesis.figures import (
    decomposition_steps,
    example_scores,
    failure_cases,
    generation_order,
    generation_steps,
    imagination_pairs,
    inference_seeds,
    latent_traversal,
    samples_by_run,
    score_labels,
    sweep,
)
from lightning_genesis.figures.comparison import dataset_examples, model_comparison
from lightning_genesis.figures.drawing import (
    BACKGROUND_COLOUR,
    LINE,
    PADDING,
    SIDE,
    SLOT_COLOURS,
    colour_masks,
    colour_slots,
    colour_truth,
    masked_components,
    text_width,
)
from lightning_genesis.layers import stick_breaking
from lightning_genesis.models import Genesis
from lightning_genesis.scene import IndexedNoise, Scene
from tests.callbacks.test_drawing import cell


def random_scene(batch: int = 2, num_slots: int = 3, attention: bool = False, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    components = torch.rand(batch, num_slots, 3, SIDE, SIDE, generator=generator)
    logits = torch.randn(2, batch, num_slots, 1, SIDE, SIDE, generator=generator)
    masks, others = logits.log_softmax(dim=2)
    return Scene(components, masks, attention_log_masks=others if attention else None)


def margin(labels: list[str]) -> int:
    return max(map(text_width, labels)) + 2 * PADDING


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other.clamp(0.0, 1.0), atol=1e-6)


@pytest.mark.parametrize("attention", [False, True])
def test_decomposition_steps(attention: bool) -> None:
    scene, images = random_scene(attention=attention), torch.rand(2, 3, SIDE, SIDE)
    picture = decomposition_steps(images, scene)
    names = ["component", "mask", *(["attention"] if attention else []), "scope", "so far"]
    left = margin(names)
    height = LINE + len(names) * (SIDE + PADDING) + PADDING
    assert picture.shape[1] == 2 * height + LINE
    masks = (scene.attention_log_masks if attention else scene.log_masks).exp()  # type: ignore[union-attr]
    for image in (0, 1):
        block = picture[:, image * (height + LINE) :]
        rows = {name: row for row, name in enumerate(names)}
        assert near(cell(block, 0, rows["component"], left=left), images[image])
        assert near(cell(block, 0, rows["so far"], left=left), scene.reconstruction[image])
        assert near(cell(block, 3, rows["so far"], left=left), scene.reconstruction[image])
        for slot in range(3):
            shown = {name: cell(block, slot + 1, row, left=left) for name, row in rows.items()}
            assert near(shown["component"], masked_components(scene)[image, slot])
            assert near(shown["mask"], scene.masks[image, slot].expand(3, -1, -1))
            left_over = 1.0 - masks[image, :slot].sum(dim=0)
            assert near(shown["scope"], left_over.expand(3, -1, -1))


def test_scope_is_that_of_stick_breaking() -> None:
    logits = torch.randn(1, 4, 1, SIDE, SIDE)
    scene = Scene(torch.rand(1, 4, 3, SIDE, SIDE), stick_breaking(logits))
    picture = decomposition_steps(torch.rand(1, 3, SIDE, SIDE), scene)
    left = margin(["component"])
    scope = torch.ones(1, SIDE, SIDE)
    for slot in range(4):
        assert torch.allclose(cell(picture, slot + 1, 2, left=left), scope.expand(3, -1, -1), atol=1e-5)
        scope = scope * (1.0 - logits[0, slot].sigmoid())


@pytest.mark.parametrize("attention", [False, True])
def test_models_are_rows_on_the_same_images(attention: bool) -> None:
    images, truth = torch.rand(2, 3, SIDE, SIDE), torch.randint(0, 4, (2, SIDE, SIDE))
    scenes = {"A": random_scene(num_slots=2), "B": random_scene(num_slots=3, attention=attention, seed=1)}
    scores = {"A": ["0.5", "0.6"]}
    picture = model_comparison(images, scenes, truth, num_background=2, scores=scores)
    left = margin(["input, truth", "A\n0.5"])
    height = LINE + 3 * (SIDE + PADDING) + PADDING
    assert picture.shape[1] == 2 * height + LINE
    slots = 3 if attention else 2
    white = torch.ones(3, SIDE, SIDE)
    for image in (0, 1):
        block = picture[:, image * (height + LINE) :]
        assert near(cell(block, 0, 0, left=left), images[image])
        assert near(cell(block, 1, 0, left=left), colour_truth(truth[image], 2))
        for row, scene in enumerate(scenes.values(), start=1):
            assert near(cell(block, 0, row, left=left), scene.reconstruction[image])
            assert near(cell(block, 1, row, left=left), colour_slots(scene.segmentation()[image]))
            for slot in range(scene.num_slots):
                shown = cell(block, slots + slot, row, left=left)
                assert near(shown, masked_components(scene)[image, slot])
        assert near(cell(block, slots + 2, 1, left=left), white), "A has no third slot"
        if attention:
            found = colour_slots(scenes["B"].segmentation("attention")[image])
            assert near(cell(block, 2, 2, left=left), found)
            assert near(cell(block, 2, 1, left=left), white)


def test_true_background_is_neutral_and_of_no_slot() -> None:
    colours = colour_truth(torch.tensor([[0, 1, 2, 3, 254, 255]]), num_background=2)[:, 0].T
    grey = torch.tensor(BACKGROUND_COLOUR) / 255
    assert torch.equal(colours[0], grey)
    assert torch.equal(colours[1], grey)
    assert BACKGROUND_COLOUR not in SLOT_COLOURS
    assert torch.equal(colours[2], torch.tensor(SLOT_COLOURS[0]) / 255)
    assert torch.equal(colours[5], torch.ones(3))
    assert len({tuple(colour) for colour in colours[2:4].tolist()}) == 2


@pytest.mark.parametrize(("per_scene", "columns", "rows"), [(1, 8, 2), (14, 7, 2), (4, 4, 1)])
def test_examples_of_a_dataset(per_scene: int, columns: int, rows: int) -> None:
    images = torch.rand(max(per_scene, 8) if per_scene != 4 else 8, 3, SIDE, SIDE)
    truth = torch.randint(0, 3, (len(images), SIDE, SIDE)) if per_scene == 1 else None
    picture = dataset_examples(images, truth, 1, per_scene)
    top = LINE if per_scene > 1 else 0
    assert picture.shape[2] == columns * (SIDE + PADDING) + PADDING
    assert near(cell(picture, 0, 0, top=top), images[0])
    assert near(cell(picture, columns - 1, 0, top=top), images[columns - 1])
    if truth is not None:
        assert near(cell(picture, 0, 1, top=top), colour_truth(truth[0]))
    if per_scene == 14:
        assert near(cell(picture, 0, 1, top=top), images[7]), "the right camera's crops below the left one's"
    scenes = len(images) // per_scene
    if per_scene > 1:
        assert picture.shape[1] == scenes * (LINE + rows * (SIDE + PADDING) + PADDING) + (scenes - 1) * LINE


def test_generation_steps_and_order() -> None:
    scene = random_scene(batch=5)
    steps = generation_steps(scene[:1])
    assert near(cell(steps, 3, 2, left=margin(["component"])), scene.reconstruction[0])
    order = generation_order(scene, num_columns=2)
    assert order.shape[1] == 6 * (SIDE + PADDING) + PADDING + 2 * LINE
    for number in range(5):
        column, row = number % 2, number // 2 * 2
        assert near(cell(order, column, row, top=0), scene.reconstruction[number])
        assert near(cell(order, column, row + 1, top=0), colour_masks(scene)[number])


def test_sweep_has_a_pair_of_rows_per_setting() -> None:
    for second, top in (
        (random_scene(num_slots=5), 0),
        (random_scene(seed=1), LINE),
    ):
        scenes = {"first setting": random_scene(), "second": second}
        picture = sweep(scenes)
        for number, scene in enumerate(scenes.values()):
            shown = cell(picture, 1, 2 * number, top, margin([*scenes]))
            assert near(shown, scene.reconstruction[1])
            shown = cell(picture, 1, 2 * number + 1, top, margin([*scenes]))
            assert near(shown, colour_masks(scene)[1])


def test_samples_by_run_stand_below_their_captions() -> None:
    scenes = {"seed 0: FID 71.0": random_scene(), "seed 1: FID 73.5": random_scene(seed=1)}
    picture = samples_by_run(scenes)
    height = 2 * (SIDE + PADDING) + PADDING + 3 * LINE  # caption, gap, legend
    assert picture.shape[1] == 2 * height + LINE
    assert near(cell(picture, 0), scenes["seed 0: FID 71.0"].reconstruction[0])
    assert near(cell(picture[:, height + LINE :], 1), scenes["seed 1: FID 73.5"].reconstruction[1])


def test_inference_seeds_and_imagination() -> None:
    images = torch.rand(2, 3, SIDE, SIDE)
    scenes = {"seed 0": random_scene(), "seed 1": random_scene(seed=1)}
    picture = inference_seeds(images, scenes)
    assert near(cell(picture, 0, 1), images[1])
    assert near(cell(picture, 3, 1), scenes["seed 1"].reconstruction[1])
    assert near(cell(picture, 4, 1), colour_slots(scenes["seed 1"].segmentation())[1])
    scene = Scene(
        scenes["seed 0"].components, scenes["seed 0"].log_masks, auxiliary={"imagination": scenes["seed 1"]}
    )
    picture = imagination_pairs(images, scene)
    assert near(cell(picture, 1), scene.reconstruction[0])
    assert near(cell(picture, 3), scenes["seed 1"].reconstruction[0])
    assert near(cell(picture, 4), colour_masks(scenes["seed 1"])[0])


def test_failure_cases_show_their_values() -> None:
    scene, images = random_scene(), torch.rand(2, 3, SIDE, SIDE)
    picture = failure_cases(scene, torch.tensor([-7123.4, -7000.0]), "ELBO", images)
    left = margin(["ELBO", "-7123.4", "-7000"])
    assert near(cell(picture, 0, 1, left=left), images[1])
    samples = failure_cases(scene, torch.tensor([0.25, 0.5]), "structure")
    assert near(cell(samples, 0, left=margin(["structure"])), scene.reconstruction[0])


def test_scores_equal_those_of_scikit_learn_and_a_loop() -> None:
    scene = random_scene(batch=3)
    truth = torch.randint(0, 4, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(7))
    scores = example_scores(scene, truth)
    for image, (slots, ids) in enumerate(zip(scene.segmentation().numpy(), truth.numpy(), strict=True)):
        seen = ids > 0
        assert scores["ARI-FG"][image] == pytest.approx(adjusted_rand_score(ids[seen], slots[seen]))
        overlaps, areas = [], []
        for number in (1, 2, 3):
            one = ids == number
            others = [slots == slot for slot in range(3)]
            overlaps.append(max((one & other).sum() / (one | other).sum() for other in others))
            areas.append(one.sum())
        assert scores["mSC-FG"][image] == pytest.approx(np.mean(overlaps))
        assert scores["SC-FG"][image] == pytest.approx(np.average(overlaps, weights=areas))
    label = score_labels(scores)[1].split("\n")
    name, number = label[0].split()
    assert (name, float(number)) == ("ARI-FG", pytest.approx(scores["ARI-FG"][1].item(), abs=0.005))
    assert number != "-0.00"
    assert len(label) == 3
    assert score_labels({}) == []


def test_latent_traversal_changes_one_number() -> None:
    """Every image shows in one pixel the latent that it was decoded from."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(6, 2, 3, generator=generator)
    latents[:, :, 1] = 0.5 + 0.01 * latents[:, :, 1]  # the dimension that hardly varies
    seen: list[Tensor] = []

    def decode(values: Tensor) -> Scene:
        seen.append(values.clone())
        grey = values.mean(dim=2)[:, :, None, None, None]
        return Scene(grey.expand(-1, -1, 3, 8, 8), torch.full((len(values), 2, 1, 8, 8), 0.5).log())

    picture = latent_traversal(decode, latents, image=4, num_dimensions=2, num_values=3)
    left, top = margin(["slot 1", "z 0"]), 2 * LINE
    assert picture.shape[1] == top + 4 * (SIDE + PADDING) + PADDING
    original, *varied = seen
    assert torch.equal(original, latents[4:5])
    pairs = {(0, 0), (0, 2), (1, 0), (1, 2)}
    for row, values in enumerate(varied):
        (changed,) = {
            (slot, dimension)
            for slot in range(2)
            for dimension in range(3)
            if values[:, slot, dimension].unique().numel() > 1
        }
        pairs.remove(changed)
        observed = latents[:, :, changed[1]]
        assert values[0][changed] == observed.min()
        assert torch.isclose(values[-1][changed], observed.max())
        shown = cell(picture, 2, row, top=top, left=left)
        assert shown.unique().item() == pytest.approx(values[0].mean().item(), abs=1e-6)
    assert not pairs


def test_figures_of_a_model() -> None:
    """GENESIS has one kind of masks; what it infers, and what it dreams, can be drawn as it stands."""
    torch.manual_seed(0)
    model: Any = Genesis(3, 32, mask_dim=8, component_dim=4, feature_dim=8).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        scene = model(images, IndexedNoise(0, range(2)))
        pictures = [
            decomposition_steps(images, scene),
            latent_traversal(model.decode, scene.latents["mean"], num_values=2),
            generation_order(model.sample(3, num_slots=5)),
        ]
    assert all(picture.isfinite().all() and picture.shape[0] == 3 for picture in pictures)
