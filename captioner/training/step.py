"""One training step: the model, its optimizer and its moving average."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim import Optimizer

from captioner.config import EncoderConfig
from captioner.data.epoch_order import derived_seed
from captioner.data.regions import look_up_words
from captioner.errors import CaptionerError
from captioner.model.batch import CaptionBatch
from captioner.model.captioning import AttentionModel
from captioner.training.loss import CaptionLoss, TokenCounts
from captioner.training.optim import (
    ChainedSchedule,
    OneCycle,
    make_optimizer,
    moving_average,
    set_learning_rates,
)
from captioner.training.recipe import Recipe
from captioner.training.self_critical import Reward, SelfCriticalLoss, sample_captions
from captioner.training.state import Progress
from captioner.vocabulary import Vocabulary

_BASELINE_DECAY = 0.9  # Xu et al. 2015, section 4.1


class TrainStep:
    """One update of a model's weights, on one process or several.

    Several processes share the sources of each step and hold the same weights.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        recipe: Recipe,
        model: AttentionModel[Any],
        steps_per_epoch: int,
        vocabulary: Vocabulary,
        reward: Reward | None = None,
    ) -> None:
        """`reward` is needed for self-critical training, if the recipe has it."""
        training = recipe.training
        self.accelerator, self.training, self.vocabulary = accelerator, training, vocabulary
        self.max_words = recipe.decoding.max_words  # of a sampled caption
        self.loss = CaptionLoss(
            label_smoothing=training.label_smoothing,
            attention_penalty=training.attention_penalty,
            reinforce_weight=training.reinforce_weight,
            attention_entropy_weight=training.attention_entropy_weight,
            attention_supervision=training.attention_supervision,
        )
        self.self_critical_loss: SelfCriticalLoss | None = None
        if reward is not None:
            self.self_critical_loss = SelfCriticalLoss(
                attention_penalty=training.attention_penalty,
                reward=reward,
                attention_supervision=training.attention_supervision,
            )
        self.baseline = 0.0  # hard attention's b
        last_step = training.epochs * steps_per_epoch
        self.first_self_critical_step = last_step
        if training.self_critical_from_epoch is not None:
            self.first_self_critical_step = (training.self_critical_from_epoch - 1) * steps_per_epoch
        self.schedules = {
            "learning_rate": ChainedSchedule(
                (
                    OneCycle(training.learning_rate, 0, self.first_self_critical_step),
                    OneCycle(training.self_critical_learning_rate, self.first_self_critical_step, last_step),
                )
            )
        }
        # The CNN is frozen at first; a text encoder is not.
        groups = [[parameter for parameter in model.parameters() if parameter.requires_grad]]
        self.finetuned: list[nn.Parameter] = []
        if training.finetune_from_epoch is not None:
            assert isinstance(recipe.encoder, EncoderConfig)  # as the recipe requires
            self.finetuned = model.encoder.last_stages(
                training.finetune_stages, size_px=recipe.encoder.image_size
            )
            groups.append(self.finetuned)
            first_step = (training.finetune_from_epoch - 1) * steps_per_epoch
            cycle = OneCycle(training.finetune_learning_rate, first_step, last_step)
            self.schedules["learning_rate_encoder"] = ChainedSchedule((cycle,))
        model = model.to(accelerator.device).train()
        self.averaged = moving_average(model, decay=training.ema_decay)
        optimizer = make_optimizer(model, groups, weight_decay=training.weight_decay)
        self.optimizer: Optimizer = accelerator.prepare_optimizer(optimizer)
        self.model = accelerator.prepare_model(model)

    @property
    def raw_model(self) -> AttentionModel[Any]:
        """The model without the wrapper that synchronises its gradients."""
        return cast(AttentionModel[Any], self.accelerator.unwrap_model(self.model))

    @property
    def averaged_model(self) -> AttentionModel[Any]:
        """The model that is scored and saved."""
        return cast(AttentionModel[Any], self.averaged.module)

    def unfreeze(self) -> None:
        """Train the CNN's last stages from now on."""
        if all(parameter.requires_grad for parameter in self.finetuned):
            return
        for parameter in self.finetuned:
            parameter.requires_grad_(True)
        # The wrapper must know which parameters have gradients, so it is made again, around a new module
        # with the same encoder and decoder: accelerate prepares a module only once.
        raw = self.raw_model
        self.model = self.accelerator.prepare_model(
            type(raw)(encoder=raw.encoder, decoder=raw.decoder).train()
        )

    def __call__(self, micro_batches: Sequence[CaptionBatch], number: int) -> dict[str, float]:
        """Update the weights from this process's micro-batches of step `number`.

        The loss is a mean over the words and captions of the whole step. Each micro-batch is scaled by its
        share of them, so that the gradient depends neither on their number nor on that of processes.
        Returns the terms of the loss, the norm of the gradient and the number of captions.

        Raises:
            CaptionerError: the loss or the gradient is not finite.
        """
        accelerator = self.accelerator
        torch.manual_seed(derived_seed(self.training.seed, number, accelerator.process_index))
        set_learning_rates(self.optimizer, list(self.schedules.values()), number)
        loss: CaptionLoss | SelfCriticalLoss = self.loss
        if number < self.first_self_critical_step:
            batches = [look_up_words(one, self.vocabulary).to(accelerator.device) for one in micro_batches]
        elif self.self_critical_loss is None:
            raise ValueError("self-critical training needs a reward")
        else:
            batches = [self._sample(batch.to(accelerator.device)) for batch in micro_batches]
            loss = self.self_critical_loss
        counts = self._count(batches)
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with nullcontext() if index == len(batches) - 1 else accelerator.no_sync(self.model):
                terms = loss(self.model(batch), batch, counts=counts, baseline=self.baseline)
                # Gradients are averaged over the processes, so each is multiplied by their number.
                accelerator.backward(terms["total"] * accelerator.num_processes)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value.detach()
        summed = accelerator.reduce(torch.stack(list(sums.values())), "sum")
        values = dict(zip(sums, summed.tolist(), strict=True))
        if not math.isfinite(values["total"]):
            names = gather_object([name for batch in micro_batches for name in batch.names])
            raise CaptionerError(
                f"the loss is {values['total']} at step {number} on {', '.join(names)}; "
                "lower the learning rate, or check these sources and their captions"
            )
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip))
        if not (math.isfinite(norm) or accelerator.scaler):  # a gradient scaler skips such steps itself
            raise CaptionerError(f"the gradient is {norm} at step {number}; lower the learning rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averaged.update_parameters(self.raw_model)
        log_likelihood = -values["cross_entropy"] * float(counts.words / counts.captions)
        self.baseline = _BASELINE_DECAY * self.baseline + (1 - _BASELINE_DECAY) * log_likelihood
        return {**values, "gradient_norm": norm, "captions": int(counts.captions)}

    def _count(self, batches: Sequence[CaptionBatch]) -> TokenCounts:
        """The words and captions of the whole step, over all micro-batches and processes."""
        counts = [torch.stack([batch.lengths.sum(), (batch.lengths > 0).sum()]) for batch in batches]
        words, captions = self.accelerator.reduce(torch.stack(counts).sum(dim=0), "sum")
        return TokenCounts(words, captions)

    def _sample(self, batch: CaptionBatch) -> CaptionBatch:
        """The same sources with captions that the model samples.

        They are sampled without dropout, as a user's captions are; the gradient is then taken with it.
        """
        model = self.raw_model
        is_frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
        model.decoder.eval()
        with torch.no_grad(), self.accelerator.autocast():
            annotations, _ = model.encoder.annotations_of(batch.sources)
            tokens, lengths = sample_captions(
                model.decoder,
                annotations,
                num_captions=self.training.self_critical_samples,
                max_words=self.max_words,
            )
        model.decoder.train()
        sources = batch.sources.encoded(annotations) if is_frozen else batch.sources
        sampled = replace(batch, sources=sources, tokens=tokens, lengths=lengths)
        return look_up_words(sampled, self.vocabulary)

    def state(self) -> dict[str, Any]:
        """Everything that decides the steps to come. The random state is derived from the step's number."""
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


@contextmanager
def explain_out_of_memory(progress: Progress, *, advice: str) -> Iterator[None]:
    """Turn torch's errors about full memory, of a GPU or a CPU, into advice. Raises: CaptionerError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error)
        if not is_full:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CaptionerError(f"out of memory at step {progress.step}; {advice} ({reason})") from error
