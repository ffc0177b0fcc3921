"""What all models have in common: the steps, the optimiser, compilation, and the names that are logged."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from math import log
from pathlib import Path
from typing import Any, Self, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_genesis.callbacks.checkpoints import check_state
from lightning_genesis.callbacks.finite_gate import FiniteGate
from lightning_genesis.callbacks.geco import GECOCallback
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.weights import cast_weights
from lightning_genesis.metrics import Convention, bits_per_dimension, mean_squared_error
from lightning_genesis.metrics.slot_count import slot_count_error
from lightning_genesis.models.contract import (
    CUDA_GRAPHS,
    check_class,
    check_compile,
    check_images,
    check_per_image,
    check_plain,
    check_range,
    check_same_model,
    check_scene,
    check_terms,
    constructor_arguments,
)
from lightning_genesis.models.parallel import not_in_every_forward, send_buffers
from lightning_genesis.models.pictures import PictureMethods
from lightning_genesis.models.pieces import compile_network
from lightning_genesis.models.restore import restore_model
from lightning_genesis.models.scores import RunningMeans, Scores, means_of_terms
from lightning_genesis.objectives import GECO, Objective
from lightning_genesis.objectives.base import objective_from_plain
from lightning_genesis.optimization.clipping import clip_gradients
from lightning_genesis.optimization.optimizers import check_learning_rate, effective_options, make_optimizer
from lightning_genesis.optimization.schedules import ScheduleName, make_schedule
from lightning_genesis.scene import IndexedNoise, Noise, Scene, Terms
from lightning_genesis.storage.random_state import random_states, set_random_state

EVALUATION_SEED = 0  # of the noise in validation, test and predict; the image's index does the rest


class SceneModel(PictureMethods, pl.LightningModule):
    """Base of every model. A model gives its mathematics; the steps below are the only ones there are.

    A subclass has `branches`, the network, `forward`, `loss_terms`, `elbo` and, where they make sense,
    `log_weight`, `encode`, `decode`, `prior` and `sample`. Its constructor lists its architecture and hands
    the rest on, the arguments below: `def __init__(self, num_slots, image_size, ..., **common)`, then
    `super().__init__(num_slots=num_slots, image_size=image_size, **common)`. What it was called with are its
    hyperparameters, as plain data, so that a checkpoint loads without running any code of its own.

    Args:
        num_slots: number of slots K; comes from the data.
        image_size: side of the images; comes from the data.
        objective: balances the terms; what `default_objective` gives if None.
        learning_rate: of the optimiser.
        optimizer: Adam, AdamW, SGD or RMSprop, as in `torch.optim`.
        optimizer_options: its own options by name: betas, eps, weight_decay, amsgrad (Adam, AdamW); momentum,
            dampening, weight_decay, nesterov (SGD); alpha, eps, centered (RMSprop). torch's own where not
            given, which includes a weight_decay of 0.01 for AdamW.
        schedule: of the learning rate after the warm-up: "exponential" (`decay_rate` per `decay_steps`),
            "step" (the same in stairs) or "cosine" (over `decay_steps` down to `final_factor`).
        warmup_steps: optimiser steps in which the learning rate rises from 0.
        decay_rate: factor on the learning rate per `decay_steps`.
        decay_steps: optimiser steps, see `schedule`; 0 for no decay.
        final_factor: share of the learning rate that "cosine" ends with.
        num_background: ids below this are background in the ground-truth segmentation; comes from the data.
        metric_convention: edge cases of the segmentation scores, a name in `metrics.CONVENTIONS`.
        compile: mode of `torch.compile` for the network ("default", "reduce-overhead", ...), or None.

    Raises:
        ConfigurationError: if an option does not fit, or the subclass lacks what every model has.
    """

    branches: tuple[str, ...] = ()
    training_reads: tuple[str, ...] = ("image", "index")  # what `training_step` gets of a batch
    own_scores: tuple[str, ...] = ()  # names of what `score_own` adds to an evaluation
    scene_dim: int | None = None
    """Size S of the scene variable; `sample` of a model that has one takes `scene_latent` `[B, S]`."""
    slots_in_order = False  # whether `decode` depends on the order of the slots, as with stick breaking
    replays = True  # whether its forward is the same kernels every time, as CUDA graphs need
    decay_in_warmup = False  # whether the learning rate decays from step 0, not from the warm-up's end
    network: nn.Module

    def __init__(
        self,
        *,
        num_slots: int,
        image_size: int,
        objective: Objective | None = None,
        learning_rate: float = 1e-4,
        optimizer: str = "Adam",
        optimizer_options: dict[str, Any] | None = None,
        schedule: ScheduleName = "exponential",
        warmup_steps: int = 0,
        decay_rate: float = 0.5,
        decay_steps: int = 0,
        final_factor: float = 0.0,
        num_background: int = 1,
        metric_convention: Convention = "genesis",
        compile: str | None = None,
    ) -> None:
        super().__init__()
        arguments = constructor_arguments(self)
        check_class(self, self.branches)
        check_learning_rate(learning_rate)
        check_compile(compile, type(self))
        optimizer_options = effective_options(optimizer, optimizer_options)
        make_schedule(schedule, warmup_steps, decay_rate, decay_steps, final_factor)
        if isinstance(objective, Mapping):
            objective = objective_from_plain(objective)
        self.objective: Objective = self.default_objective() if objective is None else objective
        self.objective.bind(self.branches)
        arguments |= {"objective": self.objective.plain(), "optimizer_options": optimizer_options}
        check_plain(arguments, type(self).__name__)
        self.save_hyperparameters(arguments, logger=False)
        self.num_slots, self.image_size = num_slots, image_size
        self.learning_rate, self.optimizer_name, self.compile_mode = learning_rate, optimizer, compile
        self._resumed_random_states: list[dict[str, Any]] = []
        self.finite: Tensor | None = None  # everything about the step is; from FiniteGate for GECOCallback
        # the step's terms for FiniteGate, which clears them: names, and the mean of each
        self.watched: tuple[tuple[str, ...], Tensor] | None = None
        self._logged, self._contract_kept = RunningMeans(), False  # means over a step's micro-batches
        self.stop_requested = self.stop_agreed = False
        """A signal has asked this rank to stop; all ranks know of it. See `StopOnSignal`."""
        self.importance_samples = 0
        """Samples of the importance-weighted bound that `test` adds; 0 for none."""
        counted = (num_slots, num_background, metric_convention, self.own_scores)
        self.scores = nn.ModuleDict({stage: Scores(stage, *counted) for stage in ("val", "test")})

    # ---------------------------------------------------------------- what a model gives

    @classmethod
    def is_abstract(cls) -> bool:
        """Whether a class has no `forward` of its own and stands for the models below it."""
        return cls.forward is SceneModel.forward

    @staticmethod
    def default_objective() -> Objective:
        """What balances the terms if nothing else is asked for: GECO with the published settings."""
        return GECO()

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]` in [0, 1]; for others see `segment`."""
        raise ConfigurationError(f"{type(self).__name__} has no forward(images, noise=None) -> Scene")

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """The terms of every branch, in the order of `branches`, nats per image."""
        raise ConfigurationError(f"{type(self).__name__} has no loss_terms(scene, images) -> dict of Terms")

    def elbo(self, scene: Scene, images: Tensor) -> Tensor | None:
        """Evidence lower bound, nats per image `[B]`; None, as here, for a model without a likelihood."""
        return None

    def score_own(self, scene: Scene, images: Tensor) -> dict[str, Tensor]:
        """What only this model has to say of an evaluation, by the names of `own_scores`, each `[B]`."""
        return {}

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z) - log q(z | x)` at one sample, normalised likelihood, nats per image `[B]`.

        Raises:
            ConfigurationError: if the model has no likelihood.
        """
        raise ConfigurationError(f"{type(self).__name__} has no likelihood, and so no bound on it")

    @torch.no_grad()
    def importance_bound(self, images: Tensor, index: Tensor, num_samples: int) -> Tensor:
        """`log mean_s exp(log_weight_s)`, nats per image, float64 `[B]`; on average no less than the ELBO.

        The first sample is that of the ELBO. One sample at a time, so memory does not grow with their number.

        Args:
            images: `[B, 3, H, W]`.
            index: position of each in its split, `[B]`; its samples depend on nothing else.
            num_samples: number of samples S.

        Source: Burda et al., "Importance weighted autoencoders", 2016, Equation 8.
        """
        total = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=images.device)
        for seed in range(EVALUATION_SEED, EVALUATION_SEED + num_samples):
            log_weight = self.log_weight(images, IndexedNoise(seed, index))
            total = torch.logaddexp(total, log_weight.double())
        return total - log(num_samples)

    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Scenes drawn from the prior.

        Raises:
            ConfigurationError: if the model has no prior to sample from.
        """
        raise ConfigurationError(f"{type(self).__name__} has no prior over scenes and cannot sample")

    def representation(self, scene: Scene) -> Tensor:
        """All latents of an image in one vector, slot after slot, then the scene's, `[B, F]`.

        What probes read. Slots not in use are zero.
        """
        slots = scene.slot_latents
        if slots is None:
            raise ConfigurationError(f"{type(self).__name__} has no latents")
        if scene.num_active is not None:
            used = torch.arange(slots.shape[1], device=slots.device) < scene.num_active[:, None]
            slots = slots * used[..., None]
        parts = [slots.flatten(1), *([scene.latents["scene_sample"]] if self.scene_dim is not None else [])]
        return torch.cat(parts, dim=1)

    # ---------------------------------------------------------------- steps

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Scene:
        """See `forward`. Under autocast all weights are cast at once, unless a compiler does it better.

        Raises:
            ImageError: if they are no images that the model takes.
        """
        # under DDP Lightning comes by here with a whole batch, on its way to the step
        on_its_way = isinstance(images, dict) and self._trainer is not None
        if not on_its_way:
            check_images(images, self)
            if self.compile_mode in CUDA_GRAPHS:  # what the last step has given out may be overwritten
                torch.compiler.cudagraph_mark_step_begin()
        with nullcontext() if on_its_way or self.compile_mode else cast_weights(self, images):
            return super().__call__(images, *args, **kwargs)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Moves a batch; in training only what a step reads, so no masks, labels and factors of objects."""
        if self.trainer.training:
            batch = {name: value for name, value in batch.items() if name in self.training_reads}
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Bytes become floats in [0, 1], once, on the device."""
        image = batch["image"]
        return {**batch, "image": image.float() / 255.0 if image.dtype == torch.uint8 else image}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Terms, objective, log. `GECOCallback` moves the objective after the optimiser step."""
        images = batch["image"]
        scene = self(images)
        terms = self.loss_terms(scene, images)
        self._check_contract(scene, terms, images)
        loss = self.objective(terms, num_dimensions=images[0].numel())
        self._watch(terms)
        # Only when it will be written: every logged value costs a kernel or two.
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self._log_training(scene, terms, loss, images)
        return loss

    def _check_contract(self, scene: Scene, terms: dict[str, Terms], images: Tensor) -> None:
        """Looks once at what the model gets and gives; data and models of one's own may have it wrong."""
        if not self._contract_kept:
            check_range(images, type(self).__name__)
            check_scene(scene, images, self)
            check_terms(terms, self.branches, images, self)
            self._contract_kept = True

    @torch.no_grad()
    def _watch(self, terms: dict[str, Terms]) -> None:
        """Keeps, on the device, the mean of every term, summed over the micro-batches of the step."""
        means = self.objective.means(terms)
        values = means.values[: len(means.names)].detach()
        self.watched = (means.names, values if self.watched is None else self.watched[1] + values)
        self.objective.forget()

    @torch.no_grad()
    def _log_training(self, scene: Scene, terms: dict[str, Terms], loss: Tensor, images: Tensor) -> None:
        values = {"train/loss": loss, **means_of_terms(terms, images[0].numel())}
        elbo = self.elbo(scene, images)
        if elbo is not None:
            values["train/elbo"] = elbo.mean()
        # Lightning writes what the step's last micro-batch logs.
        self.log_dict(self._logged.add(values), sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Ends the means over micro-batches."""
        self._logged.clear()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Scores a batch of the validation split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Scores a batch of the test split.

        Returns:
            for callbacks: the `scene`, and `values` by name, each `[B]`.
        """
        return self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Scene:
        """The scene of a batch, with noise that belongs to each image."""
        scene = self(batch["image"], IndexedNoise(EVALUATION_SEED, batch["index"]))
        check_scene(scene, batch["image"], self)
        return scene

    def _evaluate(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        images = batch["image"]
        scene = self.predict_step(batch, 0)
        terms = self.loss_terms(scene, images)
        self._check_contract(scene, terms, images)
        elbo = self.elbo(scene, images)
        values = {"mse": mean_squared_error(scene.reconstruction, images), **self.score_own(scene, images)}
        if elbo is not None:
            check_per_image("elbo", elbo, images, self)
            values["elbo"] = elbo
            values["bits_per_dim"] = bits_per_dimension(elbo, images[0].numel())
            reported = terms[self.branches[-1]]
            values["nll"], values["kl"] = reported.nll, reported.total_kl
        if stage == "test" and self.importance_samples:
            bound = self.importance_bound(images, batch["index"], self.importance_samples)
            values["importance_bound"] = bound
            values["importance_bits_per_dim"] = bits_per_dimension(bound, images[0].numel())
        segmented = "segmentation" in batch and self.num_slots > 1
        num_active = scene.num_active
        if segmented:
            if num_active is None:
                num_active = torch.full((len(images),), scene.num_slots, device=images.device)
            background = self.hparams["num_background"]
            values["num_active_mae"] = slot_count_error(num_active, batch["segmentation"], background)
        if num_active is not None:
            values["num_active"] = num_active
        segmentation = batch["segmentation"] if segmented else None
        cast(Scores, self.scores[stage]).update(values, scene, segmentation)
        return {"scene": scene, "values": values}

    def on_validation_start(self) -> None:
        """Sends the buffers of rank 0, such as running means, to all ranks."""
        send_buffers(self, self.trainer.strategy.model)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the validation split."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the test split."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        for name, metric in cast(Scores, self.scores[stage]).used(self.device).items():
            self.log(name, metric)

    _ddp_params_and_buffers_to_ignore = property(not_in_every_forward)  # DDP looks for it

    # ---------------------------------------------------------------- optimisation

    def learning_rate_schedule(self) -> Callable[[int], float] | None:
        """Factor on the learning rate at every optimiser step, from 0; None keeps it constant."""
        names = ("schedule", "warmup_steps", "decay_rate", "decay_steps", "final_factor")
        values = {name: self.hparams[name] for name in names}
        return make_schedule(**values, decay_in_warmup=self.decay_in_warmup)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over all parameters, fused where it can skip a step on the device."""
        options = self.hparams["optimizer_options"]
        optimizer = make_optimizer(self.optimizer_name, self.parameters(), self.learning_rate, options)
        schedule = self.learning_rate_schedule()
        if schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, float16 included."""
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The gate against non-finite steps, then what moves the objective; in this order."""
        return [FiniteGate(), GECOCallback()]

    def configure_model(self) -> None:
        """Compiles the network, never the LightningModule (whose logging cannot be traced)."""
        compile_network(self)

    # ---------------------------------------------------------------- checkpoints

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's reads a file of hyperparameters too
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """A model from a checkpoint: weights and the objective's state, every one of them, or none.

        Called on `SceneModel` it gives whichever model the file holds.

        Args:
            checkpoint_path: a `.ckpt`, or the weights alone in a `.safetensors`.
            map_location: device of the model; the CPU if None.
            weights_only: True whatever is given: no code in the file runs.
            **overrides: hyperparameters to change. With another `objective`, its state starts anew.

        Raises:
            CheckpointError: if the file is not there, damaged, holds another model, or does not fit.
        """
        model = restore_model(checkpoint_path, cls, overrides)
        return model if map_location is None else model.to(map_location)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the model's name and every rank's random generators; raises as `check_state` does."""
        check_state(self.trainer, self, checkpoint)
        states = self._resumed_random_states or random_states()  # where a finder follows another
        checkpoint |= {"model_class": type(self).__name__, "random_states": states}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another model; training takes up its random generators again."""
        check_same_model(checkpoint, self)
        self._resumed_random_states = checkpoint.get("random_states", [])

    def on_fit_start(self) -> None:
        """Trains a model that was loaded for evaluation: Lightning leaves the mode, which freezes GECO."""
        self.train()

    def on_train_start(self) -> None:
        """Sets the generators last, after everything that draws while a run is set up.

        A resumed run takes up its own, rank by rank. Otherwise every rank gets noise of its own: all were
        seeded alike to build the same model. What a finder or a run that was left has summed up is dropped.
        """
        self.objective.restart()
        self.finite = self.watched = None
        self._logged.clear()
        if len(self._resumed_random_states) == self.trainer.world_size:
            set_random_state(self._resumed_random_states[self.global_rank])
        elif self.trainer.world_size > 1 or self._resumed_random_states:
            torch.manual_seed(torch.initial_seed() + self.global_rank + self.global_step)
        self._resumed_random_states = []
