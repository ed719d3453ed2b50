"""What is trained, and how one step changes it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from captioner.batches import CaptionBatch
from captioner.errors import CaptionerError
from captioner.loss import BatchSize, CaptionLoss, SelfCriticalLoss
from captioner.model import AttentionModel
from captioner.optimisation import Cycles, OneCycle, make_optimizer, moving_average, set_learning_rates
from captioner.randomness import derived_seed
from captioner.recipe import EncoderConfig, Recipe
from captioner.resume import Progress
from captioner.reward import Reward, advantages
from captioner.sampling import sample_captions

_BASELINE_DECAY = 0.9  # Xu et al. 2015, section 4.1
_LONGEST_WAIT = timedelta(hours=12)  # of other processes, while the first computes a cache


Rewards = Float[Tensor, "_ captions"]


class TrainingError(CaptionerError):
    """Training that cannot start or go on; the message says why and what to do."""


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The device and the processes of this run.

    Raises:
        TrainingError: the device does not have the precision that the recipe asks for.
    """
    precision = recipe.training.mixed_precision
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else accelerate overlooks torchrun's processes
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
        )
    except ValueError as error:
        raise TrainingError(f"--mixed-precision {precision} is not possible here: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainingError("fp16 needs a GPU; use --mixed-precision bf16 or no on a CPU")
    return accelerator


@contextmanager
def full_memory_told(progress: Progress, *, accumulate: int) -> Iterator[None]:
    """Turn what torch raises when memory is full, on a GPU or a CPU, into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error)
        if not is_full:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TrainingError(
            f"memory is full at step {progress.step}; raise --accumulate to {2 * accumulate}, which gives "
            "the same result in less memory and may be changed on --resume; or start anew with a lower "
            f"--batch-size, or --image-size where there are pictures ({reason})"
        ) from error


class Learner:
    """A model with its optimizer and its moving average, on one process or several.

    Several processes share the pictures of each step and hold the same weights.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        recipe: Recipe,
        model: AttentionModel[Any],
        steps_an_epoch: int,
        reward: Reward | None = None,
    ) -> None:
        """`reward` is that of self-critical training, where the recipe has it."""
        training = recipe.training
        self.accelerator, self.training, self.reward = accelerator, training, reward
        self.loss = CaptionLoss(
            label_smoothing=training.label_smoothing,
            attention_penalty=training.attention_penalty,
            reinforce_weight=training.reinforce_weight,
            attention_entropy_weight=training.attention_entropy_weight,
        )
        self.max_words = recipe.decoding.max_words  # of a sampled caption
        self.baseline = 0.0  # of hard attention: a moving average of log p(y)
        self.self_critical_loss = SelfCriticalLoss(attention_penalty=training.attention_penalty)
        last_step = training.epochs * steps_an_epoch
        self.first_self_critical_step = last_step
        if training.self_critical_from_epoch is not None:
            self.first_self_critical_step = (training.self_critical_from_epoch - 1) * steps_an_epoch
        given = OneCycle(training.learning_rate, 0, self.first_self_critical_step)
        sampled = OneCycle(training.self_critical_learning_rate, self.first_self_critical_step, last_step)
        self.rates = {"learning_rate": Cycles((given, sampled))}
        # The CNN is frozen to begin with; what reads text is not.
        groups = [[parameter for parameter in model.parameters() if parameter.requires_grad]]
        if training.finetune_from_epoch is not None:
            assert isinstance(recipe.encoder, EncoderConfig)  # as the recipe itself requires
            groups.append(
                model.encoder.last_stages(training.finetune_stages, size_px=recipe.encoder.image_size)
            )
            first_step = (training.finetune_from_epoch - 1) * steps_an_epoch
            rate = OneCycle(training.finetune_learning_rate, first_step, last_step)
            self.rates["learning_rate_encoder"] = Cycles((rate,))
        self.finetuned = groups[1:]
        model = model.to(accelerator.device).train()
        self.averaged = moving_average(model, decay=training.ema_decay)
        optimizer = make_optimizer(groups, weight_decay=training.weight_decay)
        self.optimizer: Optimizer = accelerator.prepare_optimizer(optimizer)
        self.model = accelerator.prepare_model(model)

    @property
    def raw_model(self) -> AttentionModel[Any]:
        """The model without the wrapper that shares its gradients among processes."""
        return cast(AttentionModel[Any], self.accelerator.unwrap_model(self.model))

    @property
    def averaged_model(self) -> AttentionModel[Any]:
        """What is scored and saved."""
        return cast(AttentionModel[Any], self.averaged.module)

    def unfreeze(self) -> None:
        """Let the CNN's last stages train from now on."""
        if all(parameter.requires_grad for parameter in self.finetuned[0]):
            return
        for parameter in self.finetuned[0]:
            parameter.requires_grad_(True)
        # Prepared anew, from the bare model: the wrapper must know what has gradients.
        bare = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        bare._is_accelerate_prepared = False  # else accelerate leaves it bare, without mixed precision
        self.model = self.accelerator.prepare_model(bare)

    def step(self, parts: Sequence[CaptionBatch], number: int) -> dict[str, float]:
        """One update of the weights from this process's parts of the step's pictures.

        The loss is a mean over the words and captions of the whole step. Each part is scaled by its
        share of them, so that the gradient depends neither on the number of parts nor of processes.
        Gives the terms of the loss, the norm of the gradient and the number of captions.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        accelerator = self.accelerator
        torch.manual_seed(derived_seed(self.training.seed, number, accelerator.process_index))
        set_learning_rates(self.optimizer, list(self.rates.values()), number)
        batches = [part.to(accelerator.device) for part in parts]
        rewards: list[Rewards | None] = [None] * len(batches)
        if number >= self.first_self_critical_step:
            batches, rewards = self._sampled(batches)
        size = self._size(batches)
        sums: dict[str, Tensor] = {}
        for place, (batch, reward) in enumerate(zip(batches, rewards, strict=True)):
            with nullcontext() if place == len(batches) - 1 else accelerator.no_sync(self.model):
                terms = self._terms(batch, reward, size)
                # Gradients are averaged over the processes, so each counts as many times as there are.
                accelerator.backward(terms["total"] * accelerator.num_processes)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value.detach()
        added = accelerator.reduce(torch.stack(list(sums.values())), "sum")
        values = dict(zip(sums, added.tolist(), strict=True))
        if not math.isfinite(values["total"]):
            names = gather_object([name for part in parts for name in part.names])
            raise TrainingError(
                f"the loss is {values['total']} at step {number} on {', '.join(names)}; "
                "lower the learning rate, or look at these and their captions"
            )
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip))
        if not (math.isfinite(norm) or accelerator.scaler):  # a scaler passes such steps over itself
            raise TrainingError(f"the gradient is {norm} at step {number}; lower the learning rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averaged.update_parameters(self.raw_model)
        log_likelihood = -values["cross_entropy"] * float(size.words / size.captions)
        self.baseline = _BASELINE_DECAY * self.baseline + (1 - _BASELINE_DECAY) * log_likelihood
        return {**values, "gradient_norm": norm, "captions": int(size.captions)}

    def _size(self, batches: Sequence[CaptionBatch]) -> BatchSize:
        """That of the whole step, over all parts and processes."""
        counts = [torch.stack([batch.lengths.sum(), (batch.lengths > 0).sum()]) for batch in batches]
        words, captions = self.accelerator.reduce(torch.stack(counts).sum(dim=0), "sum")
        return BatchSize(words, captions)

    def _terms(self, batch: CaptionBatch, rewards: "Rewards | None", size: BatchSize) -> dict[str, Tensor]:
        """The terms of the loss by name, those that the recipe has; with rewards, their mean too."""
        output = self.model(batch)
        if rewards is None:
            return self.loss(output, batch.tokens, size=size, baseline=self.baseline).named()
        terms = self.self_critical_loss(output, batch.tokens, advantages=advantages(rewards), size=size)
        return {**terms.named(), "reward": rewards.sum() / size.captions}

    def _sampled(self, batches: Sequence[CaptionBatch]) -> "tuple[list[CaptionBatch], list[Rewards | None]]":
        """The same pictures with captions that the model draws, and what these are worth.

        They are drawn without dropout, as a user's captions are; the gradient is then taken with it.
        """
        if self.reward is None:
            raise ValueError("self-critical training needs a reward")
        model, sampled = self.raw_model, []
        model.decoder.eval()
        is_frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
        for batch in batches:
            with torch.no_grad(), self.accelerator.autocast():
                annotations, _ = model.encoder.annotations_of(batch.sources)
                tokens, lengths = sample_captions(
                    model.decoder,
                    annotations,
                    num_captions=self.training.self_critical_samples,
                    max_words=self.max_words,
                )
            sources = batch.sources.encoded(annotations) if is_frozen else batch.sources
            sampled.append(replace(batch, sources=sources, tokens=tokens, lengths=lengths))
        model.decoder.train()
        return sampled, [self.reward(batch).to(batch.tokens.device) for batch in sampled]

    def state(self) -> dict[str, Any]:
        """All that decides the steps to come. The random state does not: it is derived from the step."""
        scaler = self.accelerator.scaler
        return {
            "model": self.raw_model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "baseline": self.baseline,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.raw_model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline = state["baseline"]
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
