"""tpcli: temporal schedules of token-level credit for RL with verifiable rewards.

The flow of the work is the layout of the folders:

    recipe -> data -> rollout -> reward -> credit -> loss -> optim -> metrics -> registry
    (what)   (prompts) (responses) (scores) (who learns, and when)  (step)  (numbers) (memory)

``train/`` turns that flow into a loop, ``jobs/`` turns the loop into a use case, ``cli/`` into a
command. ``credit/`` and ``loss/`` are pure functions over tensors: import them into any trainer.
"""

__version__ = "0.1.0"
