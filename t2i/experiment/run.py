"""One experiment: train what a configuration says, and leave a run folder behind."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig

from t2i.distributed import processes, slurm
from t2i.distributed.launch import peers
from t2i.distributed.processes import Together
from t2i.evaluation.batteries import evaluate_all, gaps_since_start
from t2i.evaluation.battery import evaluating
from t2i.experiment.assembly import Experiment, assemble, describe
from t2i.experiment.device import saves_in_background, worker_count
from t2i.experiment.failures import failures_noted
from t2i.experiment.fork import begin, hold
from t2i.experiment.image_evaluation import evaluate_images, identify
from t2i.experiment.messages import ended, resumed
from t2i.experiment.plan import Plan
from t2i.experiment.quantization_cost import quantization_cost, sentence
from t2i.experiment.real_images import write_real_images
from t2i.models.compiling import uncompiled
from t2i.optim.numerics import numerics
from t2i.publishing.push import Publisher
from t2i.runs import checkpoints
from t2i.runs.checkpoint_writer import CheckpointWriter
from t2i.runs.folder import Run
from t2i.runs.fork_rules import open_parent
from t2i.runs.full_disk import naming
from t2i.runs.parentage import release
from t2i.runs.records import RecordSync, headline
from t2i.runs.snapshots import write_snapshot
from t2i.runs.whole_folders import replacing_folder
from t2i.sampling.images import sample
from t2i.tracking import NoTracker
from t2i.training.early_stop import in_words
from t2i.training.loop import Hooks, Schedule, train
from t2i.training.recorder import Recorder, recording
from t2i.training.signals import Interrupted, Stop

log = logging.getLogger(__name__)
ASK_EVERY = 10  # steps


def run(
    cfg: DictConfig, plan: Plan, folder: Path, overrides: list[str], choices: dict[str, str] | None = None
) -> float:
    """Train the configuration `cfg` in `folder`; returns the final val/loss.

    overrides, choices: the command line and the option of each group, noted in the run folder.
    """
    parent = open_parent(cfg, folder)
    run = Run(folder, cfg, writes=int(os.environ.get("RANK", 0)) == 0, overrides=overrides)
    publisher = Publisher(**cfg.hub)
    if run.finished:
        log.info("%s is finished already; %s %.6f", folder, _measured(run), run.result)
        if run.writes and "pushed" not in run.info:
            publisher.publish(folder)
        return run.result

    if run.writes:
        publisher.check()
    with run.claimed(), naming(folder):
        origin = hold(parent, run, cfg, plan) if parent and run.writes else {}
        before = dict(run.info)
        begun_by = {"launchers": peers().launchers} if peers().launchers else {}
        run.begin(overrides=overrides, choices=choices or {}, **begun_by, **origin)
        peers().note = lambda failure: Run.mark(folder, state="failed", error=failure)
        stopping = Stop(cfg.max_hours, run.writes, slurm.ends_at())
        exactness = numerics(cfg.tf32, cfg.cudnn_benchmark, cfg.deterministic)
        with stopping as stop, failures_noted(run), peers().blamed(stop.hush), exactness:
            _train(cfg, plan, run, overrides, stop, before)
    if run.writes:
        for line in ended(run.folder, run.info, run.metrics(), cfg.steps):
            log.info("%s", line)
    if run.writes and run.finished:
        publisher.publish(folder)
    return run.result


def _measured(run: Run) -> str:
    """What `run.result` is, as a message calls it."""
    name = headline(run.final) or "val/loss"
    return name if name == "val/loss" else f"{name} (of images that it was trained on)"


def _train(cfg: DictConfig, plan: Plan, run: Run, overrides: list[str], stop: Stop, before: Mapping[str, Any]) -> None:
    """before: run.json as the last process left it."""
    experiment = assemble(cfg, plan, run.folder)
    plan = experiment.plan  # fitted to the model
    facts = describe(experiment)
    run.refuse_changes(facts)
    run.update(**facts)
    is_main = experiment.accelerator.is_main_process
    last_step = checkpoints.resume(run.checkpoints, experiment.state, Together(experiment.accelerator))
    if run.writes and (sentence := resumed(last_step, cfg.steps, before, run.metrics())):
        log.info("%s", sentence)
    if last_step is None and cfg["from"].run is not None:
        last_step = begin(experiment, run)
    if not is_main:
        experiment.meter.reset()  # the main process has the counts of all
    if run.writes and cfg.sample_every:
        write_real_images(run.folder, cfg.samples.prompts, experiment.data)
    tracker, since = plan.tracker if is_main else NoTracker(), -1 if last_step is None else last_step
    background = saves_in_background(cfg.save_in_background, experiment.accelerator.device)
    writer = CheckpointWriter(
        run.checkpoints, cfg.keep_checkpoints, cfg.keep_at, background, run.writes, unbroken=stop.unbroken
    )
    with recording(run, tracker, cfg.sweep, overrides, cfg.steps, since) as recorder, writer:
        to_call, done = hooks(experiment, run, recorder, stop, writer), last_step or 0
        if last_step is None or not to_call.ends_early():  # a run that was killed before its export has ended already
            with stop.patiently():
                done = train(
                    take_step=experiment.take_step,
                    lr_scheduler=experiment.optimization.lr_scheduler,
                    examples=experiment.examples,
                    schedule=schedule(cfg, done, experiment.accelerator.device),
                    hooks=to_call,
                    accelerator=experiment.accelerator,
                )
        writer.wait()
        ended_early = done < cfg.steps and to_call.ends_early()
        if ended_early and cfg.sample_every and done % cfg.sample_every:
            to_call.sample(done)
        if done == cfg.steps or ended_early:
            _finish(experiment, run, done)
        elif stop.signum is not None:
            raise Interrupted(stop.signum)
        else:
            run.end("paused", paused_at=done, final=run.latest())


def _finish(experiment: Experiment, run: Run, done: int) -> None:
    """Export the model of a run that has ended, and say so in run.json."""
    plan, optimization, is_main = experiment.plan, experiment.optimization, experiment.accelerator.is_main_process
    exported = (experiment.model, plan.scheduler, optimization.trained, optimization.ema)
    model = run.folder / "model"
    with replacing_folder(model, run.folder / ".model.tmp") if run.writes else nullcontext(model) as folder:
        plan.adapter.export(*exported, folder, is_main)
    if plan.adapter.needs_pretrained and (merged := experiment.cfg.model.get("adapters")):
        log.info("model/ holds adapters for %s with %s merged", experiment.cfg.model.path, " and ".join(merged))
    if run.writes:  # a power cut must not leave a finished run without its results
        RecordSync(run.folder)(done)
    steps, stopped = experiment.cfg.steps, {}
    if done < steps and (verdict := plan.early_stop.verdict(run.metrics())):
        stopped = {"early_stop": verdict}
        log.info("%s", in_words(verdict, steps))
    run.end("finished", final=run.latest(), **stopped)


def schedule(cfg: DictConfig, first_step: int, device: torch.device) -> Schedule:
    """How long, how large, how often, as the configuration says. device: that trains."""
    return Schedule(
        seed=cfg.seed,
        steps=cfg.steps,
        first_step=first_step,
        batch_size=cfg.batch_size,
        micro_batch_size=cfg.micro_batch_size,
        num_workers=worker_count(cfg.num_workers, device),
        log_every=cfg.log_every,
        validate_every=cfg.validate_every,
        sample_every=cfg.sample_every,
        evaluate_every=cfg.evaluate_every,
        save_every=cfg.save_every,
        keep_at=tuple(cfg.keep_at),
        stop_at=cfg.stop_at,
    )


def hooks(experiment: Experiment, run: Run, recorder: Recorder, stop: Stop, writer: CheckpointWriter) -> Hooks:
    """What the loop calls between steps: validation, samples, the records and checkpoints of the run folder."""
    cfg, plan, model, accelerator = experiment.cfg, experiment.plan, experiment.model, experiment.accelerator
    ema = experiment.optimization.ema

    def validate(step: int) -> dict[str, float]:
        with uncompiled(cfg.compile):
            metrics, errors = evaluate_all(experiment.batteries, model, plan.diffusion, ema, accelerator, step)
        for name, battery in experiment.batteries.items():
            recorder.errors(step, battery, errors[name], name)
        at_start = metrics if step == 0 else next((line for line in run.metrics() if line["step"] == 0), {})
        metrics |= gaps_since_start(metrics, at_start)
        if step == 0 and experiment.unquantized is not None:
            raw = next(iter(errors.values()))[""]
            cost = quantization_cost(cfg.model.quantize, experiment.unquantized, raw, experiment.battery, plan)
            run.update(quantization_cost=cost)
            log.info("%s", sentence(cost))
        return metrics

    def sample_images(step: int) -> None:
        mine = processes.assigned(range(len(cfg.samples.prompts)), accelerator)
        with ema.applied(), evaluating(model.denoiser), uncompiled(cfg.compile):
            settings = {key: value for key, value in cfg.samples.items() if key != "prompts"}
            images = sample(model.sampler(plan.scheduler), experiment.prompts, **settings, places=mine)
        model.rest()
        by_place = dict(gather_object(list(zip(mine, images, strict=True))))
        if accelerator.is_main_process:
            recorder.images(step, cfg.samples.prompts, [by_place[place] for place in sorted(by_place)])

    def judge_images(step: int) -> dict[str, float]:
        assert experiment.images is not None
        trained = experiment.optimization.trained.weights
        with ema.applied(), evaluating(model.denoiser), uncompiled(cfg.compile):
            pipeline, weights = model.sampler(plan.scheduler), identify(trained)
            found = evaluate_images(
                experiment.images, run.folder, step, pipeline, experiment.judged_prompts, weights, accelerator
            )
        model.rest()
        return found

    sync_records = RecordSync(run.folder)

    def save(step: int) -> None:
        vouched = sync_records(step) if run.writes else {}
        writer.save(step, experiment.state, run.validated(), vouched, done=partial(release, run.folder))

    asked = _should_stop(stop, accelerator, cfg.log_every)

    def should_stop(step: int) -> bool:
        writer.check()
        return asked(step)

    return Hooks(
        meter=experiment.meter,
        validate=validate,
        sample=sample_images,
        evaluate=judge_images,
        log=recorder.log,
        snapshot=_snapshots(experiment, run),
        save=save,
        should_stop=should_stop,
        ends_early=partial(_ends_early, plan, run, accelerator),
    )


def _snapshots(experiment: Experiment, run: Run) -> Callable[[int], None]:
    """Stores the average of the weights in a file of its own after the steps at which it asks for that."""
    ema = experiment.optimization.ema
    due = ema.snapshot_steps(experiment.cfg.steps)

    def snapshot(step: int) -> None:
        if step in due:
            state = experiment.state["ema"].state_dict()  # complete tensors, which all processes gather
            if run.writes:
                write_snapshot(run.folder, step, ema.snapshot(state))

    return snapshot


def _ends_early(plan: Plan, run: Run, accelerator: Accelerator) -> bool:
    """Whether the last validation ends the run: the main process, which has written it, decides."""
    if plan.early_stop.patience is None:
        return False
    return _any_process(lambda: run.writes and plan.early_stop.verdict(run.metrics()) is not None, accelerator)


def _should_stop(stop: Stop, accelerator: Accelerator, log_every: int) -> Callable[[int], bool]:
    """Whether to stop after a step. Several processes ask one another where they log, and every 10th step at least.

    On a GPU the answer has to wait until all steps before it are done.
    """
    if accelerator.num_processes == 1:
        return lambda step: stop()
    every = min(log_every or ASK_EVERY, ASK_EVERY)
    return lambda step: step % every == 0 and _any_process(stop, accelerator)


def _any_process(asks: Callable[[], bool], accelerator: Accelerator) -> bool:
    """Whether any process asks to stop: all stop at the same step."""
    asked = asks()
    if accelerator.num_processes > 1:
        asked = bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device)) > 0)
    return asked
