"""The parameters of DSPy's other optimizers, and what stands for each of them here."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

__all__ = ["advice_on", "unknown_keywords_text"]

_TABLE: Final = "docs/coming-from-gepa.md compares the parameters"
_BUDGET: Final = "use max_iterations or auto: the budget is max_iterations * len(trainset) + len(valset) units"
_ROOT: Final = "use root_lm, the LM that writes the prompts"
_AGENT: Final = "leave it out: the agent decides that while it works"
_NO_DEMOS: Final = "leave it out: only instructions are changed, and demos of the student are kept"
_TEMPERATURE: Final = "set it on the LM: root_lm=dspy.LM(..., temperature=1.0)"
_TRACKED: Final = "leave it out: everything is in optimized.optimization_result, and in the store of run_storage_dir"
_ERRORS: Final = "leave it out: an example that fails is a row with an error and a score of 0, and the work goes on"
_NO_LOGGER: Final = "leave it out: run_storage_dir keeps everything, and DSPy's callbacks see compile"
_NOT_HERE: Final = "there is nothing like it here"

# What to do about a parameter of another optimizer. A test holds the names against those of the installed DSPy.
_ADVICE: Final[Mapping[str, str]] = {
    # GEPA
    "reflection_lm": _ROOT,
    "max_metric_calls": _BUDGET,
    "max_full_evals": _BUDGET,
    "log_dir": "use run_storage_dir, and compile(..., resume=True) to go on",
    "track_stats": _TRACKED,
    "track_best_outputs": _TRACKED,
    "reflection_minibatch_size": _AGENT,
    "candidate_selection_strategy": _AGENT,
    "component_selector": _AGENT,
    "skip_perfect_score": _AGENT,
    "use_merge": _AGENT,
    "max_merge_invocations": _AGENT,
    "add_format_failure_as_feedback": "leave it out: the agent always sees an answer that could not be parsed",
    "failure_score": "leave it out: an example that fails scores 0",
    "instruction_proposer": "leave it out: the agent, root_lm, writes the prompts",
    "code_proposer": "leave it out: only instructions are changed",
    "warn_on_score_mismatch": _NOT_HERE,
    "gepa_kwargs": _NOT_HERE,
    "use_wandb": _NO_LOGGER,
    "wandb_api_key": _NO_LOGGER,
    "wandb_init_kwargs": _NO_LOGGER,
    "use_mlflow": _NO_LOGGER,
    # MIPROv2, COPRO, SIMBA, InferRules, AvatarOptimizer
    "prompt_model": _ROOT,
    "task_model": "use eval_lm, the LM that runs the program",
    "num_trials": _BUDGET,
    "max_steps": _BUDGET,
    "max_iters": _BUDGET,
    "num_candidates": _AGENT,
    "num_candidate_programs": _AGENT,
    "breadth": _AGENT,
    "depth": _AGENT,
    "bsize": _AGENT,
    "minibatch": _AGENT,
    "minibatch_size": _AGENT,
    "minibatch_full_eval_steps": _AGENT,
    "view_data_batch_size": _AGENT,
    "num_rules": _AGENT,
    "program_aware_proposer": "use share_source=True, which shows the agent the program's source",
    "data_aware_proposer": "leave it out: the agent sees the training examples",
    "tip_aware_proposer": _NOT_HERE,
    "fewshot_aware_proposer": _NO_DEMOS,
    "requires_permission_to_run": "leave it out: nothing is asked; max_cost_usd is a limit",
    "init_temperature": _TEMPERATURE,
    "temperature_for_sampling": _TEMPERATURE,
    "temperature_for_candidates": _TEMPERATURE,
    "lower_bound": _NOT_HERE,
    "upper_bound": _NOT_HERE,
    "max_positive_inputs": _AGENT,
    "max_negative_inputs": _AGENT,
    "optimize_for": _NOT_HERE,
    "eval_kwargs": "leave it out: num_threads is a parameter of the constructor",
    # those that choose demos or train weights
    "max_bootstrapped_demos": _NO_DEMOS,
    "max_labeled_demos": _NO_DEMOS,
    "max_demos": _NO_DEMOS,
    "max_rounds": _NO_DEMOS,
    "demo_input_field_maxlen": _NO_DEMOS,
    "labeled_sample": _NO_DEMOS,
    "few_shot_bootstrap_args": _NO_DEMOS,
    "exclude_demos": _NO_DEMOS,
    "k": _NO_DEMOS,
    "vectorizer": _NO_DEMOS,
    "sample": _NO_DEMOS,
    "restrict": _NOT_HERE,
    "multitask": _NOT_HERE,
    "train_kwargs": _NOT_HERE,
    "adapter": "use root_adapter for the agent; the program's adapter is that of dspy.configure",
    "teacher_settings": "leave it out: no teacher is used",
    "metric_threshold": "use target_score, in percent, to end the work at a score",
    "stop_at_score": "use target_score, in percent",
    "max_errors": _ERRORS,
    "provide_traceback": _ERRORS,
    "optimizers": _NOT_HERE,
    "strategy": _NOT_HERE,
    "valset_ratio": "pass the rows: compile(..., valset=...)",
    "shuffle_trainset_between_steps": _AGENT,
    "optimizer_compile_args": _NOT_HERE,
    "reduce_fn": _NOT_HERE,
    "size": _NOT_HERE,
    "deterministic": _NOT_HERE,
    "programs": _NOT_HERE,
}


def advice_on(name: str, known: Iterable[str], elsewhere: Iterable[str] = (), *, place: str = "") -> str | None:
    """What to do about an unknown parameter; None: there is nothing to say.

    `known` are the names that are taken here, `elsewhere` those that are taken in another `place`.
    """
    others = tuple(elsewhere)
    if name in others:
        return f"it is a parameter of {place}"
    if name in _ADVICE:
        return _ADVICE[name]
    near = difflib.get_close_matches(name, [*known, *others], 1)
    return f"did you mean {near[0]!r}?" if near else None


def unknown_keywords_text(
    called: str, names: Collection[str], known: Iterable[str], elsewhere: Iterable[str], place: str
) -> str:
    """The message for a call of `called` with unknown keywords, each with the advice on it."""
    told: list[str] = []
    for name in names:
        advice = advice_on(name, known, elsewhere, place=place)
        told.append(f"{name!r} ({advice})" if advice else repr(name))
    table = f"; {_TABLE}" if any(name in _ADVICE for name in names) else ""
    return f"{called} has no parameter {', '.join(told)}{table}"
