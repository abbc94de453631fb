# The study's commands; `make help` lists them.
TASK ?= maze2d-umaze
SUITE ?=
PROFILE ?= quick
METHODS ?=
SEEDS ?=
DEVICE ?= auto
RUNS ?= runs
CLUSTER ?=
BIN := .venv/bin
REPRODUCE = $(BIN)/aepo reproduce --cluster "$(CLUSTER)" --task "$(TASK)" --suite "$(SUITE)" --profile "$(PROFILE)" --methods "$(METHODS)" --seeds "$(SEEDS)" --device "$(DEVICE)" --runs-dir "$(RUNS)"

ifeq ($(shell uname),Darwin)
SETUP_MB := 3000
else
SETUP_MB := 4000
endif

.PHONY: help setup reproduce theory evaluate ablations test test-browser test-survival lab bench gpu gpu-wheels results figures notebooks example site

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables: TASK=$(TASK) (or a,b,c) SUITE=maze2d PROFILE=$(PROFILE) (smoke, quick, study, full) METHODS=a,b SEEDS=n DEVICE=auto RUNS=runs CLUSTER=slurm"

setup: ## build .venv from the exact pins of requirements.txt
	@AEPO_SETUP_MB=$(SETUP_MB) sh scripts/setup.sh

reproduce: setup ## data, training, evaluation, figures and the table of results, of one task or many
	@$(REPRODUCE)

theory: setup ## the notebooks that need no task: the derivation (01) and the exactly solvable problems (02)
	@$(BIN)/aepo theory --profile "$(PROFILE)" --seeds "$(SEEDS)" --runs-dir "$(RUNS)"

test: setup ## unit and stage tests, every notebook at the smoke profile against its stored outputs, ruff, types
	@sh scripts/test.sh

test-browser: setup ## run every notebook in JupyterLab in Chromium; pictures of them in .test/browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_lab.py -m lab -rs

test-survival: setup ## kill 60 stages and parents at random moments, resume, compare bytes (KILLS=60)
	@$(BIN)/python scripts/survival.py --kills $(or $(KILLS),60) --seed 0

lab: setup ## JupyterLab on the notebooks, at 127.0.0.1 with its token
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ip=127.0.0.1 --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/01_closed_form_guidance.ipynb $(LAB)

bench: setup ## time every stage, sampling and loading on this machine: runs/bench.csv, notebook 10 and its figures
	@$(BIN)/python -m benchmarks.bench --device "$(DEVICE)" --output "$(RUNS)/bench.csv" $(BENCH)
	@$(BIN)/aepo performance --profile "$(PROFILE)" --device "$(DEVICE)" --runs-dir "$(RUNS)"

gpu: ## tests, timings and tasks at full on a GPU without a network, at most 8 minutes (GPU="--seconds 300 --parts study")
	@$(firstword $(wildcard $(BIN)/python) python3) scripts/gpu.py $(GPU)

gpu-wheels: setup ## put into wheels/ what make gpu needs beside torch, NumPy and pandas
	@$(BIN)/python scripts/gpu_wheels.py

evaluate: setup ## as reproduce, to the same numbers, without notebooks and figures: for many tasks on few cores
	@$(BIN)/aepo evaluate --task "$(TASK)" --suite "$(SUITE)" --profile "$(PROFILE)" --methods "$(METHODS)" --seeds "$(SEEDS)" --device "$(DEVICE)" --runs-dir "$(RUNS)"

ablations: setup ## one setting changed at a time, on evaluated tasks: rows of results.csv that notebook 11 shows
	@$(BIN)/aepo ablations --task "$(TASK)" --profile "$(PROFILE)" --methods "$(METHODS)" --seeds "$(SEEDS)" --device "$(DEVICE)" --runs-dir "$(RUNS)"

results: setup ## print the study's tables and draw its figures from runs/results.csv alone
	@$(BIN)/aepo results --profile "$(PROFILE)" --runs-dir "$(RUNS)"

figures: setup ## draw the study's figures from runs/results.csv, and nothing else
	@$(BIN)/aepo results --no-tables --profile "$(PROFILE)" --runs-dir "$(RUNS)"

notebooks: setup ## run the committed notebooks at the smoke profile and store their outputs
	@sh scripts/notebooks.sh

example: setup ## of the quick run: seed 0 as the tracked example policy, executed notebooks into docs/quick
	@sh scripts/example.sh "$(RUNS)" "$(TASK)"

site: setup ## the pages and notebooks, with their stored outputs, as a site with a search in site/
	@AEPO_SETUP_MB=500 sh scripts/setup.sh docs/requirements.txt
	@rm -rf site && $(BIN)/python -m sphinx -q -W --keep-going -c docs -d .test/site -b html . site && rm -rf jupyter_execute && echo "site/index.html"
