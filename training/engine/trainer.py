"""transformers' Trainer for a `LasagnaModel`: our micro-batches, loss, schedule, averaged weights and saved states.

What always holds: a state under `OUTPUT/states` is complete, since it is written beside and renamed; nothing that is
not finite reaches the weights; every random choice of a forward is seeded by (recipe, step, part), so a state holds
weights, optimiser and step, and a resumed run is the same to the last bit.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lasagna.errors import TrainingError
from lasagna.network.compat import ensure_torchvision
from training.engine.objective import Objective
from training.engine.start import PreparedRun
from training.engine.weights import parameter_groups
from training.examples.batches import MicroBatches, batch_workers

ensure_torchvision()

import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import TrainingArguments  # noqa: E402
from transformers.trainer_callback import PrinterCallback  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

WEIGHTS, AVERAGE = "trained.safetensors", "average.safetensors"


class Trainer(transformers.Trainer):
    """One run of a recipe.

    Args:
        on_log: Called by the first process with each log line.
        on_step: Called by the first process with the number of finished steps.
    """

    def __init__(
        self,
        run: PreparedRun,
        arguments: TrainingArguments,
        on_log: Callable[[dict[str, float]], None],
        on_step: Callable[[int], None],
    ) -> None:
        self.run, self.recipe, self._on_log, self._on_step = run, run.recipe, on_log, on_step
        options = self.recipe.optimiser
        objective = Objective(run.model, run.prompt, run.recipe, run.encoder)
        super().__init__(model=objective, args=arguments)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self))
        self.trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()} if options.ema else {}
        self._folder = run.recipe.output / "states"
        self._saving: Path | None = None
        self._sums: dict[str, list[float]] = {}  # name -> sum, count
        self._batches = MicroBatches(
            run.draw,
            lambda: self.state.global_step,
            options.steps,
            options.accumulation(arguments.world_size),
            arguments.process_index,
            arguments.world_size,
            batch_workers("cpu" if arguments.use_cpu else "cuda", arguments.world_size),
        )

    # ------------------------------------------------------------------------------------------------------ one step

    def get_train_dataloader(self) -> Any:
        return self._batches

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(model or self.model_wrapped, self.recipe.optimiser)
            self.optimizer = torch.optim.AdamW(groups, betas=self.recipe.optimiser.betas)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.create_optimizer()
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.recipe.optimiser.rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss: Tensor = outputs["loss"]
        terms = {"loss": loss.item(), **outputs["terms"]}
        if not math.isfinite(terms["loss"]):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            raise TrainingError(f"the loss of step {self.state.global_step + 1} is not finite ({shown})")
        self._count(terms)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"the gradient of step {self.state.global_step + 1} is not finite (norm {float(norm)}), its loss is"
            )
        self._count({"norm": float(norm)})
        return norm

    def _count(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1

    @torch.no_grad()
    def finish_step(self) -> None:
        """Moves the averaged weights; early on they follow faster, so that the first steps are forgotten."""
        step = self.state.global_step
        if self.average:
            decay = min(self.recipe.optimiser.ema, (1 + step) / (10 + step))
            mine, theirs = list(self.average.values()), [self.trained[name].detach() for name in self.average]
            torch._foreach_lerp_(mine, theirs, 1 - decay)
        if self.is_world_process_zero():
            self._on_step(step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line per log step: means over the steps since the last one, of all processes."""
        if "loss" not in logs:  # transformers' summary at the end
            return
        every = [self._sums]
        if self.args.world_size > 1:
            every = [{} for _ in range(self.args.world_size)]
            torch.distributed.all_gather_object(every, self._sums)
        means = {}
        for name in sorted({name for sums in every for name in sums}):
            total, count = (sum(sums[name][i] for sums in every if name in sums) for i in (0, 1))
            means[name] = total / count
        self._sums = {}
        step, options = self.state.global_step, self.recipe.optimiser
        # The rate of the last step, not of the next.
        rate = options.learning_rate * options.rate(step - 1)
        line = {"step": step, "loss": means.pop("loss"), "learning_rate": rate, **means}
        scalars = {name: value for name, value in line.items() if name != "step"}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, scalars)
        if self.is_world_process_zero():
            self._on_log(line)

    # ------------------------------------------------------------------------------------------------------- states

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving or self._folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Writes the state beside, then the model, and renames the state last: a kill at any point leaves a state with
        a model that is as new or newer."""
        name = f"checkpoint-{self.state.global_step}"
        self._saving = self._folder / "unfinished"
        try:
            if self.is_world_process_zero():
                shutil.rmtree(self._saving, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.save_averaged(self._folder.parent / "checkpoint")
                finished = self._folder / name
                shutil.rmtree(finished, ignore_errors=True)
                (self._saving / name).rename(finished)
                self._remove_old_states()
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(self._saving, ignore_errors=True)
            self._saving = None

    def _remove_old_states(self) -> None:
        states = sorted(self._folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        for old in states[: -self.recipe.optimiser.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The trained weights of a state, and their averages."""
        folder = Path(output_dir or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        source = state_dict if state_dict is not None else self.trained
        save_file({name: source[name].detach().cpu().contiguous() for name in self.trained}, folder / WEIGHTS)
        if self.average:
            save_file({name: value.cpu().contiguous() for name, value in self.average.items()}, folder / AVERAGE)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        for file, own in ((WEIGHTS, self.trained), (AVERAGE, self.average)):
            if not own:
                continue
            saved = load_file(folder / file)
            if saved.keys() != own.keys():
                odd = ", ".join(sorted(saved.keys() ^ own.keys())[:5])
                raise TrainingError(f"{folder}: a state of other trained weights than the recipe's ({odd}, ...)")
            for name, value in own.items():
                value.copy_(saved[name])

    def save_averaged(self, folder: Path) -> None:
        """Writes the model, with averaged weights where they are kept, as a checkpoint folder, replaced at once."""
        beside = folder.with_name(folder.name + ".new")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            self._swap_average()
            try:
                self.run.save(beside)
            finally:
                self._swap_average()
            old = folder.with_name(folder.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            beside.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _swap_average(self) -> None:
        for name, value in self.average.items():
            parameter = self.trained[name]
            parameter.data, self.average[name] = value, parameter.data

    def last_state(self) -> Path | None:
        """The newest state to go on from, or None."""
        found = get_last_checkpoint(str(self._folder)) if self._folder.is_dir() else None
        return Path(found) if found else None


class _Steps(transformers.TrainerCallback):
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.finish_step()
