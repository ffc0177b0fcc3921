"""Checkpoints: what is written can be read, by others too, and survives what happens to a process."""

import builtins
import errno
import hashlib
import os
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kill_during_save import kill_and_look
from lightning_genesis import models
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.models import GenesisV2, SceneModel
from lightning_genesis.models.restore import build_model
from lightning_genesis.objectives import FixedBeta
from lightning_genesis.runs.loading import load
from lightning_genesis.runs.run import find_checkpoint, read_last_good
from lightning_genesis.storage import checkpoint as module
from lightning_genesis.storage.checkpoint import (
    DurableCheckpointIO,
    read_checkpoint,
    rotate,
    set_aside,
    write_checkpoint,
    write_weights,
)
from tests.ranks.tiny import tiny
from tests.tiny_checkpoint import same, train

TINY: dict[str, Any] = {"num_slots": 3, "image_size": 32, "feature_dim": 8, "latent_dim": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after one step."""
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    train(GenesisV2(**TINY), plugins=[DurableCheckpointIO()]).save_checkpoint(path)
    return path


def contents(step: int) -> dict[str, Any]:
    return {
        "state_dict": {"weight": torch.full((50_000,), float(step))},
        "model_class": "GenesisV2",
        "hyper_parameters": {"num_slots": 3},
        "global_step": step,
    }


# ---------------------------------------------------------------- the file


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    whole = contents(3) | {
        "loops": {"a": {"b": [1, 2.5, None, True, "x"]}},
        "callbacks": {
            "c": {"scores": (torch.tensor(1.5), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16))}
        },
        "random_states": [{"torch": torch.get_rng_state()}],
    }
    path = tmp_path / "new" / "a.ckpt"
    write_checkpoint(path, whole)
    found = read_checkpoint(path)
    half = found["callbacks"]["c"].pop("scores"), whole["callbacks"]["c"].pop("scores")
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*half, strict=True))
    assert same(found, whole)
    assert [*path.parent.iterdir()] == [path]


def test_torch_and_zip_tools_read_it(trained: Path) -> None:
    assert same(torch.load(trained, weights_only=True), read_checkpoint(trained))
    assert same(torch.load(trained, weights_only=True, mmap=True), read_checkpoint(trained))
    with zipfile.ZipFile(trained) as archive:
        assert archive.testzip() is None
        seal = archive.comment
    # the seal is what it says: the SHA-256 of all bytes before it
    data = trained.read_bytes()
    assert seal.split()[-1].decode() == hashlib.sha256(data[:-64]).hexdigest()
    assert data.endswith(seal)


def test_keys_of_another_program_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, contents(1) | {"my_own": {"x": [1, {2: "y"}]}})
    assert read_checkpoint(path)["my_own"] == {"x": [1, {2: "y"}]}


def test_trainer_resumes_through_it(trained: Path, tmp_path: Path) -> None:
    trainer = train(GenesisV2(**TINY), 2, [DurableCheckpointIO()], trained)
    assert trainer.global_step == 2
    assert trainer.current_epoch == 2
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    assert read_checkpoint(tmp_path / "two.ckpt")["global_step"] == 2


def test_trainer_keeps_the_last_but_one(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    trainer = train(GenesisV2(**TINY), 1, [DurableCheckpointIO()])
    trainer.save_checkpoint(last)
    trainer = train(GenesisV2(**TINY), 2, [DurableCheckpointIO()], last)
    trainer.save_checkpoint(last, storage_options={"previous": previous})
    assert [step_of(path) for path in (last, previous)] == [2, 1]


def test_other_machines_are_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"s3://bucket/a\.ckpt: checkpoints are written to"):
        DurableCheckpointIO().save_checkpoint(contents(1), "s3://bucket/a.ckpt")


@pytest.mark.parametrize("name", sorted(set(models.__all__) - {"SceneModel"}))
def test_every_model(name: str, tmp_path: Path) -> None:
    """Trained by a plain Trainer: the file holds plain data and tensors only, and gives the model back."""
    model: SceneModel = getattr(models, name)(num_slots=3, image_size=32, **tiny(name).options)
    plain, ours = tmp_path / "plain.ckpt", tmp_path / "ours.ckpt"
    trainer = train(model)
    trainer.save_checkpoint(plain)
    assert not module._check_seal(open(plain, "rb"), plain)  # noqa: SIM115
    saved = torch.load(plain, weights_only=True)
    assert same(read_checkpoint(plain), saved)
    write_checkpoint(ours, saved)
    assert same(read_checkpoint(ours), saved)
    again = SceneModel.load_from_checkpoint(ours)
    assert type(again) is type(model)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert same(dict(again.hparams), dict(model.hparams))


# ---------------------------------------------------------------- load_from_checkpoint


@pytest.mark.parametrize("kind", [GenesisV2, SceneModel])
def test_load_from_checkpoint(trained: Path, kind: type[SceneModel]) -> None:
    model = kind.load_from_checkpoint(trained, map_location="cpu", weights_only=False)
    saved = read_checkpoint(trained)
    assert same(dict(model.state_dict()), dict(saved["state_dict"]))
    assert float(model.state_dict()["objective.step"]) == 1  # the objective's state as well


def test_overrides(trained: Path) -> None:
    model = SceneModel.load_from_checkpoint(trained, learning_rate=0.5, objective=FixedBeta(beta=2.0))
    assert model.learning_rate == 0.5
    assert isinstance(model.objective, FixedBeta)
    with pytest.raises(CheckpointError, match=r"model\.ckpt: its hyperparameters make no GenesisV2 .*colour"):
        SceneModel.load_from_checkpoint(trained, colour="red")
    with pytest.raises(CheckpointError, match=r"model\.ckpt: parameter .* has shape"):
        SceneModel.load_from_checkpoint(trained, latent_dim=16)
    with pytest.raises(ConfigurationError, match="optimizer='Sadam'"):
        SceneModel.load_from_checkpoint(trained, optimizer="Sadam")


def test_another_class_is_refused(trained: Path) -> None:
    class Other(GenesisV2):
        pass

    with pytest.raises(CheckpointError, match=r"model\.ckpt: holds a GenesisV2, expected a Other"):
        Other.load_from_checkpoint(trained)


@pytest.mark.parametrize("change", ["lost", "additional"])
def test_objective_state_is_loaded_strictly(trained: Path, tmp_path: Path, change: str) -> None:
    saved = read_checkpoint(trained)
    if change == "lost":
        del saved["state_dict"]["objective.beta"]
    else:
        saved["state_dict"]["objective.gamma"] = torch.zeros(())
    write_checkpoint(tmp_path / "a.ckpt", saved)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: the objective's state does not fit") as caught:
        SceneModel.load_from_checkpoint(tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value)


def test_a_users_own_model(tmp_path: Path) -> None:
    class Own(GenesisV2):
        pass

    model = Own(**TINY)
    train(model).save_checkpoint(tmp_path / "own.ckpt")
    assert type(Own.load_from_checkpoint(tmp_path / "own.ckpt")) is Own


# ---------------------------------------------------------------- weights


def test_weights_have_a_digest(trained: Path, tmp_path: Path) -> None:
    saved = read_checkpoint(trained)
    path = tmp_path / "w.safetensors"
    data = {"class_path": "data_modules.MultiDSprites", "init_args": {"image_size": 32}}
    write_weights(path, saved, data)
    found = read_checkpoint(path)
    assert found["data"] == data
    assert same(found["state_dict"], dict(sorted(module.weights_of(saved).items())))
    model = SceneModel.load_from_checkpoint(path)
    assert same(model.state_dict()["objective.step"], torch.zeros(()))
    assert load(path)[1].image_size == 32


def test_weights_of_others_have_none(trained: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    write_weights(path, read_checkpoint(trained), {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    older = {key: value for key, value in metadata.items() if key != "sha256"}
    save_file(read_checkpoint(path)["state_dict"], tmp_path / "older.safetensors", metadata=older)
    assert same(read_checkpoint(tmp_path / "older.safetensors"), read_checkpoint(path))
    older["lightning_genesis"] = older["lightning_genesis"].replace('"data"', '"date"')
    save_file(read_checkpoint(path)["state_dict"], path, metadata=older)
    with pytest.raises(CheckpointError, match="does not say which data"):
        load(path)


def test_weights_that_cannot_be_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, read_checkpoint(trained), {})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be written .No space left"):
        write_weights(path, read_checkpoint(trained), {"other": 1})
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


# ---------------------------------------------------------------- two generations


def save(folder: Path, step: int) -> None:
    write_checkpoint(folder / "last.ckpt", contents(step), previous=folder / "previous.ckpt")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # not through a hard link into the other generation
    path.write_bytes(data)


def step_of(path: Path) -> int:
    return int(read_checkpoint(path)["global_step"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with every kind of checkpoint."""
    folder = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 30):
        save(folder, step)
    for name, step in (("best", 4), ("step-5", 5), ("step-10", 10)):
        write_checkpoint(folder / f"{name}.ckpt", contents(step))
    return tmp_path / "run"


def test_previous_is_the_last_but_one(run: Path) -> None:
    folder = run / "checkpoints"
    assert [step_of(folder / name) for name in ("last.ckpt", "previous.ckpt")] == [30, 20]
    assert not [*folder.glob(".*")]
    rotate(folder / "none.ckpt", folder / "previous.ckpt")
    assert step_of(folder / "previous.ckpt") == 20


def test_rotate_without_hard_links(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save(run / "checkpoints", 40)
    folder = run / "checkpoints"
    assert [step_of(folder / name) for name in ("last.ckpt", "previous.ckpt")] == [40, 30]
    assert not [*folder.glob(".*")]


def test_newest_that_reads(run: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = run / "checkpoints"
    expected = ["last", "previous", "step-10", "step-5", "best"]
    for i, name in enumerate(expected):
        recwarn.clear()
        path, found = read_last_good(run)
        assert path == find_checkpoint(run, "last") == folder / f"{name}.ckpt"
        assert found["global_step"] == step_of(path)
        lines = {str(warning.message) for warning in recwarn}
        for other, line in zip(sorted(expected[:i]), sorted(lines), strict=True):
            assert line.startswith(f"{folder / other}.ckpt: damaged")
            assert f"using {path} of step {found['global_step']} instead" in line
            assert "\n" not in line
        damage(path)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(run, "last")
    assert all(f"{name}.ckpt" in str(caught.value) for name in expected)
    assert "\n" not in str(caught.value)
    assert len([*folder.iterdir()]) == 5  # nothing was deleted


def test_find_checkpoint_by_name(run: Path, tmp_path: Path) -> None:
    assert find_checkpoint(run, "best").name == "best.ckpt"
    assert find_checkpoint(run).name == "best.ckpt"
    (run / "checkpoints" / "best.ckpt").unlink()
    assert find_checkpoint(run).name == "last.ckpt"
    with pytest.raises(CheckpointError, match=r"no best\.ckpt there"):
        find_checkpoint(run, "best")
    for name in (None, "best", "last"):
        with pytest.raises(CheckpointError, match="has the run been trained"):
            find_checkpoint(tmp_path / "other", name)


def test_lost_last_is_replaced_without_a_warning(run: Path, recwarn: pytest.WarningsRecorder) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    assert read_last_good(run)[0].name == "previous.ckpt"
    assert not recwarn


def test_set_aside(run: Path) -> None:
    folder = run / "checkpoints"
    for number in (1, 2):
        damage(folder / "last.ckpt")
        assert set_aside(folder / "last.ckpt") == folder / f"last.damaged-{number}.ckpt.bad"
        path, _ = read_last_good(run)  # of which nothing is said any more
        assert (path.name, step_of(path)) == ("previous.ckpt", 20)
        save(folder, 30)
        assert step_of(folder / "previous.ckpt") == 20
    with pytest.raises(CheckpointError, match=r"gone\.ckpt: damaged, and cannot be renamed"):
        set_aside(folder / "gone.ckpt")


# ---------------------------------------------------------------- writes that fail


class Hooks:
    """Makes the n-th of all calls that touch the disk fail, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException) -> None:
        self.calls, self.fail_at, self.error = 0, fail_at, error
        for name in ("fsync", "replace", "link", "open"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))
        monkeypatch.setattr(module, "open", self.open, raising=False)
        monkeypatch.setattr(shutil, "copyfile", self.wrap(shutil.copyfile))

    def step(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error

    def wrap(self, real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self.step()
            return real(*args, **more)

        return call

    def open(self, path: Any, mode: str = "r") -> Any:
        self.step()
        file = builtins.open(path, mode)  # noqa: SIM115 (the caller closes it)
        if "w" in mode:
            return HalfWriter(file, self)
        return file


class HalfWriter:
    """A file of which a failing write has written the first half."""

    def __init__(self, file: Any, hooks: Hooks) -> None:
        self.file, self.hooks = file, hooks

    def __enter__(self) -> "HalfWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> None:
        half = len(data) // 2
        self.file.write(data[:half])
        self.hooks.step()
        self.file.write(data[half:])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(1)]
)
def test_a_failure_at_every_step(tmp_path: Path, error: BaseException) -> None:
    for fail_at in range(1, 100):
        folder = tmp_path / str(fail_at)
        save(folder, 1)
        save(folder, 2)
        with pytest.MonkeyPatch.context() as patch:
            hooks = Hooks(patch, fail_at, error)
            try:
                save(folder, 3)
                completed = True
            except (CheckpointError, KeyboardInterrupt, SystemExit) as raised:
                completed, message = False, str(raised)
        if not completed and isinstance(error, OSError):
            assert str(folder) in message
            assert "No space left on device" in message
        last, previous = (step_of(folder / f"{name}.ckpt") for name in ("last", "previous"))
        assert (last, previous) in ((2, 1), (2, 2), (3, 2))
        assert sorted(file.name for file in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
        if completed:
            assert last == 3
        if hooks.calls < fail_at:
            break
    # open, write, fsync; link, replace, open and fsync of the folder; fsync, replace, open and fsync of it
    assert fail_at == 12


def test_a_limit_of_the_system(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"last\.ckpt: cannot be written .File too large.; it is what"
        ):
            save(tmp_path, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert step_of(tmp_path / "last.ckpt") == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 700 kB, which holds three checkpoints and no fourth."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    for step in (1, 2, 3):
        save(small_disk, step)
    # both names are one file now: what the older one took is somebody else's
    rotate(small_disk / "last.ckpt", small_disk / "previous.ckpt")
    (small_disk / "other").write_bytes(b"x" * 400_000)
    for _ in range(3):
        with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written .No space left on device"):
            save(small_disk, 4)
        assert step_of(small_disk / "last.ckpt") == 3
        assert not [*small_disk.glob(".*")]
    (small_disk / "other").unlink()
    save(small_disk, 4)
    assert step_of(small_disk / "last.ckpt") == 4


def test_read_only_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written .Permission denied"):
        write_checkpoint(tmp_path / "last.ckpt", contents(1))


def test_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: cannot be written .(Not a directory|File exists)"
    ):
        write_checkpoint(tmp_path / "file" / "last.ckpt", contents(1))
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written .Is a directory"):
        write_checkpoint(tmp_path / "last.ckpt", contents(1))
    assert not [*tmp_path.glob(".*")]


def test_a_few_kills(tmp_path: Path) -> None:
    figures = kill_and_look(tmp_path, kills=3, megabytes=2.0)
    assert figures.kills == 3


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    figures = kill_and_look(tmp_path, kills=60)
    assert figures.kills == 60
    assert figures.saves >= 30


def test_build_model_takes_the_weights_alone(trained: Path) -> None:
    model = build_model(read_checkpoint(trained), trained, SceneModel)
    assert not model.training
    assert float(model.state_dict()["objective.step"]) == 0
