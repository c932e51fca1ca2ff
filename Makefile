# Thin on purpose: scripts/ does the work. V=1 shows everything; ARGS="..." is passed on to pytest, or to the run.
.PHONY: demo test check bench faults clean setup engine

demo: ## from a fresh clone to a recorded run
	@scripts/demo.sh $(ARGS)

test: ## everything, on a real engine
	@scripts/test.sh $(ARGS)

check: ## lint, types and the tests that need no engine
	@scripts/check.sh $(ARGS)

bench: setup engine ## what docs/ says of speed, measured here
	@.venv/bin/python -m bench $(ARGS)

faults: ## 207 short runs, each with a real fault at a random moment; ARGS="--runs N --seed N --only FAULT"
	@scripts/faults.sh $(ARGS)

setup:
	@scripts/setup.sh

engine:
	@scripts/engine-up.sh

clean: ## what can be made again; keeps runs/, mlflow.db, conf/local/, fetched data and the engine's images
	rm -rf .venv .repro .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
