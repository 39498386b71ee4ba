"""A run's checkpoints: written beside training, kept, and found again after an interruption.

A save copies this rank's part of the state to CPU memory, which is all that training waits for; a thread writes it.
Once the threads of all ranks are done, which the ranks agree on between steps, rank 0 publishes the checkpoint. A
save that fails (a full disk) costs the checkpoint, not the run.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from cellfoundry_training import checkpoint_files
from cellfoundry_training.between_steps import from_rank_0
from cellfoundry_training.checkpoint_files import Checkpoint, DamagedError, FileEntry, Manifest
from cellfoundry_training.errors import TrainingError

Warn = Callable[[str], None]


@dataclass
class _Save:
    """One on its way to the disk."""

    partial: Path
    manifest: Manifest
    writing: Future[FileEntry]


class Checkpoints:
    """One rank's side of the checkpoints in a folder that all ranks see; all ranks must call every method alike.

    Args:
        folder: of the run's checkpoints.
        rank: this one.
        ranks: how many there are.
        keep: newest checkpoints kept.
        keep_best: keep the one with the lowest held-out loss as well.
        warn: takes a sentence on rank 0.
    """

    def __init__(
        self, folder: Path, rank: int, ranks: int, *, keep: int, keep_best: bool, warn: Warn
    ) -> None:
        self._folder, self._rank, self._ranks = folder, rank, ranks
        self._keep, self._keep_best, self._warn = keep, keep_best, warn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cellfoundry-checkpoint")
        self._save: _Save | None = None
        # A process that lost its cluster may still write for a while: it must not meet the ranks that replaced it.
        self._attempt = from_rank_0(uuid.uuid4().hex[:8])

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes."""
        return self._save is not None and not self._save.writing.done()

    @property
    def is_open(self) -> bool:
        """Whether a save is not published yet; the same on all ranks."""
        return self._save is not None

    def save(self, part: Mapping[str, Tensor], manifest: Manifest) -> None:
        """Begin to write ``part``, which must not change any more; waits for the save before.

        ``manifest`` lacks its files. Collective.
        """
        self.finish()
        partial = self._folder / f".{checkpoint_files.folder_name(manifest.state.step)}.{self._attempt}"
        writing = self._thread.submit(checkpoint_files.write_part, partial, self._rank, self._ranks, part)
        self._save = _Save(partial, manifest, writing)

    def finish(self) -> None:
        """Wait until the last save is on the disk, on all ranks, and publish it. Collective."""
        if self._save is None:
            return
        save, self._save = self._save, None
        outcomes: list[FileEntry | str] = [""] * self._ranks
        dist.all_gather_object(outcomes, _outcome(save.writing))
        if self._rank == 0:
            failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
            files = tuple(outcome for outcome in outcomes if isinstance(outcome, FileEntry))
            self._publish(save, files, failures)

    def _publish(self, save: _Save, files: tuple[FileEntry, ...], failures: list[str]) -> None:
        folder = self._folder / checkpoint_files.folder_name(save.manifest.state.step)
        if not failures:
            try:
                manifest = save.manifest.model_copy(update={"files": files})
                checkpoint_files.publish(save.partial, folder, manifest)
            except OSError as error:
                failures = [str(error)]
        if failures:
            self._give_up(save, folder, failures[0])
        else:
            self._prune()

    def _give_up(self, save: _Save, folder: Path, failure: str) -> None:
        shutil.rmtree(save.partial, ignore_errors=True)
        earlier = next(iter(checkpoint_files.listed(self._folder)), None)
        stays = f"{earlier} stays the newest" if earlier else "there is none yet"
        self._warn(
            f"checkpoint {folder} could not be written ({failure}) and the run goes on without it; {stays}: free "
            "space there, the next save tries again"
        )

    def _prune(self) -> None:
        folders = checkpoint_files.listed(self._folder)
        kept = set(folders[: self._keep])
        if self._keep_best:
            kept |= set(_best(folders))
        try:
            for folder in folders:
                if folder not in kept:
                    checkpoint_files.remove(folder)
        except OSError as error:
            self._warn(
                f"checkpoint {folder} is no longer needed but could not be removed ({error}): remove it by hand, or "
                "make its folder writable; the next save tries again"
            )

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, the same for all ranks, every byte checked; None if there is none at all.

        Those that turn out damaged are set aside, with a warning. Leftovers of a killed process are removed.
        Collective.

        Raises:
            TrainingError: there are checkpoints, but none is intact, or one is of another version.
        """
        if self._rank == 0:
            checkpoint_files.clear_leftovers(self._folder)
        folders = from_rank_0(checkpoint_files.listed(self._folder))
        damage: list[str] = []
        for folder in folders:
            manifest, fault = self._checked(folder)
            if manifest is not None and fault is None:
                self._pass_over(damage, folder)
                return Checkpoint(folder, manifest)
            damage.append(f"checkpoint {folder} is damaged ({fault})")
        if damage:
            raise TrainingError(
                f"{damage[0]}, and no other one in {self._folder} is intact: start another --run, or put a copy back"
            )
        return None

    def _checked(self, folder: Path) -> tuple[Manifest | None, str | None]:
        """Its manifest, and what is wrong with it; ranks share the reading of its files."""
        manifest, fault = None, None
        try:
            manifest = checkpoint_files.read_manifest(folder)
            for entry in manifest.files[self._rank :: self._ranks]:
                checkpoint_files.check_file(folder, entry)
        except DamagedError as error:
            fault = str(error)
        faults: list[str | None] = [None] * self._ranks
        dist.all_gather_object(faults, fault)
        return manifest, next((each for each in faults if each is not None), None)

    def _pass_over(self, damage: list[str], intact: Path) -> None:
        if self._rank == 0:
            for sentence, folder in zip(damage, checkpoint_files.listed(self._folder), strict=False):
                aside = checkpoint_files.set_aside(folder)
                self._warn(f"{sentence} and was renamed to {aside.name}: the run goes on from {intact}")

    def close(self) -> None:
        """Give up the thread; a save that is not finished stays unpublished."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _outcome(writing: Future[FileEntry]) -> FileEntry | str:
    try:
        return writing.result()
    except Exception as error:  # whatever it is, other ranks wait for this one's word
        return str(error) or type(error).__name__


def _best(folders: list[Path]) -> list[Path]:
    """The checkpoint whose own step was evaluated best; none where none was."""
    measured = []
    for folder in folders:
        try:
            state = checkpoint_files.read_manifest(folder).state
        except (DamagedError, TrainingError):
            continue
        if state.evaluated_step == state.step and state.heldout_loss is not None:
            measured.append((state.heldout_loss, -state.step, folder))
    return [min(measured)[2]] if measured else []
