"""One training run: parse, check, build, train, save, push. `train.py` and `mmedpo train` call it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from datasets import IterableDataset
from peft import PeftConfig
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint
from trl import ModelConfig

from mmedpo.data import answers, consent, credentialed
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.models.adapters import adapter_config
from mmedpo.models.generation import check_vocabulary
from mmedpo.models.vision_language import load_processor
from mmedpo.runs import recipes, writable
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.runs.options import outside, refuse
from mmedpo.runs.provenance import portable
from mmedpo.runs.recorded import record_contents
from mmedpo.runs.run_folder import output_folder
from mmedpo.runs.terminal import say
from mmedpo.training import checkpoints, mixture, outgoing, preflight, record
from mmedpo.training.callbacks import Duration, StopOnSignal, refuse_unfinished
from mmedpo.training.config import MMedPOConfig, RunArguments
from mmedpo.training.model import choose_trained, open_model
from mmedpo.training.parts import summary
from mmedpo.training.trainer import MMedPOTrainer

SHUFFLED = 500  # rows in the shuffle buffer of a streamed dataset, undecoded

Card = Callable[[Path], None]
T = TypeVar("T")

logger = get_logger(__name__)


def main(argv: Sequence[str], command: str = "", card: Card | None = None, push: outgoing.Push | None = None) -> None:
    """Run the training described by `argv` and its recipe (--config); other arguments as in `train`."""
    run, config, model_args = recipes.parse(argv, [RunArguments, MMedPOConfig, ModelConfig], "mmedpo train")
    train(run, config, model_args, command, card, push)


def train(
    run: RunArguments, config: MMedPOConfig, model_args: ModelConfig, command: str = "", card: Card | None = None,
    push: outgoing.Push | None = None,
) -> None:  # fmt: skip
    """Train an adapter (or, without LoRA, the whole language model) and write it to `run.output`.

    Args:
        command: the command, recorded unchanged.
        card: writes README.md into a folder from its recorded files.
        push: publishes the finished folder if `push_to_hub` is set, also one that `run.resume` finds finished.

    Raises:
        InputError: dataset, model or output folder are unusable; existing checkpoints are kept.
        Stopped: a SIGTERM or Ctrl-C came; a checkpoint is kept.
    """
    writable.check(Path(run.output), run.resume)
    if config.reference_cache:
        writable.check_folder(Path(config.reference_cache), "--reference_cache")
    _refuse_settings(run, config, model_args)
    _refuse_strangers()
    commits = mixture.commits(run)
    dataset = mixture.pairs(run, commits, run.dataset_split, run.streaming)
    source = record.credentialed_source(run, str(model_args.model_name_or_path), model_args.model_revision, commits)
    sent = outgoing.consented(run, config, source) if source else {}
    evaluated: Any = mixture.pairs(run, commits, run.eval_split) if run.eval_split else None
    processor = load_processor(str(model_args.model_name_or_path), model_args.model_revision)
    outgoing.refuse_absent(config.report_to or [])  # after consent: a forbidden tracker need not be installed
    _check([dataset, *([evaluated] if evaluated else [])], processor, run, config, model_args, commits, push)
    if isinstance(dataset, IterableDataset):
        # One endless pass, so that a resumed run skips used rows; shuffled, since neighbours share an image.
        dataset = dataset.repeat(None).shuffle(seed=config.seed, buffer_size=SHUFFLED)
    else:
        dataset = mixture.mixed(dataset, run, commits, config.seed if config.data_seed is None else config.data_seed)
        evaluated = evaluated and mixture.mixed(evaluated, run, commits, 0, evaluated=True)
    settings = {
        "run": {**run.plain(), "dataset_name": record.by_place(run), "resume": None, "third_parties": None},
        "model": model_args.model_name_or_path, "lora": record.plain(model_args),
        "config": record.plain(config),
    }  # fmt: skip
    repeatable = checkpoints.repeatable(settings, config)
    contents = _first(lambda: record.contents(run, model_args, commits))
    with _pushed(run, config, push), _working_folder(Path(run.output), repeatable, contents, run.resume) as folder:
        config.output_dir = str(folder)
        checkpoint = get_last_checkpoint(str(folder)) if run.resume else None
        stamp = checkpoints.Stamp(repeatable, contents, config)
        if checkpoint:
            stamp.check(Path(checkpoint))
        base = _first(lambda: record.base_facts(run, model_args))
        if PartialState().is_main_process:
            record.begin(folder, source, base, commits)
            if sent:
                consent.announce(str(source), sent[consent.KEY]["to"], "what is trained on it")
        opened = open_model(model_args, config, run.adapter_name_or_path)
        check_vocabulary(opened["model"], processor.tokenizer, str(model_args.model_name_or_path))
        # Something may have been replaced while it was read.
        _first(lambda: record_contents(folder, repeatable, record.contents(run, model_args, commits)))
        if source:
            setattr(opened["model"].config, credentialed.KEY, source)
        duration = Duration()
        trainer = MMedPOTrainer(
            **opened, args=config, train_dataset=dataset,
            eval_dataset=evaluated, processing_class=processor, callbacks=[StopOnSignal(), duration, stamp],
        )  # fmt: skip
        with _memory():
            trainer.train(resume_from_checkpoint=checkpoint)
        refuse_unfinished(trainer)
        trainer.save_model()
        trainer.save_state()
        if trainer.accelerator.is_main_process:
            processor.save_pretrained(folder)
            record.tidy_state(folder)
            record.write(
                folder, run, {**settings, "base": base, "contents": contents}, trainer, dataset, source, sent, commits,
                command, duration.seconds,
            )  # fmt: skip
            if card is not None:
                card(folder)
    if PartialState().is_main_process:
        say(record.written(Path(run.output)))


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Raise an out-of-memory error of any device as InputError."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise InputError(
            f"The training ran out of memory: {str(error).splitlines()[0]} Lower per_device_train_batch_size (and "
            "raise gradient_accumulation_steps), use gradient_checkpointing, or drop the longest rows."
        ) from error


def _refuse_settings(run: RunArguments, config: MMedPOConfig, model_args: ModelConfig) -> None:
    """Raise InputError for settings that exclude each other or have no effect."""
    if not model_args.model_name_or_path:
        raise InputError("No model: give --model_name_or_path with a Hub id or a folder.")
    refuse(outside(model_args))
    if config.trust_remote_code:
        raise InputError(
            "trust_remote_code: only models whose code ships with transformers are trained, since prefix sharing and "
            "the start-up check rely on it. Use the transformers form of the model (`mmedpo convert` for LLaVA's own)."
        )
    if config.deepspeed:
        outgoing.refuse_deepspeeds(config.hf_deepspeed_config.config)
    if config.deepspeed and not any(name.endswith("LOCAL_RANK") for name in os.environ):  # set by launchers, MPI's too
        raise InputError(
            "deepspeed: ZeRO needs a launcher, for one process too. Start the training with `accelerate launch "
            "--config_file recipes/accelerate/zero2.yaml train.py`, or torchrun, or leave deepspeed out."
        )
    if model_args.attn_implementation == "flex_attention" and config.device.type in ("cpu", "mps"):
        raise InputError("attn_implementation flex_attention: torch has its gradients on GPUs only. Use sdpa.")
    if config.model_init_kwargs:
        raise InputError("model_init_kwargs: use dtype, attn_implementation, model_revision and load_in_4bit instead.")
    if (config.eval_strategy != "no") != bool(run.eval_split):
        raise InputError(
            f"eval_strategy is {IntervalStrategy(config.eval_strategy).value!r} and eval_split {run.eval_split!r}: "
            "evaluating during training needs both, as in --eval_split validation --eval_strategy epoch."
        )
    if run.streaming and (config.max_steps <= 0 or "epoch" in (config.save_strategy, config.eval_strategy)):
        raise InputError(
            "A streamed dataset has no known length and no epochs: give --max_steps, which ends the training, and "
            "--save_strategy steps (and eval_strategy, if any)."
        )
    sources = [name for name in run.dataset_name if answers.named(name)]
    if sources and (config.loss_type != ["sft"] or run.streaming or run.dispreference != "all"):
        raise InputError(
            f"{sources[0]} has gold answers and no rejected ones: give --loss_type sft --loss_weights 1.0, and "
            "leave out --streaming and --dispreference."
        )
    if run.streaming and config.pairs_per_image > 1:
        raise InputError(
            f"pairs_per_image {config.pairs_per_image}: the images of a streamed dataset are not known before. Leave "
            "out --streaming or --pairs_per_image."
        )


def _refuse_strangers() -> None:
    """Raise InputError where launched processes do not form one group, as without an accelerator and --use_cpu."""
    launched, known = int(os.environ.get("WORLD_SIZE", "1")), PartialState().num_processes
    if launched != known:
        raise InputError(
            f"{launched} processes were launched but do not form one group. Without an accelerator, give --use_cpu "
            "true."
        )


def _check(
    datasets: Sequence[Any], processor: Any, run: RunArguments, config: MMedPOConfig, model_args: Any,
    commits: mixture.Commits, push: outgoing.Push | None,
) -> None:  # fmt: skip
    """Run the checks before training in the main process; its error is raised in all processes."""

    def adapter(model: PreTrainedModel) -> PeftConfig | None:
        if run.adapter_name_or_path is None:
            return choose_trained(model, model_args, config)
        found = adapter_config(run.adapter_name_or_path)
        found.inference_mode = False
        return found

    def check() -> None:
        record.base_facts(run, model_args, download=False)
        found = preflight.check(datasets, processor, config, model_args, Path(run.output), adapter)
        for warning in found.warnings:
            logger.warning(warning)
        if len(commits) > 1 and len(datasets) > 1:
            mixture.warn_of_trained_images(*datasets)
        say(summary(found.trained))
        for name in filter(answers.named, run.dataset_name):
            say(answers.read(name).split_notice)
        if config.push_to_hub:
            about = record.about(run, str(model_args.model_name_or_path), commits)
            outgoing.prepare(Path(run.output), config, push, about)

    _first(check)


def _first(do: Callable[[], T]) -> T:
    """Run `do` in the main process; return its result, or raise its error, in all processes, so that none waits."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = do()
        except (InputError, AlreadyFinished) as error:
            outcome[1] = error
    result, refusal = broadcast_object_list(outcome)
    if refusal is not None:
        raise refusal
    return result


@contextlib.contextmanager
def _pushed(run: RunArguments, config: MMedPOConfig, push: outgoing.Push | None) -> Iterator[None]:
    """Push, once, what the block finishes or finds finished; a run may have been stopped before its push."""
    asked, config.push_to_hub = config.push_to_hub, False
    finished: AlreadyFinished | None = None
    try:
        yield
    except AlreadyFinished as found:
        finished = found
    if asked and push and PartialState().is_main_process:
        outgoing.push(Path(run.output), config, push, run.third_parties)
    if finished:
        raise finished


@contextlib.contextmanager
def _working_folder(
    output: Path, settings: dict[str, Any], contents: dict[str, str | None], resume: bool
) -> Iterator[Path]:
    """Open `output_folder` for several processes: the main one creates it, and renames it when all are done."""
    state = PartialState()
    with contextlib.ExitStack() as stack:
        folder = output.resolve().with_name(output.resolve().name + ".partial")

        def enter() -> None:
            stack.enter_context(output_folder(output, settings, resume, contents=contents))
            _drop_torn_checkpoints(folder)

        _first(enter)
        yield folder
        state.wait_for_everyone()
        if state.is_main_process:
            _tidy(folder)


def _drop_torn_checkpoints(folder: Path) -> None:
    """Remove half-written checkpoints; the Trainer writes `trainer_state.json` last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)


def _tidy(folder: Path) -> None:
    """Remove pickled arguments and paths of this machine; `output_folder` removes checkpoints after its rename."""
    shutil.rmtree(folder / "ref", ignore_errors=True)  # the starting adapter of a continued one
    (folder / "training_args.bin").unlink(missing_ok=True)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        config = read_json(adapter)
        write_json(adapter, {**config, "base_model_name_or_path": portable(config["base_model_name_or_path"] or "")})
