"""The smallest experiment: some numbers, one file."""

import random

import repro_run

config = repro_run.config()
repro_run.seed()

value = 0.0
for step in range(config.params.steps):
    value += random.random()
    repro_run.log(step=step, value=value)

(repro_run.outputs() / "result.txt").write_text(f"{value}\n")
print(f"value {value:.3f}")
