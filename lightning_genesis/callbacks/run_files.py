"""What a run writes about itself: its configuration, and its numbers in step with its checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger

from lightning_genesis.callbacks.run_identity import RunIdentity
from lightning_genesis.runs.loggers import RunCSVLogger, RunWandbLogger
from lightning_genesis.runs.results import experiment_of


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder and the same tree to W&B, on rank zero.

    Args:
        parser: of the subcommand.
        config: what it parsed.
        folder: the run's folder.
        identity: what the run has gone through; `config.yaml` tells it in its first lines.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, folder: Path, identity: RunIdentity
    ) -> None:
        # Where this run starts from is no part of what it is: the file must make the run again.
        config = config.clone()
        config["ckpt_path"] = config["change"] = None
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder, self.identity = folder, identity

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the file under a temporary name, then renames it."""
        text = self.parser.dump(self.config, skip_none=False)
        changes = [str(change) for change in self.identity.changes]
        text = "".join(f"# changed at {line}\n" for line in changes) + text
        if stage == "fit":
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / ".config.yaml.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.rename(self.folder / "config.yaml")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                tree = {**yaml.safe_load(text), **({"changes": changes} if changes else {})}
                # seeds are averaged by it
                tree["experiment"] = experiment_of(self.folder.name, tree.get("seed_everything"))
                send = partial(_send, logger, tree)
                logger.guarded(send) if isinstance(logger, RunWandbLogger) else send()


def _send(logger: WandbLogger, tree: dict[str, Any]) -> None:
    logger.experiment.config.update(tree, allow_val_change=True)


class ContinueLog(pl.Callback):
    """Makes the CSV file end where the checkpoint that a run resumes from was written."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops the rows that will be logged again."""
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.drop_after(trainer.global_step)
