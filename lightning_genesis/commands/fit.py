"""The training command: Lightning's CLI with the checks, the run folder and the callbacks of every run."""

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from data_modules import DataError, SceneDataModule
from lightning_genesis.callbacks.checkpoints import (
    CheckpointOptions,
    RunCheckpoints,
    is_dead_loader,
    last_good,
)
from lightning_genesis.callbacks.fid import FIDCallback
from lightning_genesis.callbacks.pictures import Pictures
from lightning_genesis.callbacks.predictions import PredictionOptions, PredictionWriter
from lightning_genesis.callbacks.progress import Throughput
from lightning_genesis.callbacks.protocol import ProtocolScores
from lightning_genesis.callbacks.results import ResultWriter
from lightning_genesis.callbacks.rollback import Rollback, RollbackOptions
from lightning_genesis.callbacks.run_card import RunCard
from lightning_genesis.callbacks.run_files import ContinueLog, RunConfig
from lightning_genesis.callbacks.run_identity import RunIdentity, changes_of
from lightning_genesis.callbacks.stop import StopOnSignal, leaving_on_signal
from lightning_genesis.callbacks.structure import StructureCallback
from lightning_genesis.callbacks.terminal import RunBar, ValidationLine
from lightning_genesis.classes import importable_from_here
from lightning_genesis.commands import trainer_options
from lightning_genesis.commands.checks import (
    check_applies,
    check_values,
    fresh_classes,
    mistakes_in_one_line,
    note_of,
    remembering,
)
from lightning_genesis.commands.messages import check_config_files
from lightning_genesis.commands.options import (
    Parser,
    RunOptions,
    check_classes,
    files_first,
    header_of,
    name_of_run,
    place_given,
    refuse_linked_values,
    trainer_defaults,
)
from lightning_genesis.commands.quiet import quieten
from lightning_genesis.commands.screen import closing, say_opening, show_scores
from lightning_genesis.commands.to_wandb import close_wandb, send_end, send_results
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.evaluation.protocols import ProtocolName, find_protocol
from lightning_genesis.models import SceneModel
from lightning_genesis.models.contract import LINKED
from lightning_genesis.runs.identity import check_optimizer_state, names_of, options_of
from lightning_genesis.runs.lock import writing
from lightning_genesis.runs.loggers import RunCSVLogger, make_wandb_logger
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.results import MAY_DIFFER, TRAINING_ONLY, Checkpoint, experiment_of
from lightning_genesis.runs.run import find_checkpoint, read_last_good
from lightning_genesis.runs.zoo import find_weights
from lightning_genesis.storage.checkpoint import (
    DurableCheckpointIO,
    check_model,
    load_weights,
    read_checkpoint,
    set_aside,
)
from lightning_genesis.storage.finite import not_finite


class ExperimentCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of any model on any data.

    Args:
        args: the command line after the program's name.
        talks: whether it says at the end what came of it.
    """

    def __init__(self, args: Sequence[str], talks: bool = True) -> None:
        quieten()
        self.talks = talks
        importable_from_here()
        self.arguments = files_first(args)
        check_applies(self.arguments)
        check_config_files(self.arguments)
        check_classes(self.arguments)
        self.run_options = RunOptions()
        self.prior: dict[str, Any] = {}  # what results say of the one that samples are drawn from
        self._held = ExitStack()
        """What is given back when the command ends: the lock of the run's folder, the handlers of signals."""
        self.identity = RunIdentity()
        # Other ranks are started by this command line again.
        sys_argv, sys.argv = sys.argv, [sys.argv[0], *self.arguments]
        try:
            if self.arguments[0] == "fit":
                self._held.enter_context(leaving_on_signal())
            super().__init__(
                SceneModel,
                SceneDataModule,
                save_config_callback=RunConfig,
                trainer_defaults=trainer_defaults(),
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={"prog": "lightning-genesis"},
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=self.arguments,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        finally:
            sys.argv = sys_argv
            self._held.close()

    # ---------------------------------------------------------------- arguments

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses what was given, without Lightning's warning that the command line is there as well."""
        with fresh_classes() as dropped:
            self.config = parser.parse_args(args)
        check_values(self.config.subcommand, self.config[self.config.subcommand])
        for line in note_of(dropped):
            rank_zero_info(line)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for: a parser takes long to make."""
        return {self.arguments[0]: LightningCLI.subcommands()[self.arguments[0]]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A seed that is a number; Lightning's `true` would always take the same one."""
        parser.add_argument("--seed_everything", type=int, default=0, help="of all random generators")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what every run has besides model, data and trainer."""
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="start from these weights at step 0"
        )
        parser.add_argument(
            "--change",
            type=list[str] | str | None,
            default=None,
            help="fit: options that a resumed run goes on with in another value, as in "
            "`--change learning_rate,data.batch_size`; the run writes down both values",
        )
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="of float32 matrix products on a GPU: highest, high (TF32) or medium (bfloat16)",
        )
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(CheckpointOptions, "checkpoint")
        parser.add_class_arguments(RollbackOptions, "rollback")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_class_arguments(PredictionOptions, "predictions")
        parser.add_argument(
            "--protocol", type=ProtocolName | None, default=None, help="test: score a paper's images as well"
        )
        parser.add_argument(
            "--importance_samples",
            type=int,
            default=0,
            help="test: samples of an importance-weighted bound on the likelihood; 0 for none",
        )
        parser.add_argument(
            "--prior",
            type=str | None,
            default=None,
            help="test: draw samples from this prior that fit-prior made for the run, or the folder of one",
        )
        parser.add_lightning_class_args(FIDCallback, "fid")
        parser.add_lightning_class_args(StructureCallback, "structure")
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint overrule the configuration here; we compare them later instead."""

    def before_instantiate_classes(self) -> None:
        """Names the run, finds the checkpoint, and refuses what would be ignored."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        refuse_linked_values(config.model)
        trainer_options.settle_output(config, self.arguments)
        self._set_up_run(config)
        if self._trains(config):
            self._held.enter_context(writing(self.run_options.folder))
        self._find_checkpoint(config)

    def _set_up_run(self, config: Any) -> None:
        place = place_given(self.arguments)
        if place is not None and place != Path(config.run.root, config.run.name):
            config.run.root, config.run.name = str(place.parent), place.name
        if config.run.name is None:
            config.run.name = name_of_run(config)
        self.run_options = RunOptions(**config.run.as_dict())

    def _trains(self, config: Any) -> bool:
        return self.subcommand == "fit" and not config.trainer.fast_dev_run and _is_main_process()

    def _find_checkpoint(self, config: Any) -> None:
        folder, path = self.run_options.folder, config.ckpt_path
        path = path if path is None else str(find_weights(path))
        trained = any((folder / "checkpoints").glob("*.ckpt"))
        self.checkpoint: dict[str, Any] | None = None
        if path is None and trained and self._trains(config):
            raise ConfigurationError(
                f"{folder} holds a trained run: resume it with --ckpt_path last, or give this one "
                "another name with --run.name"
            )
        if path == "last" and not trained and self.subcommand == "fit":
            rank_zero_info(f"{folder}: nothing to resume, starting at step 0")
            path = None
        elif path == "last":
            path, self.checkpoint = read_last_good(folder)
            newest = folder / "checkpoints" / "last.ckpt"
            if path != newest and newest.is_file() and self._trains(config):
                # or the next save would put it in the place of the good one before it
                rank_zero_warn(f"{newest} is kept as {set_aside(newest)}")
        elif path is not None:
            path = find_checkpoint(folder, path) if path == "best" else path
            self.checkpoint = read_checkpoint(path)
        if self.checkpoint and "optimizer_states" not in self.checkpoint and self.subcommand == "fit":
            raise ConfigurationError(f"{path}: weights alone cannot be resumed; use --init_from")
        if self.checkpoint and self.subcommand == "fit" and (found := not_finite(self.checkpoint)):
            raise CheckpointError(f"{path}: not finite: {found}; go on from an earlier checkpoint")
        config.ckpt_path = None if path is None else str(path)

    # ---------------------------------------------------------------- instances

    def instantiate_classes(self) -> None:
        """Makes data, model and trainer of their options."""
        raised: list[Exception] = []
        self.parser.add_instantiator(remembering(raised), object, subclasses=True)
        with mistakes_in_one_line("options", raised=raised):
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Compares the model with the checkpoint; loads weights to start from."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        trainer_options.check_clock(self.trainer)
        self.identity.options = {**options_of(config.as_dict()), "num_ranks": self.trainer.world_size}
        if self.checkpoint is not None:
            self._compare(config.ckpt_path, self.checkpoint)
            if config.ckpt_path.endswith(".safetensors"):  # Lightning does not read these
                load_weights(self.model, config.ckpt_path)
                self.config_init[self.subcommand].ckpt_path = None
        elif self.subcommand != "fit":
            rank_zero_warn("no --ckpt_path was given: the weights are untrained")
        elif config.init_from is not None:
            load_weights(self.model, find_weights(config.init_from))
            rank_zero_info(f"starting at step 0 from the weights of {config.init_from}")
        if self.subcommand == "test":
            self._set_up_test(config)

    def _set_up_test(self, config: Any) -> None:
        samples = config.importance_samples
        if samples < 0:
            raise ConfigurationError(f"importance_samples: {samples}, expected 0 or more")
        if samples and type(self.model).log_weight is SceneModel.log_weight:
            kind = type(self.model).__name__
            raise ConfigurationError(
                f"importance_samples: {samples}, but {kind} has no likelihood; leave it out"
            )
        self.model.importance_samples = samples
        if config.protocol is not None:
            self.datamodule.test_split = find_protocol(config.protocol).split
        if config.prior is not None and self.checkpoint is None:
            raise ConfigurationError(
                f"prior: {config.prior}, but no --ckpt_path: it belongs to trained weights"
            )
        if config.prior is not None:
            self.prior |= use_prior(self.model, self.run_options.folder, config.prior, Path(config.ckpt_path))

    def _evaluation_callbacks(self, config: Any) -> list[Callback]:
        """What `test` adds: FID, S-Acc, the protocol's images, the file of results."""
        callbacks: list[Callback] = [self._get(self.config_init, name) for name in ("fid", "structure")]
        if config.protocol is not None:
            callbacks.append(ProtocolScores(config.protocol, find_protocol(config.protocol)))
        folder, seed = self.run_options.folder, config.seed_everything
        writer = ResultWriter(
            folder,
            experiment=experiment_of(folder.name, seed),
            seed=seed if type(seed) is int else None,
            checkpoint=self._checkpoint_evaluated(config.ckpt_path),
            options={
                "importance_samples": config.importance_samples,
                **self._changes(),
                **({} if config.prior is None else {"prior": self.prior}),
            },
        )
        return [*callbacks, writer]

    def _changes(self) -> dict[str, Any]:
        """What the evaluated run went through, where it went through anything."""
        changes = changes_of(self.checkpoint or {})
        return {"changes": [str(change) for change in changes]} if changes else {}

    def _checkpoint_evaluated(self, path: str | None) -> Checkpoint | None:
        if path is None or self.checkpoint is None:
            return None
        return Checkpoint.of(Path(path), self.run_options.folder, self.checkpoint.get("global_step", 0))

    def _compare(self, path: str, checkpoint: dict[str, Any]) -> None:
        """A resumed run must be the run that was saved; an evaluation may differ where the user says so."""
        check_model(checkpoint, self.model, path)
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            check_optimizer_state(checkpoint, self.model, path)
            self.identity.resume(checkpoint, names_of(config.change), path)
            trainer_options.take_up_batch_size(self.datamodule, checkpoint, self.identity.options)
            if "run_options" in checkpoint:
                return
        saved = checkpoint["hyper_parameters"]
        for name, value in self.model.hparams.items():
            if name in MAY_DIFFER or saved.get(name, value) == value:
                continue
            if self.subcommand != "fit" and name in TRAINING_ONLY:
                continue
            if name in (given.rpartition(".")[2] for given in names_of(config.change)):
                continue
            if self.subcommand != "fit" and self._is_given(name):
                rank_zero_info(f"note: {name} is {value} here and was {saved[name]} in training")
                continue
            ways = (
                "to resume give the same value, to start anew from these weights use --init_from"
                if self.subcommand == "fit"
                else f"use the run's own config.yaml, or give --model.init_args.{name} on the command line"
            )
            raise ConfigurationError(
                f"{path}: {name} was {saved[name]} in training and is {value} here; {ways}"
            )

    def _is_given(self, name: str) -> bool:
        section = "data" if name in LINKED else "model"
        pattern = re.compile(rf"--{section}\.(init_args\.)?{name}(\.|=|$)")
        return any(pattern.match(argument) for argument in self.arguments)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks and loggers of every run."""
        assert self.subcommand is not None
        config, run = self.config[self.subcommand], self.run_options
        torch.set_float32_matmul_precision(config.matmul_precision)
        resumes = self.subcommand == "fit" and self.checkpoint is not None
        given = self._get(self.config_init, "trainer", default={})
        trainer = trainer_options.settle(given, self.subcommand, resumes=resumes)
        callbacks: list[Callback] = [self._get(self.config_init, "pictures")]
        if self.subcommand == "fit" and not trainer["fast_dev_run"]:
            if trainer["enable_checkpointing"] is not False:
                options = CheckpointOptions(**config.checkpoint.as_dict())
                callbacks += [RunCheckpoints(run.folder / "checkpoints", options), StopOnSignal()]
            rollback = RollbackOptions(**config.rollback.as_dict())
            callbacks += [Rollback(run.folder, rollback), ContinueLog(), Throughput(), ValidationLine()]
            callbacks += [self.identity, RunCard(run.folder)]
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(run.folder, PredictionOptions(**config.predictions.as_dict())))
        if self.subcommand == "test" and not trainer["fast_dev_run"]:
            callbacks += self._evaluation_callbacks(config)
        if trainer["enable_progress_bar"] is not False:
            callbacks.append(RunBar())
        trainer_options.without_empty_hooks([*trainer["callbacks"], *callbacks])
        trainer["default_root_dir"] = str(run.folder)
        given = trainer["plugins"] if isinstance(trainer["plugins"], list) else [trainer["plugins"]]
        trainer["plugins"] = [*(plugin for plugin in given if plugin is not None), DurableCheckpointIO()]
        trainer["logger"] = self._loggers(trainer["logger"], bool(trainer["fast_dev_run"]))
        self.save_config_kwargs = {"folder": run.folder, "identity": self.identity}
        with mistakes_in_one_line("trainer"):
            return self._instantiate_trainer({**trainer, **kwargs}, callbacks)

    def _loggers(self, given: Any, dry: bool) -> list[Logger] | bool:
        """CSV always; W&B unless the user chose other loggers or none."""
        if given is False or dry:
            return False
        folder = self.run_options.folder
        name = "metrics.csv" if self.subcommand == "fit" else f"{self.subcommand}.csv"
        loggers: list[Logger] = [RunCSVLogger(folder, name)]
        if given is not None and given is not True:
            loggers += given if isinstance(given, list) else [given]
        elif self.run_options.wandb:
            step = None if self.subcommand == "fit" else (self.checkpoint or {}).get("global_step", 0)
            about = {**self.run_options.about(), "header": header_of(self.arguments), "at_step": step}
            loggers.append(make_wandb_logger(folder, str(self.run_options.name), **about))
        return loggers

    # ---------------------------------------------------------------- running

    def before_fit(self) -> None:
        """Makes the store before other ranks start, so that none waits at a barrier; says what begins."""
        # what would take long, or a download, is left to `prepare`: see `SceneDataModule.prepares_on_fit`
        if _is_main_process():
            self.datamodule.prepare_data()
        path, step = self.config[self.subcommand].ckpt_path, (self.checkpoint or {}).get("global_step", 0)
        if self.talks or self.subcommand == "fit":
            say_opening(self.model, self.datamodule, self.trainer, path, step)
        self._started = perf_counter()

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        """Tells W&B, and says, what came of it."""
        send_end(self.trainer, self.run_options.folder, self.run_options.artifacts)
        if self.talks and self._trains(self.config[self.subcommand]):
            print(*closing(self.trainer, self.run_options.folder, perf_counter() - self._started), sep="\n")

    def after_test(self) -> None:
        """Sends the results to W&B and shows the scores."""
        send_results(self.trainer)
        if self.talks and self.trainer.is_global_zero:
            show_scores(self.trainer, "test" if self.subcommand == "test" else "val")

    after_validate = after_test

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it and closes the W&B run."""
        failed = True
        try:
            with mistakes_in_one_line("trainer", running=True):
                super()._run_subcommand(subcommand)
            failed = False
        except RuntimeError as error:
            if not is_dead_loader(error):
                raise
            raise DataError(
                f"{' '.join(str(error).split())} Last good checkpoint: {last_good(self.trainer)}; the same "
                "command with --ckpt_path last goes on; --data.num_workers 0 needs the least memory"
            ) from error
        finally:
            close_wandb(self.trainer.loggers, failed)


def _is_main_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def main(args: Sequence[str]) -> None:
    """Runs one of Lightning's subcommands."""
    ExperimentCLI(args)
