"""The training stage: data/shards + data/tokenizer -> models/chat, metrics/train.json, history."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.corpus import MANIFEST_FILE, SHARDS, TOKENIZER, TokenStream, read_manifest
from stages.errors import run
from stages.files import output_folder, rounded, sha256_file, write_json
from stages.params import read, read_yaml
from stages.place import launched
from stages.progress import say
from stages.runtime import RuntimeParams, peak_memory_mib, start_torch
from stages.trackers import WandbParams, open_tracker
from stages.train.params import ModelParams, Seed, TrainParams
from stages.train.shape import config_of_start

if TYPE_CHECKING:
    from model.config import ModelConfig
    from stages.train.loop import TrainState

MODEL = Path("models/chat")
METRICS = Path("metrics/train.json")
HISTORY = Path("metrics/history.csv")
# Timings and hardware: neither outputs nor committed.
LOCAL = Path("metrics/train.local.json")
SPEED = Path("metrics/speed.local.csv")


def main() -> None:
    seed = read("seed", Seed)
    model_params, params = read("model", ModelParams), read("train", TrainParams)
    runtime, tracker_params = read("runtime", RuntimeParams), read("wandb", WandbParams)
    manifest = read_manifest()
    config = config_of_start(
        model_params.config(manifest["vocab_size"], manifest["control_ids"], params.document_mask),
        params.init_from,
    )
    if runtime.processes > 1 and not launched():
        params.check_processes(runtime.processes, runtime.parallel)
        from stages.train.launch import launch

        launch(runtime.processes)
        return

    device = start_torch(runtime)

    import torch

    from model.flops import flops_per_token
    from stages.scoring import score
    from stages.train.checkpoints import Checkpoints
    from stages.train.data_order import DataOrder, name_lines
    from stages.train.engine import build, full_weights
    from stages.train.fingerprint import code_sums
    from stages.train.history import write_speeds
    from stages.train.loop import Training, TrainState, train
    from stages.train.meter import Meter, peak_flops
    from stages.train.prefetch import Prefetcher
    from stages.train.processes import joined
    from stages.train.saves import Trained
    from stages.train.schedule import steps_without_end
    from stages.train.start import start_sum

    with joined(device) as processes:
        order = DataOrder(
            TokenStream(manifest, "train"),
            config.seq_len,
            params.sequences_per_step,
            seed,
            params.loss_on == "assistant",
            params.document_mask,
        )
        validation = TokenStream(manifest, "validation")
        total_steps = params.max_steps or order.steps(params.epochs)
        tokens_per_step = params.sequences_per_step * config.seq_len
        share = params.sequences_per_process(processes.count)
        meter = Meter(device)
        engine = build(config, params, runtime, seed, device, processes, meter)
        precision, parameters = engine.precision, config.num_parameters()

        among = f" among {processes.count} processes" if processes.count > 1 else ""
        say(
            f"train: {parameters:,} parameters, {total_steps:,} steps of {tokens_per_step:,} "
            f"tokens, {precision.name} on {device.type}{among}"
        )
        if params.mixed_precision is True and precision.dtype == torch.float32:
            say("train: this device has no fast bfloat16 or float16, so mixed precision is off")
        if params.bf16_weights and precision.dtype != torch.bfloat16:
            say(f"train: weights stay float32, as products are {precision.name}")
        if params.warmup_steps >= total_steps:
            say(
                f"train: all {total_steps} steps are warm-up "
                f"(train.warmup_steps {params.warmup_steps}): lower it, or raise train.epochs"
            )

        def validate() -> float:
            with torch.compiler.set_stance("force_eager"):
                result = score(
                    engine.network.model,
                    validation,
                    params.eval_tokens,
                    partial(engine.spread_network, per_token=True),
                    processes.share(),
                )
            return result.assistant_loss if params.loss_on == "assistant" else result.loss

        # All that decides the result, so that state is never resumed under anything else.
        decides = {
            "params": {
                "seed": seed,
                "model": model_params.model_dump(),
                "train": params.model_dump(),
            },
            "data": {
                "manifest": sha256_file(SHARDS / MANIFEST_FILE),
                "start": start_sum(params.init_from),
            },
            "code": code_sums(),
            "software": {
                "torch": torch.__version__,
                "device": device.type,
                "precision": precision.name,
            },
        }
        trained = Trained(engine.model, engine.optimizers, precision, processes)
        common = steps_without_end(total_steps, params) if params.schedule == "wsd" else None
        peak = peak_flops(device, precision.dtype) * processes.count
        with (
            Checkpoints(runtime, decides, trained, common) as checkpoints,
            Prefetcher(
                lambda step: order.batch(step, processes.rank * share, share), total_steps
            ) as read_batch,
            open_tracker(tracker_params, runtime, checkpoints.folder, read_yaml()) as tracker,
        ):
            state = checkpoints.resume() or TrainState()
            if engine.masters is not None:
                engine.masters.publish()
            started, tokens_before = time.perf_counter(), state.tokens
            train(
                Training(
                    read=read_batch,
                    update=engine.updater,
                    validate=validate,
                    weights=lambda: full_weights(engine.model),
                    tracker=tracker,
                    meter=meter,
                    after_step=checkpoints.after_step,
                    documents=lambda step: name_lines(order.documents(step)),
                    share=lambda speed: speed * flops_per_token(config) / peak,
                ),
                params,
                tokens_per_step,
                total_steps,
                state,
                may_overflow=precision.scaler.is_enabled(),
            )
            seconds = time.perf_counter() - started
            checkpoints.keep_last(state)
            metrics = processes.from_first(
                lambda: write_results(state, config, parameters, manifest["tokenizer_sha256"])
            )
            tracker.summary({"train": metrics})
            tracker.made(MODEL)

        if processes.first and state.tokens > tokens_before:
            speed = (state.tokens - tokens_before) / seconds
            write_speeds(state.speeds, SPEED)
            write_json(
                LOCAL,
                {
                    "seconds": round(seconds, 1),
                    "tokens_per_second": round(speed),
                    "mfu": rounded(speed * flops_per_token(config) / peak, 3),
                    **meter.report(),
                    "peak_memory_mib": peak_memory_mib(device),
                    "peak_tflops": rounded(peak / 1e12, 3),
                    "device": str(device),
                    "precision": precision.name,
                    "processes": processes.count,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                },
            )


def write_results(
    state: "TrainState", config: "ModelConfig", parameters: int, tokenizer_sha256: str
) -> dict[str, Any]:
    """Writes the best model, the history and the metrics, which it returns."""
    from model.flops import flops_per_token
    from model.saving import save_model
    from stages.train.history import write_history

    with output_folder(MODEL) as folder:
        save_model(folder, config, state.best_weights, TOKENIZER, tokenizer_sha256)
        write_history(state.history, HISTORY)
        last = state.history[-1]
        metrics = {
            "steps": state.step,
            "skipped_steps": state.skipped,
            "tokens": state.tokens,
            "parameters": parameters,
            "flops": rounded(state.tokens * flops_per_token(config), 4),
            "initial_val_loss": rounded(state.history[0].val_loss),
            "train_loss": None if last.train_loss is None else rounded(last.train_loss),
            "val_loss": rounded(last.val_loss),
            "best_val_loss": rounded(state.best_val_loss),
            "best_step": state.best_step,
        }
        write_json(METRICS, metrics)
    return metrics


if __name__ == "__main__":
    run("train", main)
