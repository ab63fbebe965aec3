"""Epochs of an endless stream, and the work at their ends."""

from fractions import Fraction

from transformers import TrainerCallback

from .mixture import Mixture


STRATEGIES = {"logging_strategy": "should_log", "eval_strategy": "should_evaluate", "save_strategy": "should_save"}


def check_strategies(args, mixture: Mixture) -> None:
    """
    Raises:
        ValueError: for a strategy `epoch` with tar shards, whose epochs have no known length.
    """
    for name in STRATEGIES:
        if vars(args)[name] == "epoch" and mixture.steps_an_epoch is None:
            raise ValueError(
                f"`{name}` is epoch, but the number of samples in tar shards is unknown: use `steps`, and set their "
                "number."
            )


def is_end(step: int, steps: Fraction) -> bool:
    """Whether an epoch of `steps` optimizer steps ends at a step."""
    return step // steps > (step - 1) // steps


class Epochs(TrainerCallback):
    """
    Counts epochs of the data, since the library counts the whole run as one, and applies the strategies `epoch` at
    their ends.

    Args:
        steps (`Fraction`): Optimizer steps per epoch.
    """

    def __init__(self, steps: Fraction):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = float(state.global_step / self.steps)
        if is_end(state.global_step, self.steps):
            for name, flag in STRATEGIES.items():
                is_early = name == "eval_strategy" and state.epoch < args.eval_delay
                if vars(args)[name] == "epoch" and not is_early:
                    setattr(control, flag, True)

    def on_epoch_end(self, args, state, control, **kwargs):
        """At the end of the run, which ends the library's one epoch, skips what `on_step_end` has just done."""
        if is_end(state.global_step, self.steps):
            for name, flag in STRATEGIES.items():
                if vars(args)[name] == "epoch":
                    setattr(control, flag, False)
