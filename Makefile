# Entry points for people and for CI. `make` alone lists them; each one sets up .venv by itself when that is needed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Compiled modules are kept, whatever the environment says: four pytest workers and every process that a test starts read them.
export PYTHONDONTWRITEBYTECODE =

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
RUNS ?=
SEED ?=
ARGS ?=

.PHONY: help setup run promises test test-fast test-chaos test-kube sim chaos bench bench-recovery bench-overhead \
        bench-elastic bench-schedule bench-reshard bench-placement bench-plan-rules bench-plan-scale bench-plan-regret \
        bench-plan-accuracy check format-check lint types layers drift format protos generate lock clean

help: ## Print these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Create .venv from requirements.lock and install the project into it

$(STAMP): requirements.lock pyproject.toml tools/setup.sh
	@PYTHON="$(PYTHON)" tools/setup.sh
	@touch $@

run: setup ## Train the main job on 4 nodes + 1 spare, kill a node mid-step, compare with an undisturbed run
	@$(BIN)/python -m bench.main_job $(ARGS)

test: setup ## Run all tests (ARGS="-k name" narrows)
	@tools/test.sh $(BIN) $(ARGS)

test-fast: setup ## Run the tests that need no Ray cluster
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not ray and not chaos and not slow and not kube" $(ARGS)

test-chaos: setup ## Run the tests that kill, stop and cut off real processes
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "chaos and not kube" $(ARGS)

test-kube: setup ## Run the tests on Kubernetes: a real control plane and pods in namespaces of this machine, or a cluster of yours
	@test -n "$${KUBEBUILDER_ASSETS:-}" || tools/kube_assets.sh >/dev/null
	@$(BIN)/python -m tests.kube $(ARGS)

promises: setup ## Kill, swap, shrink, grow, re-cut and drain by a script: the bits of an undisturbed run; published step times (ARGS=--published: those only)
	@$(BIN)/python -m bench.promises $(ARGS)

sim: setup ## Simulate RUNS=n seeds of faults, or replay one with SEED=n
	@$(BIN)/python -m orchestrator.testkit.sim $(if $(SEED),--runs 1 --seed $(SEED),--runs $(or $(RUNS),200)) $(ARGS)

chaos: setup ## Storms: RUNS=n seeded runs of mixed faults on real processes, or replay one with SEED=n
	@$(BIN)/python -m bench.storms $(if $(SEED),--seed $(SEED),--runs $(or $(RUNS),30)) $(ARGS)

bench: bench-recovery bench-overhead bench-elastic bench-schedule bench-reshard bench-placement bench-plan-rules bench-plan-scale \
       bench-plan-regret bench-plan-accuracy ## Run all benchmarks

bench-recovery: setup ## Time from kill -9 to the next step, ours beside torchrun and torchft
	@$(BIN)/python -m bench.recovery $(ARGS)

bench-overhead: setup ## Cost without faults, ours over a plain DDP loop
	@$(BIN)/python -m bench.overhead $(ARGS)

bench-elastic: setup ## Time to go on with one rank less after a node loss, and the pause to grow back
	@$(BIN)/python -m bench.elastic $(ARGS)

bench-schedule: setup ## Time and memory to plan the reshard of 260 B parameters on 1,024 ranks
	@$(BIN)/python -m bench.schedule $(ARGS)

bench-reshard: setup ## Time to move 1 GiB of optimizer state 4 -> 3 and 3 -> 4, beside raw gloo and DCP
	@$(BIN)/python -m bench.reshard $(ARGS)

bench-placement: setup ## Ranks to devices on 200 random traffic graphs, beside exhaustive search
	@$(BIN)/python -m bench.placement $(ARGS)

bench-plan-rules: setup ## The planner's choice beside the rules that people use, on public models and clusters
	@$(BIN)/python -m bench.plan_rules $(ARGS)

bench-plan-scale: setup ## Time and memory to plan 260 B parameters on 10,000 devices
	@$(BIN)/python -m bench.plan_scale $(ARGS)

bench-plan-regret: setup ## The planner's choice beside exhaustive search on 300 small problems
	@$(BIN)/python -m bench.plan_regret $(ARGS)

bench-plan-accuracy: setup ## Predicted step time and memory beside plans that are really run here
	@$(BIN)/python -m bench.plan_accuracy $(ARGS)

check: format-check lint types layers drift test ## Everything CI checks: format, lint, types, layers, drift, tests

format-check: setup
	@$(BIN)/ruff format --check .

lint: setup ## Lint
	@$(BIN)/ruff check .

types: setup ## Check static types
	@$(BIN)/mypy

layers: setup ## Check the import contracts
	@$(BIN)/lint-imports

drift: setup ## Check that generated files are what their sources generate
	@tools/drift.sh

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

protos: setup ## Generate Python from protos/orchestrator/v1
	@tools/generate.sh protos .

generate: setup ## Generate everything that is generated: protos, JSON Schema, state diagram
	@tools/generate.sh all .

lock: ## Write requirements.lock from what .venv holds
	@tools/lock.sh

clean: ## Remove .venv, caches and build leftovers
	@rm -rf $(VENV) build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find orchestrator bench tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
